"""Outer variables: named tensors with a bijection to their range and a kind.

What is learned is the raw, unconstrained value; what the problem sees is its image under a smooth
bijection, so no bound is ever enforced by a clamp, which would kill the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["architecture", "loss", "optimizer"]
LARGEST = 0.25  # change of a raw value in one update
EDGE = 5.0  # raw value of an interval that is as good as its end


class Bijection(Protocol):
    def forward(self, raw: Tensor) -> Tensor:
        """From the real line to the range."""

    def inverse(self, value: Tensor) -> Tensor:
        """From the range to the real line."""


@dataclass(frozen=True)
class Identity:
    """The whole real line: architecture logits."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Interval:
    """low + (high - low) sigmoid(raw): with the default ends, the inverse is the logit."""

    low: float = 0.0
    high: float = 1.0

    def forward(self, raw: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * raw.sigmoid()

    def inverse(self, value: Tensor) -> Tensor:
        return ((value - self.low) / (self.high - self.low)).logit()


@dataclass(frozen=True)
class LogInterval:
    """exp of an Interval in log space: low < value < high, both positive.

    >>> LogInterval(1e-3, 1.0).forward(torch.tensor(0.0))
    tensor(0.0316)
    """

    low: float
    high: float

    def _log(self) -> Interval:
        return Interval(math.log(self.low), math.log(self.high))

    def forward(self, raw: Tensor) -> Tensor:
        return self._log().forward(raw).exp()

    def inverse(self, value: Tensor) -> Tensor:
        return self._log().inverse(value.log())


@dataclass(frozen=True)
class Log:
    """exp(raw): every positive value."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def inverse(self, value: Tensor) -> Tensor:
        return value.log()


@dataclass(frozen=True)
class Softplus:
    """log(1 + exp(raw)): every positive value, nearly linear above one.

    >>> Softplus().forward(Softplus().inverse(torch.tensor(2.0)))
    tensor(2.)
    """

    def forward(self, raw: Tensor) -> Tensor:
        return torch.nn.functional.softplus(raw)

    def inverse(self, value: Tensor) -> Tensor:
        return value + (-torch.expm1(-value)).log()


@dataclass(frozen=True)
class HyperSpec:
    """One outer variable. `travel` is the largest change of its raw value over a whole run."""

    name: str
    init: Tensor
    bijection: Bijection
    kind: Kind
    travel: float = 4.0


@dataclass
class HyperParameters:
    """Raw values of a set of outer variables, and the Adam that moves them.

    The outer learning rate is in units of the budget: over the whole learning phase a raw value
    can move by `travel` at the most, whatever the number of steps, so one setting serves a minute
    and a night. A non-finite hypergradient is skipped and counted, never applied.
    """

    specs: tuple[HyperSpec, ...]
    raw: dict[str, Tensor] = field(init=False)
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    betas: tuple[float, float] = (0.5, 0.99)
    _moments: dict[str, tuple[Tensor, Tensor, int, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.raw = {s.name: s.bijection.inverse(s.init).detach().clone() for s in self.specs}
        for s in self.specs:
            if not self.raw[s.name].isfinite().all():
                raise ValueError(
                    f"{s.name!r} must start strictly inside the range of {s.bijection}, "
                    f"not at {s.init}: there its raw value is not finite"
                )
        self._moments = {
            name: (torch.zeros_like(raw), torch.zeros_like(raw), 0, 0.0)
            for name, raw in self.raw.items()
        }

    @property
    def kinds(self) -> dict[str, Kind]:
        return {s.name: s.kind for s in self.specs}

    @property
    def begun(self) -> bool:
        """Whether any variable was updated."""
        return any(count > 0 for _, _, count, _ in self._moments.values())

    def leaves(self) -> dict[str, Tensor]:
        """Raw values that record gradients; what an estimator differentiates."""
        return {name: raw.detach().requires_grad_() for name, raw in self.raw.items()}

    def constrain(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values that the problem sees; differentiable in `raw`."""
        return {s.name: s.bijection.forward(raw[s.name]) for s in self.specs}

    def values(self) -> dict[str, Tensor]:
        """Constrained values without gradient."""
        return {name: value.detach() for name, value in self.constrain(self.raw).items()}

    @torch.no_grad()
    def update(self, hypergradient: Mapping[str, Tensor], progress: float) -> None:
        """One Adam step against the hypergradient of every variable that it names.

        Arguments: `progress`, the part of the learning phase that has passed since the last call.
        A variable that is absent this time keeps its progress for the next. Nothing here waits
        for the device.
        """
        b1, b2 = self.betas
        for spec in self.specs:
            first, second, count, waiting = self._moments[spec.name]
            waiting += progress
            gradient = hypergradient.get(spec.name)
            if gradient is None:
                self._moments[spec.name] = (first, second, count, waiting)
                continue
            count += 1
            m = b1 * first + (1 - b1) * gradient
            v = b2 * second + (1 - b2) * gradient**2
            finite = torch.isfinite(v).all()  # of the square: an infinite v would last for ever
            direction = (m / (1 - b1**count)) / ((v / (1 - b2**count)).sqrt() + 1e-12)
            # A step is at most a tenth of the travel, should the clock jump, and never so large
            # that a few of them, mostly noise, decide: a short run learns less, but no nonsense.
            step = min(spec.travel * min(waiting, 0.1), LARGEST) * direction.clamp(-1, 1)
            raw = self.raw[spec.name]
            self.raw[spec.name] = torch.where(finite, raw - step, raw)
            self._moments[spec.name] = (
                torch.where(finite, m, first),
                torch.where(finite, v, second),
                count,
                0.0,
            )
            self.skipped = self.skipped + (~finite).long()

    @torch.no_grad()
    def multiply(self, name: str, factor: Tensor | float) -> None:
        """Scales the value of one variable, staying inside its range."""
        spec = next(s for s in self.specs if s.name == name)
        old = self.raw[name]
        raw = spec.bijection.inverse(spec.bijection.forward(old) * factor)
        if isinstance(spec.bijection, (Interval, LogInterval)):  # the others have no ends
            up = torch.as_tensor(factor, device=old.device) > 1
            high, low = old.clamp(min=EDGE), old.clamp(max=-EDGE)  # who is beyond stays
            raw = torch.where(raw.isnan(), torch.where(up, high, low), raw)
            raw = torch.where(up, torch.minimum(raw, high), torch.maximum(raw, low))
        self.raw[name] = torch.where(raw.isfinite(), raw, old)

    def state_dict(self) -> dict[str, object]:
        moments = dict(self._moments)  # copies: `update` replaces entries of its own
        return {"raw": dict(self.raw), "moments": moments, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping) -> None:
        self.raw = dict(state["raw"])
        self._moments = {name: tuple(value) for name, value in state["moments"].items()}
        self.skipped = state["skipped"]

    def to(self, device: torch.device) -> HyperParameters:
        self.skipped = self.skipped.to(device)
        self.raw = {name: raw.to(device) for name, raw in self.raw.items()}
        self._moments = {
            name: (first.to(device), second.to(device), count, waiting)
            for name, (first, second, count, waiting) in self._moments.items()
        }
        return self


def select(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix`, without it.

    >>> select({"alpha.a": torch.ones(1), "lr": torch.ones(1)}, "alpha.")
    {'a': tensor([1.])}
    """
    return {name[len(prefix) :]: v for name, v in values.items() if name.startswith(prefix)}
