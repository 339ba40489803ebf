"""Load any data set by its name: built in, published, or a folder of images."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from darts_lite.architecture.reading import Reading
from darts_lite.data.folder import load_own
from darts_lite.data.images import MIN_SIZE, Dataset, Images, is_own
from darts_lite.data.published import SOURCES, find, load_digits, load_published
from darts_lite.errors import UserError

PREFERRED = ("cifar10", "fashion-mnist", "digits")  # order of the search if no name is given


def load(
    name: str | None,
    data_dir: Path,
    *,
    download: bool = False,
    image_size: int | None = None,
    how: Reading = Reading(),  # noqa: B008  # frozen
    seconds: float | None = None,
) -> Dataset:
    """Read a data set into memory.

    Arguments:
        name: One of `known()`; None means `first_available`. "folder:PATH" reads images in one
            sub-folder per class, in PATH or in folders of splits such as PATH/train, PATH/val and
            PATH/test (`layout.SPLITS`). "csv:PATH" reads the columns file, label and perhaps
            split.
        data_dir: Folder of data sets, of downloads and of the cache of a user's own images.
        download: Download the data set if it is not found.
        image_size: New height and width of the images, in pixels. None keeps the size of the data
            set; of a user's own images, it is chosen from their sizes and the budget.
        how: How image files become images, and which flips keep the labels.
        seconds: Budget of the training, for the choice of the size.

    Returns:
        The data set, on the CPU.

    Raises:
        UserError: The name is unknown, the data are not found or broken, or the size is too small.
    """
    if image_size is not None and image_size < MIN_SIZE:
        raise UserError(
            f"image size must be at least {MIN_SIZE} pixels, got {image_size}; use a larger size"
        )
    name = first_available(data_dir) if name is None else name
    if is_own(name):
        return load_own(name, data_dir, image_size, how, seconds)
    if name == "digits":
        dataset = load_digits()
    elif name in SOURCES:
        dataset = load_published(name, data_dir, download)
    else:
        raise UserError(
            f"data set must be one of {', '.join(known())}, got {name!r}; choose a known name"
        )
    flips = dataset.flips if how.flips is None else how.flips
    dataset = replace(dataset, flips=flips, reading=replace(how, flips=flips))
    return dataset if image_size is None else _resized(dataset, image_size)


def known() -> tuple[str, ...]:
    """Return the names that `load` accepts."""
    return ("digits", *SOURCES, "folder:PATH", "csv:PATH")


def first_available(data_dir: Path) -> str:
    """Return the first data set of `PREFERRED` that needs no download."""
    return next(name for name in PREFERRED if name == "digits" or find(name, data_dir) is not None)


def _resized(dataset: Dataset, size: int) -> Dataset:
    test = None if dataset.test is None else resized(dataset.test, size)
    return replace(dataset, train=resized(dataset.train, size), test=test)


def resized(images: Images, size: int) -> Images:
    """Return the images resized to `size` x `size` pixels (bilinear, with antialiasing)."""
    chunks = images.pixels.split(1024)  # in parts, because float32 needs four times the memory
    return Images(torch.cat([_resized_pixels(chunk, size) for chunk in chunks]), images.labels)


def _resized_pixels(pixels: Tensor, size: int) -> Tensor:
    """Resize uint8 [N, C, H, W] to uint8 [N, C, size, size]."""
    floats = interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return floats.round_().to(torch.uint8)
