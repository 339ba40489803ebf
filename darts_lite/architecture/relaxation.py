"""From logits to mixing weights: the continuous relaxation of a search space.

Architecture logits are a flat dictionary (one tensor per kind of decision and cell), kept outside
the network. Edges into a node compete by softmax, as do the operations of an edge; the conditional
choices of an operation have softmaxes of their own. The weights of operation and choice multiply.
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
    """The mixing weights of one edge."""

    operations: tuple[Tensor, ...]  # scalars, scaled by the weight of the edge
    edge: Tensor | None  # scalar; None means one
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [n]


class CellWeights(NamedTuple):
    """The mixing weights of one cell with E edges and O operations per edge."""

    edge: Tensor | None  # [E], chances to be kept; None: all are
    operation: Tensor  # [E, O], rows sum to one
    choices: dict[str, dict[str, Tensor]]  # operation -> choice -> [E, n], rows sum to one

    def edges(self) -> list[EdgeWeights]:
        """Splits into the weights of single edges."""
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
    """Names and shapes of the logits of a space.

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
    """Mixing weights softmax(logits / temperature) for every cell of a space.

    A node that keeps k of its n edges draws a set S of k of them with probability proportional to
    exp(sum of the logits of S); an edge weighs its chance to be in S. These weights lie in [0, 1],
    sum to k, and tend to the discrete network's as the temperature falls (softmax is k = 1).
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
    """[E]: the probability of each edge to be among those that its node keeps."""
    chances = torch.zeros_like(beta)
    for members in _sets(cell, beta.device):
        members = members.to(beta.dtype)
        chances = chances + (members @ beta).softmax(0) @ members
    return chances


@cache
def _sets(cell: Cell, device: torch.device) -> list[Tensor]:
    """For each node [sets, E]: the sets of edges that it may keep, as rows of zeros and ones."""
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
    """[E, options]: the probability of every concrete option of every edge, in `Edge.options`."""
    return _per_option(cell, weights.operation, weights.choices)


def option_scores(cell: Cell, weights: CellWeights) -> Tensor:
    """[E, options]: log p(operation) + sum over its choices of log(p(size) / max p).

    How good an option is as the one that stays. The best option of an operation scores the log
    probability of the operation itself; by its plain probability, an operation would lose to
    another (above all to skip, which has no choices) for merely offering more sizes.
    """
    relative = {
        name: {choice: p / p.amax(1, keepdim=True) for choice, p in choices.items()}
        for name, choices in weights.choices.items()
    }
    return _per_option(cell, weights.operation, relative).clamp_min(1e-30).log()


def _per_option(
    cell: Cell, operation: Tensor, choices: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """[E, options]: the products of one value per operation [E, O] and choice [E, n]."""
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
    """Mean entropy of the operation distributions, as a fraction of the uniform one's (0 to 1)."""
    rows = torch.cat([w.operation for w in weights.values()])
    uniform = math.log(max(rows.shape[1], 2))  # a single operation has no entropy at all
    return -(rows * rows.clamp_min(1e-12).log()).sum(1).mean() / uniform


def beta_decay(logits: Mapping[str, Tensor]) -> Tensor:
    """Mean logsumexp of the operation logits (beta-DARTS, Ye et al. 2022, equation 11).

    Its gradient is softmax(alpha): it slows whatever leads, above all a premature skip.
    """
    rows = torch.cat([v for name, v in logits.items() if name.endswith(".operation")])
    return rows.logsumexp(1).mean()
