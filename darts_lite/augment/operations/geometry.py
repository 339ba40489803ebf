"""Geometric operations: all of them compose into one affine map and one pass over the pixels.

**Pixel coordinates.** The origin is the center of the image, x points right, y down, the unit is
one pixel; the center of the pixel in column j is x = j - (W - 1) / 2. A matrix is a *pull-back*: it
sends a place (x, y, 1) of the output to the place of the input that is seen there.

All coordinates are computed elementwise, so autocast and TF32 do not round them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment.operations.bilinear import sample
from darts_lite.augment.operations.record import Context, Family, Operation

Size = tuple[int, int]
"""Height and width of an image, in pixels."""

GEOMETRIC: dict[str, Operation] = {
    "translate_x": Operation("fraction of the width", 0.3, shared="translate"),
    "translate_y": Operation("fraction of the height", 0.3, shared="translate"),
    "rotate": Operation("radians", math.radians(30)),
    "shear_x": Operation("tangent", 0.3, shared="shear"),
    "shear_y": Operation("tangent", 0.3, shared="shear"),
    "scale": Operation("logarithm of the factor", math.log(1.4)),
}
"""The columns of `affine`, in the order in which they are done."""


def affine(
    values: Tensor, size: Size, flip: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Return the matrices `[B, 2, 3]` that do all geometric operations, one after the other.

    In the order of `GEOMETRIC`, with m the value of the operation and (x, y) a place of its output:

    - translate_x, translate_y: to the right, downwards, by a fraction of the width, the height:
      x_in = x - m W;
    - rotate: clockwise about the center, radians: (x cos m + y sin m, -x sin m + y cos m);
    - shear_x, shear_y: slant the columns, the rows, as PIL does: x_in = x + m y;
    - scale: enlarge about the center by the factor exp(m): (x, y) exp(-m).

    In a product of pull-backs the first operation is on the left: T R Sx Sy E.

    Arguments:
        values: `[B, 6]`.
        size: (height, width) in pixels.
        flip: `[B]` bool, mirror left-right before everything else.
        shift: `[B, 2]`, then move by pixels (right, down).

    >>> quarters = torch.tensor([[0.25, 0.25, 0.0, 0.0, 0.0, 0.0]])
    >>> affine(quarters, (8, 8))[0]
    tensor([[ 1.,  0., -2.],
            [ 0.,  1., -2.]])
    """
    x, y, angle, a, b, scale = values.unbind(1)
    cos, sin, factor = angle.cos(), angle.sin(), (-scale).exp()
    ab = 1 + a * b
    xx = factor * (cos * ab + sin * b)
    xy = factor * (cos * a + sin)
    yx = factor * (cos * b - sin * ab)
    yy = factor * (cos - sin * a)
    x, y = -x * size[1], -y * size[0]
    if shift is not None:
        x, y = x - shift[:, 0], y - shift[:, 1]
    if flip is not None:
        sign = 1 - 2 * flip.to(values.dtype)
        xx, xy, x = sign * xx, sign * xy, sign * x
    return torch.stack((xx, xy, x, yx, yy, y), 1).view(-1, 2, 3)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample `[B, C, H, W]` at matrix · (x, y, 1): bilinear, zero outside of the image.

    The identity, flips and moves by whole pixels are exact. Differentiable in images and matrix to
    any order, in backward and in forward mode.

    Arguments:
        images: `[B, C, H, W]`.
        matrix: `[B, 2, 3]`, a pull-back in pixel coordinates.
    Returns: images `[B, C, H, W]`.

    >>> right = affine(torch.tensor([[0.5, 0, 0, 0, 0, 0]]), (2, 2))
    >>> warp(torch.eye(2)[None, None], right)[0, 0]
    tensor([[0., 1.],
            [0., 0.]])
    """
    height, width = images.shape[-2:]
    # grid_sample takes coordinates from -1 to 1 and maps them back to pixels with float32 rounding,
    # except where the sides are powers of two: then whole pixels stay whole.
    full_width, full_height = 1 << (width - 1).bit_length(), 1 << (height - 1).bit_length()
    if (full_width, full_height) != (width, height):
        images = F.pad(images, (0, full_width - width, 0, full_height - height))
    half = _pair(full_width / 2, full_height / 2, images)
    start = _pair(width / full_width - 1, height / full_height - 1, images)
    # An affine map is separable, f(x) + g(y), so the pixels are passed over once; grid_sample is
    # faster on planes of x and of y than on pairs.
    columns = (matrix[:, :, :1] * _pixel_centers(width, images) + matrix[:, :, 2:]) / half + start
    rows = matrix[:, :, 1:2] * _pixel_centers(height, images) / half
    grid = columns.unsqueeze(2) + rows.unsqueeze(3)
    return sample(images, grid.permute(0, 2, 3, 1))


def flip_and_shift(images: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Mirror left-right where `flip`, then move by whole pixels; zeros come in. No interpolation.

    Arguments:
        images: `[B, C, H, W]`.
        flip: `[B]` bool.
        shift: `[B, 2]`, whole pixels (right, down).
    Returns: images `[B, C, H, W]`, contiguous.

    >>> image = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> flip_and_shift(image, torch.tensor([True]), torch.tensor([[1, 0]]))
    tensor([[[[0., 3., 2.]]]])
    """
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=images.device) - shift[:, :1]
    rows = torch.arange(height, device=images.device) - shift[:, 1:]
    inside_x = (columns >= 0) & (columns < width)
    inside_y = (rows >= 0) & (rows < height)
    columns = torch.where(flip.unsqueeze(1), width - 1 - columns, columns).clamp(0, width - 1)
    rows = rows.clamp(0, height - 1)
    index = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    moved = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view(images.shape)
    return moved * (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1)


def _apply(images: Tensor, values: Tensor, context: Context) -> Tensor:
    size = (images.shape[-2], images.shape[-1])
    return warp(images, affine(values, size, context.flip, context.shift))


FAMILY = Family("geometric", GEOMETRIC, _apply)


def _pixel_centers(pixels: int, like: Tensor) -> Tensor:
    return torch.arange(pixels, dtype=like.dtype, device=like.device) - (pixels - 1) / 2


def _pair(x: float, y: float, like: Tensor) -> Tensor:
    """Return the constant `[[x], [y]]`, made on the device without a transfer."""
    return torch.cat((like.new_full((1, 1), x), like.new_full((1, 1), y)))
