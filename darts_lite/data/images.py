"""Labelled images resident in memory as uint8, and the data set they make."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

MIN_SIZE = 8  # pixels; the cells halve an image twice


class Images(NamedTuple):
    """Labelled images on one device.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    pixels: Tensor
    labels: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]  # `len` and `tuple.count` see two fields
        """Number of images N."""
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> "Images":
        """The same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def select(self, index: Tensor) -> "Images":
        """A copy of the images at `index`, int64 [M]."""
        index = index.to(self.labels.device)
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as it was published; `split` makes it usable.

    Attributes:
        name: as given to `load`.
        train: every image that is not in the official test set.
        test: the official test set, or None where there is none.
        classes: class names; `classes[label]`.
        flips: whether a horizontal flip may keep the label.
    """

    name: str
    train: Images
    test: Images | None
    classes: tuple[str, ...]
    flips: bool

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.pixels.shape[2:]
        return height, width

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """What identifies the data, for JSON: counts, shape, and a hash of every byte."""
        parts = [self.train] if self.test is None else [self.train, self.test]
        digest = hashlib.sha256(repr(([part.count for part in parts], self.classes)).encode())
        for tensor in (tensor for part in parts for tensor in part):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return {
            "name": self.name,
            "images": sum(part.count for part in parts),
            "classes": len(self.classes),
            "shape": [self.channels, *self.image_size],
            "sha256": digest.hexdigest(),
        }


def floats(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] to float32 in [0, 1], channels_last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
