"""From the name of a data set to the data set in memory, whatever kind it is."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from darts_lite.data.folder import load_folder
from darts_lite.data.images import MIN_SIZE, Dataset, Images
from darts_lite.data.published import SOURCES, find, load_digits, load_published
from darts_lite.errors import UserError

FOLDER_SIZE = 32  # pixels; the default side of the images of `folder:PATH`
PREFERRED = ("cifar10", "fashion-mnist", "digits")  # tried in this order when no name is given


def load(
    name: str | None, data_dir: Path, *, download: bool = False, image_size: int | None = None
) -> Dataset:
    """Read a data set into memory.

    Arguments:
        name: a key of `known()`, or `folder:PATH` for images in one sub-folder a class: in PATH,
            or in PATH/train with PATH/test.  PATH/val is the test set where PATH/test is missing
            and joins the training images otherwise.  None takes `first_available`.
        data_dir: where data sets lie, downloads go and `folder:PATH` keeps its cache.
        download: fetch what is not found.
        image_size: resize to this many pixels a side.  None keeps the size of the data set, and
            means 32 for `folder:PATH`.

    Returns: the data set, on the CPU.
    """
    if image_size is not None and image_size < MIN_SIZE:
        raise UserError(f"image size {image_size} is too small; use at least {MIN_SIZE} pixels")
    name = first_available(data_dir) if name is None else name
    if name.startswith("folder:"):
        return load_folder(name, data_dir, image_size or FOLDER_SIZE)
    if name == "digits":
        dataset = load_digits()
    elif name in SOURCES:
        dataset = load_published(name, data_dir, download)
    else:
        raise UserError(f"unknown data set {name!r}; use one of {', '.join(known())}")
    return dataset if image_size is None else _resized(dataset, image_size)


def known() -> tuple[str, ...]:
    """The names that `load` understands."""
    return ("digits", *SOURCES, "folder:PATH")


def first_available(data_dir: Path) -> str:
    """The first of `PREFERRED` that needs no download."""
    return next(name for name in PREFERRED if name == "digits" or find(name, data_dir) is not None)


def _resized(dataset: Dataset, size: int) -> Dataset:
    test = None if dataset.test is None else resized(dataset.test, size)
    train = resized(dataset.train, size)
    return Dataset(dataset.name, train, test, dataset.classes, dataset.flips)


def resized(images: Images, size: int) -> Images:
    """The images at `size` pixels a side."""
    chunks = images.pixels.split(1024)  # a few at a time, for floats take four times the room
    return Images(torch.cat([_resized_pixels(chunk, size) for chunk in chunks]), images.labels)


def _resized_pixels(pixels: Tensor, size: int) -> Tensor:
    """uint8 [N, C, H, W] to uint8 [N, C, size, size]."""
    floats = interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return floats.round_().to(torch.uint8)
