"""The bilevel problem of a supernet, with mixing weights and regularizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.space import SearchSpace
from darts_lite.architecture.weights import Weights
from darts_lite.hypergradient.hyperparameters import HyperSpec, Identity, select
from darts_lite.hypergradient.problem import Bilevel, Hyper, Loss, Params
from darts_lite.nas.regularizers import Regularizer, State
from darts_lite.nas.relaxation import Relaxation, logit_shapes
from darts_lite.training.problem import Batch, NetworkProblem

ALPHA = "alpha."  # prefix of the names of architecture logits
ALPHA_TRAVEL = 6.0  # distance that a logit can move in one search


class Phase(NamedTuple):
    """Values that depend on the fraction of the budget.

    Attributes:
        lr_factor: value of the learning-rate schedule; multiplies the learned learning rate.
        temperature: temperature of the softmaxes of the relaxation.
        fraction: fraction of the budget, for the regularizers.
        draws: noise of the relaxation, for each step of the window.
        settled: weights of the path that is trained at the end; None for those of the relaxation.
    """

    lr_factor: float
    temperature: float = 1.0
    fraction: float = 0.0
    draws: tuple[Any, ...] = (None,)
    settled: Weights | None = None


def logit_specs(
    space: SearchSpace, start: Mapping[str, Tensor], end: float = 1.0
) -> list[HyperSpec]:
    """Return the architecture logits as outer variables.

    Arguments:
        space: the search space.
        start: starting values by name of `logit_shapes`; all other logits start at zero.
        end: fraction of the learning at which the logits stop; they travel as far until there.
    """
    return [
        HyperSpec(
            ALPHA + name,
            start.get(name, torch.zeros(shape)),
            Identity(),
            "architecture",
            ALPHA_TRAVEL / end,
        )
        for name, shape in logit_shapes(space).items()
    ]


@dataclass(frozen=True)
class SupernetProblem:
    """Bind batches to the bilevel problem of a supernet.

    Arguments:
        plain: problem of the network without mixing weights; gives losses and optimizer.
        network: the supernet as a pure function of two vectors, images and mixing weights.
        space: search space of the supernet.
        relaxation: maps logits to mixing weights.
        regularizers: terms added to the outer loss.
    """

    plain: NetworkProblem
    network: FlatNetwork
    space: SearchSpace
    relaxation: Relaxation
    regularizers: tuple[Regularizer, ...]

    def bind(self, train: Sequence[Batch], validation: Batch | None, phase: Phase) -> Bilevel:
        """Return the pure functions of one window of `len(train)` steps.

        Arguments:
            train: the training batch of each step.
            validation: the batch of the outer loss; None if the outer loss is not used.
            phase: values that depend on the fraction of the budget.
        """

        def inner(params: Params, raw: Hyper, t: int) -> Loss:
            values = self.plain.constrain(raw)
            network = self.at(self._mix(values, phase, phase.draws[t]))
            return self.plain.loss(network, params, values, train[t])

        def outer(params: Params, raw: Hyper) -> Loss:
            assert validation is not None
            values = self.plain.constrain(raw)
            weights = expected = self._mix(values, phase, phase.draws[-1])
            if phase.draws[-1] is not None:
                expected = self._mix(values, phase, None)
            value, report = self.plain.loss(self.at(weights), params, values, validation)
            return value + self.regularizer(values, expected, phase), report

        return self.plain.bilevel(inner, outer, phase.lr_factor)

    def regularizer(self, values: Hyper, weights: Weights, phase: Phase) -> Tensor:
        """Return the sum of the regularizers, a scalar that depends on the architecture only.

        Arguments:
            values: constrained outer values by name.
            weights: mixing weights without noise.
            phase: values that depend on the fraction of the budget.
        """
        state = State(select(values, ALPHA), weights, phase.fraction)
        total = torch.zeros(())
        for each in self.regularizers:
            total = total + each(state)
        return total

    def _mix(self, values: Hyper, phase: Phase, draws: Any) -> Weights:
        if phase.settled is not None:
            return phase.settled
        return self.relaxation(self.space, select(values, ALPHA), phase.temperature, draws)

    def at(self, weights: Weights) -> Callable[[Params, Tensor], Tensor]:
        """Return the network at given mixing weights, a function of parameters and images."""
        return lambda params, images: self.network(params, images, weights)
