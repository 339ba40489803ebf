"""A bilevel problem as pure functions, and what an estimator of its hypergradient is.

    min over hyper of  outer_loss(w_K(hyper), hyper),   w_{t+1} = inner_step(w_t, hyper)

Every function takes the *raw* outer variables as a dictionary; what they mean (bijections,
softmaxes, schedules) is the problem's affair, so an estimator only differentiates. This package
imports nothing of the networks and serves any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from darts_lite.hyperparameters import Kind
from darts_lite.optimizers import Optimizer, OptimizerState, Scalar

Params = tuple[Tensor, ...]
Hyper = Mapping[str, Tensor]
Loss = tuple[Tensor, Any]  # a scalar, and anything worth reporting (detached)


class InnerState(NamedTuple):
    """Everything that the inner problem carries from step to step."""

    params: Params
    optimizer: OptimizerState


class Settings(NamedTuple):
    """The optimiser's settings as functions of the outer variables."""

    lr: Scalar
    weight_decay: tuple[Scalar, ...]  # one for each tensor of the parameters


@dataclass(frozen=True)
class Bilevel:
    """One window of a bilevel problem, its batches and random draws already bound.

    `inner_loss(params, hyper, t)` is the training loss of the window's t-th step and
    `outer_loss(params, hyper)` the validation loss after the last; both give the same value
    whenever they are called. `settings(hyper)` are those of the optimiser. Knowing the step as
    loss + optimiser, rather than as one opaque function, is what lets `OneStep` share the
    training gradient instead of differentiating through it.
    """

    inner_loss: Callable[[Params, Hyper, int], Loss]
    outer_loss: Callable[[Params, Hyper], Loss]
    optimizer: Optimizer
    settings: Callable[[Hyper], Settings]

    def inner_step(
        self, state: InnerState, hyper: Hyper, t: int = 0, *, create_graph: bool = False
    ) -> tuple[InnerState, Loss]:
        """w_{t+1} and the loss at w_t; differentiable in everything with `create_graph`."""
        params = state.params
        if not create_graph:
            params = tuple(p.detach().requires_grad_() for p in params)
        loss, report = self.inner_loss(params, hyper, t)
        grads = torch.autograd.grad(loss, params, create_graph=create_graph)
        new = InnerState(
            *self.optimizer.update(params, grads, state.optimizer, **self.settings(hyper)._asdict())
        )
        if create_graph:
            return new, (loss, report)
        return detach(new), (loss.detach(), report)


class Lookahead(NamedTuple):
    """What an estimator gives back: the inner problem moved on, and the hypergradient."""

    state: InnerState  # detached
    hypergradient: dict[str, Tensor]
    inner: Loss  # of the first step, detached
    outer: Loss  # detached


class Estimator(Protocol):
    """Moves the inner problem by `steps` steps and estimates dL_outer/dhyper on the way.

    `supports` names the kinds of outer variables for which the estimate is defined. Arguments of
    a call: `hyper`, raw leaves that record gradients; `kinds`, those to differentiate.
    """

    @property
    def steps(self) -> int: ...

    @property
    def supports(self) -> frozenset[Kind]: ...

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead: ...


class UnsupportedHyperparameter(ValueError):
    """An estimator was asked for a derivative that it does not define."""


def check_supported(name: str, supports: frozenset[Kind], kinds: Mapping[str, Kind]) -> None:
    """Raises if an estimator does not cover one of the kinds; call it at start-up."""
    for variable, kind in kinds.items():
        if kind not in supports:
            raise UnsupportedHyperparameter(
                f"{name} cannot differentiate the {kind} hyperparameter {variable!r}; "
                f"it covers {', '.join(sorted(supports))}"
            )


def require(gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Raises if a variable has no gradient: silence would be a zero that nobody computed."""
    for name, gradient in gradients.items():
        if gradient is None:
            raise UnsupportedHyperparameter(
                f"no gradient reaches the hyperparameter {name!r}: neither loss nor the "
                "optimiser's settings depend on it"
            )
    return {name: g.detach() for name, g in gradients.items() if g is not None}


def add(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that exist; None if none does."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def detach(state: InnerState) -> InnerState:
    """The same values without history."""
    moments = tuple(tuple(t.detach() for t in m) for m in state.optimizer.moments)
    return InnerState(
        tuple(p.detach() for p in state.params), OptimizerState(state.optimizer.step, moments)
    )


def detach_loss(loss: Loss) -> Loss:
    return loss[0].detach(), loss[1]
