"""Cutout: a square of zeros with an antialiased border."""

import torch
from torch import Tensor

from darts_lite.augment.operations.record import OFTEN, Context, Family, Operation, rows_of


def cutout(images: Tensor, side: Tensor, center: Tensor) -> Tensor:
    """Fill a square with zeros, with an antialiased border (DeVries and Taylor 2017).

    A pixel keeps the share 1 - cover_y · cover_x of its value. Cover is the length of the overlap
    of the pixel's interval with the square's interval. So the derivative in the side is exact, a
    side of zero is the identity, and a square inside the image removes exactly an area of side².

    Arguments:
        images: `[B, C, H, W]`.
        side: `[B]`, 0 or more, fraction of the shorter side of the image.
        center: `[B, 2]`, (x, y) as fractions of width and height.
    Returns: images `[B, C, H, W]`.

    >>> cutout(torch.ones(1, 1, 2, 2), torch.tensor([0.5]), torch.tensor([[0.5, 0.25]]))[0, 0]
    tensor([[0.5000, 0.5000],
            [1.0000, 1.0000]])
    """
    height, width = images.shape[-2:]
    half = side.unsqueeze(1) * (min(height, width) / 2)
    cover_x = coverage(center[:, :1] * width, half, width)
    cover_y = coverage(center[:, 1:] * height, half, height)
    one = images.new_ones(())
    keep = torch.addcmul(one, cover_y.unsqueeze(2), cover_x.unsqueeze(1), value=-1)
    return images * keep.unsqueeze(1)


def coverage(center: Tensor, half: Tensor, pixels: int) -> Tensor:
    """Return how much of each pixel [i, i + 1] is in [center - half, center + half], `[B, pixels]`.

    Arguments:
        center: `[B, 1]`, in pixels.
        half: `[B, 1]`, half the length of the interval, in pixels.
        pixels: number of pixels.
    """
    start = torch.arange(pixels, dtype=half.dtype, device=half.device)
    return (center + half - start).clamp(0, 1) - (center - half - start).clamp(0, 1)


def _apply(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return cutout(images, values[:, 0], rows_of(context.center, context.rows))


FAMILY = Family(
    "cutout",
    {"cutout": Operation("fraction of the shorter side", 0.5, signed=False, start=0.5, rate=OFTEN)},
    _apply,
)
