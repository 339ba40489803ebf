"""Regularizers: terms that a search adds to the validation loss of the architecture.

To add a regularizer, write a frozen dataclass with `__call__(state) -> scalar` and put it into
`Method.regularizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.architecture.cost import CostTable
from darts_lite.architecture.weights import Weights


class State(NamedTuple):
    """Input of a regularizer.

    Attributes:
        logits: architecture logits by name.
        weights: mixing weights without noise.
        fraction: fraction of the budget, 0 to 1.
    """

    logits: Mapping[str, Tensor]
    weights: Weights
    fraction: float


class Regularizer(Protocol):
    """A term of the loss of the architecture: a scalar, differentiable in the logits."""

    def __call__(self, state: State) -> Tensor: ...


@dataclass(frozen=True)
class BetaDecay:
    """Beta-DARTS (Ye et al. 2022): slows the leading operation, with a weight that grows linearly.

    Arguments:
        final: weight at the end of the budget.
    """

    final: float = 0.2

    def __call__(self, state: State) -> Tensor:
        return self.final * state.fraction * beta_decay(state.logits)


@dataclass(frozen=True)
class ParameterHinge:
    """max(0, log(E[parameters] / target)): pulls the expected parameters below a target.

    Arguments:
        costs: costs of the search space.
        target: number of parameters.
    """

    costs: CostTable
    target: float

    def __call__(self, state: State) -> Tensor:
        expected, _ = self.costs.expected(state.weights)
        return F.relu((expected / self.target).log())


def beta_decay(logits: Mapping[str, Tensor]) -> Tensor:
    """Return the mean logsumexp of the operation logits (beta-DARTS, Ye et al. 2022, equation 11).

    The gradient is softmax(alpha). It slows the leading operation, above all a premature skip.

    Arguments:
        logits: architecture logits by name.
    """
    rows = torch.cat([v for name, v in logits.items() if name.endswith(".operation")])
    return rows.logsumexp(1).mean()
