"""Neighborhood operations: the new value of a pixel depends on the pixels around it.

Images are floating tensors `[B, C, H, W]` in [0, 1]; a magnitude is a tensor `[B]` and zero is the
identity. All derivatives are exact.

**Precision.** `sharpness` is elementwise. `gaussian_blur` multiplies by matrices, with autocast
switched off. Only the *change* by the blur goes through the matrices, so that TF32, if it is
allowed (`torch.set_float32_matmul_precision`), costs a thousandth of the change, not of the image.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment.operations.clamp import clamp, clamp_straight
from darts_lite.augment.operations.record import Context, Family, Operation

RADIUS = 3
"""Number of pixels on each side that `gaussian_blur` takes into account."""


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with a smooth version: s + (1 + `magnitude`) · (image - s), clamped to [0, 1].

    s is the image filtered by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13 inside and the image itself on
    the border, as in PIL and torchvision. A positive magnitude sharpens, a negative magnitude
    blurs, and -1 gives s. The derivative is exact, zero where the clamp holds.

    Arguments:
        images: `[B, C, H, W]` in [0, 1].
        magnitude: `[B]`, factor minus one.
    Returns: images `[B, C, H, W]`.

    >>> image = torch.zeros(1, 1, 3, 3)
    >>> image[..., 1, 1] = 0.52
    >>> sharpness(image, torch.tensor([-1.0]))[0, 0, 1]
    tensor([0.0000, 0.2000, 0.0000])
    """
    gain = magnitude.view(-1, 1, 1, 1)
    if min(images.shape[-2:]) < 3:
        return images + 0 * gain  # every pixel is on the border
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    detail = torch.sub(images[..., 1:-1, 1:-1], box, alpha=1 / 9)
    return clamp(torch.addcmul(images, F.pad(detail, (1, 1, 1, 1)), gain * (9 / 13)))


def gaussian_blur(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blur with a Gaussian of standard deviation `magnitude` ≥ 0, in pixels.

    The weights are exp(-i² / (2 magnitude²)) for |i| ≤ 3 pixels, divided by their sum, along rows
    and columns; beyond the border the image is reflected, several times if the image is small. This
    is torchvision's `gaussian_blur` with a kernel of 7. Because the weights end at 3 pixels, the
    effective deviation is smaller than the magnitude: 1.00, 1.64, 1.84 pixels for 1, 2, 3.

    The derivative is exact, and zero at zero. It is small for small magnitudes: below 0.3 pixels
    the weights of the neighbors are under 0.004.

    Arguments:
        images: `[B, C, H, W]` in [0, 1].
        magnitude: `[B]`, standard deviation in pixels.
    Returns: images `[B, C, H, W]`.

    >>> image = torch.tensor([[[[0.0, 0.0, 1.0, 0.0, 0.0]]]])
    >>> gaussian_blur(image, torch.tensor([1.0]))
    tensor([[[[0.1080, 0.2465, 0.3991, 0.2465, 0.1080]]]])
    """
    channels, height, width = images.shape[1:]
    weights = _weights(magnitude.unsqueeze(1).expand(-1, channels).reshape(-1))
    with _without_autocast(images.device.type):
        rows = _change(weights, width)
        columns = rows if height == width else _change(weights, height)
        planes = images.reshape(-1, height, width)
        planes = torch.baddbmm(planes, planes, rows.mT)
        planes = torch.baddbmm(planes, columns, planes)
    # A mean of values in [0, 1] leaves [0, 1] by rounding only.
    return clamp_straight(planes.view(images.shape))


def _sharpness(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return sharpness(images, values[:, 0])


def _blur(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return gaussian_blur(images, values[:, 0])


SHARPNESS = Family("sharpness", {"sharpness": Operation("factor minus one", 0.9)}, _sharpness)
BLUR = Family(
    "blur",
    {
        "gaussian_blur": Operation(
            "standard deviation in pixels",
            1.5,
            signed=False,
            start=0.4,  # weaker blurs have next to no gradient
        )
    },
    _blur,
)

# --- helpers --------------------------------------------------------------------------------------


def _weights(deviation: Tensor) -> Tensor:
    """Return the weights `[B, RADIUS + 1]` of the pixel, of its two neighbors, and so on."""
    distance = torch.arange(RADIUS + 1, dtype=deviation.dtype, device=deviation.device)
    pair = distance.clamp(max=1) * math.log(2)  # two pixels at each distance but zero
    # Below 0.025 the exponential and its derivative are zero in every dtype; this avoids NaN.
    precision = deviation.clamp(min=0.025).pow(-2).unsqueeze(1)
    return torch.softmax(torch.addcmul(pair, precision, distance.square(), value=-0.5), 1)


def _change(weights: Tensor, pixels: int) -> Tensor:
    """Return the matrix `[B, pixels, pixels]` of a blur along one axis, minus the identity."""
    return (weights @ blur_basis(pixels, weights.device, weights.dtype)).view(-1, pixels, pixels)


@lru_cache(maxsize=16)
def blur_basis(pixels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `[RADIUS + 1, pixels²]`; row i is the mean of both moves by i, minus the identity."""

    def make() -> Tensor:
        one = torch.eye(pixels, dtype=dtype, device=device)
        place = torch.arange(pixels, device=device)
        period = max(2 * (pixels - 1), 1)

        def moved(by: int) -> Tensor:
            seen = (place + by).remainder(period)
            return one[torch.minimum(seen, period - seen)]

        rows = [(moved(i) + moved(-i)) / 2 - one for i in range(RADIUS + 1)]
        return torch.stack(rows).flatten(1)

    # In a thread of its own: the result outlives the transforms and modes of the caller.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
