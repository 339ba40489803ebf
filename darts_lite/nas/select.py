"""Discrete spaces: the best by mixing weights under a hard cap, and random ones of its size."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import torch

from darts_lite.architecture.network import CostTable
from darts_lite.architecture.relaxation import Weights, option_scores
from darts_lite.architecture.space import PRESETS, Cell, Edge, Genotype, SearchSpace
from darts_lite.errors import UserError

SIZE_CLASS = 0.1  # how far from a genotype's parameters, as a part of them
DRAWS = 10_000  # for one random genotype; some ten seconds


class _Partial(NamedTuple):
    """Decisions for some nodes: what they cost, how probable they are, the edges chosen."""

    parameters: int
    score: float
    edges: tuple[tuple[str, Edge], ...]


def discretise(
    space: SearchSpace, weights: Weights, costs: CostTable, max_parameters: int | None = None
) -> SearchSpace:
    """The discrete space with the largest total score and at most `max_parameters`.

    Every node keeps its `keep` best edges, every edge one option; the score of an edge is the log
    of its chance to be kept plus `option_scores`. Parameters are additive over
    edges, so this is a multiple-choice knapsack; it is solved exactly by merging the Pareto fronts
    (parameters, score) of the nodes. Without a cap it is the argmax of each decision (DARTS).

    Raises: `UserError`, naming the smallest possible network, if none fits.
    """
    front = [_Partial(costs.constant.parameters, 0.0, ())]
    for cell in space.cells:
        scores = option_scores(cell, weights[cell.name]).tolist()
        edge = weights[cell.name].edge
        log_edges = None if edge is None else edge.clamp_min(1e-30).log().tolist()
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            choices = _node(cell, node, scores, log_edges, costs)
            merged = (_join(a, b) for a, b in itertools.product(front, choices))
            front = _pareto(merged)
    fitting = [p for p in front if max_parameters is None or p.parameters <= max_parameters]
    if not fitting:
        raise UserError(
            f"no network of this space fits {max_parameters} parameters: the smallest possible at "
            f"{space.channels} channels has {front[0].parameters}; raise --max-params or search "
            "with fewer --channels"
        )
    best = fitting[-1]
    return replace(
        space,
        cells=tuple(
            replace(cell, edges=tuple(edge for name, edge in best.edges if name == cell.name))
            for cell in space.cells
        ),
    )


def _node(
    cell: Cell,
    node: int,
    scores: list[list[float]],
    log_edges: list[float] | None,
    costs: CostTable,
) -> list[_Partial]:
    """The Pareto front of the decisions at one node."""
    fronts = {}
    for i in cell.into(node):
        edge = cell.edges[i]
        strength = 0.0 if log_edges is None else log_edges[i]
        fronts[i] = _pareto(
            _Partial(
                cost.parameters,
                strength + score,
                ((cell.name, replace(edge, operations=(option,))),),
            )
            for option, score, cost in zip(
                edge.options, scores[i], costs.costs[cell.name][i], strict=True
            )
        )
    keep = min(cell.keep, len(fronts))
    return _pareto(
        _join(*parts)
        for group in itertools.combinations(fronts, keep)
        for parts in itertools.product(*(fronts[i] for i in group))
    )


def _join(*parts: _Partial) -> _Partial:
    return _Partial(
        sum(p.parameters for p in parts),
        sum(p.score for p in parts),
        tuple(edge for p in parts for edge in p.edges),
    )


def _pareto(candidates: object) -> list[_Partial]:
    """Ascending in parameters and in score: nothing in it is worse in both than another."""
    front: list[_Partial] = []
    for candidate in sorted(candidates, key=lambda p: (p.parameters, -p.score)):  # type: ignore[call-overload]
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
    return front


def uniform_random(space: SearchSpace, generator: torch.Generator) -> SearchSpace:
    """A discrete space drawn uniformly: `keep` edges into each node, one option on each."""

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
    like: Genotype, count: int, max_parameters: int | None = None
) -> list[Genotype]:
    """Random genotypes of the size class of `like`, to be trained by the same recipe.

    Genotype i is drawn uniformly from the space of `like` by a generator of seed i, until its
    parameters are within a tenth of those of `like` and at most `max_parameters`, and it differs
    from `like` and from those before it: so the first ones are the same whatever `count`.

    Raises: `UserError` if `DRAWS` draws do not find one.
    """
    space, image, classes = _whole(like.space), like.image, len(like.classes)
    table = CostTable(space, image, classes)
    costs = {
        (cell.name, replace(edge, operations=(option,))): cost
        for cell in space.cells
        for edge, row in zip(cell.edges, table.costs[cell.name])
        for option, cost in zip(edge.options, row)
    }
    taken, found = [like.space], []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(DRAWS):
            drawn = uniform_random(space, generator)
            cost = table.constant
            for cell, edge in drawn.edges:
                cost += costs[cell.name, edge]
            fits = max_parameters is None or cost.parameters <= max_parameters
            alike = abs(cost.parameters / like.parameters - 1) <= SIZE_CLASS
            if fits and alike and drawn not in taken:
                break
        else:
            raise UserError(
                f"{DRAWS} random networks of the space {space.preset} at {space.channels} channels "
                f"hold only {seed} others within a tenth of {like.parameters} parameters: "
                + (f"use --random {seed}" if seed else "search again with other --channels")
            )
        taken.append(drawn)
        found.append(replace(like, space=drawn, parameters=cost.parameters, macs=cost.macs))
    return found


def _whole(space: SearchSpace) -> SearchSpace:
    """The space with all its options that a discrete space is a member of."""
    preset = PRESETS.get(space.preset)
    whole = preset and preset(space.channels, len(space.sequence), space.stem_stride)
    if whole is None or whole.sequence != space.sequence:
        raise UserError(
            f"the space {space.preset!r} of the genotype is none of {', '.join(PRESETS)}, so there "
            "is nothing to draw from; search again"
        )
    return whole
