"""What every reader does with the files it is handed: complain in one line that names them.

What people hand us is checked here, once; everything behind trusts it.
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
    """Turn whatever a decoder raises on a broken file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pickle, zlib, scipy and PIL raise anything on broken bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({reason}); replace or delete it") from error


def checked_images(pixels: np.ndarray, labels: np.ndarray, classes: int, source: object) -> Images:
    """Checked images from `pixels` uint8 [N, C, H, W] and `labels` [N]; `source` is for errors."""
    if len(pixels) != len(labels):
        raise UserError(
            f"{source} has {len(pixels)} images but {len(labels)} labels; fetch it again"
        )
    if min(pixels.shape[2:]) < MIN_SIZE:
        height, width = pixels.shape[2:]
        raise UserError(
            f"{source} has images of {height}x{width} pixels;"
            f" use images of at least {MIN_SIZE}x{MIN_SIZE}"
        )
    if len(labels) == 0:
        raise UserError(f"{source} has no images; fetch it again")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"{source} has labels {labels.min()}..{labels.max()} outside 0..{classes - 1};"
            " fetch it again"
        )
    # np.array copies: what the readers return may be read-only or strided.
    return Images(
        torch.from_numpy(np.array(pixels, order="C")),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
    )
