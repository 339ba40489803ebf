"""From logits to mixing weights: the continuous relaxation of a search space.

Architecture logits are a flat dictionary (one tensor per kind of decision and cell), kept outside
the network. Edges into a node compete by softmax, as do the operations of an edge; the conditional
choices of an operation have softmaxes of their own. The weights of operation and choice multiply.
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
    """How logits, and the draws of one step, become mixing weights.

    A relaxation that samples draws its noise once per step, so that an estimator which evaluates
    the step several times sees one function.
    """

    def draw(self, space: SearchSpace, generator: torch.Generator) -> Any:
        """Return the noise of one step; None if there is none."""

    def __call__(
        self, space: SearchSpace, logits: Mapping[str, Tensor], temperature: float, draws: Any
    ) -> Weights:
        """Return the mixing weights, differentiable in the logits."""


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
    """Names and shapes of the logits of a space.

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
    """Mixing weights softmax(logits / temperature) for every cell of a space.

    A node that keeps k of its n edges draws a set S of k of them with probability proportional to
    exp(sum of the logits of S); an edge weighs its chance to be in S. These weights lie in [0, 1],
    sum to k, and tend to the discrete network's as the temperature falls (softmax is k = 1).
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
    for node in cell.inner_nodes:
        into = cell.into(node)
        sets = list(combinations(into, min(cell.keep, len(into))))
        table = torch.zeros(len(sets), len(cell.edges))
        for row, chosen in zip(table, sets):
            row[list(chosen)] = 1
        tables.append(table.to(device))
    return tables


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
    return per_option(cell, weights.operation, relative).clamp_min(1e-30).log()


def entropy(weights: Weights) -> Tensor:
    """Mean entropy of the operation distributions, as a fraction of the uniform one's (0 to 1)."""
    rows = torch.cat([w.operation for w in weights.values()])
    uniform = math.log(max(rows.shape[1], 2))  # a single operation has no entropy at all
    return -(rows * rows.clamp_min(1e-12).log()).sum(1).mean() / uniform
