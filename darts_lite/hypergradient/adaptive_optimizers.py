"""More functional optimizers: rules of torch.optim that treat one parameter tensor at a time.

Each rule is a frozen dataclass with its options; `PerTensor` does the rest. A rule writes `tiny`
under a root so that its derivative stays finite where a gradient is exactly zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from darts_lite.hypergradient.optimizers import OptimizerState, Setting, add_decay, per_tensor

Moments = tuple[Tensor, ...]


class PerTensor(ABC):
    """An optimizer that a rule for one tensor defines.

    Attributes:
        moments: names of the moments, as torch's optimizer has them.
        settings: names of the settings, of which each may be a tensor.
    """

    settings: ClassVar[tuple[str, ...]]
    decoupled = False  # see `Optimizer`

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]: ...

    @abstractmethod
    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        """Return a parameter tensor and its moments after its `step`-th update."""

    def start(self, p: Tensor) -> Moments:
        """Return the moments of a parameter tensor before its first update."""
        return tuple(torch.zeros_like(p) for _ in self.moments)

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        return OptimizerState(0, tuple(zip(*(self.start(p) for p in params))))

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
            settings: every setting of the rule.
        """
        values = zip(*(per_tensor(v, len(params)) for v in settings.values()))
        new, moved = [], []
        for p, g, taken, own, *moments in zip(
            params, grads, state.taken(len(params)), values, *state.moments
        ):
            p, after = self.one(p, g, tuple(moments), taken + 1, **dict(zip(settings, own)))
            new.append(p)
            moved.append(after)
        return tuple(new), state._replace(step=state.step + 1, moments=tuple(zip(*moved)))


ADAM = ("lr", "weight_decay", "beta1", "beta2")


@dataclass(frozen=True)
class NAdam(PerTensor):
    """Adam with Nesterov momentum (Dozat 2016).

        mu_t = b1 (1 - 0.96^(t momentum_decay) / 2);  m, v as in Adam
        w <- w - lr ((1 - mu_t) g / (1 - prod mu_1..t) + mu_t+1 m / (1 - prod mu_1..t+1)) / d
        d = sqrt(v / (1 - b2^t)) + eps

    >>> rule = NAdam(); w = (torch.tensor([1.0]),)
    >>> rule.update(w, w, rule.init(w), lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.999)[0]
    (tensor([0.8944]),)
    """

    eps: float = 1e-8
    momentum_decay: float = 0.004
    decoupled: bool = False

    moments = ("exp_avg", "exp_avg_sq", "mu_product")
    settings = ADAM

    def start(self, p: Tensor) -> Moments:
        return torch.zeros_like(p), torch.zeros_like(p), p.new_ones(())

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        lr, decay, b1, b2 = (settings[n] for n in ADAM)
        m, v, product = moments
        p, g = _decayed(p, g, lr, decay, self.decoupled)
        mu, after = (b1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)) for t in (step, step + 1))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        product = product.to(p.dtype) * mu
        denominator = _root(v / (1 - b2**step)) + self.eps
        ahead = (1 - mu) / (1 - product) * g + after / (1 - product * after) * m
        return p - lr * ahead / denominator, (m, v, product)


@dataclass(frozen=True)
class RAdam(PerTensor):
    """Adam whose rate is rectified while its second moment is uncertain (Liu et al. 2020).

    r_inf = 2 / (1 - b2) - 1;  r = r_inf - 2 t b2^t / (1 - b2^t)
    w <- w - lr m_hat rectification(r) / d   if r > 5, else   w - lr m_hat
    """

    eps: float = 1e-8
    decoupled: bool = False

    moments = ("exp_avg", "exp_avg_sq")
    settings = ADAM

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        lr, decay, b1, b2 = (settings[n] for n in ADAM)
        m, v = moments
        p, g = _decayed(p, g, lr, decay, self.decoupled)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        change, rest = lr * m / (1 - b1**step), 1 - b2**step
        full = 2 / (1 - b2) - 1
        length = full - 2 * step * b2**step / rest
        if length > 5:
            part = (length - 4) * (length - 2) * full / ((full - 4) * (full - 2) * length)
            change = change * (part * rest) ** 0.5 / (_root(v) + self.eps)
        elif isinstance(b2, Tensor):
            change = change + 0 * b2  # b2 has no effect in this step, which is not no dependence
        return p - change, (m, v)


@dataclass(frozen=True)
class Adamax(PerTensor):
    """Adam with the infinity norm (Kingma & Ba 2015, algorithm 2).

    u <- max(b2 u, |g| + eps);  w <- w - lr m / ((1 - b1^t) u)
    """

    eps: float = 1e-8

    moments = ("exp_avg", "exp_inf")
    settings = ADAM

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        lr, decay, b1, b2 = (settings[n] for n in ADAM)
        m, u = moments
        g = add_decay(g, decay, p)
        m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u, g.abs() + self.eps)
        return p - lr / (1 - b1**step) * m / u, (m, u)


@dataclass(frozen=True)
class Adagrad(PerTensor):
    """Adagrad (Duchi et al. 2011).

    s <- s + g^2;  w <- w - lr / (1 + (t-1) lr_decay) g / (sqrt(s) + eps)
    """

    eps: float = 1e-10
    lr_decay: float = 0.0
    initial: float = 0.0

    moments = ("sum",)
    settings = ("lr", "weight_decay")

    def start(self, p: Tensor) -> Moments:
        return (torch.full_like(p, self.initial),)

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        g = add_decay(g, settings["weight_decay"], p)
        total = moments[0] + g * g
        rate = settings["lr"] / (1 + (step - 1) * self.lr_decay)
        return p - rate * g / (_root(total) + self.eps), (total,)


@dataclass(frozen=True)
class RMSprop(PerTensor):
    """RMSprop (Hinton 2012), with momentum, and centered (Graves 2013).

        v <- alpha v + (1-alpha) g^2;  a <- alpha a + (1-alpha) g
        d = sqrt(v - a^2 if centered else v) + eps
        b <- momentum b + g/d;  w <- w - lr b

    Arguments:
        alpha: decay rate of the moments.
        eps: constant in the denominator.
        centered: whether the squared mean of the gradient is subtracted.
        with_momentum: whether there is a momentum; without one its setting is not used.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    centered: bool = False
    with_momentum: bool = False

    settings = ("lr", "weight_decay", "momentum")

    @property
    def moments(self) -> tuple[str, ...]:
        return (
            "square_avg",
            *(["grad_avg"] if self.centered else []),
            *(["momentum_buffer"] if self.with_momentum else []),
        )

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        kept, a = dict(zip(self.moments, moments)), self.alpha
        g = add_decay(g, settings["weight_decay"], p)
        square = kept["square_avg"] = a * kept["square_avg"] + (1 - a) * g * g
        if self.centered:
            mean = kept["grad_avg"] = a * kept["grad_avg"] + (1 - a) * g
            square = square - mean * mean
        change = g / (_root(square) + self.eps)
        if self.with_momentum:
            change = settings["momentum"] * kept["momentum_buffer"] + change
            kept["momentum_buffer"] = change
        return p - settings["lr"] * change, tuple(kept[n] for n in self.moments)


@dataclass(frozen=True)
class Muon(PerTensor):
    """Momentum whose matrices are orthogonalized by Newton-Schulz iterations (Jordan et al. 2024).

        b <- momentum b + (1-momentum) g;  u = orthogonal(b, or its Nesterov step)
        w <- (1 - lr weight_decay) w - lr ratio u

    The iterations compute in bfloat16, as torch's do, and so do their derivatives: these are good
    to about a percent. Derivatives in lr and weight_decay of the same step are exact.

    Arguments:
        nesterov: whether to use Nesterov momentum.
        coefficients: of the quintic iteration.
        iterations: number of iterations.
        eps: smallest norm by which a matrix is divided.
        adjust: how the lr is adjusted to the shape; None for "original".
    """

    nesterov: bool = True
    coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    iterations: int = 5
    eps: float = 1e-7
    adjust: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None

    decoupled = True
    moments = ("momentum_buffer",)
    settings = ("lr", "weight_decay", "momentum")

    def one(
        self, p: Tensor, g: Tensor, moments: Moments, step: int, **settings: Any
    ) -> tuple[Tensor, Moments]:
        lr, momentum = settings["lr"], settings["momentum"]
        buffer = moments[0] + (1 - momentum) * (g - moments[0])
        change = self._orthogonal(g + momentum * (buffer - g) if self.nesterov else buffer)
        rows, columns = p.shape
        ratio = {
            "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
            "spectral_unclamped": math.sqrt(rows / columns),
        }.get(self.adjust or "original", math.sqrt(max(1, rows / columns)))
        p = p * (1 - lr * settings["weight_decay"])
        return p - lr * ratio * change.to(p.dtype), (buffer,)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        a, b, c = self.coefficients
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.bfloat16().T if tall else matrix.bfloat16()
        x = x / x.norm().clamp(min=self.eps)
        for _ in range(self.iterations):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


def _decayed(p: Tensor, g: Tensor, lr: Any, decay: Any, decoupled: bool) -> tuple[Tensor, Tensor]:
    """Parameter and gradient with their weight decay."""
    return (p * (1 - lr * decay), g) if decoupled else (p, add_decay(g, decay, p))


def _root(value: Tensor) -> Tensor:
    return (value + torch.finfo(value.dtype).tiny).sqrt()
