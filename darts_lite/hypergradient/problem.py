"""A bilevel problem as pure functions, and what an estimator of its hypergradient is.

    min over hyper of  outer_loss(w_K(hyper), hyper),   w_{t+1} = inner_step(w_t, hyper)

Every function takes the *raw* outer variables as a dictionary; what they mean (bijections,
softmaxes, schedules) is the problem's affair, so an estimator only differentiates. This package
imports nothing of the networks and serves any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import Optimizer, OptimizerState, Setting

Params = tuple[Tensor, ...]
Hyper = Mapping[str, Tensor]
Loss = tuple[Tensor, Any]  # a scalar, and anything worth reporting (detached)
Partial = Mapping[str, Tensor | None]  # derivatives by variable; None: does not depend on it
Window = TypeVar("Window", bound="Bilevel")


class Gradient(NamedTuple):
    """First derivatives of a loss, or a derivative of them: in the parameters, in variables."""

    weights: Params
    hyper: Mapping[str, Tensor | None] = {}


class InnerState(NamedTuple):
    """Everything that the inner problem carries from step to step.

    `carried` is what an estimator takes along, such as tangents dw/dhyper; a plain step drops it.
    """

    params: Params
    optimizer: OptimizerState
    carried: Mapping[str, Params] = {}


@dataclass(frozen=True)
class Bilevel:
    """One window of a bilevel problem, its batches and random draws already bound.

    `inner_loss(params, hyper, t)` is the training loss of the window's t-th step and
    `outer_loss(params, hyper)` the validation loss after the last; both give the same value
    whenever they are called. `settings(hyper)` are the optimiser's by name, each one value or one
    for every tensor of the parameters: {"lr": ..., "weight_decay": (..., 0.0)}. Knowing the step
    as loss + optimiser, rather than as one opaque function, is what lets estimators share the
    training gradient instead of differentiating through it.
    """

    inner_loss: Callable[[Params, Hyper, int], Loss]
    outer_loss: Callable[[Params, Hyper], Loss]
    optimizer: Optimizer
    settings: Callable[[Hyper], Mapping[str, Setting]]

    def inner_step(
        self, state: InnerState, hyper: Hyper, t: int = 0, *, create_graph: bool = False
    ) -> tuple[InnerState, Loss]:
        """w_{t+1} and the loss at w_t; differentiable in everything with `create_graph`."""
        if create_graph:
            loss, report = self.inner_loss(state.params, hyper, t)
            gradient = torch.autograd.grad(loss, state.params, create_graph=True)
            return self.update(state, gradient, hyper), (loss, report)
        new, _, value = self.advance(state, hyper, t)
        return new, value

    def update(self, state: InnerState, gradient: Params, hyper: Hyper) -> InnerState:
        """The optimiser's rule alone; differentiable in every argument."""
        settings = self.settings(hyper)
        return InnerState(
            *self.optimizer.update(state.params, gradient, state.optimizer, **settings)
        )

    def advance(
        self, state: InnerState, hyper: Hyper, t: int, of: tuple[str, ...] = ()
    ) -> tuple[InnerState, Gradient, Loss]:
        """w_{t+1}, the training gradient at w_t and the loss there, all detached.

        Arguments: `of`, variables in which the gradient is wanted too; one pass gives both.
        Raises: ValueError if a parameter tensor has no part in the training loss.
        """
        gradient, (loss, report) = gradient_at(
            lambda p, h: self.inner_loss(p, h, t), state.params, hyper, of
        )
        with torch.no_grad():
            new = self.update(detach(state), gradient.weights, constant(hyper))
        return new, gradient, (loss, report)

    def outer_gradient(
        self, params: Params, hyper: Hyper, names: tuple[str, ...]
    ) -> tuple[Params, Partial, Loss]:
        """v = grad_w L_outer, the direct derivatives in the named variables, and the loss.

        Raises: ValueError if a parameter tensor has no part in the outer loss.
        """
        (v, direct), loss = gradient_at(self.outer_loss, params, hyper, names)
        return v, direct, loss

    def update_product(
        self,
        state: InnerState,
        gradient: Params,
        hyper: Hyper,
        names: tuple[str, ...],
        along: Params,
    ) -> tuple[Params, Params, Partial]:
        """The vector-Jacobian product of `update`: `along`' . d(params, moments)' / d(.).

        Arguments: `along`, one tensor for every parameter and, if longer, every moment.
        Returns: the derivatives in (params, moments), in the gradient, and in the variables.
        """
        old = InnerState(leaves(state.params), _leaves_of(state.optimizer))
        gradient = leaves(gradient)
        values = constant(hyper) | {n: hyper[n].detach().requires_grad_() for n in names}
        new = flat(self.update(old, gradient, values))[: len(along)]
        pairs = [(n, a) for n, a in zip(new, along) if n.requires_grad]
        sources = (*flat(old), *gradient, *(values[n] for n in names))
        found = torch.autograd.grad(
            [n for n, _ in pairs], sources, [a for _, a in pairs], allow_unused=True
        )
        one, two = len(flat(old)), len(flat(old)) + len(gradient)
        fill = tuple(torch.zeros_like(s) if f is None else f for s, f in zip(sources, found))
        return fill[:one], fill[one:two], dict(zip(names, found[two:]))

    def after(self: Window, steps: int) -> Window:
        """The same window without its first `steps` steps."""
        return replace(self, inner_loss=lambda p, hyper, t: self.inner_loss(p, hyper, t + steps))


class Lookahead(NamedTuple):
    """What an estimator gives back: the inner problem moved on, and the hypergradient.

    `outer` is None if the estimator needs no validation loss; `diagnostics` are its own figures,
    a residual for instance.
    """

    state: InnerState  # detached
    hypergradient: dict[str, Tensor]
    inner: Loss  # of the first step, detached
    outer: Loss | None  # detached
    diagnostics: Mapping[str, Tensor] = {}


class Estimator(Protocol):
    """Moves the inner problem by `steps` steps and estimates dL_outer/dhyper on the way.

    `supports` names the kinds of outer variables for which the estimate is defined, `remedy` what
    to say of the others; `carries` tells whether `InnerState.carried` is used. Arguments of a
    call: `hyper`, raw leaves that record gradients; `kinds`, those to differentiate.
    """

    remedy: ClassVar[str]

    @property
    def carries(self) -> bool: ...

    @property
    def steps(self) -> int: ...

    @property
    def supports(self) -> frozenset[Kind]: ...

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead: ...


EVERY_KIND: frozenset[Kind] = frozenset({"architecture", "loss", "optimizer"})


class UnsupportedHyperparameter(ValueError):
    """An estimator was asked for a derivative that it does not define."""


def check_supported(estimator: Estimator, kinds: Mapping[str, Kind]) -> None:
    """Raises if an estimator does not cover one of the kinds; call it at start-up."""
    for variable, kind in kinds.items():
        if kind not in estimator.supports:
            raise UnsupportedHyperparameter(
                f"{type(estimator).__name__} cannot differentiate the {kind} hyperparameter "
                f"{variable!r}: {estimator.remedy}"
            )


def require(gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Raises if a variable has no gradient: silence would be a zero that nobody computed."""
    for name, gradient in gradients.items():
        if gradient is None:
            raise UnsupportedHyperparameter(
                f"no gradient reaches the hyperparameter {name!r}: what this estimator "
                "differentiates does not depend on it; check its kind and the problem's functions"
            )
    return {name: g.detach() for name, g in gradients.items() if g is not None}


# --- derivatives, sums, copies ------------------------------------------------------------------


def gradient_at(
    loss: Callable[[Params, Hyper], Loss], params: Params, hyper: Hyper, of: tuple[str, ...]
) -> tuple[Gradient, Loss]:
    """A loss and its derivatives in the parameters and in the variables `of`, without a graph."""
    params = leaves(params)
    values = constant(hyper) | {n: hyper[n].detach().requires_grad_() for n in of}
    value, report = loss(params, values)
    found = torch.autograd.grad(value, (*params, *(values[n] for n in of)), allow_unused=True)
    weights = found[: len(params)]
    if any(part is None for part in weights):
        raise ValueError("the loss must depend on every parameter tensor")
    return Gradient(weights, dict(zip(of, found[len(params) :]))), (value.detach(), report)


def add(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that exist; None if none does."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def leaves(tensors: Params) -> Params:
    return tuple(t.detach().requires_grad_() for t in tensors)


def constant(hyper: Hyper) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in hyper.items()}


def _leaves_of(state: OptimizerState) -> OptimizerState:
    return OptimizerState(state.step, tuple(leaves(m) for m in state.moments))


def flat(state: InnerState) -> Params:
    """Parameters, then the moments one after the other."""
    return (*state.params, *(t for moment in state.optimizer.moments for t in moment))


def unflat(tensors: Params, like: InnerState) -> InnerState:
    """The inverse of `flat`."""
    n = len(like.params)
    parts = [tuple(tensors[i : i + n]) for i in range(0, len(tensors), n)]
    return InnerState(parts[0], OptimizerState(like.optimizer.step, tuple(parts[1:])))


def detach(state: InnerState) -> InnerState:
    """The same values without history."""
    moments = tuple(tuple(t.detach() for t in m) for m in state.optimizer.moments)
    return InnerState(
        tuple(p.detach() for p in state.params),
        OptimizerState(state.optimizer.step, moments),
        state.carried,
    )
