"""Checks of the files that a user gives; every reader uses them.

Data are checked here, once. All later code trusts the checked data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from darts_lite.data.images import MIN_SIZE, Images
from darts_lite.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any exception that a decoder raises inside the block into a `UserError` with `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pickle, zlib, scipy and PIL raise anything on broken bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({reason}); replace or delete the file") from error


def checked_images(pixels: np.ndarray, labels: np.ndarray, classes: int, source: object) -> Images:
    """Return checked images.

    Arguments:
        pixels: uint8 [N, C, H, W].
        labels: Integers [N] in 0 to `classes` - 1.
        classes: Number of classes.
        source: File or folder that the error messages name.

    Raises:
        UserError: The counts differ, the images are too small, there are none, or a label is
            out of range.
    """
    if len(pixels) != len(labels):
        raise UserError(
            f"{source} must have one label per image,"
            f" got {len(pixels)} images and {len(labels)} labels; download the data again"
        )
    if min(pixels.shape[2:]) < MIN_SIZE:
        height, width = pixels.shape[2:]
        raise UserError(
            f"images must have at least {MIN_SIZE}x{MIN_SIZE} pixels,"
            f" got {height}x{width} in {source}; use larger images"
        )
    if len(labels) == 0:
        raise UserError(f"{source} must have at least one image, got none; download the data again")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"labels must be 0 to {classes - 1},"
            f" got {labels.min()} to {labels.max()} in {source}; download the data again"
        )
    # np.array copies, because the arrays of the readers may be read-only or strided.
    return Images(
        torch.from_numpy(np.array(pixels, order="C")),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
    )
