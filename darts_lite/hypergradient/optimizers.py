"""Optimisers as pure functions with exact derivatives in every argument.

`update(params, grads, state, ...)` gives new parameters and a new state and modifies nothing.
Every setting may be a tensor, or a sequence of one value for each tensor of the parameters
(groups); then the result is differentiable in it, in the gradients and in the state.
(`torch.optim.SGD(differentiable=True)` detaches its first momentum buffer; this does not.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Scalar = float | Tensor
Setting = Scalar | Sequence[Scalar]  # shared, or one for each tensor of the parameters


class OptimizerState(NamedTuple):
    """`moments[k]` holds the k-th moment of every parameter tensor; `step` counts updates."""

    step: int
    moments: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` defines it.

    g <- g + weight_decay w;  v <- momentum v + g;  w <- w - lr (g + momentum v if nesterov else v)

    >>> sgd = SGD(); w = (torch.tensor([1.0]),)
    >>> sgd.update(w, w, sgd.init(w), lr=0.1)[0]
    (tensor([0.9000]),)

    Arguments: `momentum`, where `update` is not given one.
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
        """New parameters and the next state."""
        mu = self.momentum if momentum is None else momentum
        settings = zip(*(per_tensor(s, len(params)) for s in (lr, weight_decay, mu)))
        new, velocity = [], []
        for p, g, v, (rate, decay, m) in zip(params, grads, state.moments[0], settings):
            g = _add_decay(g, decay, p)
            v = m * v + g
            new.append(p - rate * (g + m * v if self.nesterov else v))
            velocity.append(v)
        return tuple(new), OptimizerState(state.step + 1, (tuple(velocity),))


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) with `decoupled` decay.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
    w <- w - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)

    Arguments: `betas`, where `update` is not given them. Bias corrections of Python floats are
    Python floats: in float32 tensors they would cost 1e-5 of accuracy.
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
        """New parameters and the next state."""
        betas = (
            self.betas[0] if beta1 is None else beta1,
            self.betas[1] if beta2 is None else beta2,
        )
        settings = zip(*(per_tensor(s, len(params)) for s in (lr, weight_decay, *betas)))
        step = state.step + 1
        new, first, second = [], [], []
        for p, g, m, v, (rate, decay, b1, b2) in zip(params, grads, *state.moments, settings):
            if self.decoupled:
                p = p if _is_zero(decay) else p * (1 - rate * decay)
            else:
                g = _add_decay(g, decay, p)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            # v + tiny keeps the derivative of the root finite where a gradient is exactly zero
            root = (v / (1 - b2**step) + torch.finfo(v.dtype).tiny).sqrt()
            new.append(p - rate * (m / (1 - b1**step)) / (root + self.eps))
            first.append(m)
            second.append(v)
        return tuple(new), OptimizerState(step, (tuple(first), tuple(second)))


class Optimizer(Protocol):
    """A pure rule; `update` takes its settings by name."""

    def init(self, params: Sequence[Tensor]) -> OptimizerState: ...

    @property
    def update(self) -> Callable[..., tuple[tuple[Tensor, ...], OptimizerState]]: ...


def per_tensor(setting: Setting, count: int) -> tuple[Scalar, ...]:
    """One value for each of `count` tensors.

    >>> per_tensor(0.1, 2)
    (0.1, 0.1)
    """
    if isinstance(setting, (float, int, Tensor)):
        return (setting,) * count
    if len(setting) != count:
        raise ValueError(f"a setting has {len(setting)} values for {count} parameter tensors")
    return tuple(setting)


def _is_zero(value: Scalar) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _add_decay(grad: Tensor, decay: Scalar, param: Tensor) -> Tensor:
    return grad if _is_zero(decay) else grad + decay * param
