"""Image data sets resident in memory as uint8, three disjoint stratified splits, and mini-batches.

`load` reads a data set, `split` cuts it into training, validation and test images, `Batches` and
`evaluation_batches` turn images into float tensors on the device where the images live.  What
people hand us is checked here, once; everything behind trusts it.  No file is trusted to run
code: CIFAR's pickles pass a whitelist, the cache of `folder:PATH` is a plain array.

Imports only `darts_lite.errors`.
"""

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.io import loadmat
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2.functional import resize

from darts_lite.errors import UserError

MIN_SIZE = 8  # pixels; the cells halve an image twice
FOLDER_SIZE = 32  # pixels; the default side of the images of `folder:PATH`
PREFERRED = ("cifar10", "fashion-mnist", "digits")  # tried in this order when no name is given
_TEST_SEED = 1_000_003  # carves the test images when there is no official test set, for every seed
_DIGITS = tuple("0123456789")


class Images(NamedTuple):
    """Labelled images on one device.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    pixels: Tensor
    labels: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]  # `len` and `tuple.count` see two fields
        """Number of images N."""
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> "Images":
        """The same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def select(self, index: Tensor) -> "Images":
        """A copy of the images at `index`, int64 [M]."""
        index = index.to(self.labels.device)
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as it was published; `split` makes it usable.

    Attributes:
        name: as given to `load`.
        train: every image that is not in the official test set.
        test: the official test set, or None where there is none.
        classes: class names; `classes[label]`.
        flips: whether a horizontal flip may keep the label.
    """

    name: str
    train: Images
    test: Images | None
    classes: tuple[str, ...]
    flips: bool

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.pixels.shape[2:]
        return height, width

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """What identifies the data, for JSON: counts, shape, and a hash of every byte."""
        parts = [self.train] if self.test is None else [self.train, self.test]
        digest = hashlib.sha256(repr(([part.count for part in parts], self.classes)).encode())
        for tensor in (tensor for part in parts for tensor in part):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return {
            "name": self.name,
            "images": sum(part.count for part in parts),
            "classes": len(self.classes),
            "shape": [self.channels, *self.image_size],
            "sha256": digest.hexdigest(),
        }


class Splits(NamedTuple):
    """Disjoint images: weights learn from `train`, outer variables and model selection from
    `validation`; `test` is touched once, at the end."""

    train: Images
    validation: Images
    test: Images


# --- Loading ---------------------------------------------------------------------------------


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
        return _load_folder(name, data_dir, image_size or FOLDER_SIZE)
    if name == "digits":
        dataset = _load_digits()
    elif name in _SOURCES:
        source = _SOURCES[name]
        train, test, classes = source.read(_locate(name, data_dir, download))
        if train.pixels.shape[1:] != test.pixels.shape[1:]:
            raise UserError(
                f"{name} has training images {tuple(train.pixels.shape[1:])} but test images"
                f" {tuple(test.pixels.shape[1:])}; fetch it again"
            )
        dataset = Dataset(name, train, test, classes, source.flips)
    else:
        raise UserError(f"unknown data set {name!r}; use one of {', '.join(known())}")
    return dataset if image_size is None else _resized(dataset, image_size)


def known() -> tuple[str, ...]:
    """The names that `load` understands."""
    return ("digits", *_SOURCES, "folder:PATH")


def first_available(data_dir: Path) -> str:
    """The first of `PREFERRED` that needs no download."""
    return next(
        name
        for name in PREFERRED
        if name == "digits" or _find(_SOURCES[name], data_dir) is not None
    )


def _load_digits() -> Dataset:
    values, labels = load_digits(return_X_y=True)  # values 0..16 in float64 [N, 64]
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Dataset("digits", _images(pixels, labels, 10, "digits"), None, _DIGITS, flips=False)


def _resized(dataset: Dataset, size: int) -> Dataset:
    def shrink(images: Images) -> Images:
        starts = range(0, images.count, 1024)  # in chunks, for `resize` goes through float32
        chunks = (images.pixels[start : start + 1024] for start in starts)
        pixels = torch.cat([resize(chunk, [size, size], antialias=True) for chunk in chunks])
        return Images(pixels, images.labels)

    test = None if dataset.test is None else shrink(dataset.test)
    return Dataset(dataset.name, shrink(dataset.train), test, dataset.classes, dataset.flips)


def _images(pixels: np.ndarray, labels: np.ndarray, classes: int, source: object) -> Images:
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pickle, zlib, scipy and PIL raise anything on broken bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({reason}); replace or delete it") from error


# --- Published data sets ---------------------------------------------------------------------


class _Source(NamedTuple):
    """Where a published data set may lie and how to read it."""

    folders: tuple[str, ...]  # below data_dir, or absolute
    files: tuple[str, ...]  # all of them; IDX files may end in .gz
    read: Callable[[Path], tuple[Images, Images, tuple[str, ...]]]  # folder -> train, test, classes
    download: Callable[[Path], object]  # into data_dir, to the first of `folders`
    flips: bool
    remedy: str = "use --download, or --data-dir with the folder that holds it"


def _find(source: _Source, data_dir: Path) -> Path | None:
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
    source = _SOURCES[name]
    folder = _find(source, data_dir)
    if folder is None and download:
        try:
            source.download(data_dir)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot download {name} to {data_dir} ({reason}); check the network and the disk"
            ) from error
        folder = _find(source, data_dir)
    if folder is None:
        looked = [
            f"{data_dir / place} (lacks {', '.join(_missing(source, data_dir / place))})"
            for place in source.folders
        ]
        raise UserError(f"{name} not found in {', '.join(looked)}; {source.remedy}")
    return folder


def _read_mnist(folder: Path, classes: tuple[str, ...]) -> tuple[Images, Images, tuple[str, ...]]:
    def part(prefix: str) -> Images:
        pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte", rank=3)
        path = folder / f"{prefix}-labels-idx1-ubyte"
        return _images(pixels[:, None], _read_idx(path, rank=1), len(classes), path)

    return part("train"), part("t10k"), classes


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Array of bytes from an IDX file, plain or gzipped.

    torchvision's reader takes no .gz, and checks with `assert`.
    """
    path = path if path.is_file() else path.with_name(f"{path.name}.gz")
    with _reading(path):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, *shape = struct.unpack_from(f">{1 + rank}I", raw)
        if magic != 0x0800 + rank:
            raise ValueError(f"not an IDX file of bytes in {rank} dimensions")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _read_cifar(
    folder: Path, train: Sequence[str], test: str, meta: str, names: str, labels: str
) -> tuple[Images, Images, tuple[str, ...]]:
    with _reading(folder / meta):
        classes = tuple(str(name) for name in _unpickle(folder / meta)[names])

    def part(path: Path) -> Images:
        with _reading(path):
            entry = _unpickle(path)
            pixels = np.asarray(entry["data"])
            if pixels.dtype != np.uint8:
                raise ValueError(f"pixels of type {pixels.dtype}, not uint8")
            targets = np.asarray(entry[labels], dtype=np.int64)
            return _images(pixels.reshape(-1, 3, 32, 32), targets, len(classes), path)

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


def _read_svhn(folder: Path) -> tuple[Images, Images, tuple[str, ...]]:
    def part(path: Path) -> Images:
        with _reading(path):
            arrays = loadmat(path, variable_names=("X", "y"))
            pixels, labels = arrays["X"].transpose(3, 2, 0, 1), arrays["y"].reshape(-1)
            if pixels.dtype != np.uint8 or pixels.shape[1] != 3:
                raise ValueError(f"pixels {pixels.dtype} {pixels.shape}, not uint8 [N, 3, H, W]")
            return _images(pixels, np.where(labels == 10, 0, labels), 10, path)

    return part(folder / "train_32x32.mat"), part(folder / "test_32x32.mat"), _DIGITS


def _download_svhn(data_dir: Path) -> None:
    for part in ("train", "test"):
        datasets.SVHN(data_dir, part, download=True)


_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

_SOURCES: dict[str, _Source] = {
    "fashion-mnist": _Source(
        ("FashionMNIST/raw", "fashion-mnist", "/usr/share/datasets/fashion-mnist"),
        _IDX_FILES,
        partial(_read_mnist, classes=tuple(datasets.FashionMNIST.classes)),
        partial(datasets.FashionMNIST, download=True),
        flips=True,
        remedy="use --download, --data-dir, or the Debian package dataset-fashion-mnist",
    ),
    "mnist": _Source(
        ("MNIST/raw", "mnist"),
        _IDX_FILES,
        partial(_read_mnist, classes=_DIGITS),
        partial(datasets.MNIST, download=True),
        flips=False,
    ),
    "cifar10": _Source(
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        (*_CIFAR10_BATCHES, "test_batch", "batches.meta"),
        partial(
            _read_cifar,
            train=_CIFAR10_BATCHES,
            test="test_batch",
            meta="batches.meta",
            names="label_names",
            labels="labels",
        ),
        partial(datasets.CIFAR10, download=True),
        flips=True,
    ),
    "cifar100": _Source(
        ("cifar-100-python", "cifar100/cifar-100-python"),
        ("train", "test", "meta"),
        partial(
            _read_cifar,
            train=("train",),
            test="test",
            meta="meta",
            names="fine_label_names",
            labels="fine_labels",
        ),
        partial(datasets.CIFAR100, download=True),
        flips=True,
    ),
    "svhn": _Source(
        ("", "svhn"),
        ("train_32x32.mat", "test_32x32.mat"),
        _read_svhn,
        _download_svhn,
        flips=False,
    ),
}


# --- A folder of images ----------------------------------------------------------------------


def _load_folder(name: str, data_dir: Path, size: int) -> Dataset:
    folder = Path(name.removeprefix("folder:")).expanduser()
    if name == "folder:" or not folder.is_dir():
        raise UserError(f"{name} is not a folder; give folder:PATH with one sub-folder a class")
    with _reading(folder):
        parts = {part: folder / part for part in ("train", "val", "test")}
        parts = {part: path for part, path in parts.items() if _subfolders(path)}
        root = parts.pop("train", folder)
        classes = tuple(p.name for p in _subfolders(root) if p not in parts.values())
        if not classes:
            raise UserError(f"{root} has no sub-folders; give it one sub-folder of images a class")
        for path in parts.values():
            if extra := sorted({p.name for p in _subfolders(path)} - set(classes)):
                raise UserError(f"{path / extra[0]} is no class of {root}; add it there or drop it")
        test_root = parts.pop("test", None) or parts.pop("val", None)
        train = [pair for path in (root, *parts.values()) for pair in _labelled(path, classes)]
        test = _labelled(test_root, classes) if test_root is not None else []
    pixels = _cached([path for path, _ in train + test], folder, data_dir / "cache", size)
    labels = np.array([label for _, label in train + test])
    images = _images(pixels, labels, len(classes), folder)
    cut = len(train)
    return Dataset(
        name,
        Images(images.pixels[:cut], images.labels[:cut]),
        Images(images.pixels[cut:], images.labels[cut:]) if test else None,
        classes,
        flips=True,
    )


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _labelled(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Every image below `root` with its label; files that PIL has no decoder for are passed by."""
    formats = _formats()
    extensions = {e for e, kind in Image.registered_extensions().items() if kind in formats}
    pairs: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = sorted(
            path
            for path in (root / name).rglob("*")
            if path.suffix.lower() in extensions
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
        if not files:
            raise UserError(f"class {name!r} has no images in {root}; add some or drop the class")
        pairs += [(path, label) for path in files]
    return pairs


def _formats() -> tuple[str, ...]:
    """What PIL decodes itself; for EPS it would run Ghostscript, and with it the file's code."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind != "EPS")


def _cached(files: Sequence[Path], folder: Path, cache: Path, size: int) -> np.ndarray:
    """Pixels uint8 [N, C, size, size] of `files`, decoded when they or `size` have changed."""
    key = hashlib.sha256(repr((str(folder.resolve()), size)).encode())
    for path in files:
        stat = path.stat()
        row = (str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns)
        key.update(repr(row).encode())
    target = cache / f"folder-{key.hexdigest()[:32]}.npy"
    if target.is_file():
        with _reading(target):
            pixels: np.ndarray = np.load(target, allow_pickle=False)
            if pixels.dtype != np.uint8 or pixels.shape[::2] != (len(files), size):
                raise ValueError(f"holds {pixels.dtype} {pixels.shape}")
            return pixels
    pixels = _decoded(files, size)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, pixels, allow_pickle=False)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {target} ({error.strerror}); choose another --data-dir"
        ) from error
    return pixels


def _decoded(files: Sequence[Path], size: int) -> np.ndarray:
    """Pixels uint8 [N, C, size, size]; C is 1 if every image is greyscale, otherwise 3."""
    mode = "L" if all(map(_is_grey, files)) else "RGB"
    with ThreadPoolExecutor() as pool:  # PIL decodes without the interpreter lock
        rows = list(pool.map(partial(_decode, mode=mode, size=size), files))
    pixels = np.stack(rows)
    return pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)


def _is_grey(path: Path) -> bool:
    """Whether the header says greyscale."""
    with _reading(path), Image.open(path, formats=_formats()) as image:
        return Image.getmodebase(image.mode) == "L"


def _decode(path: Path, mode: str, size: int) -> np.ndarray:
    """One image, uint8 [size, size] or [size, size, 3]: upright, centre-cropped, resized."""
    with _reading(path), Image.open(path, formats=_formats()) as image:
        width, height = image.size
        if min(image.size) < MIN_SIZE:
            raise UserError(
                f"{path} has {height}x{width} pixels; use images of at least {MIN_SIZE}x{MIN_SIZE}"
            )
        image.draft(None, (2 * size, 2 * size))  # lets a large JPEG decode at reduced scale
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        square = ImageOps.fit(upright.convert(mode), (size, size), Image.Resampling.BICUBIC)
        return np.asarray(square)


# --- Splits ----------------------------------------------------------------------------------


def split(
    dataset: Dataset,
    *,
    subset: int | None = None,
    validation: float = 0.5,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Cut a data set into three disjoint stratified parts.

    Without an official test set, the test images are carved out first, by a seed of their own:
    they are the same for every `seed`, `subset` and `validation`, so that what one search
    learned from can never be another one's test.  Then the subset, then the validation images
    are drawn, by `seed`.  A class departs from its exact share by less than one image, except
    where it would get none in one of the parts.

    Arguments:
        subset: number of images for training and validation together; None means all.
        validation: fraction of those for validation.
        test: fraction of all images for the test, if there is no official test set.
        seed: of subset and validation.
    """
    for what, fraction in (("validation", validation), ("test", test)):
        if not 0 < fraction < 1:
            raise UserError(f"{what} fraction {fraction} must lie strictly between 0 and 1")
    labels = dataset.train.labels.cpu()
    counts = torch.bincount(labels, minlength=len(dataset.classes))
    rest = torch.arange(len(labels))
    if dataset.test is None:
        _require(counts, 3, dataset, "training, validation and test")
        share = _shares(counts, round(test * len(rest))).clamp(min=1).minimum(counts - 2)
        held_out, rest = _draw(rest, labels, share, torch.Generator().manual_seed(_TEST_SEED))
        test_images = dataset.train.select(held_out)
    else:
        test_images = dataset.test
        test_counts = torch.bincount(test_images.labels.cpu(), minlength=len(dataset.classes))
        _require(test_counts, 1, dataset, "test")
        _require(counts, 2, dataset, "training and validation")

    generator = torch.Generator().manual_seed(seed)
    if subset is not None:
        if not 0 < subset <= len(rest):
            raise UserError(
                f"subset {subset} is out of range: {dataset.name} has {len(rest)} images outside"
                f" the test set; use 1 to {len(rest)}"
            )
        share = _shares(torch.bincount(labels[rest], minlength=len(counts)), subset)
        if share.min() < 2:
            raise UserError(
                f"subset {subset} is too small: class {dataset.classes[int(share.argmin())]!r}"
                f" gets {int(share.min())} images, training and validation need 2;"
                " use a larger subset"
            )
        rest, _ = _draw(rest, labels, share, generator)
    counts = torch.bincount(labels[rest], minlength=len(counts))
    share = _shares(counts, round(validation * len(rest))).clamp(min=1).minimum(counts - 1)
    chosen, rest = _draw(rest, labels, share, generator)
    return Splits(dataset.train.select(rest), dataset.train.select(chosen), test_images)


def _require(counts: Tensor, least: int, dataset: Dataset, purpose: str) -> None:
    if counts.min() < least:
        worst = int(counts.argmin())
        raise UserError(
            f"class {dataset.classes[worst]!r} of {dataset.name} has {int(counts[worst])} images,"
            f" {purpose} need at least {least}; add images or drop the class"
        )


def _shares(counts: Tensor, total: int) -> Tensor:
    """Divide `total` among classes in proportion to `counts`, by largest remainder; int64 [K]."""
    whole = int(counts.sum())
    shares, remainders = counts * total // whole, counts * total % whole
    order = remainders.argsort(descending=True, stable=True)
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def _draw(
    index: Tensor, labels: Tensor, share: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw `share[k]` of class k from `index`; returns what was drawn and the rest, both sorted."""
    shuffled = index[torch.randperm(len(index), generator=generator)]
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[grouped]
    counts = torch.bincount(classes, minlength=len(share))
    rank = torch.arange(len(index)) - (counts.cumsum(0) - counts)[classes]  # within its class
    drawn = rank < share[classes]
    return grouped[drawn].sort().values, grouped[~drawn].sort().values


# --- Batches ---------------------------------------------------------------------------------


class Batches:
    """Endless shuffled mini-batches, without replacement within an epoch.

    Every batch is full.  The remainder of an epoch, less than a batch, is dropped; the next
    epoch is shuffled anew, so no image is dropped for good.

    Arguments:
        images: on the device where the batches are wanted.
        batch_size: number of images B.
        generator: on the CPU; its owner saves and restores its state.
    """

    def __init__(self, images: Images, batch_size: int, generator: torch.Generator) -> None:
        if not 0 < batch_size <= images.count:
            raise UserError(
                f"batch size {batch_size} does not fit {images.count} images;"
                f" use 1 to {images.count}, or a larger subset"
            )
        self.images = images
        self.batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)  # on the device of the images
        self._position = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """x float32 [B, C, H, W] in [0, 1], channels_last, and y int64 [B]."""
        if self._position + self.batch_size > len(self._order):
            order = torch.randperm(self.images.count, generator=self._generator)
            self._order = order.to(self.images.labels.device)
            self._position = 0
        index = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return _floats(self.images.pixels[index]), self.images.labels[index]

    def state_dict(self) -> dict[str, object]:
        """The permutation of this epoch and the position in it."""
        return {"order": self._order.cpu(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, once the generator's owner has restored it."""
        order, position = state["order"], int(state["position"])
        whole = torch.equal(order.sort().values, torch.arange(self.images.count))
        if not (whole or len(order) == 0) or not 0 <= position <= len(order):
            raise UserError(
                f"the saved order of batches is not one of {self.images.count} images;"
                " resume with the data set, subset and seed of the checkpoint"
            )
        self._order, self._position = order.to(self.images.labels.device), position


def evaluation_batches(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once and in order, as `Batches` gives them; the last batch may be smaller."""
    for start in range(0, images.count, batch_size):
        end = start + batch_size
        yield _floats(images.pixels[start:end]), images.labels[start:end]


def _floats(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] to float32 in [0, 1], channels_last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
