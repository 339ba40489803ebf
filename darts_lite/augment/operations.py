"""Differentiable image operations, one signed magnitude per image. Imports nothing of darts_lite.

Images are floating tensors `[B, C, H, W]` in [0, 1]; a magnitude is a tensor `[B]` and zero is the
identity. Operations of one group share one representation that composes, so any number of them
costs one pass over the pixels:

- **geometric**: `f(magnitude, size) -> matrix [B, 3, 3]`, composed by `compose`, done by `warp`;
- **colour**: `f(magnitude) -> gains [B, 3]`, composed by `*`, done by `recolour`;
- **cutout**: `cutout(images, side, centre)`.

**Pixel coordinates.** The origin is the centre of the image, x points right, y down, the unit is
one pixel; the centre of the pixel in column j is x = j - (W - 1) / 2. A matrix is a *pull-back*: it
sends a place (x, y, 1) of the output to the place of the input that is seen there. Hence the
product `compose(A, B)` = A B does A first, then B, in the order in which it is read.

Everything is elementwise: autocast and TF32, which would round a matrix product, do not touch it.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""Height and width of an image, in pixels."""

GREY = (0.299, 0.587, 0.114)
"""Luma weights of red, green and blue (Rec. 601). They sum to one, so that grey stays grey."""


# --- geometric: each gives the pull-back matrix [B, 3, 3] ---------------------------------------


def translate_x(magnitude: Tensor, size: Size) -> Tensor:
    """Move to the right by `magnitude` (fraction of the width): x_in = x - magnitude · W.

    >>> translate_x(torch.tensor([0.5]), (8, 8))[0, 0]
    tensor([ 1.,  0., -4.])
    """
    one, zero = _one_zero(magnitude)
    return _matrix(one, zero, -magnitude * size[1], zero, one, zero)


def translate_y(magnitude: Tensor, size: Size) -> Tensor:
    """Move downwards by `magnitude` (fraction of the height): y_in = y - magnitude · H.

    >>> translate_y(torch.tensor([0.5]), (8, 8))[0, 1]
    tensor([ 0.,  1., -4.])
    """
    one, zero = _one_zero(magnitude)
    return _matrix(one, zero, zero, zero, one, -magnitude * size[0])


def rotate(magnitude: Tensor, size: Size) -> Tensor:
    """Turn clockwise about the centre by `magnitude` (radians).

    (x_in, y_in) = (x cos m + y sin m, -x sin m + y cos m).

    >>> rotate(torch.zeros(1), (8, 8))[0, 0]
    tensor([1., 0., 0.])
    """
    cos, sin = magnitude.cos(), magnitude.sin()
    zero = torch.zeros_like(magnitude)
    return _matrix(cos, sin, zero, -sin, cos, zero)


def shear_x(magnitude: Tensor, size: Size) -> Tensor:
    """Slant the columns by `magnitude` (tangent of the angle): x_in = x + magnitude · y, as PIL.

    >>> shear_x(torch.tensor([0.5]), (8, 8))[0, 0]
    tensor([1.0000, 0.5000, 0.0000])
    """
    one, zero = _one_zero(magnitude)
    return _matrix(one, magnitude, zero, zero, one, zero)


def shear_y(magnitude: Tensor, size: Size) -> Tensor:
    """Slant the rows by `magnitude` (tangent of the angle): y_in = y + magnitude · x, as PIL.

    >>> shear_y(torch.tensor([0.5]), (8, 8))[0, 1]
    tensor([0.5000, 1.0000, 0.0000])
    """
    one, zero = _one_zero(magnitude)
    return _matrix(one, zero, zero, magnitude, one, zero)


def scale(magnitude: Tensor, size: Size) -> Tensor:
    """Enlarge about the centre by the factor exp(`magnitude`): (x_in, y_in) = (x, y) · exp(-m).

    >>> scale(torch.zeros(1), (8, 8))[0, 0]
    tensor([1., 0., 0.])
    """
    factor, zero = (-magnitude).exp(), torch.zeros_like(magnitude)
    return _matrix(factor, zero, zero, zero, factor, zero)


def flip_and_shift_matrix(flip: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix `[B, 3, 3]` of `flip_and_shift`, to compose it with others.

    >>> flip_and_shift_matrix(torch.tensor([True]), torch.tensor([[2, 1]]), torch.float32)[0]
    tensor([[-1.,  0.,  2.],
            [ 0.,  1., -1.],
            [ 0.,  0.,  1.]])
    """
    sign = 1 - 2 * flip.to(dtype)
    x, y = shift.to(dtype).unbind(1)
    one, zero = _one_zero(sign)
    return _matrix(sign, zero, -sign * x, zero, one, -y)


def compose(*matrices: Tensor) -> Tensor:
    """The matrix `[B, 3, 3]` that does the given ones from left to right: their product.

    >>> right = translate_x(torch.tensor([0.25]), (8, 8))
    >>> compose(right, right)[0, 0]
    tensor([ 1.,  0., -4.])
    """
    return reduce(lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(1)).sum(2), matrices)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample `[B, C, H, W]` at matrix · (x, y, 1): bilinear, zero outside of the image.

    Flips and moves by whole pixels, the identity among them, are exact. Differentiable in images
    and matrix, backward and forward, and twice where torch's `grid_sample` is (older versions
    raise; the mixed derivative ∂²L/∂m∂w of a loss does not need it).

    Arguments: images `[B, C, H, W]`; matrix `[B, 3, 3]`, a pull-back in pixel coordinates.
    Returns: images `[B, C, H, W]`.

    >>> warp(torch.eye(2)[None, None], translate_x(torch.tensor([0.5]), (2, 2)))[0, 0]
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
    m = matrix[:, :2]
    columns = (m[:, :, :1] * _pixel_centres(width, images) + m[:, :, 2:]) / half + start
    rows = m[:, :, 1:2] * _pixel_centres(height, images) / half
    grid = columns.unsqueeze(2) + rows.unsqueeze(3)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


def flip_and_shift(images: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Mirror left-right where `flip`, then move by whole pixels; zeros come in. No interpolation.

    Arguments: images `[B, C, H, W]`; flip `[B]` bool; shift `[B, 2]` whole pixels (right, down).
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


# --- colour: each gives the gains [B, 3] of (chroma, luma contrast, mean luma) --------------------


def brightness(magnitude: Tensor) -> Tensor:
    """Multiply every value by 1 + `magnitude`.

    >>> brightness(torch.tensor([0.5]))
    tensor([[1.5000, 1.5000, 1.5000]])
    """
    gain = 1 + magnitude
    return torch.stack((gain, gain, gain), 1)


def contrast(magnitude: Tensor) -> Tensor:
    """Blend with the mean grey of the image: μ + (1 + `magnitude`) · (image - μ).

    >>> contrast(torch.tensor([0.5]))
    tensor([[1.5000, 1.5000, 1.0000]])
    """
    gain = 1 + magnitude
    return torch.stack((gain, gain, torch.ones_like(gain)), 1)


def saturation(magnitude: Tensor) -> Tensor:
    """Blend with the grey of each pixel: grey + (1 + `magnitude`) · (image - grey).

    Only three channels have a chroma; for other images this is the identity.

    >>> saturation(torch.tensor([0.5]))
    tensor([[1.5000, 1.0000, 1.0000]])
    """
    gain = 1 + magnitude
    one = torch.ones_like(gain)
    return torch.stack((gain, one, one), 1)


def recolour(images: Tensor, gains: Tensor) -> Tensor:
    """Scale chroma, luma contrast and mean luma, then clamp to [0, 1].

    With g the grey of each pixel and μ its mean over the image,

        image = (image - g) + (g - μ) + μ,      out = a (image - g) + b (g - μ) + c μ,

    so that brightness, contrast and saturation are diagonal, commute, and compose by the product of
    their gains (a, b, c). The definitions are torchvision's, which truncates 0.299 to 0.2989 and
    clamps after each operation; this clamps once, at the end. The derivative is the true one: it is
    zero where the clamp holds, and it runs through μ.

    Arguments: images `[B, C, H, W]`; gains `[B, 3]`. Returns: images `[B, C, H, W]`.

    >>> recolour(torch.tensor([[[[0.25, 0.75]]]]), contrast(torch.tensor([-0.5])))
    tensor([[[[0.3750, 0.6250]]]])
    """
    chroma, luma, mean = gains.view(-1, 3, 1, 1, 1).unbind(1)
    grey = _grey(images)
    offset = (mean - luma) * grey.mean((2, 3), keepdim=True)
    if grey is images:
        return torch.addcmul(offset, images, luma).clamp(0, 1)
    offset = torch.addcmul(offset, grey, luma - chroma)
    return torch.addcmul(offset, images, chroma).clamp(0, 1)


# --- cutout ---------------------------------------------------------------------------------------


def cutout(images: Tensor, side: Tensor, centre: Tensor) -> Tensor:
    """Fill a square with zeros (DeVries and Taylor 2017), its border antialiased exactly.

    A pixel keeps the share 1 - cover_y · cover_x of its value, where cover is the length of the
    overlap of the pixel's interval with the square's. So the derivative in the side is exact, a
    side of zero is the identity, and a square inside the image takes away an area of side² exactly.

    Arguments: images `[B, C, H, W]`; side `[B]` ≥ 0, fraction of the image's shorter side;
    centre `[B, 2]`, (x, y) as fractions of width and height. Returns: images `[B, C, H, W]`.

    >>> cutout(torch.ones(1, 1, 2, 2), torch.tensor([0.5]), torch.tensor([[0.5, 0.25]]))[0, 0]
    tensor([[0.5000, 0.5000],
            [1.0000, 1.0000]])
    """
    height, width = images.shape[-2:]
    half = side.unsqueeze(1) * (min(height, width) / 2)
    cover_x = _cover(centre[:, :1] * width, half, width)
    cover_y = _cover(centre[:, 1:] * height, half, height)
    one = images.new_ones(())
    keep = torch.addcmul(one, cover_y.unsqueeze(2), cover_x.unsqueeze(1), value=-1)
    return images * keep.unsqueeze(1)


# --- helpers --------------------------------------------------------------------------------------


def _cover(centre: Tensor, half: Tensor, pixels: int) -> Tensor:
    """Share `[B, pixels]` of each interval [i, i + 1] inside of [centre - half, centre + half]."""
    start = torch.arange(pixels, dtype=half.dtype, device=half.device)
    return (centre + half - start).clamp(0, 1) - (centre - half - start).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma `[B, 1, H, W]` of three channels, the mean of any other number."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.chunk(3, 1)
    return (GREY[0] * red).add(green, alpha=GREY[1]).add(blue, alpha=GREY[2])


def _pixel_centres(pixels: int, like: Tensor) -> Tensor:
    return torch.arange(pixels, dtype=like.dtype, device=like.device) - (pixels - 1) / 2


def _pair(x: float, y: float, like: Tensor) -> Tensor:
    """The constant `[[x], [y]]`, filled in on the device: nothing is sent there."""
    return torch.cat((like.new_full((1, 1), x), like.new_full((1, 1), y)))


def _one_zero(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(like), torch.zeros_like(like)


def _matrix(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    one, zero = _one_zero(xx)
    return torch.stack((xx, xy, x, yx, yy, y, zero, zero, one), 1).view(-1, 3, 3)
