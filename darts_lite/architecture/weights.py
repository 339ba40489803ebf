"""Mixing weights of a space: one weight per edge, operation and size.

A network does not depend on their origin: a relaxation of logits, one sampled path, or uniform
weights. Weights that are one for a single path, and zero beside it, name the path: the network then
evaluates nothing else, on slices of its weights, at the cost of the discrete network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.architecture.space import Cell, Operation, SearchSpace

Path = tuple[Operation | None, ...]  # concrete option of each edge; None: the edge is left out


class EdgeWeights(NamedTuple):
    """Mixing weights of one edge."""

    operations: tuple[Tensor, ...]  # scalars, multiplied by the weight of the edge
    edge: Tensor | None  # scalar; None means 1
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [n]
    option: Operation | None = None  # the only option with a weight, which is one; None for several


class CellWeights(NamedTuple):
    """Mixing weights of one cell with E edges and O operations per edge."""

    edge: Tensor | None  # [E], probabilities to be kept; None: every edge is kept
    operation: Tensor  # [E, O], rows sum to one
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [E, n], rows sum to one
    path: Path | None = None  # what has weights of one; None for a mixture

    def edges(self) -> list[EdgeWeights | None]:
        """Split the weights of the cell into those of its edges; None: not on the path."""
        count = self.operation.shape[0]
        scaled = self.operation if self.edge is None else self.operation * self.edge[:, None]
        rows = {o: {c: p.unbind() for c, p in cs.items()} for o, cs in self.choices.items()}
        edge: tuple[Tensor | None, ...] = (
            (None,) * count if self.edge is None else self.edge.unbind()
        )
        return [
            EdgeWeights(
                scaled_row.unbind(),
                edge[i],
                {o: {c: p[i] for c, p in cs.items()} for o, cs in rows.items()},
                None if self.path is None else self.path[i],
            )
            if self.path is None or self.path[i] is not None
            else None
            for i, scaled_row in enumerate(scaled.unbind())
        ]


Weights = dict[str, CellWeights]  # cell name -> weights


def on_path(cell: Cell, path: Path, like: Tensor) -> CellWeights:
    """Return the weights of one path: one for what is on it, zero beside it.

    Arguments:
        cell: Cell of the search space.
        path: Concrete option of each edge; None for an edge that is left out.
        like: Tensor whose type and device the weights have.
    """
    operations = cell.edges[0].operations
    names = [operation.name for operation in operations]
    rows = torch.tensor([0 if option is None else names.index(option.name) for option in path])
    edge = None
    if cell.edges_compete:
        edge = torch.tensor([float(option is not None) for option in path]).to(like)
    choices = {
        operation.name: {
            choice: _hot([_place(option, operation, choice) for option in path], len(sizes), like)
            for choice, sizes in operation.choices.items()
            if len(sizes) > 1
        }
        for operation in operations
    }
    return CellWeights(edge, _hot(rows.tolist(), len(operations), like), choices, path)


def _hot(places: list[int], size: int, like: Tensor) -> Tensor:
    return F.one_hot(torch.tensor(places), size).to(like)


def _place(option: Operation | None, operation: Operation, choice: str) -> int:
    """Return the place of the option's size; the first one for other operations."""
    if option is None or option.name != operation.name:
        return 0
    return operation.choices[choice].index(option.choices[choice][0])


def member_weights(space: SearchSpace, member: SearchSpace, like: Tensor) -> Weights:
    """Return the weights of the path of a discrete space in a search space.

    Arguments:
        space: Search space.
        member: Discrete space with some of its edges and options.
        like: Tensor whose type and device the weights have.

    >>> from darts_lite.architecture.presets import blocks
    >>> from darts_lite.nas.random_networks import uniform_random
    >>> member = uniform_random(blocks(length=3), torch.Generator().manual_seed(0))
    >>> weights = member_weights(blocks(length=3), member, torch.zeros(()))
    >>> weights["block1"].path == member.cell("block1").edges[0].operations
    True
    """
    weights: Weights = {}
    for cell in space.cells:
        chosen = {(e.source, e.target): e.operations[0] for e in member.cell(cell.name).edges}
        path = tuple(chosen.get((edge.source, edge.target)) for edge in cell.edges)
        weights[cell.name] = on_path(cell, path, like)
    return weights


def uniform(space: SearchSpace) -> Weights:
    """Return equal weights for all options, and equal probabilities of all edges to be kept.

    >>> from darts_lite.architecture.presets import blocks
    >>> uniform(blocks(length=3))["block1"].operation
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    weights = {}
    for cell in space.cells:
        count, operations = len(cell.edges), cell.edges[0].operations
        edge = None
        if cell.edges_compete:
            edge = torch.tensor([cell.keep / len(cell.into(e.target)) for e in cell.edges])
        choices = {
            o.name: {
                c: torch.full((count, len(s)), 1 / len(s))
                for c, s in o.choices.items()
                if len(s) > 1
            }
            for o in operations
        }
        even = torch.full((count, len(operations)), 1 / len(operations))
        weights[cell.name] = CellWeights(edge, even, choices)
    return weights


def option_probabilities(cell: Cell, weights: CellWeights) -> Tensor:
    """Return the probability of every concrete option of every edge.

    Arguments:
        cell: Cell of the search space.
        weights: Mixing weights of the cell.

    Returns:
        Probabilities [E, options], in the order of `Edge.options`.
    """
    return per_option(cell, weights.operation, weights.choices)


def per_option(
    cell: Cell, operation: Tensor, choices: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """Return products of one value per operation and one value per choice of the operation.

    Arguments:
        cell: Cell of the search space.
        operation: Values [E, O].
        choices: Values [E, n] by operation name and choice.

    Returns:
        Products [E, options], in the order of `Edge.options`.
    """
    columns = []
    for index, each in enumerate(cell.edges[0].operations):
        block = operation[:, index, None]
        for choice, sizes in each.choices.items():
            if len(sizes) > 1:
                p = choices[each.name][choice]
                block = (block[:, :, None] * p[:, None, :]).flatten(1)
        columns.append(block)
    return torch.cat(columns, 1)
