"""The base of every policy: which operations, how strong, and how they are drawn.

A policy separates chance from computation: `sample` makes every random choice, and `apply` is a
pure function of images, draws and learned values. Every policy is a number of stages
(`fused.stage`) after random flips and shifts. Policies differ in how the values of a stage are
drawn, and a subclass says no more than that.

**Waiting for the device.** `apply` never waits. `sample` waits once if learned probabilities are
among the values and live on another device: the coins decide which images each operation touches,
so the CPU must know the probabilities before it launches the work. Values of one step earlier
would not do, because the estimate of the derivative would no longer be unbiased. A caller who has
the probabilities on the CPU can pass those, and then nothing waits; magnitudes may be anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor

from darts_lite.augment.fused import (
    NAMES,
    Places,
    Selection,
    chained,
    check_images,
    select,
    stage,
    widened,
)
from darts_lite.augment.operations.geometry import Size, flip_and_shift
from darts_lite.augment.operations.noise import BANK
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Values = Mapping[str, Tensor]
"""Learned values by name: "magnitude.rotate", "probability.rotate", ..."""


class Strength(NamedTuple):
    """The strength of an operation.

    value: its largest value, in its unit. rate: how often it acts on an image in the mean.
    """

    value: float
    rate: float


class Turned(NamedTuple):
    """The same choices with one coin of each image turned, for the derivative in probabilities.

    units: as in `Draws`. operation: `[B]`, index of the operation whose coin was turned. weight:
    `[B]`, how many coins there were to choose from, negative where the coin that was drawn says
    that the operation does not act. chance: `[B]`, the probability of the operation when the coin
    was drawn.
    """

    units: Tensor
    operation: Tensor
    weight: Tensor
    chance: Tensor


class Draws(NamedTuple):
    """The random choices for one batch, on its device.

    units: `[stages, B, operations]`, the values of the operations for magnitudes of one, zero where
    an operation does not act. selections: which images each stage touches. center: `[stages, B, 2]`
    of cutout's squares, (x, y) as fractions. start: `[stages, B]`, where the noise begins in its
    bank. flip: `[B]` bool. shift: `[B, 2]` whole pixels, (right, down). turned, turned_selections:
    the choices with a coin of each image turned, if `sample` was asked for them. upside: `[B]`
    bool, with vertical flips.
    """

    units: Tensor
    selections: tuple[Selection, ...]
    center: Tensor
    start: Tensor
    flip: Tensor
    shift: Tensor
    turned: Turned | None = None
    turned_selections: tuple[Selection, ...] = ()
    upside: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Random flips and shifts only, and the base of every policy.

    Arguments:
        channels: channels of the images, 1 or 3.
        flips: whether to mirror left-right with probability 1/2.
        crop: largest random shift along each axis, in whole pixels; zeros come in.
        vertical_flips: whether to mirror upside down with probability 1/2.
    Raises: UserError if a knob is out of its range.

    >>> policy = Policy(channels=1, flips=False, crop=1)
    >>> policy(torch.rand(4, 1, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 1, 8, 8])
    """

    __pydantic_config__ = STRICT
    name: ClassVar[str] = "standard"

    channels: int
    flips: bool = True
    crop: int = 0
    vertical_flips: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError(
                f"augment: channels must be 1 or 3, got {self.channels}; convert the images"
            )
        if self.crop < 0:
            raise UserError(
                f"augment: crop must be 0 pixels or more, got {self.crop}; 0 shifts nothing"
            )

    # --- what a subclass says ---------------------------------------------------------------

    @property
    def stages(self) -> int:
        """The number of stages."""
        return 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values that can be learned: `apply` is differentiable in them."""
        return ()

    @property
    def starts(self) -> dict[str, float]:
        """The values where learning begins, by name."""
        return {}

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        """Draw the units `[stages, B, operations]` of `Draws`, on the CPU.

        Arguments:
            batch: images.
            size: (height, width) in pixels.
            generator: on the CPU.
            values: the learned values by name, the probabilities on the CPU.
            fraction: of the training, in [0, 1].
        """
        return torch.zeros(self.stages, batch, len(NAMES))

    def turning(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> tuple[Tensor, Turned | None]:
        """Draw `units`, and turn one coin of each image if probabilities are learned."""
        return self.units(batch, size, generator, values, fraction), None

    def reach(self, values: Values) -> Tensor | None:
        """Return the learned magnitudes `[operations]` that multiply the units; None: all one."""
        return None

    def chance(self, operation: Tensor, values: Values) -> Tensor:
        """Return the learned probability `[B]` of one operation `[B]` per image."""
        raise NotImplementedError(f"{self.name} learns no probabilities")

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        """Return how strong each operation is and how often it acts; waits for the device."""
        return {}

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        """Return the policy that follows the learned schedules instead of learning."""
        return self

    # --- what a caller uses -----------------------------------------------------------------

    def sample(
        self,
        batch: int,
        size: Size,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        values: Values | None = None,
        fraction: float = 0.0,
        turn: bool = False,
    ) -> Draws:
        """Make all random choices for one batch.

        If the values have probabilities on another device, waits for that device once; see the
        head of this module.

        Arguments:
            batch: images.
            size: (height, width) in pixels.
            generator: on the CPU, whatever the device: the draws do not depend on the device.
            device: of the draws.
            values: the learned values by name; only the probabilities are read.
            fraction: of the training, in [0, 1], for policies that change with it.
            turn: whether to turn a coin of each image as well, for the derivative in learned
                probabilities.
        Returns: Draws on `device`.
        Raises: UserError if `crop` could move an image out of sight.
        """
        if self.crop >= min(size):
            height, width = size
            raise UserError(
                f"augment: crop must be less than the sides of the image, got {self.crop} pixels "
                f"for {height}x{width}; give a smaller crop"
            )
        local = dict(values or {})
        rates = [n for n in local if n.startswith("probability.")]
        if rates:
            read = torch.stack([local[n].detach() for n in rates]).cpu()  # waits for the device
            local |= zip(rates, read.unbind())
        uniform = torch.rand(batch, 3 + 3 * self.stages, generator=generator)
        flip = (uniform[:, 0] < 0.5) & self.flips
        shift = (uniform[:, 1:3] * (2 * self.crop + 1)).floor().clamp(max=2 * self.crop) - self.crop
        rest = uniform[:, 3:].view(batch, self.stages, 3).transpose(0, 1)
        units, turned = (
            self.turning(batch, size, generator, local, fraction)
            if turn
            else (self.units(batch, size, generator, local, fraction), None)
        )
        selections = chained(tuple(select(active) for active in units != 0))
        upside = torch.rand(batch, generator=generator) < 0.5 if self.vertical_flips else None
        others = tuple(select(active) for active in turned.units != 0) if turned else ()
        draws = Draws(
            units,
            selections,
            rest[:, :, :2].contiguous(),
            (rest[:, :, 2] * BANK).long(),
            flip,
            shift.long(),
            turned,
            others,
            upside,
        )
        return draws if torch.device(device).type == "cpu" else moved(draws, device)

    def apply(
        self, images: Tensor, draws: Draws, values: Values | None = None, *, turned: bool = False
    ) -> Tensor:
        """Return the augmented images: a pure function, differentiable in images and values.

        Nothing in it waits for the device.

        Arguments:
            images: `[B, C, H, W]` floating, in [0, 1] (see `check`).
            draws: of `sample`, on the same device.
            values: the learned values that `sample` was given too, by name.
            turned: whether to use the choices with the coins turned.
        Returns: images `[B, C, H, W]` of the same dtype, computed in float32 or wider;
            channels_last if `images` is.
        Raises: UserError if the images do not have `channels`; ValueError if `turned`, and `sample`
            turned no coin.
        """
        check_images(images, self.channels)
        units, selections = draws.units, draws.selections
        if turned:
            if draws.turned is None:
                raise ValueError(
                    "turned must be False, got draws without turned coins; sample with turn=True"
                )
            units, selections = draws.turned.units, draws.turned_selections
        dtype, images = images.dtype, widened(images)
        out, flip, shift = images, None, None
        if draws.upside is not None:
            out = torch.where(draws.upside.view(-1, 1, 1, 1), images.flip(2), images)
        if self.flips or self.crop:
            first = selections[0].families if selections else {}
            if first.get("geometric", images) is None:  # the whole batch is warped anyway
                flip, shift = draws.flip, draws.shift
            else:
                out = flip_and_shift(out, draws.flip, draws.shift)
        scaled = units.to(images.dtype)
        reach = self.reach(values) if values else None
        if reach is not None:
            scaled = scaled * reach.to(images.dtype)
        for i, selection in enumerate(selections):
            places = Places(draws.center[i].to(images.dtype), draws.start[i])
            out = stage(out, scaled[i], selection, places, flip, shift)
            flip = shift = None
        out = out.to(dtype)
        if images.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def __call__(
        self, images: Tensor, generator: torch.Generator, values: Values | None = None
    ) -> Tensor:
        """Check the images, sample and apply; waits for the device."""
        check(images, self.channels)
        size = (images.shape[-2], images.shape[-1])
        draws = self.sample(len(images), size, generator, images.device, values)
        return self.apply(images, draws, values)


@dataclass(frozen=True, kw_only=True)
class Nothing(Policy):
    """Leave the images as they are."""

    name: ClassVar[str] = "none"
    flips: bool = False


def check(images: Tensor, channels: int | None = None) -> None:
    """Raise UserError for images of a wrong shape or outside [0, 1]. Waits for the device."""
    check_images(images, channels)
    low, high = (float(v) for v in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"augment: images must be in [0, 1], got values from {low:g} to {high:g}; divide bytes "
            "by 255, and augment before normalizing"
        )


def moved(draws: Draws, device: torch.device | str) -> Draws:
    """Return the draws on another device: one transfer for the numbers, one for the indices."""
    numbers: list[Tensor] = []
    indices: list[Tensor] = []

    def collect(value: Any) -> Any:
        (numbers if value.is_floating_point() else indices).append(value)
        return value

    _map(draws, collect)
    sent_numbers, sent_indices = iter(_send(numbers, device)), iter(_send(indices, device))

    def replace(value: Tensor) -> Tensor:
        new = next(sent_numbers if value.is_floating_point() else sent_indices)
        return new.to(value.dtype)

    found: Draws = _map(draws, replace)
    return found


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the same structure with `function` done to every tensor, in a fixed order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Selection):
        return Selection(*(_map(getattr(value, f.name), function) for f in fields(value)))
    if isinstance(value, dict):
        return {key: _map(part, function) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [_map(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _send(tensors: list[Tensor], device: Any) -> list[Tensor]:
    if not tensors:
        return []
    flat = torch.cat([t.flatten() for t in tensors]).to(device, non_blocking=True)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors)]
