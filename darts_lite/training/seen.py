"""What a training saw of its data: hashes, labels, brightness, confidence; to compare new data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from darts_lite.data import Images, Splits
from darts_lite.data.checks import reading
from darts_lite.data.surveys import image_hashes
from darts_lite.files import replacing

FILE = "seen.npz"
PART = 4096  # images whose brightness is taken at once


class Seen(NamedTuple):
    """What a training saw, image by image.

    Attributes:
        hashes: hash of the pixels of every image, uint64 [N].
        labels: class of every image, int64 [N].
        learned: whether weights or decisions followed the image; False for test images; bool [N].
        brightness: mean value of every image in [0, 1], float32 [N].
        confidence: probability of the predicted class of every test image, float32 [T].
        earlier: hashes of the images that the starting weights had learned from, uint64 [E].
    """

    hashes: np.ndarray
    labels: np.ndarray
    learned: np.ndarray
    brightness: np.ndarray
    confidence: np.ndarray
    earlier: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Hashes of all images that the weights have learned from, uint64."""
        return np.concatenate((self.hashes[self.learned], self.earlier))

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder of a run."""
        with replacing(folder / FILE, "wb") as file:
            np.savez(file, **self._asdict())

    @classmethod
    def load(cls, folder: Path) -> Seen:
        """Read the arrays of a run; raise `UserError` if they cannot be read."""
        with reading(folder / FILE), np.load(folder / FILE, allow_pickle=False) as content:
            return cls(*(content[name] for name in cls._fields))


def seen_of(splits: Splits, probabilities: Tensor, start: Path | None = None) -> Seen:
    """Return what a training on splits saw.

    Arguments:
        splits: splits of the training, on any device.
        probabilities: of the test images, `[T, K]`.
        start: folder of the run whose weights the training started from; None for new weights.
    """
    earlier = np.zeros(0, np.uint64)
    if start is not None and (start / FILE).exists():
        earlier = Seen.load(start).known
    parts = [part.to("cpu") for part in splits]
    return Seen(
        np.concatenate([image_hashes(part) for part in parts]),
        torch.cat([part.labels for part in parts]).numpy(),
        np.repeat([True, True, False], [part.count for part in parts]),
        np.concatenate([brightness(part) for part in parts]),
        probabilities.max(1).values.cpu().float().numpy(),
        earlier,
    )


def brightness(images: Images) -> np.ndarray:
    """Return the mean value of every image in [0, 1], float32 [N]."""
    parts = images.pixels.cpu().split(PART)
    return torch.cat([part.float().mean((1, 2, 3)) / 255 for part in parts]).numpy()
