"""Hyperparameters (outer variables): named tensors, each with a range and a kind.

The raw value of a hyperparameter is unconstrained, and the raw value is what is learned. The
problem sees its image under a smooth bijection, the constrained value. So no bound is enforced by
a clamp, which would kill the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["architecture", "loss", "optimizer"]
"""architecture: the validation loss depends on it directly, such as mixing weights.
loss: the training loss depends on it, such as augmentation magnitudes.
optimizer: a setting of the optimizer's update rule, such as the learning rate."""

LARGEST_STEP = 0.25  # largest change of a raw value in one update
INTERVAL_END = 5.0  # raw value of an interval that is as good as its end


class Bijection(Protocol):
    """Smooth one-to-one map between the real line and the range of a hyperparameter."""

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw values to constrained values."""

    def inverse(self, value: Tensor) -> Tensor:
        """Map constrained values to raw values; not finite outside the range."""


@dataclass(frozen=True)
class Identity:
    """The whole real line, as for architecture logits."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Interval:
    """The open interval (low, high): low + (high - low) sigmoid(raw).

    Arguments:
        low: lower end.
        high: upper end.

    >>> Interval(0.0, 0.4).forward(torch.tensor(0.0))
    tensor(0.2000)
    """

    low: float = 0.0
    high: float = 1.0

    def forward(self, raw: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * raw.sigmoid()

    def inverse(self, value: Tensor) -> Tensor:
        return ((value - self.low) / (self.high - self.low)).logit()


@dataclass(frozen=True)
class LogInterval:
    """The open interval (low, high) on a log scale: exp of an `Interval` of logarithms.

    Arguments:
        low: lower end, above 0.
        high: upper end.

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
    """Every positive value: exp(raw)."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def inverse(self, value: Tensor) -> Tensor:
        return value.log()


@dataclass(frozen=True)
class Softplus:
    """Every positive value: log(1 + exp(raw)), nearly linear above 1.

    >>> Softplus().forward(Softplus().inverse(torch.tensor(2.0)))
    tensor(2.)
    """

    def forward(self, raw: Tensor) -> Tensor:
        return torch.nn.functional.softplus(raw)

    def inverse(self, value: Tensor) -> Tensor:
        return value + (-torch.expm1(-value)).log()


@dataclass(frozen=True)
class HyperSpec:
    """Definition of one hyperparameter.

    Arguments:
        name: unique name.
        init: constrained start value, of any shape, strictly inside the range.
        bijection: range of the constrained value.
        kind: what depends on the hyperparameter; it decides which estimators apply.
        travel: largest total change of the raw value over the whole training.
        every: learn the value at every n-th training step, 1 for each step.
    Raises:
        ValueError: `every` is below 1.

    >>> HyperSpec("lr", torch.tensor(0.1), LogInterval(1e-4, 10.0), "optimizer").every
    1
    """

    name: str
    init: Tensor
    bijection: Bijection
    kind: Kind
    travel: float = 4.0
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(
                f"every of {self.name!r} must be at least 1, got {self.every}; "
                "use 1 to learn at each step"
            )


@dataclass
class HyperParameters:
    """Raw values of several hyperparameters, and the Adam optimizer that updates them.

    The outer learning rate is measured in the budget: over the whole training a raw value changes
    by `HyperSpec.travel` at most, whatever the number of steps. So one setting serves a short and
    a long training. A non-finite hypergradient is skipped and counted, never applied.

    Arguments:
        specs: definitions of the hyperparameters.
        betas: decay rates of Adam's moments.
    Attributes:
        raw: raw values by name.
        skipped: number of skipped hypergradients, an int64 scalar on the device.
    Raises:
        ValueError: a start value is not strictly inside its range.

    >>> shift = HyperSpec("shift", torch.tensor(0.2), Interval(), "loss")
    >>> hyper = HyperParameters((shift,))
    >>> hyper.update({"shift": torch.tensor(1.0)}, progress=0.01)
    >>> bool(hyper.values()["shift"] < 0.2)
    True
    """

    specs: tuple[HyperSpec, ...]
    raw: dict[str, Tensor] = field(init=False)
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    betas: tuple[float, float] = (0.5, 0.99)
    # first moment, second moment, number of updates, progress since the last update
    _moments: dict[str, tuple[Tensor, Tensor, int, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.raw = {s.name: s.bijection.inverse(s.init).detach().clone() for s in self.specs}
        for s in self.specs:
            if not self.raw[s.name].isfinite().all():
                raise ValueError(
                    f"{s.name!r} must start strictly inside the range of {s.bijection}, "
                    f"got {s.init}; move the start away from the bound"
                )
        self._moments = {
            name: (torch.zeros_like(raw), torch.zeros_like(raw), 0, 0.0)
            for name, raw in self.raw.items()
        }

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kind by name."""
        return {s.name: s.kind for s in self.specs}

    @property
    def every(self) -> dict[str, int]:
        """Number of training steps between two updates, by name; 1 for each step."""
        return {s.name: s.every for s in self.specs}

    @property
    def begun(self) -> bool:
        """Whether any hyperparameter has been updated."""
        return any(count > 0 for _, _, count, _ in self._moments.values())

    def leaves(self) -> dict[str, Tensor]:
        """Return raw values that record gradients, for an estimator to differentiate."""
        return {name: raw.detach().requires_grad_() for name, raw in self.raw.items()}

    def constrain(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map raw values to constrained values; differentiable.

        Arguments:
            raw: raw values of all hyperparameters by name.
        """
        return {s.name: s.bijection.forward(raw[s.name]) for s in self.specs}

    def values(self) -> dict[str, Tensor]:
        """Return the constrained values without gradient."""
        return {name: value.detach() for name, value in self.constrain(self.raw).items()}

    @torch.no_grad()
    def update(self, hypergradient: Mapping[str, Tensor], progress: float) -> None:
        """Take one Adam step against the hypergradient. This never waits for the device.

        A hyperparameter that is absent keeps its progress for its next update.

        Arguments:
            hypergradient: derivatives in the raw values, by name, for any of the hyperparameters.
            progress: fraction of the training that has passed since the last call.
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
            finite = torch.isfinite(v).all()  # test the square: an infinite v would stay forever
            direction = (m / (1 - b1**count)) / ((v / (1 - b2**count)).sqrt() + 1e-12)
            # A step is at most a tenth of the travel, in case the clock jumps. It is also at most
            # LARGEST_STEP, so that a few noisy updates of a short training cannot decide.
            step = min(spec.travel * min(waiting, 0.1), LARGEST_STEP) * direction.clamp(-1, 1)
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
        """Multiply the constrained value of one hyperparameter; it stays inside its range.

        Arguments:
            name: name of the hyperparameter.
            factor: positive factor, a scalar or one per entry.
        """
        spec = next(s for s in self.specs if s.name == name)
        old = self.raw[name]
        raw = spec.bijection.inverse(spec.bijection.forward(old) * factor)
        if isinstance(spec.bijection, (Interval, LogInterval)):  # other bijections have no ends
            up = torch.as_tensor(factor, device=old.device) > 1
            # A value that is already beyond the end stays where it is.
            high, low = old.clamp(min=INTERVAL_END), old.clamp(max=-INTERVAL_END)
            raw = torch.where(raw.isnan(), torch.where(up, high, low), raw)
            raw = torch.where(up, torch.minimum(raw, high), torch.maximum(raw, low))
        self.raw[name] = torch.where(raw.isfinite(), raw, old)

    def state_dict(self) -> dict[str, object]:
        """Return a snapshot of the raw values, the moments and the number of skips."""
        moments = dict(self._moments)  # a copy, because `update` replaces entries
        return {"raw": dict(self.raw), "moments": moments, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore what `state_dict` returned."""
        self.raw = dict(state["raw"])
        self._moments = {name: tuple(value) for name, value in state["moments"].items()}
        self.skipped = state["skipped"]

    def to(self, device: torch.device) -> HyperParameters:
        """Move all tensors to a device, in place, and return self."""
        self.skipped = self.skipped.to(device)
        self.raw = {name: raw.to(device) for name, raw in self.raw.items()}
        self._moments = {
            name: (first.to(device), second.to(device), count, waiting)
            for name, (first, second, count, waiting) in self._moments.items()
        }
        return self


def select(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names start with a prefix, under names without the prefix.

    Arguments:
        values: tensors by name.
        prefix: start of the names, such as "alpha.".

    >>> select({"alpha.a": torch.ones(1), "lr": torch.ones(1)}, "alpha.")
    {'a': tensor([1.])}
    """
    return {name[len(prefix) :]: v for name, v in values.items() if name.startswith(prefix)}
