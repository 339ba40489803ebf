"""The published policies: RandAugment, TrivialAugment and AutoAugment.

Each draws one operation per image and stage. The operations are ours (`fused.py`) and differ from
torchvision's: shears are about the center of the image, borders are black, and nothing is rounded
to whole bytes in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from darts_lite.augment.fused import NAMES, OPERATIONS
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import Policy, Strength, Values
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

IDENTITY = "identity"
CONSTANT = ("autocontrast", "equalize", "invert")  # operations without a magnitude
RANDAUGMENT: dict[str, float] = {  # the value at the largest magnitude
    IDENTITY: 0.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": math.radians(30),
    "brightness": 0.9,
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4 / 8,
    "solarize": 1.0,
    "autocontrast": 1.0,
    "equalize": 1.0,
}
TRIVIALAUGMENT = RANDAUGMENT | {
    "shear_x": 0.99,
    "shear_y": 0.99,
    "rotate": math.radians(135),
    "brightness": 0.99,
    "saturation": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
    "posterize": 6 / 8,
}
TRIVIAL_SHIFT = 32  # pixels, whatever the size of the image
BINS = 31  # magnitudes of RandAugment and TrivialAugment
AUTOAUGMENT = RANDAUGMENT | {"invert": 1.0}
AUTOAUGMENT_BINS = 10
TORCHVISION = {  # our name for each name of torchvision
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
}


def scatter(chosen: Tensor, factors: Tensor, reach: Mapping[str, float]) -> Tensor:
    """Return the values `[..., operations]` of chosen operations, zero for all others.

    Arguments:
        chosen: `[...]`, indices into `reach`.
        factors: `[...]` in [-1, 1], shares of the largest value. An operation without a sign takes
            the absolute value; an operation without a magnitude takes its largest value.
        reach: the largest value of each operation, by name.
    """
    column, table, signed, constant = _columns(tuple(reach.items()))
    factors = torch.where(signed[chosen], factors, factors.abs())
    values = table[chosen] * torch.where(constant[chosen], 1.0, factors)
    # the identity has a column of its own behind the others, which is then cut off
    out = torch.zeros(*chosen.shape, len(NAMES) + 1)
    out.scatter_(-1, column[chosen].unsqueeze(-1), values.unsqueeze(-1))
    return out[..., :-1]


@cache
def _columns(reach: tuple[tuple[str, float], ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, by operation: column, largest value, whether signed, whether without a magnitude."""
    names = [name for name, _ in reach]
    return (
        torch.tensor([NAMES.index(n) if n != IDENTITY else len(NAMES) for n in names]),
        torch.tensor([value for _, value in reach]),
        torch.tensor([n in OPERATIONS and OPERATIONS[n].signed for n in names]),
        torch.tensor([n in CONSTANT for n in names]),
    )


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


@dataclass(frozen=True, kw_only=True)
class RandAugment(Policy):
    """`n` operations of fourteen per image, all of magnitude `m` (Cubuk et al. 2020).

    The magnitude can be learned: "magnitude.all" in [0, 1] then takes the place of m / 30.

    Arguments:
        channels, flips, crop: see `Policy`.
        n: operations per image, 0 or more.
        m: magnitude, from 0 to 30.
    Raises: UserError if a knob is out of its range.
    """

    name: ClassVar[str] = "randaugment"
    n: int = 2
    m: float = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 0:
            raise UserError(
                f"randaugment: n must be 0 operations or more, got {self.n}; 2 is usual"
            )
        if not 0 <= self.m <= BINS - 1:
            raise UserError(
                f"randaugment: m must be from 0 to {BINS - 1}, got {self.m:g}; 9 is usual"
            )

    @property
    def stages(self) -> int:
        return self.n

    @property
    def names(self) -> tuple[str, ...]:
        return ("magnitude.all",)

    @property
    def starts(self) -> dict[str, float]:
        return {"magnitude.all": self.m / (BINS - 1)}

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        learned = (values or {}).get(self.names[0])
        share = self.m / (BINS - 1) if learned is None else float(learned)
        return _strengths(RANDAUGMENT, share, self.n)

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        learned = schedules.get(self.names[0])
        return replace(self, m=(BINS - 1) * learned[-1][1]) if learned else self

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        shape = (self.n, batch)
        chosen = torch.randint(len(RANDAUGMENT), shape, generator=generator)
        factors = _signs(shape, generator)
        if self.names[0] not in values:
            factors = factors * self.m / (BINS - 1)
        return scatter(chosen, factors, RANDAUGMENT)

    def reach(self, values: Values) -> Tensor | None:
        magnitude = values.get(self.names[0])
        if magnitude is None:
            return None
        one = torch.ones_like(magnitude)
        return torch.stack([one if name in CONSTANT else magnitude for name in NAMES])


@dataclass(frozen=True, kw_only=True)
class TrivialAugment(Policy):
    """One operation per image, of any magnitude (Müller and Hutter 2021, the wide space).

    Arguments: channels, flips, crop, see `Policy`.
    """

    name: ClassVar[str] = "trivialaugment"

    @property
    def stages(self) -> int:
        return 1

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        shape = (1, batch)
        chosen = torch.randint(len(TRIVIALAUGMENT), shape, generator=generator)
        steps = torch.randint(BINS, shape, generator=generator) / (BINS - 1)
        reach = TRIVIALAUGMENT | _shifts(size)
        return scatter(chosen, _signs(shape, generator) * steps, reach)

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        return _strengths(TRIVIALAUGMENT | _shifts(size), 1.0, 1)


@dataclass(frozen=True, kw_only=True)
class AutoAugment(Policy):
    """One of 25 published pairs of operations per image (Cubuk et al. 2019).

    The tables are torchvision's.

    Arguments:
        channels, flips, crop: see `Policy`.
        dataset: "cifar10", "svhn" or "imagenet", for which the pairs were found.
    Raises: UserError if there are no pairs for the data set.
    """

    name: ClassVar[str] = "autoaugment"
    dataset: Literal["cifar10", "svhn", "imagenet"] = "cifar10"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in _DATASETS:
            raise UserError(
                f"autoaugment: dataset must be one of {', '.join(_DATASETS)}, got "
                f"{self.dataset!r}; give the most similar one"
            )

    @property
    def stages(self) -> int:
        return 2

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        operations, probability, magnitude = _pairs(self.dataset)
        pair = torch.randint(len(operations), (batch,), generator=generator)
        coins = torch.rand(2, batch, generator=generator) < probability[pair].T
        signs = _signs((2, batch), generator)
        units = scatter(operations[pair].T, signs * magnitude[pair].T, AUTOAUGMENT)
        return units * coins.unsqueeze(-1)

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        operations, probability, magnitude = _pairs(self.dataset)
        found = {}
        for i, (name, reach) in enumerate(AUTOAUGMENT.items()):
            own = operations == i
            if bool(own.any()):
                rate = float((probability * own).sum()) / len(operations)
                found[name] = Strength(reach * float((magnitude * own).max()), rate)
        return found


_DATASETS = ("cifar10", "svhn", "imagenet")


def _shifts(size: Size) -> dict[str, float]:
    return {"translate_x": TRIVIAL_SHIFT / size[1], "translate_y": TRIVIAL_SHIFT / size[0]}


def _strengths(reach: Mapping[str, float], share: float, stages: int) -> dict[str, Strength]:
    rate = stages / len(reach)
    return {
        n: Strength(r if n in CONSTANT else r * share, rate)
        for n, r in reach.items()
        if n != IDENTITY
    }


@cache
def _pairs(dataset: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices into `AUTOAUGMENT`, probabilities and magnitudes in [0, 1], `[25, 2]` each."""
    from torchvision.transforms import autoaugment  # the import takes two seconds

    table = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(dataset)).policies
    names = list(AUTOAUGMENT)
    index = [[names.index(TORCHVISION[name]) for name, _, _ in pair] for pair in table]
    probability = [[p for _, p, _ in pair] for pair in table]
    top = AUTOAUGMENT_BINS - 1
    magnitude = [[1.0 if m is None else m / top for _, _, m in pair] for pair in table]
    return torch.tensor(index), torch.tensor(probability), torch.tensor(magnitude)
