"""Functional optimizers: pure update rules with exact derivatives in every argument.

`update(params, grads, state, ...)` returns new parameters and a new state and modifies nothing.
Every setting may be a tensor, or a sequence with one value per parameter tensor (groups). The
result is differentiable in settings, gradients and state. (`torch.optim.SGD(differentiable=True)`
detaches its first momentum buffer; these rules do not.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

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

    decoupled: ClassVar[bool] = False

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
            g = add_decay(g, decay, p)
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
                g = add_decay(g, decay, p)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            # v + tiny keeps the derivative of the root finite if a gradient is exactly zero.
            root = (v / (1 - b2**step) + torch.finfo(v.dtype).tiny).sqrt()
            new.append(p - rate * (m / (1 - b1**step)) / (root + self.eps))
            first.append(m)
            second.append(v)
        moments = tuple(first), tuple(second)
        return tuple(new), state._replace(step=state.step + 1, moments=moments)


@dataclass(frozen=True)
class Clipped:
    """An optimizer whose gradient is clipped first, as `torch.nn.utils` clips it.

        g <- clamp(g, -max_grad, max_grad)                  `clip_grad_value_`
        g <- g min(1, clip / (|g| + 1e-6)),  |g| over all   `clip_grad_norm_`

    Clipping is a part of the update, so it has derivatives as the rest of it.

    Arguments:
        optimizer: update rule.
        clip: largest norm of the gradient over all parameters; None for no limit.
        max_grad: largest absolute entry of the gradient; None for no limit.

    >>> w = (torch.tensor([3.0, 4.0]),)
    >>> Clipped(SGD(0.0), clip=1.0).update(w, w, SGD().init(w), lr=1.0)[0]
    (tensor([2.4000, 3.2000]),)
    """

    optimizer: Optimizer
    clip: float | None = None
    max_grad: float | None = None

    @property
    def decoupled(self) -> bool:
        return self.optimizer.decoupled

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        return self.optimizer.init(params)

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: OptimizerState,
        **settings: Setting,
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """Return the new parameters and the next state.

        Arguments:
            params: parameter tensors.
            grads: gradients, one per parameter tensor.
            state: state before the update.
            settings: settings of the optimizer.
        """
        if self.max_grad is not None:
            grads = tuple(g.clamp(-self.max_grad, self.max_grad) for g in grads)
        if self.clip is not None:
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g) for g in grads])
            )
            factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            grads = tuple(g * factor for g in grads)
        return self.optimizer.update(params, grads, state, **settings)


class Optimizer(Protocol):
    """A pure update rule."""

    @property
    def decoupled(self) -> bool:
        """Whether weight decay acts on the weights and not through the gradient, as in AdamW."""

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


def add_decay(grad: Tensor, decay: Scalar, param: Tensor) -> Tensor:
    """Return the gradient with a weight decay that acts through it."""
    return grad if _is_zero(decay) else grad + decay * param
