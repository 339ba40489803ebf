"""Readers of the file formats of published data sets: IDX, CIFAR's pickles, SVHN's MATLAB files.

No file can run code: the pickle reader admits only a fixed list of names.
"""

import gzip
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_lite.data.checks import checked_images, reading
from darts_lite.data.images import Images

Parts = tuple[Images, Images, tuple[str, ...]]  # training images, test images, class names


def read_mnist(folder: Path, classes: tuple[str, ...]) -> Parts:
    """Read MNIST, or a data set with the same files (Fashion-MNIST).

    Arguments:
        folder: Folder of the four IDX files, plain or gzipped.
        classes: Class names; `classes[label]`.

    Raises:
        UserError: A file is broken.
    """

    def part(prefix: str) -> Images:
        pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte", rank=3)
        path = folder / f"{prefix}-labels-idx1-ubyte"
        return checked_images(pixels[:, None], _read_idx(path, rank=1), len(classes), path)

    return part("train"), part("t10k"), classes


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Read an array of bytes with `rank` dimensions from an IDX file, plain or gzipped.

    torchvision's reader does not read .gz files, and it checks with `assert`.
    """
    path = path if path.is_file() else path.with_name(f"{path.name}.gz")
    with reading(path):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, *shape = struct.unpack_from(f">{1 + rank}I", raw)
        if magic != 0x0800 + rank:
            raise ValueError(f"not an IDX file of bytes in {rank} dimensions")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_cifar(
    folder: Path, train: Sequence[str], test: str, meta: str, names: str, labels: str
) -> Parts:
    """Read CIFAR-10 or CIFAR-100.

    Arguments:
        folder: Folder of the pickles.
        train: Files of the training images.
        test: File of the test images.
        meta: File of the class names.
        names: Key of the class names in `meta`.
        labels: Key of the labels in `train` and `test`.

    Raises:
        UserError: A file is broken, or would run code.
    """
    with reading(folder / meta):
        classes = tuple(str(name) for name in _unpickle(folder / meta)[names])

    def part(path: Path) -> Images:
        with reading(path):
            entry = _unpickle(path)
            pixels = np.asarray(entry["data"])
            if pixels.dtype != np.uint8:
                raise ValueError(f"pixels must be uint8, got {pixels.dtype}")
            targets = np.asarray(entry[labels], dtype=np.int64)
            return checked_images(pixels.reshape(-1, 3, 32, 32), targets, len(classes), path)

    parts = [part(folder / name) for name in train]
    pixels, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Images(pixels, targets), part(folder / test), classes


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that admits NumPy arrays and built-in containers, and nothing that can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":  # private; its module differs between NumPy 1 and 2
                return np.empty(0).__reduce__()[0]
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"refuses {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        entry: dict[str, Any] = _ArrayUnpickler(file, encoding="latin1").load()
    return entry


def read_svhn(folder: Path, classes: tuple[str, ...]) -> Parts:
    """Read the cropped digits of SVHN, whose label of the digit 0 is 10.

    Arguments:
        folder: Folder of `train_32x32.mat` and `test_32x32.mat`.
        classes: Class names; `classes[label]`.

    Raises:
        UserError: A file is broken.
    """
    from scipy.io import loadmat  # here, because it would slow down every start

    def part(path: Path) -> Images:
        with reading(path):
            arrays = loadmat(path, variable_names=("X", "y"))
            pixels, labels = arrays["X"].transpose(3, 2, 0, 1), arrays["y"].reshape(-1)
            if pixels.dtype != np.uint8 or pixels.shape[1] != 3:
                raise ValueError(
                    f"pixels must be uint8 [N, 3, H, W], got {pixels.dtype} {pixels.shape}"
                )
            return checked_images(pixels, np.where(labels == 10, 0, labels), len(classes), path)

    return part(folder / "train_32x32.mat"), part(folder / "test_32x32.mat"), classes
