"""Readers of the file formats of published data sets: IDX, the pickles of CIFAR, SVHN's .mat.

No file is trusted to run code: pickles pass a whitelist.
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
    """MNIST and what has its files."""

    def part(prefix: str) -> Images:
        pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte", rank=3)
        path = folder / f"{prefix}-labels-idx1-ubyte"
        return checked_images(pixels[:, None], _read_idx(path, rank=1), len(classes), path)

    return part("train"), part("t10k"), classes


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Array of bytes from an IDX file, plain or gzipped.

    torchvision's reader takes no .gz, and checks with `assert`.
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
    """CIFAR-10 or -100: files `train`, `test` and `meta`, and the keys of names and labels."""
    with reading(folder / meta):
        classes = tuple(str(name) for name in _unpickle(folder / meta)[names])

    def part(path: Path) -> Images:
        with reading(path):
            entry = _unpickle(path)
            pixels = np.asarray(entry["data"])
            if pixels.dtype != np.uint8:
                raise ValueError(f"pixels of type {pixels.dtype}, not uint8")
            targets = np.asarray(entry[labels], dtype=np.int64)
            return checked_images(pixels.reshape(-1, 3, 32, 32), targets, len(classes), path)

    parts = [part(folder / name) for name in train]
    pixels, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Images(pixels, targets), part(folder / test), classes


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and built-in containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":  # private, and moved between numpy 1 and 2
                return np.empty(0).__reduce__()[0]
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"refuses {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        entry: dict[str, Any] = _ArrayUnpickler(file, encoding="latin1").load()
    return entry


def read_svhn(folder: Path, classes: tuple[str, ...]) -> Parts:
    """The cropped digits of SVHN, which calls the digit 0 class 10."""
    from scipy.io import loadmat  # here, for it would slow down every start

    def part(path: Path) -> Images:
        with reading(path):
            arrays = loadmat(path, variable_names=("X", "y"))
            pixels, labels = arrays["X"].transpose(3, 2, 0, 1), arrays["y"].reshape(-1)
            if pixels.dtype != np.uint8 or pixels.shape[1] != 3:
                raise ValueError(f"pixels {pixels.dtype} {pixels.shape}, not uint8 [N, 3, H, W]")
            return checked_images(pixels, np.where(labels == 10, 0, labels), len(classes), path)

    return part(folder / "train_32x32.mat"), part(folder / "test_32x32.mat"), classes
