"""What an augmentation policy is: which operations, how strong, drawn how.

A policy separates chance from computation: `sample` makes every random choice and `apply` is a pure
function of images, draws and learned values. Every policy is a number of stages (`stage.py`) after
the usual flips and shifts; what differs is how the values of a stage are drawn, and that is all a
subclass says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor

from darts_lite.augment.fused import NAMES, Places, Selection, chained, check_images, select, stage
from darts_lite.augment.operations.geometry import Size, flip_and_shift
from darts_lite.augment.operations.noise import BANK
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Values = Mapping[str, Tensor]
"""Learned values by name: "magnitude.rotate", "probability.rotate", ..."""


class Strength(NamedTuple):
    """Of an operation: its largest value, and how often it acts on an image in the mean."""

    value: float
    rate: float


class Turned(NamedTuple):
    """The same choices with one coin of each image turned, for a probability's derivative.

    units: as of `Draws`. operation: `[B]`, index of the one whose coin was turned. weight: `[B]`,
    how many coins there were to choose from, negative where the coin drawn says that the operation
    does not act. chance: `[B]`, its probability when it was drawn.
    """

    units: Tensor
    operation: Tensor
    weight: Tensor
    chance: Tensor


class Draws(NamedTuple):
    """The random choices for one batch, on its device.

    units: `[stages, B, operations]`, the values of the operations for magnitudes of one, zero where
    one does not act. selections: which images each stage touches. centre: `[stages, B, 2]` of
    cutout; start: `[stages, B]` of the noise. flip: `[B]` bool; shift: `[B, 2]` whole pixels to the
    right and down. turned, turned_selections: with a coin of each image turned, if asked for.
    """

    units: Tensor
    selections: tuple[Selection, ...]
    centre: Tensor
    start: Tensor
    flip: Tensor
    shift: Tensor
    turned: Turned | None = None
    turned_selections: tuple[Selection, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Random flips and shifts only, and the base of every policy.

    Arguments:
        channels: of the images, 1 or 3.
        flips: mirror left-right with probability 1/2.
        crop: largest random shift on each axis, whole pixels; zeros come in.
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

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError(f"augment: channels is {self.channels}; images have 1 or 3")
        if self.crop < 0:
            raise UserError(f"augment: crop is {self.crop} pixels; give 0 (none) or more")

    # --- what a subclass says ---------------------------------------------------------------

    @property
    def stages(self) -> int:
        """How many there are."""
        return 0

    @property
    def names(self) -> tuple[str, ...]:
        """The values that can be learned: those that `apply` is differentiable in."""
        return ()

    @property
    def starts(self) -> dict[str, float]:
        """Where learning begins, by name."""
        return {}

    def units(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> Tensor:
        """`[stages, B, operations]` of `Draws`, on the CPU, at a fraction of the training.

        Arguments: values, the learned ones, with the probabilities on the CPU.
        """
        return torch.zeros(self.stages, batch, len(NAMES))

    def turning(
        self, batch: int, size: Size, generator: torch.Generator, values: Values, fraction: float
    ) -> tuple[Tensor, Turned | None]:
        """`units`, and with one coin of each image turned if probabilities are learned."""
        return self.units(batch, size, generator, values, fraction), None

    def reach(self, values: Values) -> Tensor | None:
        """The learned magnitudes `[operations]` that multiply the units; None: all one."""
        return None

    def chance(self, operation: Tensor, values: Values) -> Tensor:
        """The learned probability `[B]` of each image's operation."""
        raise NotImplementedError(f"{self.name} learns no probabilities")

    def strengths(
        self, size: Size, values: Values | None = None, fraction: float = 0.0
    ) -> dict[str, Strength]:
        """How strong each operation is and how often it acts, for people."""
        return {}

    def replayed(self, schedules: Mapping[str, Schedule]) -> Policy:
        """The policy that does what was learned, instead of learning it."""
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
        """All random choices for one batch, from the (CPU) generator.

        Arguments: batch, images; size, (height, width); values, the learned ones, of which only
        the probabilities are read (waits for the device if they are there); fraction, of the
        training, for policies that change with it; turn, a coin of each image as well, for the
        derivative in learned probabilities.
        Raises: UserError if `crop` could move an image out of sight.
        """
        if self.crop >= min(size):
            height, width = size
            raise UserError(f"augment: crop {self.crop} needs images larger than {height}x{width}")
        local = dict(values or {})
        rates = [n for n in local if n.startswith("probability.")]
        if rates:
            read = torch.stack([local[n].detach() for n in rates]).cpu()
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
        )
        return draws if torch.device(device).type == "cpu" else _moved(draws, device)

    def apply(
        self, images: Tensor, draws: Draws, values: Values | None = None, *, turned: bool = False
    ) -> Tensor:
        """The augmented images: a pure function, differentiable in images and values.

        Nothing in it waits for the device.

        Arguments: images `[B, C, H, W]` floating, in [0, 1] (see `check`); draws of `sample`;
        values, the learned ones that `sample` was given too; turned, with the coins turned that
        `sample` has turned.
        Returns: images `[B, C, H, W]`, channels_last if `images` is.
        Raises: UserError if the images do not have `channels`.
        """
        check_images(images, self.channels)
        units, selections = draws.units, draws.selections
        if turned:
            if draws.turned is None:
                raise ValueError("no coin was turned: sample with turn=True")
            units, selections = draws.turned.units, draws.turned_selections
        out, flip, shift = images, None, None
        if self.flips or self.crop:
            first = selections[0].families if selections else {}
            if first.get("geometric", images) is None:  # the whole batch is warped anyway
                flip, shift = draws.flip, draws.shift
            else:
                out = flip_and_shift(images, draws.flip, draws.shift)
        scaled = units.to(images.dtype)
        reach = self.reach(values) if values else None
        if reach is not None:
            scaled = scaled * reach.to(images.dtype)
        for i, selection in enumerate(selections):
            places = Places(draws.centre[i].to(images.dtype), draws.start[i])
            out = stage(out, scaled[i], selection, places, flip, shift)
            flip = shift = None
        if images.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def __call__(
        self, images: Tensor, generator: torch.Generator, values: Values | None = None
    ) -> Tensor:
        """Checks the images, samples and applies."""
        check(images, self.channels)
        size = (images.shape[-2], images.shape[-1])
        draws = self.sample(len(images), size, generator, images.device, values)
        return self.apply(images, draws, values)


@dataclass(frozen=True, kw_only=True)
class Nothing(Policy):
    """Images as they are."""

    name: ClassVar[str] = "none"
    flips: bool = False


def check(images: Tensor, channels: int | None = None) -> None:
    """Raises: UserError for images of a wrong shape or outside [0, 1]. Waits for the device."""
    check_images(images, channels)
    low, high = (float(v) for v in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"augment: images with values from {low:g} to {high:g}; needs [0, 1] (divide bytes by "
            "255, augment before normalising)"
        )


def _moved(draws: Draws, device: torch.device | str) -> Draws:
    """On another device, in one transfer for the numbers and one for the indices."""
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

    moved: Draws = _map(draws, replace)
    return moved


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with another tensor for each, in a fixed order."""
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
