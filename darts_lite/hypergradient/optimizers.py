"""Functional optimizers: pure update rules with exact derivatives in every argument.

`update(params, grads, state, ...)` returns new parameters and a new state and modifies nothing.
Every setting may be a tensor, or a sequence with one value per parameter tensor (groups). The
result is differentiable in settings, gradients and state. (`torch.optim.SGD(differentiable=True)`
detaches its first momentum buffer; these rules do not.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Scalar = float | Tensor
Setting = Scalar | Sequence[Scalar]  # one value, or one value per parameter tensor


class OptimizerState(NamedTuple):
    """State of an optimizer.

    Arguments:
        step: number of updates so far.
        moments: `moments[k]` is the k-th moment, one tensor per parameter tensor.
        missed: number of updates that left each parameter tensor out; empty if all took all.
    """

    step: int
    moments: tuple[tuple[Tensor, ...], ...]
    missed: tuple[int, ...] = ()

    def taken(self, count: int) -> tuple[int, ...]:
        """Return the number of updates of each of `count` parameter tensors."""
        return tuple(self.step - m for m in self.missed or (0,) * count)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` defines it.

        g <- g + weight_decay w
        v <- momentum v + g
        w <- w - lr (g + momentum v if nesterov else v)

    Arguments:
        momentum: momentum that is used if `update` is not given one.
        nesterov: whether to use Nesterov momentum.

    >>> sgd = SGD(); w = (torch.tensor([1.0]),)
    >>> sgd.update(w, w, sgd.init(w), lr=0.1)[0]
    (tensor([0.9000]),)
    """

    momentum: Scalar = 0.9
    nesterov: bool = False

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        return OptimizerState(0, (tuple(torch.zeros_like(p) for p in params),))

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: OptimizerState,
        lr: Setting,
        weight_decay: Setting = 0.0,
        momentum: Setting | None = None,
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """Return the new parameters and the next state.

        Arguments:
            params: parameter tensors.
            grads: gradients, one per parameter tensor.
            state: state before the update.
            lr: learning rate.
            weight_decay: weight decay.
            momentum: momentum; default `self.momentum`.
        """
        mu = self.momentum if momentum is None else momentum
        settings = zip(*(per_tensor(s, len(params)) for s in (lr, weight_decay, mu)))
        new, velocity = [], []
        for p, g, v, (rate, decay, m) in zip(params, grads, state.moments[0], settings):
            g = _add_decay(g, decay, p)
            v = m * v + g
            new.append(p - rate * (g + m * v if self.nesterov else v))
            velocity.append(v)
        return tuple(new), state._replace(step=state.step + 1, moments=(tuple(velocity),))


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), or AdamW (Loshchilov & Hutter 2019, algorithm 2).

        m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
        w <- w - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)

    Bias corrections of Python floats are Python floats: as float32 tensors they would cost 1e-5 of
    accuracy.

    Arguments:
        betas: b1 and b2 that are used if `update` is not given them.
        eps: constant in the denominator.
        decoupled: whether weight decay acts on the weights (AdamW) or on the gradient (Adam).

    >>> adam = Adam(); w = (torch.tensor([1.0]),)
    >>> adam.update(w, w, adam.init(w), lr=0.1)[0]
    (tensor([0.9000]),)
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decoupled: bool = True

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        zeros = tuple(torch.zeros_like(p) for p in params)
        return OptimizerState(0, (zeros, zeros))

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: OptimizerState,
        lr: Setting,
        weight_decay: Setting = 0.0,
        beta1: Setting | None = None,
        beta2: Setting | None = None,
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """Return the new parameters and the next state.

        Arguments:
            params: parameter tensors.
            grads: gradients, one per parameter tensor.
            state: state before the update.
            lr: learning rate.
            weight_decay: weight decay.
            beta1: decay rate of the first moment; default `self.betas[0]`.
            beta2: decay rate of the second moment; default `self.betas[1]`.
        """
        betas = (
            self.betas[0] if beta1 is None else beta1,
            self.betas[1] if beta2 is None else beta2,
        )
        settings = zip(
            *(per_tensor(s, len(params)) for s in (lr, weight_decay, *betas)),
            (taken + 1 for taken in state.taken(len(params))),
        )
        new, first, second = [], [], []
        for p, g, m, v, (rate, decay, b1, b2, step) in zip(params, grads, *state.moments, settings):
            if self.decoupled:
                p = p if _is_zero(decay) else p * (1 - rate * decay)
            else:
                g = _add_decay(g, decay, p)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            # v + tiny keeps the derivative of the root finite if a gradient is exactly zero.
            root = (v / (1 - b2**step) + torch.finfo(v.dtype).tiny).sqrt()
            new.append(p - rate * (m / (1 - b1**step)) / (root + self.eps))
            first.append(m)
            second.append(v)
        moments = tuple(first), tuple(second)
        return tuple(new), state._replace(step=state.step + 1, moments=moments)


class Optimizer(Protocol):
    """A pure update rule."""

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        """Return the state before the first update, with moments of zero."""

    @property
    def update(self) -> Callable[..., tuple[tuple[Tensor, ...], OptimizerState]]:
        """The rule: `update(params, grads, state, **settings)` -> new parameters and state."""


def per_tensor(setting: Setting, count: int) -> tuple[Scalar, ...]:
    """Return one value per parameter tensor.

    Arguments:
        setting: one shared value, or a sequence of values.
        count: number of parameter tensors.
    Raises:
        ValueError: the sequence has another length.

    >>> per_tensor(0.1, 2)
    (0.1, 0.1)
    """
    if isinstance(setting, (float, int, Tensor)):
        return (setting,) * count
    if len(setting) != count:
        raise ValueError(
            f"a setting must have one value or one per parameter tensor ({count}), "
            f"got {len(setting)} values"
        )
    return tuple(setting)


def _is_zero(value: Scalar) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _add_decay(grad: Tensor, decay: Scalar, param: Tensor) -> Tensor:
    return grad if _is_zero(decay) else grad + decay * param
