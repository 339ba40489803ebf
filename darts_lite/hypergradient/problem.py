"""Bilevel problem as pure functions of parameters and raw hyperparameters.

    min over hyper of  outer_loss(w_K(hyper), hyper),   w_{t+1} = inner_step(w_t, hyper)

Every function takes the raw (unconstrained) hyperparameters as a dictionary. The problem gives
them their meaning (bijection, softmax, schedule), so an estimator only differentiates. This
package imports nothing else of darts_lite and serves any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from darts_lite.hypergradient.optimizers import Optimizer, OptimizerState, Setting

Params = tuple[Tensor, ...]
Hyper = Mapping[str, Tensor]
Loss = tuple[Tensor, Any]  # a scalar loss, and anything to report (detached)
Partial = Mapping[str, Tensor | None]  # derivatives by hyperparameter; None means no dependence
Window = TypeVar("Window", bound="Bilevel")


class Gradient(NamedTuple):
    """Derivatives of a loss in the parameters and in hyperparameters, or their derivative.

    Arguments:
        weights: derivatives in the parameters, zero where the loss does not depend on one.
        hyper: derivatives by hyperparameter; None means no dependence.
        unused: positions of the parameters that the loss does not use. As in torch, an optimizer
            leaves them as they are: no step, no decay, no moments.
    """

    weights: Params
    hyper: Mapping[str, Tensor | None] = {}
    unused: frozenset[int] = frozenset()


class InnerState(NamedTuple):
    """Everything that the inner problem passes from step to step.

    Arguments:
        params: parameters, one tensor per parameter.
        optimizer: state of the optimizer.
        carried: tensors that an estimator passes to its next call, such as tangents dw/dhyper, by
            hyperparameter. A plain step drops them.
    """

    params: Params
    optimizer: OptimizerState
    carried: Mapping[str, Params] = {}


@dataclass(frozen=True)
class Bilevel:
    """One window of a bilevel problem, with its batches and random draws already bound.

    Both losses must return the same value for the same arguments whenever they are called. The
    step is known as loss and optimizer rather than as one opaque function, so estimators can share
    the training gradient instead of differentiating through it.

    Arguments:
        inner_loss: `inner_loss(params, hyper, t)` is the training loss of the window's t-th step.
        outer_loss: `outer_loss(params, hyper)` is the validation loss after the last step.
        optimizer: update rule.
        settings: `settings(hyper)` returns the optimizer settings by name, each one value or one
            value per parameter tensor: {"lr": ..., "weight_decay": (..., 0.0)}.

    >>> from darts_lite.hypergradient import SGD, Bilevel, InnerState, OneStep
    >>> def loss(params, hyper, t=0): return 0.5 * params[0].square().sum(), None
    >>> problem = Bilevel(loss, loss, SGD(0.0), lambda hyper: {"lr": hyper["lr"]})
    >>> w = (torch.tensor([2.0]),)
    >>> hyper = {"lr": torch.tensor(0.1, requires_grad=True)}
    >>> ahead = OneStep()(problem, InnerState(w, SGD(0.0).init(w)), hyper, {"lr": "optimizer"})
    >>> ahead.state.params[0], ahead.hypergradient["lr"]  # -w_1 w_0
    (tensor([1.8000]), tensor(-3.6000))
    """

    inner_loss: Callable[[Params, Hyper, int], Loss]
    outer_loss: Callable[[Params, Hyper], Loss]
    optimizer: Optimizer
    settings: Callable[[Hyper], Mapping[str, Setting]]

    def inner_step(
        self, state: InnerState, hyper: Hyper, t: int = 0, *, create_graph: bool = False
    ) -> tuple[InnerState, Loss]:
        """Take one training step; return the state after it and the loss before it.

        Arguments:
            state: state before the step.
            hyper: raw hyperparameters.
            t: index of the step in the window.
            create_graph: whether the result is differentiable in the state and hyperparameters.
        """
        if create_graph:
            loss, report = self.inner_loss(state.params, hyper, t)
            found = torch.autograd.grad(loss, state.params, create_graph=True, allow_unused=True)
            return self.update(state, filled(found, state.params), hyper), (loss, report)
        new, _, value = self.advance(state, hyper, t)
        return new, value

    def update(self, state: InnerState, gradient: Gradient, hyper: Hyper) -> InnerState:
        """Apply the optimizer's update rule to a gradient; differentiable in every argument."""
        settings = self.settings(hyper)
        params, memory = self.optimizer.update(
            state.params, gradient.weights, state.optimizer, **settings
        )
        new = InnerState(params, memory)
        return _without(gradient.unused, new, state) if gradient.unused else new

    def advance(
        self,
        state: InnerState,
        hyper: Hyper,
        t: int,
        of: tuple[str, ...] = (),
        by: GradientAt | None = None,
    ) -> tuple[InnerState, Gradient, Loss]:
        """Take one training step; return its state, the gradient and loss before it, detached.

        Arguments:
            state: state before the step.
            hyper: raw hyperparameters.
            t: index of the step in the window.
            of: hyperparameters in which the gradient is computed too, in the same pass.
            by: how the gradient is computed, a function like `gradient_at`, which is the default.
        """
        gradient, (loss, report) = (by or gradient_at)(
            lambda p, h: self.inner_loss(p, h, t), state.params, hyper, of
        )
        with torch.no_grad():
            new = self.update(detach(state), gradient, constant(hyper))
        return new, gradient, (loss, report)

    def outer_gradient(
        self, params: Params, hyper: Hyper, names: tuple[str, ...]
    ) -> tuple[Params, Partial, Loss]:
        """Return v = grad_w L_outer, the direct derivatives in hyperparameters, and the loss.

        Arguments:
            params: parameters after the window.
            hyper: raw hyperparameters.
            names: hyperparameters to differentiate.
        """
        (v, direct, _), loss = gradient_at(self.outer_loss, params, hyper, names)
        return v, direct, loss

    def update_product(
        self,
        state: InnerState,
        gradient: Gradient,
        hyper: Hyper,
        names: tuple[str, ...],
        along: Params,
        only_hyper: bool = False,
    ) -> tuple[Params, Params, Partial]:
        """Return the vector-Jacobian product of `update`: `along`^T . d(params, moments)' / d(.).

        Arguments:
            state: state before the update.
            gradient: training gradient.
            hyper: raw hyperparameters.
            names: hyperparameters to differentiate.
            along: cotangent, one tensor per parameter and, if it is longer, per moment.
            only_hyper: whether to leave out the derivatives in all but the hyperparameters.
        Returns:
            Derivatives in (params, moments), in the gradient, and in the hyperparameters; with
            `only_hyper` the first two are empty.
        """
        old = detach(state)
        if not only_hyper:
            old = InnerState(leaves(state.params), _leaves_of(state.optimizer))
            gradient = gradient._replace(weights=leaves(gradient.weights))
        values = constant(hyper) | {n: hyper[n].detach().requires_grad_() for n in names}
        new = flat(self.update(old, gradient, values))[: len(along)]
        pairs = [(n, a) for n, a in zip(new, along) if n.requires_grad]
        tensors = () if only_hyper else (*flat(old), *gradient.weights)
        sources = (*tensors, *(values[n] for n in names))
        found: tuple[Tensor | None, ...] = (None,) * len(sources)
        if pairs and sources:  # otherwise the update depends on none of them
            found = torch.autograd.grad(
                [n for n, _ in pairs], sources, [a for _, a in pairs], allow_unused=True
            )
        one, two = (0, 0) if only_hyper else (len(flat(old)), len(tensors))
        fill = tuple(torch.zeros_like(s) if f is None else f for s, f in zip(sources, found))
        return fill[:one], fill[one:two], dict(zip(names, found[two:]))

    def after(self: Window, steps: int) -> Window:
        """Return the window without its first `steps` steps."""
        return replace(self, inner_loss=lambda p, hyper, t: self.inner_loss(p, hyper, t + steps))


# --- derivatives, sums, copies ------------------------------------------------------------------

GradientAt = Callable[
    [Callable[[Params, Hyper], Loss], Params, Hyper, tuple[str, ...]], tuple[Gradient, Loss]
]


def gradient_at(
    loss: Callable[[Params, Hyper], Loss], params: Params, hyper: Hyper, of: tuple[str, ...]
) -> tuple[Gradient, Loss]:
    """Return a loss and its derivatives in parameters and hyperparameters, without a graph.

    Arguments:
        loss: loss as a function of parameters and hyperparameters.
        params: parameters.
        hyper: raw hyperparameters.
        of: hyperparameters to differentiate.
    """
    params = leaves(params)
    values = constant(hyper) | {n: hyper[n].detach().requires_grad_() for n in of}
    value, report = loss(params, values)
    found = torch.autograd.grad(value, (*params, *(values[n] for n in of)), allow_unused=True)
    gradient = filled(found[: len(params)], params)
    hypers = dict(zip(of, found[len(params) :]))
    return gradient._replace(hyper=hypers), (value.detach(), report)


def filled(found: Sequence[Tensor | None], params: Params) -> Gradient:
    """Return the gradient in the parameters, with zeros where none was found.

    Arguments:
        found: derivatives in the parameters; None where the loss does not use one.
        params: parameters.
    """
    unused = frozenset(i for i, part in enumerate(found) if part is None)
    return Gradient(
        tuple(torch.zeros_like(p) if f is None else f for f, p in zip(found, params)),
        unused=unused,
    )


def _without(unused: frozenset[int], new: InnerState, old: InnerState) -> InnerState:
    """The new state, except that unused parameters and their moments are as before."""
    count, memory = len(old.params), new.optimizer
    kept = tuple(
        o if i % count in unused else n for i, (n, o) in enumerate(zip(flat(new), flat(old)))
    )
    missed = memory.missed or (0,) * count
    missed = tuple(m + (i in unused) for i, m in enumerate(missed))
    return unflat(kept, InnerState(new.params, memory._replace(missed=missed)))


def add(*terms: Tensor | None) -> Tensor | None:
    """Return the sum of the terms that are not None; None if there is no such term."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def dot(a: Params, b: Params) -> Tensor:
    """Return the inner product over all tensors, a scalar."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def leaves(tensors: Params) -> Params:
    """Return the tensors detached, as leaves that record gradients."""
    return tuple(t.detach().requires_grad_() for t in tensors)


def constant(hyper: Hyper) -> dict[str, Tensor]:
    """Return the hyperparameters detached."""
    return {name: value.detach() for name, value in hyper.items()}


def _leaves_of(state: OptimizerState) -> OptimizerState:
    return state._replace(moments=tuple(leaves(m) for m in state.moments))


def flat(state: InnerState) -> Params:
    """Return all tensors of a state: parameters first, then one moment after the other."""
    return (*state.params, *(t for moment in state.optimizer.moments for t in moment))


def unflat(tensors: Params, like: InnerState) -> InnerState:
    """Return the state with the given tensors; the inverse of `flat`."""
    n = len(like.params)
    parts = [tuple(tensors[i : i + n]) for i in range(0, len(tensors), n)]
    return InnerState(parts[0], like.optimizer._replace(moments=tuple(parts[1:])))


def detach(state: InnerState) -> InnerState:
    """Return the state without its autograd graph."""
    moments = tuple(tuple(t.detach() for t in m) for m in state.optimizer.moments)
    return InnerState(
        tuple(p.detach() for p in state.params),
        state.optimizer._replace(moments=moments),
        state.carried,
    )
