"""Checks of the files that a user gives; every reader uses them.

Data are checked here, once. All later code trusts the checked data.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from darts_lite.data.images import MIN_SIZE, Images
from darts_lite.errors import UserError


def shown(path: Path | str) -> str:
    """Return a path as text that can be written as UTF-8, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any exception that a decoder raises inside the block into a `UserError` with `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pickle, zlib, scipy and PIL raise anything on broken bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"cannot read {shown(path)} ({reason}); replace or delete the file"
        ) from error


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
    # copies what is read-only or strided, but not what is mapped from a cache
    return Images(
        torch.from_numpy(np.require(pixels, requirements=("C", "W"))),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
    )
