"""Terms of the architecture's loss beside the validation loss.

To add one, write a frozen dataclass with `__call__(state) -> scalar` and name it in a search.
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
    """What a regularizer sees: logits by name, mixing weights, and the budget's fraction."""

    logits: Mapping[str, Tensor]
    weights: Weights
    fraction: float


class Regularizer(Protocol):
    """A term of the architecture's loss: a scalar, differentiable in the logits."""

    def __call__(self, state: State) -> Tensor: ...


@dataclass(frozen=True)
class BetaDecay:
    """Beta-DARTS (Ye et al. 2022): slows whatever leads, more and more.

    Arguments:
        final: weight at the end of the budget, reached linearly.
    """

    final: float = 0.2

    def __call__(self, state: State) -> Tensor:
        return self.final * state.fraction * beta_decay(state.logits)


@dataclass(frozen=True)
class ParameterHinge:
    """max(0, log(E[parameters] / target)): pulls the expected parameters below a target."""

    costs: CostTable
    target: float

    def __call__(self, state: State) -> Tensor:
        expected, _ = self.costs.expected(state.weights)
        return F.relu((expected / self.target).log())


def beta_decay(logits: Mapping[str, Tensor]) -> Tensor:
    """Mean logsumexp of the operation logits (beta-DARTS, Ye et al. 2022, equation 11).

    Its gradient is softmax(alpha): it slows whatever leads, above all a premature skip.
    """
    rows = torch.cat([v for name, v in logits.items() if name.endswith(".operation")])
    return rows.logsumexp(1).mean()
