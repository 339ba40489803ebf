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
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor

from darts_lite.architecture.space import Cell, SearchSpace
from darts_lite.architecture.weights import CellWeights, Weights, per_option


class Relaxation(Protocol):
    """A map from logits, and the noise of one step, to mixing weights.

    A relaxation that samples draws its noise once per step. An estimator that evaluates the step
    several times therefore evaluates the same function.
    """

    def draw(self, space: SearchSpace, generator: torch.Generator) -> Any:
        """Return the noise of one step; None for a relaxation without noise."""

    def __call__(
        self, space: SearchSpace, logits: Mapping[str, Tensor], temperature: float, draws: Any
    ) -> Weights:
        """Return the mixing weights, differentiable in the logits.

        Arguments:
            space: the search space.
            logits: architecture logits by name.
            temperature: positive temperature of every softmax.
            draws: result of `draw`; None for the weights without noise.
        """


@dataclass(frozen=True)
class Softmax:
    """DARTS (Liu et al. 2019): the softmax of the logits at a temperature, without noise."""

    def draw(self, space: SearchSpace, generator: torch.Generator) -> None:
        return None

    def __call__(
        self,
        space: SearchSpace,
        logits: Mapping[str, Tensor],
        temperature: float = 1.0,
        draws: None = None,
    ) -> Weights:
        return relax(space, logits, temperature)


def logit_shapes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the architecture logits of a space.

    >>> from darts_lite.architecture.presets import blocks
    >>> logit_shapes(blocks(length=3))["block1.inverted_residual.expansion"]
    (1, 3)
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for cell in space.cells:
        count = len(cell.edges)
        if cell.edges_compete:
            shapes[f"{cell.name}.edge"] = (count,)
        shapes[f"{cell.name}.operation"] = (count, len(cell.edges[0].operations))
        for operation in cell.edges[0].operations:
            for choice, sizes in operation.choices.items():
                if len(sizes) > 1:
                    shapes[f"{cell.name}.{operation.name}.{choice}"] = (count, len(sizes))
    return shapes


def relax(space: SearchSpace, logits: Mapping[str, Tensor], temperature: float = 1.0) -> Weights:
    """Return the mixing weights softmax(logits / temperature) of every cell of a space.

    A node that keeps k of its n edges draws a set S of k edges with a probability proportional to
    exp(sum of the logits of S). The weight of an edge is its probability to be in S. The edge
    weights are in [0, 1] and sum to k per node. As the temperature falls, they approach the
    weights of the discrete network. For k = 1 they are a softmax.

    Arguments:
        space: the search space.
        logits: architecture logits by name, with the shapes of `logit_shapes`.
        temperature: positive temperature of every softmax.
    """
    weights: Weights = {}
    for cell in space.cells:
        edge = None
        if cell.edges_compete:
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
    for node in cell.inner_nodes:
        into = cell.into(node)
        sets = list(combinations(into, min(cell.keep, len(into))))
        table = torch.zeros(len(sets), len(cell.edges))
        for row, chosen in zip(table, sets):
            row[list(chosen)] = 1
        tables.append(table.to(device))
    return tables


def option_scores(cell: Cell, weights: CellWeights) -> Tensor:
    """Return the score of every option of every edge, for the selection of one option per edge.

    The score is log p(operation) + sum over its choices of log(p(size) / max p). The best option
    of an operation therefore scores the log probability of the operation. With the plain
    probability, an operation with more sizes would lose to an operation with fewer sizes, above
    all to skip, which has no choices.

    Arguments:
        cell: cell of the search space.
        weights: mixing weights of the cell.
    Returns: scores [E, options], in the order of `Edge.options`.
    """
    relative = {
        name: {choice: p / p.amax(1, keepdim=True) for choice, p in choices.items()}
        for name, choices in weights.choices.items()
    }
    return per_option(cell, weights.operation, relative).clamp_min(1e-30).log()


def entropy(weights: Weights) -> Tensor:
    """Return the mean entropy of the operation weights, as a fraction of the maximum (0 to 1).

    Arguments:
        weights: mixing weights of every cell.
    """
    rows = torch.cat([w.operation for w in weights.values()])
    uniform = math.log(max(rows.shape[1], 2))  # a single operation has entropy 0; avoid 0 / 0
    return -(rows * rows.clamp_min(1e-12).log()).sum(1).mean() / uniform
