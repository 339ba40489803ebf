"""Point operations as tables: the new value of a pixel depends on its old value only.

Images are floating tensors `[B, C, H, W]` in [0, 1]; a magnitude is a tensor `[B]`, from 0, the
identity, to 1. Each operation is `f(images, magnitude) -> Table`; tables compose, so any number of
them costs one pass over the pixels:

    lookup(images, compose(solarize(images, m), invert(images, n)))

**Levels.** A table has a straight line for each of the 256 levels of an 8-bit image. A value x has
the level k = round(255 x) and becomes slope[k] · x + offset[k]: on the levels that is exactly the
operation of PIL, and between them it has a derivative.

**Gradients.** `lookup` and `compose` have the derivative of the line, clamped or not, and no
derivative through k. It stays where the clamp holds, because the line of a level that becomes black
leaves [0, 1] in one half of the level: a derivative of zero there would stop the gradient for half
of such pixels.

| operation    | derivative in the image | in the magnitude     |
|--------------|-------------------------|----------------------|
| invert       | exact                   | exact                |
| solarize     | exact                   | invented: relaxation |
| posterize    | invented: 1             | invented: mean loss  |
| autocontrast | exact                   | exact                |
| equalize     | invented: 1             | exact                |

Nothing waits for the device. On CUDA, atomic additions sum the gradient of a table, so its last
digits differ from run to run.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.augment.operations.clamp import clamp_straight
from darts_lite.augment.operations.record import Context, Family, Gradient, Operation

LEVELS = 256
"""Values of an 8-bit image; level k is the value k / 255."""


class Table(NamedTuple):
    """The line x -> slope[k] · x + offset[k] for each level k of each image and channel.

    Both are `[B, C or 1, 256 or 1]`: a size of one stands for all channels, or all levels. Both
    have the same number of channels. One line for all levels needs no look-up.
    """

    slope: Tensor
    offset: Tensor


def lookup(images: Tensor, table: Table) -> Tensor:
    """Apply a table: slope[k] · x + offset[k] with k = round(255 x), clamped to [0, 1].

    The derivative is the derivative of the line, clamped or not.

    Arguments:
        images: `[B, C, H, W]` in [0, 1].
        table: of any operation.
    Returns: images `[B, C, H, W]`.

    >>> images = torch.tensor([[[[0.0, 0.25, 1.0]]]])
    >>> lookup(images, invert(images, torch.tensor([1.0])))
    tensor([[[[1.0000, 0.7500, 0.0000]]]])
    """
    slope, offset = table
    own = slope.shape[1] == images.shape[1]  # a table for each channel
    pixels = images.flatten(2) if own else images.flatten(1).unsqueeze(1)
    if max(slope.shape[2], offset.shape[2]) > 1:
        level = _level(pixels)
        slope, offset = _read(slope, level), _read(offset, level)
    return clamp_straight(torch.addcmul(offset, slope, pixels)).view(images.shape)


def compose(first: Table, second: Table) -> Table:
    """Return the table that does the first table, then the second.

    Exact for 8-bit images. For other images, the second table is read at the new value of the
    pixel's level instead of the new value of the pixel; the two differ by (1 + slope) / 2 levels at
    most. `autocontrast` and `equalize` use the statistics of the images that they were given.

    >>> images, half = torch.rand(1, 1, 2, 2), torch.tensor([0.5])
    >>> both = compose(invert(images, half / 2), invert(images, half))
    >>> both.slope.flatten(), both.offset.flatten()
    (tensor([0.]), tensor([0.5000]))
    """
    slope, offset = second
    if max(slope.shape[2], offset.shape[2]) > 1:
        values = _levels(slope) / 255
        level = _level(torch.addcmul(first.offset.detach(), first.slope.detach(), values))
        slope, offset = _read(slope, level), _read(offset, level)
    return Table(first.slope * slope, torch.addcmul(offset, slope, first.offset))


# --- the operations: each gives a table ----------------------------------------------------------


def identity(images: Tensor, magnitude: Tensor | None = None) -> Table:
    """Change nothing: the neutral element of `compose`, of full size `[B, C, 256]`.

    >>> identity(torch.rand(1, 3, 8, 8)).slope.shape
    torch.Size([1, 3, 256])
    """
    size = (*images.shape[:2], LEVELS)
    return Table(images.new_ones(size), images.new_zeros(size))


def invert(images: Tensor, magnitude: Tensor) -> Table:
    """Blend with the negative: x + m (1 - 2 x). Exact in image and magnitude.

    >>> invert(torch.rand(1, 3, 8, 8), torch.tensor([0.25]))
    Table(slope=tensor([[[0.5000]]]), offset=tensor([[[0.2500]]]))
    """
    share = _column(magnitude)
    return Table(1 - 2 * share, share)


def solarize(images: Tensor, magnitude: Tensor, temperature: float = 0.1) -> Table:
    """Invert the levels from 1 - m upwards (PIL's threshold is 255 (1 - m)); at m = 0, no level.

    The derivative in the image is exact, -1 or 1, except at the threshold, where the image jumps.
    The derivative in the magnitude is INVENTED, because the true derivative is zero or infinite: in
    the backward pass the step at the threshold t = 1 - m is sigmoid((x - t) / temperature), so that

        ∂out/∂m = (1 - 2 x) · sigmoid'((x - t) / temperature) / temperature,      x a level.

    Arguments:
        images: `[B, C, H, W]`.
        magnitude: `[B]` in [0, 1].
        temperature: width of the step, in units of the image; 0.1 is 25 levels.

    >>> images = torch.tensor([[[[0.2, 0.4, 0.6, 0.8]]]])
    >>> lookup(images, solarize(images, torch.tensor([0.5])))
    tensor([[[[0.2000, 0.4000, 0.4000, 0.2000]]]])
    """
    share = _column(magnitude)
    above = _levels(share) / 255 - (1 - share)
    soft = (above / temperature).sigmoid()
    hard = (above > -1e-6) & (share > 0)  # a level at the threshold, up to rounding, is inverted
    step = hard.to(share.dtype) + (soft - soft.detach())
    return Table(1 - 2 * step, step)


def posterize(images: Tensor, magnitude: Tensor) -> Table:
    """Keep the first 8 - round(8 m) bits of each level, at least one, as PIL: k -> k & mask.

    torchvision also goes to no bit at all, which makes every image black.

    Both derivatives are INVENTED, because the true derivatives are zero or infinite. In the image
    it is 1 (straight-through), as if each level were moved as a whole. In the magnitude it is the
    derivative of the mean loss when a value is rounded down to multiples of the step
    s = 2^(8 m) / 255, with the exponent unrounded: ∂out/∂m = -½ ds/dm = -4 log(2) s, at any level.

    >>> images = torch.tensor([[[[15.0, 16.0, 100.0, 255.0]]]]) / 255
    >>> lookup(images, posterize(images, torch.tensor([0.5]))) * 255
    tensor([[[[  0.,  16.,  96., 240.]]]])
    """
    bits = 8 * _column(magnitude)
    loss = bits.exp2() / 510
    step = bits.detach().round().clamp(0, 7).exp2().round()
    level = _levels(bits)
    jump = ((level / step).floor() * step - level) / 255
    return Table(torch.ones_like(bits), jump + (loss.detach() - loss))


def autocontrast(images: Tensor, magnitude: Tensor) -> Table:
    """Blend with each channel stretched to [0, 1]: x + m ((x - lo) / (hi - lo) - x).

    The derivative is exact in image and magnitude; it runs through the channel's minimum lo and
    maximum hi. A channel that is constant in 8 bits, hi - lo < 1/2 level, stays as it is. At m = 1
    this is torchvision's; PIL rounds down to a level.

    >>> images = torch.tensor([[[[0.25, 0.50, 0.75]]]])
    >>> lookup(images, autocontrast(images, torch.tensor([1.0])))
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    low, high = images.amin((2, 3)).unsqueeze(2), images.amax((2, 3)).unsqueeze(2)
    varies = high - low > 0.5 / 255
    share = _column(magnitude) * varies
    gain = share / torch.where(varies, high - low, 1)
    return Table(1 - share + gain, -low * gain)


def equalize(images: Tensor, magnitude: Tensor) -> Table:
    """Blend with PIL's equalized histogram, each channel: x + m (equalized - x).

    PIL counts in steps of 1/255 of the pixels, rounded down to whole pixels. If a step is no pixel,
    it does nothing: images of less than 256 pixels stay as they are.

    The derivative in the image is INVENTED: 1 (straight-through), as if each level were moved as a
    whole, and none through the histogram. The derivative in the magnitude is exact.

    >>> images = torch.arange(1024.0).view(1, 1, 32, 32) / 4092
    >>> lookup(images, equalize(images, torch.tensor([1.0]))).max()
    tensor(1.)
    """
    level = _level(images.flatten(2))
    ones = torch.ones_like(images).flatten(2)  # floats are faster than integers, and as exact
    counts = images.new_zeros(*level.shape[:2], LEVELS).scatter_add(2, level, ones)
    below = counts.cumsum(2) - counts
    step = ((below * counts.clamp(max=1)).amax(2, keepdim=True) / 255).floor()
    share = _column(magnitude) * step.clamp(max=1) / 255
    equalized = ((below + step / 2) / step.clamp(min=1)).floor().clamp(max=255)
    return Table(torch.ones_like(share), (equalized - _levels(images)) * share)


# --- the family -----------------------------------------------------------------------------------


def _point(
    unit: str, reach: float = 1.0, image: Gradient = "exact", value: Gradient = "exact"
) -> Operation:
    return Operation(unit, reach, False, image, value)


POINT: dict[str, tuple[Operation, Callable[[Tensor, Tensor], Table]]] = {
    "autocontrast": (_point("share of the result"), autocontrast),
    "equalize": (_point("share of the result", image="straight-through"), equalize),
    "solarize": (_point("one minus the threshold", value="relaxed"), solarize),
    "posterize": (
        _point("eighths of the bits", 0.5, image="straight-through", value="relaxed"),
        posterize,
    ),
    "invert": (_point("share of the result"), invert),
}
"""Record and function of each point operation, in the order in which a stage does them."""


def _apply(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return lookup(images, _table(images, values, context))


def _table(images: Tensor, values: Tensor, context: Context) -> Table:
    """Return all point operations in one table; statistics are of the images that come in."""
    names = list(POINT)
    if context.counts:  # one operation for each image, the images in the order of the operations
        each = list(context.counts.values())
        size = (-1, images.shape[1], LEVELS)
        tables = [
            POINT[name][1](some, v[:, names.index(name)])
            for name, some, v in zip(context.counts, images.split(each), values.split(each))
        ]
        slopes, offsets = ([p.expand(size) for p in parts] for parts in zip(*tables))
        return Table(torch.cat(slopes), torch.cat(offsets))
    table = identity(images)
    for name, rows in context.points.items():
        column = values[:, names.index(name)].index_select(0, rows)
        old = Table(*(part.index_select(0, rows) for part in table))
        new = compose(old, POINT[name][1](images.index_select(0, rows), column))
        table = Table(*(a.index_copy(0, rows, b) for a, b in zip(table, new)))
    return table


FAMILY = Family("lookup", {name: operation for name, (operation, _) in POINT.items()}, _apply)

# --- helpers --------------------------------------------------------------------------------------


def _level(values: Tensor) -> Tensor:
    """Return round(255 x), as an index."""
    # By way of int32: torch's conversion to int64 is slow, slower than all the rest.
    # The clamp is for NaN, which would become an index out of range.
    return (255 * values.detach()).round().int().clamp(0, LEVELS - 1).long()


def _levels(like: Tensor) -> Tensor:
    """Return 0, ..., 255, in the dtype and on the device of `like`."""
    return torch.arange(LEVELS, dtype=like.dtype, device=like.device)


def _read(entries: Tensor, level: Tensor) -> Tensor:
    """Return the entry `[B, C, n]` for each level `[B, C, n]`; sizes of one broadcast."""
    if entries.shape[2] == 1:
        return entries
    channels = max(entries.shape[1], level.shape[1])
    return entries.expand(-1, channels, -1).gather(2, level.expand(-1, channels, -1))


def _column(magnitude: Tensor) -> Tensor:
    return magnitude.view(-1, 1, 1)
