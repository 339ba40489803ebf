"""Optimisers as pure functions with exact derivatives in every argument.

`update(params, grads, state, ...)` gives new parameters and a new state and modifies nothing.
Learning rate, weight decay and momentum may be tensors; then the result is differentiable in them,
in the gradients and in the state. (`torch.optim.SGD(differentiable=True)` detaches its first
momentum buffer; this does not.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor


class OptimizerState(NamedTuple):
    """`moments[k]` holds the k-th moment of every parameter tensor; `step` counts updates."""

    step: int
    moments: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` defines it.

    g <- g + weight_decay w;  v <- momentum v + g;  w <- w - lr (g + momentum v if nesterov else v)

    >>> sgd = SGD(); w = (torch.tensor([1.0]),)
    >>> sgd.update(w, w, sgd.init(w), lr=0.1, weight_decay=[0.0])[0]
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
        lr: Scalar,
        weight_decay: Sequence[Scalar],
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """Arguments: one weight decay for each tensor of `params`."""
        new, velocity = [], []
        for p, g, v, decay in zip(params, grads, state.moments[0], weight_decay):
            g = _add_decay(g, decay, p)
            v = self.momentum * v + g
            new.append(p - lr * (g + self.momentum * v if self.nesterov else v))
            velocity.append(v)
        return tuple(new), OptimizerState(state.step + 1, (tuple(velocity),))


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) with `decoupled` decay.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
    w <- w - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)

    Bias corrections are Python floats: in float32 tensors they would cost 1e-5 of accuracy.
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
        lr: Scalar,
        weight_decay: Sequence[Scalar],
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """Arguments: one weight decay for each tensor of `params`."""
        b1, b2 = self.betas
        step = state.step + 1
        new, first, second = [], [], []
        for p, g, m, v, decay in zip(params, grads, *state.moments, weight_decay):
            if self.decoupled:
                p = p if _is_zero(decay) else p * (1 - lr * decay)
            else:
                g = _add_decay(g, decay, p)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            # v + tiny keeps the derivative of the root finite where a gradient is exactly zero
            root = (v / (1 - b2**step) + torch.finfo(v.dtype).tiny).sqrt()
            new.append(p - lr * (m / (1 - b1**step)) / (root + self.eps))
            first.append(m)
            second.append(v)
        return tuple(new), OptimizerState(step, (tuple(first), tuple(second)))


Optimizer = SGD | Adam


def _is_zero(value: Scalar) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _add_decay(grad: Tensor, decay: Scalar, param: Tensor) -> Tensor:
    return grad if _is_zero(decay) else grad + decay * param
