"""Random networks of a search space: the baseline of a search."""

from __future__ import annotations

from dataclasses import replace

import torch

from darts_lite.architecture.cost import CostTable
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import PRESETS
from darts_lite.architecture.space import SearchSpace
from darts_lite.errors import UserError

SIZE_CLASS = 0.1  # largest relative difference in parameters between networks of one size class
DRAWS = 10_000  # draws per random genotype; about ten seconds


def uniform_random(space: SearchSpace, generator: torch.Generator) -> SearchSpace:
    """Return a discrete space drawn uniformly: `keep` edges per node, one option per edge.

    Arguments:
        space: the search space.
        generator: CPU generator.
    """

    def pick(count: int, size: int) -> list[int]:
        return sorted(torch.randperm(count, generator=generator)[:size].tolist())

    cells = []
    for cell in space.cells:
        kept = [
            cell.into(node)[i]
            for node in range(cell.inputs, cell.inputs + cell.nodes)
            for i in pick(len(cell.into(node)), min(cell.keep, len(cell.into(node))))
        ]
        edges = tuple(
            replace(e, operations=(e.options[pick(len(e.options), 1)[0]],))
            for e in (cell.edges[i] for i in kept)
        )
        cells.append(replace(cell, edges=edges))
    return replace(space, cells=tuple(cells))


def random_genotypes(
    like: Genotype, count: int, limit: int | None = None, draws: int = DRAWS, first: int = 0
) -> list[Genotype]:
    """Return random genotypes of about the size of a given genotype, with the same recipe.

    Genotype i is drawn uniformly from the space of `like` by a generator of seed `first + i`.
    Draws are repeated until the number of parameters is within a tenth of the number of `like` and
    at most `limit`, and the genotype differs from `like` and from all genotypes before it. A larger
    `count` therefore does not change the first genotypes.

    Arguments:
        like: genotype that gives space, size and recipe.
        count: number of genotypes.
        limit: parameter limit; None for no limit.
        draws: largest number of draws per genotype.
        first: seed of the first genotype.
    Raises: `UserError` if `draws` draws find no such genotype.
    """
    space, image, classes = whole_space(like.space), like.image, len(like.classes)
    table = CostTable(space, image, classes)
    costs = {
        (cell.name, replace(edge, operations=(option,))): cost
        for cell in space.cells
        for edge, row in zip(cell.edges, table.costs[cell.name])
        for option, cost in zip(edge.options, row)
    }
    taken, found = [like.space], []
    for number in range(count):
        generator = torch.Generator().manual_seed(first + number)
        for _ in range(draws):
            drawn = uniform_random(space, generator)
            cost = table.constant
            for cell, edge in drawn.edges:
                cost += costs[cell.name, edge]
            fits = limit is None or cost.parameters <= limit
            alike = abs(cost.parameters / like.parameters - 1) <= SIZE_CLASS
            if fits and alike and drawn not in taken:
                break
        else:
            raise UserError(
                f"the space {space.preset} at {space.channels} channels must have {count} other "
                f"networks within a tenth of {like.parameters} parameters, got {number} in {draws} "
                "draws; "
                + (f"use --random {number}" if number else "search again with other --channels")
            )
        taken.append(drawn)
        found.append(replace(like, space=drawn, parameters=cost.parameters, macs=cost.macs))
    return found


def whole_space(space: SearchSpace) -> SearchSpace:
    """Return the full search space that contains a discrete space.

    Arguments:
        space: the discrete space.
    Raises: `UserError` if it is not a member of a known search space.
    """
    preset = PRESETS.get(space.preset)
    whole = preset and preset(space.channels, len(space.sequence), space.stem_stride)
    if whole is None or whole.sequence != space.sequence:
        raise UserError(
            f"the space of the genotype must be one of {', '.join(PRESETS)}, got {space.preset!r}; "
            "search again"
        )
    return whole
