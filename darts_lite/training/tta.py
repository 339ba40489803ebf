"""Test-time augmentation: mean probabilities over several views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.errors import UserError

TestTime = Literal["none", "flip", "crops"]


COUNT = {"none": 0, "flip": 2, "crops": 10}
"""Largest number of further passes over an image."""


def require_views(kind: TestTime, flips: bool) -> None:
    """Raise `UserError` if the kind of views needs flips that change labels."""
    if kind == "flip" and not flips:
        raise UserError(
            "--tta flip needs data whose mirror images keep their label, got other data; use "
            "--tta crops"
        )


def views(images: Tensor, kind: TestTime, flips: bool) -> Iterator[Tensor]:
    """Yield the views of images.

    Arguments:
        images: `[B, C, H, W]`.
        kind: "none": the images; "flip": also their mirrors; "crops": the images and four shifts
            by a fourteenth of the shorter side, with black borders, and the mirrors of all if
            `flips`.
        flips: whether a mirror image keeps its label.
    Raises: `UserError` for "flip" where a mirror image may have another label.
    """
    require_views(kind, flips)
    shifted = [images]
    if kind == "crops":
        height, width = images.shape[2:]
        reach = max(1, min(height, width) // 14)
        padded = F.pad(images, (reach,) * 4)
        corners = ((y, x) for y in (0, 2 * reach) for x in (0, 2 * reach))
        shifted += [padded[:, :, y : y + height, x : x + width] for y, x in corners]
    for each in shifted:
        yield each
        if flips and kind != "none":
            yield each.flip(3)


def probabilities(
    network: Callable[[Tensor], Tensor], images: Tensor, kind: TestTime, flips: bool
) -> Tensor:
    """Return the mean class probabilities `[B, K]` over the views of images.

    Arguments: see `views`; `network` maps images to logits `[B, K]`.

    >>> images = torch.rand(2, 1, 8, 8)
    >>> probabilities(lambda x: x.mean((1, 2, 3))[:, None].repeat(1, 4), images, "flip", True)[0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    shape = torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
    parts = [
        network(view.contiguous(memory_format=shape)).softmax(1)
        for view in views(images, kind, flips)
    ]
    return torch.stack(parts).mean(0)
