"""Policies of which magnitudes and probabilities are learned, or follow a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from darts_lite.augment.fused import NAMES, OPERATIONS
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import Policy, Strength, Turned, Values
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule, interpolate

REACH: dict[str, float] = {  # the value that a magnitude of one stands for
    "translate_x": 0.3,
    "translate_y": 0.3,
    "rotate": math.radians(30),
    "shear_x": 0.3,
    "shear_y": 0.3,
    "scale": math.log(1.4),
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "autocontrast": 1.0,
    "equalize": 1.0,
    "solarize": 1.0,
    "posterize": 0.5,
    "invert": 1.0,
    "sharpness": 0.9,
    "gaussian_blur": 1.5,
    "gaussian_noise": 0.2,
    "cutout": 0.5,
}
assert tuple(REACH) == NAMES
SHARED = {  # operations of one magnitude and probability
    "translate_x": "translate",
    "translate_y": "translate",
    "shear_x": "shear",
    "shear_y": "shear",
}
CLASSIC = tuple(  # geometry, colour and cutout
    name for name, op in OPERATIONS.items() if op.family in ("geometric", "colour", "cutout")
)
OFTEN, SELDOM = 0.5, 0.1  # probabilities of those, and of what changes an image more
MAGNITUDE = {"gaussian_blur": 0.4}  # where learning begins: weaker blurs have no gradient


@dataclass(frozen=True, kw_only=True)
class Learned(Policy):
    """Each operation has a magnitude, the upper bound of a uniform distribution, and a probability.

    All operations act one after the other, each on an image with its own probability p and with

        value = z · u · magnitude · reach,    z ~ Bernoulli(p),  u ~ Uniform(-1, 1) or Uniform(0, 1)

    so that ∂value/∂magnitude = z · u · reach is the pathwise derivative of the expectation. (DADA,
    Li et al. 2020, takes ∂image/∂magnitude = 1 instead, which is not a derivative.) Probabilities
    are learned by turning a coin of each image, see `pipeline.Augmentation.loss`.

    Arguments: probabilities, whether those are learned too; operations, the ones in use.

    >>> policy = Learned(channels=1, crop=1, operations=("rotate", "cutout"))
    >>> policy.names
    ('magnitude.rotate', 'magnitude.cutout', 'probability.rotate', 'probability.cutout')
    >>> values = {n: torch.tensor(0.5, requires_grad=True) for n in policy.names}
    >>> draws = policy.sample(4, (8, 8), torch.Generator().manual_seed(0), values=values)
    >>> policy.apply(torch.rand(4, 1, 8, 8), draws, values).sum().backward()
    >>> values["magnitude.rotate"].grad is None
    False
    """

    name: ClassVar[str] = "learned"
    probabilities: bool = True
    operations: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.operations:
            if name not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise UserError(f"augment: no operation {name!r}; known: {known}")

    @property
    def stages(self) -> int:
        return 1

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The operations that do something to such images, in the order in which they are done."""
        return tuple(
            n for n in NAMES if n in self.operations and (n != "saturation" or self.channels == 3)
        )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The operations, those that share a magnitude and a probability taken together."""
        return tuple(dict.fromkeys(SHARED.get(n, n) for n in self.active))

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        learned = ("magnitude", "probability") if self.probabilities else ("magnitude",)
        return tuple(f"{what}.{kind}" for what in learned for kind in self.kinds)

    @property
    def starts(self) -> dict[str, float]:
        usual = self.usual
        return {n: usual.get(n, MAGNITUDE.get(n.partition(".")[2], 0.05)) for n in self.names}

    @cached_property
    def usual(self) -> dict[str, float]:
        """The probabilities where they are not learned, and where learning them begins."""
        found = {}
        for name in self.active:
            rate = OFTEN if name in CLASSIC else SELDOM
            found[f"probability.{SHARED.get(name, name)}"] = rate
        return found

    def chances(self, values: Values) -> Tensor:
        """The probabilities `[operations]`; zero for those not in use."""
        given = (v for n, v in values.items() if n.startswith("probability."))
        like = next(given, torch.zeros(()))
        zero = torch.zeros_like(like)
        chances = dict.fromkeys(NAMES, zero)
        for name in self.active:
            own = f"probability.{SHARED.get(name, name)}"
            known = values.get(own)
            chances[name] = torch.full_like(like, self.usual[own]) if known is None else known
        return torch.stack(list(chances.values()))

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        sizes, acts = self._sizes_and_coins(batch, generator, values)
        return (sizes * acts).unsqueeze(0)

    def turning(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> tuple[Tensor, Turned | None]:
        sizes, acts = self._sizes_and_coins(batch, generator, values)
        units = (sizes * acts).unsqueeze(0)
        count = len(self.active)
        if not self.probabilities or not count:
            return units, None
        column = torch.tensor([NAMES.index(n) for n in self.active])
        operation = column[torch.randint(count, (batch,), generator=generator)]
        acted = acts.gather(1, operation.unsqueeze(1)).squeeze(1)
        other = acts.scatter(1, operation.unsqueeze(1), ~acted.unsqueeze(1))
        weight = count * (2.0 * acted - 1)
        chance = self.chances(values)[operation]
        return units, Turned((sizes * other).unsqueeze(0), operation, weight, chance)

    def _sizes_and_coins(
        self, batch: int, generator: torch.Generator, values: Values
    ) -> tuple[Tensor, Tensor]:
        """`[B, operations]` each: the values should the operations act, and whether they do."""
        uniform, coin = torch.rand(2, batch, len(NAMES), generator=generator)
        signed = torch.tensor([OPERATIONS[n].signed for n in NAMES])
        factor = torch.where(signed, 2 * uniform - 1, uniform)
        return factor * torch.tensor(list(REACH.values())), coin < self.chances(values)

    def chance(self, operation: Tensor, values: Values) -> Tensor:
        return self.chances(values).index_select(0, operation)

    def reach(self, values: Values) -> Tensor | None:
        like = next(iter(values.values()))
        one = torch.ones_like(like)
        own = [f"magnitude.{SHARED.get(n, n)}" for n in NAMES]
        return torch.stack([values.get(n, one) for n in own])

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        now = self.starts | self.usual | {n: float(v) for n, v in (values or {}).items()}
        shared = {n: SHARED.get(n, n) for n in self.active}
        return {
            n: Strength(REACH[n] * now[f"magnitude.{kind}"], now[f"probability.{kind}"])
            for n, kind in shared.items()
        }

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        knots = {n: s for n, s in schedules.items() if n in self.names}
        if not knots:
            raise UserError(
                "there are no learned values for --augment learned; choose another, or "
                "--hyperparameters online to learn them now"
            )
        return Scheduled(
            channels=self.channels,
            flips=self.flips,
            crop=self.crop,
            operations=self.operations,
            probabilities=False,
            knots=knots,
        )


@dataclass(frozen=True, kw_only=True)
class Scheduled(Learned):
    """Magnitudes and probabilities as functions of the fraction of the training.

    What population based augmentation produces (Ho et al. 2019) and what a search writes. An
    operation without a magnitude does not act.

    Arguments: knots, (fraction, value) by name, with linear pieces in between.

    >>> knots = {"magnitude.rotate": ((0.0, 0.0), (1.0, 1.0)), "probability.rotate": ((0.0, 1.0),)}
    >>> Scheduled(channels=1, knots=knots).at(0.25)["magnitude.rotate"]
    0.25
    """

    name: ClassVar[str] = "schedule"
    knots: dict[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {f"{w}.{SHARED.get(n, n)}" for n in NAMES for w in ("magnitude", "probability")}
        for name, schedule in self.knots.items():
            if name not in known:
                raise UserError(f"schedule: no value {name!r}; known: {', '.join(sorted(known))}")
            fractions = [f for f, _ in schedule]
            inside = all(0 <= x <= 1 for knot in schedule for x in knot)
            if not schedule or fractions != sorted(fractions) or not inside:
                raise UserError(
                    f"schedule: {name} needs (fraction, value) pairs in [0, 1], ascending"
                )

    def __hash__(self) -> int:
        return hash((self.channels, self.flips, self.crop, tuple(self.knots.items())))

    @cached_property
    def active(self) -> tuple[str, ...]:
        known = {f"magnitude.{SHARED.get(n, n)}" for n in NAMES} & set(self.knots)
        present = Learned.active.func(self)  # type: ignore[attr-defined]
        return tuple(n for n in present if f"magnitude.{SHARED.get(n, n)}" in known)

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()

    def at(self, fraction: float) -> dict[str, float]:
        """The values at a fraction of the training."""
        return {name: interpolate(schedule, fraction) for name, schedule in self.knots.items()}

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        now = {n: torch.tensor(v) for n, v in self.at(fraction).items()}
        if not now:
            return torch.zeros(1, batch, len(NAMES))
        units = super().units(batch, size, generator, now, fraction)
        reach = super().reach(now)
        return units if reach is None else units * reach

    def turning(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> tuple[Tensor, Turned | None]:
        return self.units(batch, size, generator, values, fraction), None

    def reach(self, values: Values) -> Tensor | None:
        return None

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        now = {n: torch.tensor(v) for n, v in self.at(fraction).items()}
        return super().strengths(size, now, fraction)

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        return self
