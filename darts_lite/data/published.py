"""Published data sets: their possible folders, their download, and their reader."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from darts_lite.data.checks import checked_images
from darts_lite.data.formats import Parts, read_cifar, read_mnist, read_svhn
from darts_lite.data.images import Dataset
from darts_lite.errors import UserError

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_digits() -> Dataset:
    """Return the 1797 digits of 8x8 pixels that are part of scikit-learn."""
    from sklearn import datasets  # here, because it would slow down every start

    values, labels = datasets.load_digits(return_X_y=True)  # values 0..16 in float64 [N, 64]
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Dataset(
        "digits", checked_images(pixels, labels, 10, "digits"), None, _DIGITS, flips=False
    )


def load_published(name: str, data_dir: Path, download: bool) -> Dataset:
    """Read a published data set.

    Arguments:
        name: A key of `SOURCES`.
        data_dir: Folder to search, and to download to.
        download: Download the data set if it is not found.

    Raises:
        UserError: The data are not found, cannot be downloaded, or are broken.
    """
    source = SOURCES[name]
    train, test, classes = source.read(_locate(name, data_dir, download))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise UserError(
            f"training and test images of {name} must have one shape,"
            f" got {tuple(train.pixels.shape[1:])} and {tuple(test.pixels.shape[1:])};"
            " download the data again"
        )
    return Dataset(name, train, test, classes, source.flips)


class _Source(NamedTuple):
    """Location and reader of one published data set."""

    folders: tuple[str, ...]  # folders to search: below data_dir, or absolute
    files: tuple[str, ...]  # every file; IDX files may end in .gz
    read: Callable[[Path], Parts]  # reads one of the folders
    download: Callable[[Path], object]  # downloads into the first of `folders`, below data_dir
    flips: bool  # whether a horizontal flip keeps the label
    remedy: str = "use --download, or --data-dir with the folder that holds it"


def find(name: str, data_dir: Path) -> Path | None:
    """Return the first folder that holds every file of a published data set; None if none does."""
    source = SOURCES[name]
    folders = (data_dir / folder for folder in source.folders)
    return next((folder for folder in folders if not _missing(source, folder)), None)


def _missing(source: _Source, folder: Path) -> list[str]:
    return [
        name
        for name in source.files
        if not (folder / name).is_file()
        and not (name in _IDX_FILES and (folder / f"{name}.gz").is_file())
    ]


def _locate(name: str, data_dir: Path, download: bool) -> Path:
    source = SOURCES[name]
    folder = find(name, data_dir)
    if folder is None and download:
        try:
            source.download(data_dir)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot download {name} to {data_dir} ({reason}); check the network and the disk"
            ) from error
        folder = find(name, data_dir)
    if folder is None:
        looked = [
            f"{data_dir / place} (lacks {', '.join(_missing(source, data_dir / place))})"
            for place in source.folders
        ]
        raise UserError(f"{name} not found in {', '.join(looked)}; {source.remedy}")
    return folder


def _download(name: str, data_dir: Path, options: Sequence[Mapping[str, str]] = ({},)) -> None:
    """Download torchvision's data set `name`, once for each entry of `options`."""
    from torchvision import datasets  # here, because it would slow down every start

    for option in options:
        getattr(datasets, name)(data_dir, download=True, **option)


_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

SOURCES: dict[str, _Source] = {
    "fashion-mnist": _Source(
        ("FashionMNIST/raw", "fashion-mnist", "/usr/share/datasets/fashion-mnist"),
        _IDX_FILES,
        partial(read_mnist, classes=_FASHION),
        partial(_download, "FashionMNIST"),
        flips=True,
        remedy="use --download, --data-dir, or the Debian package dataset-fashion-mnist",
    ),
    "mnist": _Source(
        ("MNIST/raw", "mnist"),
        _IDX_FILES,
        partial(read_mnist, classes=_DIGITS),
        partial(_download, "MNIST"),
        flips=False,
    ),
    "cifar10": _Source(
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        (*_CIFAR10_BATCHES, "test_batch", "batches.meta"),
        partial(
            read_cifar,
            train=_CIFAR10_BATCHES,
            test="test_batch",
            meta="batches.meta",
            names="label_names",
            labels="labels",
        ),
        partial(_download, "CIFAR10"),
        flips=True,
    ),
    "cifar100": _Source(
        ("cifar-100-python", "cifar100/cifar-100-python"),
        ("train", "test", "meta"),
        partial(
            read_cifar,
            train=("train",),
            test="test",
            meta="meta",
            names="fine_label_names",
            labels="fine_labels",
        ),
        partial(_download, "CIFAR100"),
        flips=True,
    ),
    "svhn": _Source(
        ("", "svhn"),
        ("train_32x32.mat", "test_32x32.mat"),
        partial(read_svhn, classes=_DIGITS),
        partial(_download, "SVHN", options=({"split": "train"}, {"split": "test"})),
        flips=False,
    ),
}
