"""The continuous relaxation of a search space: from architecture logits to mixing weights.

Architecture logits are a flat dictionary outside the network, with one tensor per cell and kind of
decision. There are three softmaxes:

- over the edges into a node,
- over the operations of an edge,
- over the sizes of each conditional choice of an operation.

The weights of an operation and of its choices multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.space import Cell, SearchSpace


class EdgeWeights(NamedTuple):
    """Mixing weights of one edge."""

    operations: tuple[Tensor, ...]  # scalars, multiplied by the weight of the edge
    edge: Tensor | None  # scalar; None means 1
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [n]


class CellWeights(NamedTuple):
    """Mixing weights of one cell with E edges and O operations per edge."""

    edge: Tensor | None  # [E], probabilities to be kept; None: every edge is kept
    operation: Tensor  # [E, O], rows sum to one
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [E, n], rows sum to one

    def edges(self) -> list[EdgeWeights]:
        """Split the weights of the cell into the weights of its edges."""
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
            )
            for i, scaled_row in enumerate(scaled.unbind())
        ]


Weights = dict[str, CellWeights]  # cell name -> weights


def logit_shapes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the architecture logits of a space.

    >>> from darts_lite.architecture.space import blocks
    >>> logit_shapes(blocks(length=3))["block1.inverted_residual.expansion"]
    (1, 3)
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for cell in space.cells:
        count = len(cell.edges)
        if _edges_compete(cell):
            shapes[f"{cell.name}.edge"] = (count,)
        shapes[f"{cell.name}.operation"] = (count, len(cell.edges[0].operations))
        for operation in cell.edges[0].operations:
            for choice, sizes in operation.choices.items():
                if len(sizes) > 1:
                    shapes[f"{cell.name}.{operation.name}.{choice}"] = (count, len(sizes))
    return shapes


def _nodes(cell: Cell) -> range:
    return range(cell.inputs, cell.inputs + cell.nodes)


def _edges_compete(cell: Cell) -> bool:
    return any(len(cell.into(node)) > cell.keep for node in _nodes(cell))


def relax(space: SearchSpace, logits: Mapping[str, Tensor], temperature: float = 1.0) -> Weights:
    """Return the mixing weights softmax(logits / temperature) of every cell of a space.

    A node that keeps k of its n edges draws a set S of k edges with a probability proportional to
    exp(sum of the logits of S). The weight of an edge is its probability to be in S. The edge
    weights are in [0, 1] and sum to k per node. As the temperature falls, they approach the
    weights of the discrete network. For k = 1 they are a softmax.

    Arguments:
        space: Search space.
        logits: Architecture logits by name, with the shapes of `logit_shapes`.
        temperature: Positive temperature of every softmax.
    """
    weights: Weights = {}
    for cell in space.cells:
        edge = None
        if _edges_compete(cell):
            edge = _kept_weights(cell, logits[f"{cell.name}.edge"] / temperature)
        choices: dict[str, dict[str, Tensor]] = {}
        for operation in cell.edges[0].operations:
            choices[operation.name] = {
                choice: (logits[f"{cell.name}.{operation.name}.{choice}"] / temperature).softmax(1)
                for choice, sizes in operation.choices.items()
                if len(sizes) > 1
            }
        operation_weights = (logits[f"{cell.name}.operation"] / temperature).softmax(1)
        weights[cell.name] = CellWeights(edge, operation_weights, choices)
    return weights


def _kept_weights(cell: Cell, beta: Tensor) -> Tensor:
    """Return the probability [E] that the node of each edge keeps the edge."""
    chances = torch.zeros_like(beta)
    for members in _sets(cell, beta.device):
        members = members.to(beta.dtype)
        chances = chances + (members @ beta).softmax(0) @ members
    return chances


@cache
def _sets(cell: Cell, device: torch.device) -> list[Tensor]:
    """Return one table [sets, E] per node: each row is a set of edges that the node may keep."""
    tables = []
    for node in _nodes(cell):
        into = cell.into(node)
        sets = list(combinations(into, min(cell.keep, len(into))))
        table = torch.zeros(len(sets), len(cell.edges))
        for row, chosen in zip(table, sets):
            row[list(chosen)] = 1
        tables.append(table.to(device))
    return tables


def option_probabilities(cell: Cell, weights: CellWeights) -> Tensor:
    """Return the probability of every concrete option of every edge.

    Arguments:
        cell: Cell of the search space.
        weights: Mixing weights of the cell.

    Returns:
        Probabilities [E, options], in the order of `Edge.options`.
    """
    return _per_option(cell, weights.operation, weights.choices)


def option_scores(cell: Cell, weights: CellWeights) -> Tensor:
    """Return the score of every option of every edge, for the selection of one option per edge.

    The score is log p(operation) + sum over its choices of log(p(size) / max p). The best option
    of an operation therefore scores the log probability of the operation. With the plain
    probability, an operation with more sizes would lose to an operation with fewer sizes, above
    all to skip, which has no choices.

    Arguments:
        cell: Cell of the search space.
        weights: Mixing weights of the cell.

    Returns:
        Scores [E, options], in the order of `Edge.options`.
    """
    relative = {
        name: {choice: p / p.amax(1, keepdim=True) for choice, p in choices.items()}
        for name, choices in weights.choices.items()
    }
    return _per_option(cell, weights.operation, relative).clamp_min(1e-30).log()


def _per_option(
    cell: Cell, operation: Tensor, choices: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """Return [E, options]: products of one value per operation [E, O] and per choice [E, n]."""
    columns = []
    for index, each in enumerate(cell.edges[0].operations):
        block = operation[:, index, None]
        for choice, sizes in each.choices.items():
            if len(sizes) > 1:
                p = choices[each.name][choice]
                block = (block[:, :, None] * p[:, None, :]).flatten(1)
        columns.append(block)
    return torch.cat(columns, 1)


def entropy(weights: Weights) -> Tensor:
    """Return the mean entropy of the operation weights, as a fraction of the maximum (0 to 1).

    Arguments:
        weights: Mixing weights of every cell.
    """
    rows = torch.cat([w.operation for w in weights.values()])
    uniform = math.log(max(rows.shape[1], 2))  # a single operation has entropy 0; avoid 0 / 0
    return -(rows * rows.clamp_min(1e-12).log()).sum(1).mean() / uniform


def beta_decay(logits: Mapping[str, Tensor]) -> Tensor:
    """Return the mean logsumexp of the operation logits (beta-DARTS, Ye et al. 2022, equation 11).

    The gradient is softmax(alpha). It slows the leading operation, above all a premature skip.

    Arguments:
        logits: Architecture logits by name.
    """
    rows = torch.cat([v for name, v in logits.items() if name.endswith(".operation")])
    return rows.logsumexp(1).mean()
