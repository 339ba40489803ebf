"""Policies whose magnitudes and probabilities are learned, or follow a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from darts_lite.augment.fused import FAMILY_OF, NAMES, OPERATIONS, check_name
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import Policy, Strength, Turned, Values
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule, interpolate

REACH = {name: operation.reach for name, operation in OPERATIONS.items()}
KIND = {name: operation.shared or name for name, operation in OPERATIONS.items()}
"""The name of each operation's magnitude and probability; some operations share them."""

CLASSIC = tuple(n for n in NAMES if FAMILY_OF[n] in ("geometric", "color", "cutout"))


@dataclass(frozen=True, kw_only=True)
class Learned(Policy):
    """All operations one after the other, each with a magnitude and a probability to be learned.

    An operation acts on an image with its probability p, with a value up to its magnitude:

        value = z · u · magnitude · reach,    z ~ Bernoulli(p),  u ~ Uniform(-1, 1) or Uniform(0, 1)

    so that ∂value/∂magnitude = z · u · reach is the pathwise derivative of the expectation. (DADA,
    Li et al. 2020, takes ∂image/∂magnitude = 1 instead, which is not a derivative.) Probabilities
    are learned by turning a coin of each image, see `pipeline.Augmentation.loss`. `REACH` is the
    value at a magnitude of one.

    Arguments:
        channels, flips, crop: see `Policy`.
        probabilities: whether the probabilities are learned too.
        operations: the names of the operations in use.
    Raises: UserError if an operation is unknown.

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
            check_name(name)

    @property
    def stages(self) -> int:
        return 1

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The operations that do something to images of these channels, in the order of a stage."""
        return tuple(
            n
            for n in NAMES
            if n in self.operations and (self.channels == 3 or not OPERATIONS[n].color)
        )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The names of the magnitudes and probabilities in use."""
        return tuple(dict.fromkeys(KIND[n] for n in self.active))

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        learned = ("magnitude", "probability") if self.probabilities else ("magnitude",)
        return tuple(f"{what}.{kind}" for what in learned for kind in self.kinds)

    @property
    def starts(self) -> dict[str, float]:
        magnitudes = {f"magnitude.{KIND[n]}": OPERATIONS[n].start for n in self.active}
        begin = magnitudes | self.usual
        return {n: begin[n] for n in self.names}

    @cached_property
    def usual(self) -> dict[str, float]:
        """The probabilities where they are not learned, and where learning them begins."""
        return {f"probability.{KIND[n]}": OPERATIONS[n].rate for n in self.active}

    def chances(self, values: Values) -> Tensor:
        """Return the probabilities `[operations]`; zero for operations not in use."""
        given = (v for n, v in values.items() if n.startswith("probability."))
        like = next(given, torch.zeros(()))
        zero = torch.zeros_like(like)
        chances = dict.fromkeys(NAMES, zero)
        for name in self.active:
            own = f"probability.{KIND[name]}"
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
        """Return the values if the operations act, and whether they act, `[B, operations]` each."""
        uniform, coin = torch.rand(2, batch, len(NAMES), generator=generator)
        signed = torch.tensor([OPERATIONS[n].signed for n in NAMES])
        factor = torch.where(signed, 2 * uniform - 1, uniform)
        return factor * torch.tensor(list(REACH.values())), coin < self.chances(values)

    def chance(self, operation: Tensor, values: Values) -> Tensor:
        return self.chances(values).index_select(0, operation)

    def reach(self, values: Values) -> Tensor | None:
        like = next(iter(values.values()))
        one = torch.ones_like(like)
        own = [f"magnitude.{KIND[n]}" for n in NAMES]
        return torch.stack([values.get(n, one) for n in own])

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        now = self.starts | self.usual | {n: float(v) for n, v in (values or {}).items()}
        return {
            n: Strength(REACH[n] * now[f"magnitude.{KIND[n]}"], now[f"probability.{KIND[n]}"])
            for n in self.active
        }

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        knots = {n: s for n, s in schedules.items() if n in self.names}
        if not knots:
            raise UserError(
                "--augment learned must have learned values to replay, got none; choose another "
                "augmentation, or --hyperparameters online to learn them now"
            )
        return Scheduled(
            channels=self.channels,
            flips=self.flips,
            crop=self.crop,
            vertical_flips=self.vertical_flips,
            operations=self.operations,
            probabilities=False,
            knots=knots,
        )


@dataclass(frozen=True, kw_only=True)
class Scheduled(Learned):
    """Magnitudes and probabilities as functions of the fraction of the training.

    Population based augmentation produces such schedules (Ho et al. 2019), and so does our search.
    An operation without a magnitude does not act.

    Arguments:
        channels, flips, crop, operations: see `Learned`; nothing is learned.
        knots: by name, (fraction of the training, value) in ascending order, both in [0, 1];
            linear in between, constant beyond.
    Raises: UserError if a name or a knot is wrong.

    >>> knots = {"magnitude.rotate": ((0.0, 0.0), (1.0, 1.0)), "probability.rotate": ((0.0, 1.0),)}
    >>> Scheduled(channels=1, knots=knots).at(0.25)["magnitude.rotate"]
    0.25
    """

    name: ClassVar[str] = "schedule"
    knots: dict[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {f"{w}.{kind}" for kind in KIND.values() for w in ("magnitude", "probability")}
        for name, schedule in self.knots.items():
            if name not in known:
                raise UserError(
                    f"schedule: a value must be one of {', '.join(sorted(known))}, got {name!r}; "
                    "give one of these names"
                )
            fractions = [f for f, _ in schedule]
            inside = all(0 <= x <= 1 for knot in schedule for x in knot)
            if not schedule or fractions != sorted(fractions) or not inside:
                raise UserError(
                    f"schedule: {name} must be (fraction, value) pairs in [0, 1], the fractions "
                    f"ascending, got {schedule}; give one pair or more"
                )

    def __hash__(self) -> int:
        return hash(
            (self.channels, self.flips, self.crop, self.vertical_flips, tuple(self.knots.items()))
        )

    @cached_property
    def active(self) -> tuple[str, ...]:
        present = Learned.active.func(self)  # type: ignore[attr-defined]
        return tuple(n for n in present if f"magnitude.{KIND[n]}" in self.knots)

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()

    def at(self, fraction: float) -> dict[str, float]:
        """Return the values by name at a fraction of the training."""
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
