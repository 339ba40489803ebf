"""Color operations, composed into one scaling of chroma, luma contrast and mean luma."""

import torch
from torch import Tensor

from darts_lite.augment.operations.clamp import clamp
from darts_lite.augment.operations.record import Context, Family, Operation

COLOR: dict[str, Operation] = {
    "brightness": Operation("factor minus one", 0.8),
    "contrast": Operation("factor minus one", 0.8),
    "saturation": Operation("factor minus one", 0.8, color=True),
}
"""The columns of `gains`."""

GRAY = (0.299, 0.587, 0.114)
"""Luma weights of red, green and blue (Rec. 601). They sum to one, so that gray stays gray."""


def gains(values: Tensor) -> Tensor:
    """Return the factors `[B, 3]` of (chroma, luma contrast, mean luma) for all color operations.

    With m the value of the operation, in the order of `COLOR`:

    - brightness: multiply every value by 1 + m;
    - contrast: blend with the mean gray of the image, μ + (1 + m) · (image - μ);
    - saturation: blend with the gray of each pixel, gray + (1 + m) · (image - gray); the identity
      for images that do not have three channels.

    Arguments:
        values: `[B, 3]`, factors minus one.

    >>> gains(torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]))
    tensor([[1.5000, 1.5000, 1.5000],
            [1.5000, 1.5000, 1.0000],
            [1.5000, 1.0000, 1.0000]])
    """
    brightness, contrast, saturation = (1 + values).unbind(1)
    luma = brightness * contrast
    return torch.stack((luma * saturation, luma, brightness), 1)


def recolor(images: Tensor, gains: Tensor) -> Tensor:
    """Scale chroma, luma contrast and mean luma, then clamp to [0, 1].

    With g the gray of each pixel and μ its mean over the image,

        image = (image - g) + (g - μ) + μ,      out = a (image - g) + b (g - μ) + c μ,

    so that brightness, contrast and saturation are diagonal, commute, and compose by the product of
    their gains (a, b, c). The definitions are torchvision's, with two differences: torchvision
    truncates 0.299 to 0.2989, and clamps after each operation instead of once at the end. The
    derivative is exact: it is zero where the clamp holds, and it runs through μ.

    Arguments:
        images: `[B, C, H, W]` in [0, 1].
        gains: `[B, 3]`, of `gains`.
    Returns: images `[B, C, H, W]`.

    >>> paler = gains(torch.tensor([[0.0, -0.5, 0.0]]))
    >>> recolor(torch.tensor([[[[0.25, 0.75]]]]), paler)
    tensor([[[[0.3750, 0.6250]]]])
    """
    chroma, luma, mean = gains.view(-1, 3, 1, 1, 1).unbind(1)
    gray = _gray(images)
    offset = (mean - luma) * gray.mean((2, 3), keepdim=True)
    if gray is images:
        return clamp(torch.addcmul(offset, images, luma))
    offset = torch.addcmul(offset, gray, luma - chroma)
    return clamp(torch.addcmul(offset, images, chroma))


def _apply(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return recolor(images, gains(values))


FAMILY = Family("color", COLOR, _apply)


def _gray(images: Tensor) -> Tensor:
    """Return the luma `[B, 1, H, W]` of three channels, or the mean of another number of them."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.chunk(3, 1)
    return (GRAY[0] * red).add(green, alpha=GRAY[1]).add(blue, alpha=GRAY[2])
