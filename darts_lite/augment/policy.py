"""Augmentation policies: which operations, how strong, drawn how.

A policy separates chance from computation: `sample` makes all random choices and `apply` is a pure
function of images, draws and magnitudes. May import `operations` and `errors` only.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.augment import operations as ops
from darts_lite.errors import UserError


class Geometric(NamedTuple):
    """A row of `OPERATIONS` done by `warp`: `matrix(value [B], size)` gives `[B, 3, 3]`."""

    magnitude: str
    range: float
    matrix: Callable[[Tensor, ops.Size], Tensor]
    signed: bool = True


class Colour(NamedTuple):
    """A row of `OPERATIONS` done by `recolour`: `gains(value [B])` gives `[B, 3]`."""

    magnitude: str
    range: float
    gains: Callable[[Tensor], Tensor]
    signed: bool = True


class Cutout(NamedTuple):
    """A row of `OPERATIONS` done by `cutout`: value is the side of the square."""

    magnitude: str
    range: float
    signed: bool = False


Operation = Geometric | Colour | Cutout

OPERATIONS: dict[str, Operation] = {
    "translate_x": Geometric("translate", 0.3, ops.translate_x),  # fraction of the width
    "translate_y": Geometric("translate", 0.3, ops.translate_y),  # fraction of the height
    "rotate": Geometric("rotate", math.radians(30), ops.rotate),  # radians
    "shear_x": Geometric("shear", 0.3, ops.shear_x),  # tangent
    "shear_y": Geometric("shear", 0.3, ops.shear_y),  # tangent
    "scale": Geometric("scale", math.log(1.4), ops.scale),  # logarithm of the factor
    "brightness": Colour("brightness", 0.8, ops.brightness),  # factor minus one
    "contrast": Colour("contrast", 0.8, ops.contrast),  # factor minus one
    "saturation": Colour("saturation", 0.8, ops.saturation),  # factor minus one
    "cutout": Cutout("cutout", 0.5),  # fraction of the shorter side
}
"""Every operation in the order in which it is done: the name of its magnitude, the value that a
magnitude of one stands for (the maxima of RandAugment, Cubuk et al. 2020, or close to them), how it
is done, and whether it has a sign."""


class Draws(NamedTuple):
    """The random choices for one batch. Tensors only, so that they can be stored and moved.

    factors: `[B, operations]`, coin · Uniform(-1, 1), or coin · Uniform(0, 1) without a sign.
    flip: `[B]` bool. shift: `[B, 2]` integers, pixels to the right and down.
    centre: `[B, 2]`, of the cutout, (x, y) as fractions of width and height.
    """

    factors: Tensor
    flip: Tensor
    shift: Tensor
    centre: Tensor


@dataclass(frozen=True)
class LearnedMagnitudes:
    """One magnitude in [0, 1] per operation, the learned upper bound of a uniform distribution.

    Each operation acts on an image with `probability`, with the value

        value = coin · u · magnitude · range,       u ~ Uniform(-1, 1) or Uniform(0, 1),

    so that ∂value/∂magnitude = coin · u · range is the pathwise derivative of the expectation.
    (DADA, Li et al. 2020, takes ∂image/∂magnitude = 1 instead, which is not a derivative.)
    The order is flip and crop, geometry (one `warp`), colour (one `recolour`), cutout.

    Arguments:
        channels: of the images; three have a saturation.
        flips: mirror left-right with probability 1/2.
        crop: largest plain random shift on each axis, whole pixels; zeros come in.
        probability: of each operation, in (0, 1].
    Raises: UserError if a knob is out of its range.

    >>> augment = LearnedMagnitudes(channels=1, flips=False, crop=2)
    >>> augment.names
    ('translate', 'rotate', 'shear', 'scale', 'brightness', 'contrast', 'cutout')
    >>> draws = augment.sample(4, (8, 8), torch.Generator().manual_seed(0))
    >>> images, magnitudes = torch.rand(4, 1, 8, 8), torch.full((7,), 0.5, requires_grad=True)
    >>> augment.apply(images, draws, magnitudes).sum().backward()
    >>> magnitudes.grad.shape
    torch.Size([7])
    """

    channels: int
    flips: bool = True
    crop: int = 0
    probability: float = 0.5

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"augment: channels is {self.channels}; images have 1 or more")
        if self.crop < 0:
            raise UserError(f"augment: crop is {self.crop} pixels; give 0 (none) or more")
        if not 0 < self.probability <= 1:
            raise UserError(f"augment: probability is {self.probability}; give one in (0, 1]")

    @property
    def operations(self) -> dict[str, Operation]:
        """The rows of `OPERATIONS` in use, one column of `Draws.factors` each."""
        return {k: v for k, v in OPERATIONS.items() if k != "saturation" or self.channels == 3}

    @property
    def names(self) -> tuple[str, ...]:
        """The learned magnitudes, in order."""
        return tuple(dict.fromkeys(op.magnitude for op in self.operations.values()))

    def sample(
        self,
        batch: int,
        image_size: ops.Size,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> Draws:
        """All random choices for one batch: one call to the (CPU) generator, one transfer.

        Arguments: batch, images; image_size, (height, width) in pixels.
        Returns: Draws on `device`.
        Raises: UserError if `crop` could move an image out of sight.
        """
        if self.crop >= min(image_size):
            height, width = image_size
            raise UserError(f"augment: crop {self.crop} needs images larger than {height}x{width}")
        table = self.operations.values()
        n = len(table)
        uniform = torch.rand(batch, 2 * n + 5, generator=generator)
        signed = torch.tensor([op.signed for op in table])
        size, coin, rest = uniform.tensor_split((n, 2 * n), 1)
        factors = torch.where(signed, 2 * size - 1, size) * (coin < self.probability)
        flip = (rest[:, :1] < 0.5) & self.flips
        shift = (rest[:, 1:3] * (2 * self.crop + 1)).floor().clamp(max=2 * self.crop) - self.crop
        packed = torch.cat((factors, flip, shift, rest[:, 3:]), 1).to(device, non_blocking=True)
        factors, flip, shift, centre = packed.tensor_split((n, n + 1, n + 3), 1)
        return Draws(factors, flip.squeeze(1).bool(), shift.long(), centre)

    def apply(
        self,
        images: Tensor,
        draws: Draws,
        magnitudes: Mapping[str, Tensor] | Tensor | None = None,
    ) -> Tensor:
        """The augmented images: a pure function, differentiable in images and magnitudes.

        Nothing in it waits for the device. Without magnitudes it only flips and crops, exactly.

        Arguments:
            images: `[B, C, H, W]` floating, in [0, 1].
            draws: of `sample`, on the same device.
            magnitudes: scalars by name, or `[len(names)]` in the order of `names`, or None.
        Returns: images `[B, C, H, W]`, channels_last if `images` is.
        Raises: UserError if the images do not have `channels`.
        """
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise UserError(
                f"augment: images of shape {tuple(images.shape)}; needs [B, {self.channels}, H, W]"
            )
        if magnitudes is None:
            out = self._flip_and_crop(images, draws)
        else:
            out = self._augment(images, draws, magnitudes)
        if images.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def _flip_and_crop(self, images: Tensor, draws: Draws) -> Tensor:
        if not self.flips and self.crop == 0:
            return images
        return ops.flip_and_shift(images, draws.flip, draws.shift)

    def _augment(
        self, images: Tensor, draws: Draws, magnitudes: Mapping[str, Tensor] | Tensor
    ) -> Tensor:
        if isinstance(magnitudes, Tensor):
            magnitudes = dict(zip(self.names, magnitudes.unbind(), strict=True))
        table = self.operations.values()
        reach = torch.stack([magnitudes[op.magnitude] * op.range for op in table])
        values = (draws.factors.to(images.dtype) * reach.to(images.dtype)).unbind(1)

        height, width = images.shape[-2:]
        matrix = ops.flip_and_shift_matrix(draws.flip, draws.shift, images.dtype)
        gains = images.new_ones(len(images), 3)
        side = images.new_zeros(len(images))
        for op, value in zip(table, values, strict=True):
            match op:
                case Geometric():
                    matrix = ops.compose(matrix, op.matrix(value, (height, width)))
                case Colour():
                    gains = gains * op.gains(value)
                case Cutout():
                    side = side + value
        images = ops.recolour(ops.warp(images, matrix), gains)
        return ops.cutout(images, side, draws.centre.to(images.dtype))
