"""Images without labels: from a folder, or the labelled images that a subset left over."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from darts_lite.data.folder import read_images
from darts_lite.data.images import Dataset
from darts_lite.data.layout import image_files
from darts_lite.data.splits import left_over, stratified
from darts_lite.errors import UserError


class Unlabelled(NamedTuple):
    """Images without labels.

    Attributes:
        pixels: uint8 [N, C, H, W].
        truth: int64 [N], the labels, only to measure pseudo-labels; None if they are not known.
    """

    pixels: Tensor
    truth: Tensor | None


def load_unlabelled(text: str, dataset: Dataset, subset: int | None, seed: int) -> Unlabelled:
    """Read images without labels, in the shape of a data set.

    Arguments:
        text: a folder, which is searched at every depth; or "rest" for the training images of the
            data set outside the subset, whose labels are used as truth only; "rest:N" for N of
            them.
        dataset: data set of the training.
        subset: number of images of the subset; None for all images.
        seed: seed of the subset.
    Raises: `UserError` if there are no such images.
    """
    kind, _, count = text.partition(":")
    if kind == "rest":
        if subset is None or not (count.isdigit() or not count):
            raise UserError(
                "--unlabelled rest:N needs a search with --subset and a number N, got "
                f"{text!r}; give a folder of images"
            )
        rest = left_over(dataset, subset, seed)
        wanted = int(count) if count else rest.count
        if not 0 < wanted <= rest.count:
            raise UserError(
                f"--unlabelled rest:N must leave 1 to {rest.count} images, those outside --subset "
                f"of the search, got {text!r}; change N"
            )
        if wanted < rest.count:
            rest = stratified(rest, wanted / rest.count, seed)
        return Unlabelled(rest.pixels, rest.labels)
    folder = Path(text).expanduser()
    files = list(image_files(folder)) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"--unlabelled must be a folder with images, or rest:N, got {text!r} without images; "
            "give another folder"
        )
    return Unlabelled(read_images(files, dataset.image, dataset.reading), None)
