"""Readers on small files in the real formats, splits, batches, and every error."""

import gzip
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms.v2.functional import resize

from darts_lite.architecture.reading import Reading
from darts_lite.data import (
    Batches,
    Dataset,
    Images,
    changed,
    evaluation_batches,
    first_available,
    grown,
    load,
    pixel_cache,
    published,
    split,
)
from darts_lite.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_system_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the data sets of the system, so that tests see only their own files."""
    source = published.SOURCES["fashion-mnist"]
    monkeypatch.setitem(
        published.SOURCES, "fashion-mnist", source._replace(folders=source.folders[:-1])
    )


# --- Writers of the real formats -------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, rng: np.random.Generator, suffix: str = "") -> np.ndarray:
    """Write 20 training and 10 test images; return the training pixels."""
    arrays = {}
    for part, count in (("train", 20), ("t10k", 10)):
        arrays[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", arrays[part])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return arrays["train"]


class Python2Pickler(pickle._Pickler):  # the pure Python pickler can be extended
    """Pickler that writes bytes and text as Python 2's `str`, as in the files of CIFAR."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_str2(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = save_str2


def write_pickle(path: Path, entry: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(entry)
    # NumPy 2 renamed the module of `_reconstruct`; the published files have the old name.
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))


def write_cifar(root: Path, rng: np.random.Generator, classes: int) -> np.ndarray:
    """Write two images per class in each batch; return the pixels of the first batch."""
    ten = classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if ten else ["train", "test"]
    batches = [rng.integers(0, 256, (2 * classes, 3072), dtype=np.uint8) for _ in names]
    for name, pixels in zip(names, batches, strict=True):
        labels = [i % classes for i in range(2 * classes)]
        key = "labels" if ten else "fine_labels"
        write_pickle(folder / name, {"batch_label": name, key: labels, "data": pixels})
    meta = {"label_names" if ten else "fine_label_names": [f"class{i}" for i in range(classes)]}
    write_pickle(folder / ("batches.meta" if ten else "meta"), meta)
    return batches[0].reshape(-1, 3, 32, 32)


def write_svhn(root: Path, rng: np.random.Generator) -> np.ndarray:
    root.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = (np.arange(20) % 10 + 1).astype(np.uint8)[:, None]  # 1..10
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})
    return pixels.transpose(3, 2, 0, 1)


def write_image(path: Path, size: tuple[int, int] = (20, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    seed = np.random.default_rng(len(str(path.name)))
    Image.fromarray(seed.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_folder(root: Path, count: int = 3, mode: str = "RGB") -> Path:
    for name in ("cat", "dog"):
        for i in range(count):
            write_image(root / name / f"{i}.{'png' if i % 2 else 'jpg'}", mode=mode)
    return root


def labeled(labels: torch.Tensor) -> Images:
    """Return images whose pixels encode their index, so that a test can trace a split."""
    index = torch.arange(len(labels))
    pixels = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = index % 256, index // 256
    return Images(pixels, labels)


def indices(images: Images) -> list[int]:
    pixels = images.pixels[:, 0, 0, :2].long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def toy(counts: list[int], test: list[int] | None = None) -> Dataset:
    def images(counts: list[int]) -> Images:
        labels = torch.repeat_interleave(torch.tensor(counts))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
        return labeled(labels[order])

    classes = tuple(f"class{i}" for i in range(len(counts)))
    return Dataset(
        "toy", images(counts), None if test is None else images(test), classes, flips=False
    )


# --- Start-up --------------------------------------------------------------------------------


def test_import_does_not_load_slow_libraries() -> None:
    code = (
        "import sys, darts_lite.data; print({'torchvision', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- Readers ---------------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    digits = load("digits", tmp_path / "nowhere")
    assert digits.train.pixels.shape == (1797, 1, 8, 8)
    assert digits.train.pixels.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert digits.train.pixels.min() == 0 and digits.train.pixels.max() == 255
    assert digits.test is None and not digits.flips
    assert digits.channels == 1 and digits.image_size == (8, 8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "name, folder",
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
    ],
)
def test_idx(tmp_path: Path, rng: np.random.Generator, name: str, folder: str, suffix: str) -> None:
    pixels = write_mnist(tmp_path / folder, rng, suffix)
    dataset = load(name, tmp_path)
    assert dataset.train.pixels.squeeze(1).numpy().tolist() == pixels.tolist()
    assert dataset.test is not None and dataset.test.labels.tolist() == list(range(10))
    assert len(dataset.classes) == 10 and dataset.flips == (name == "fashion-mnist")


def test_idx_agrees_with_torchvision(tmp_path: Path, rng: np.random.Generator) -> None:
    write_mnist(tmp_path / "mnist", rng)
    train = load("mnist", tmp_path).train
    prefix = str(tmp_path / "mnist" / "train")
    assert torch.equal(train.pixels[:, 0], read_image_file(f"{prefix}-images-idx3-ubyte"))
    assert torch.equal(train.labels, read_label_file(f"{prefix}-labels-idx1-ubyte"))


def test_classes_of_fashion_mnist_agree_with_torchvision(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write_mnist(tmp_path / "fashion-mnist", rng)
    theirs = tuple(datasets.FashionMNIST.classes)
    assert load("fashion-mnist", tmp_path).classes == theirs


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the package dataset-fashion-mnist is missing")
def test_debian_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published.SOURCES["fashion-mnist"]
    monkeypatch.setitem(published.SOURCES, "fashion-mnist", source._replace(folders=(str(DEBIAN),)))
    dataset = load(None, tmp_path)
    assert dataset.name == "fashion-mnist" and dataset.train.count == 60_000
    assert dataset.test is not None and dataset.test.count == 10_000


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path: Path, rng: np.random.Generator, classes: int) -> None:
    pixels = write_cifar(tmp_path, rng, classes)
    dataset = load(f"cifar{classes}", tmp_path)
    assert dataset.train.pixels[: len(pixels)].numpy().tolist() == pixels.tolist()
    assert dataset.train.count == 2 * classes * (5 if classes == 10 else 1)
    assert dataset.test is not None and dataset.test.count == 2 * classes
    assert dataset.classes[-1] == f"class{classes - 1}" and dataset.flips


def test_cifar_agrees_with_torchvision(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, rng, 10)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    with warnings.catch_warnings():  # torchvision's pickle.load warns about the alignment of dtypes
        warnings.simplefilter("ignore")
        theirs = datasets.CIFAR10(tmp_path, train=True)
    ours = load("cifar10", tmp_path).train
    assert ours.pixels.permute(0, 2, 3, 1).numpy().tolist() == theirs.data.tolist()
    assert ours.labels.tolist() == theirs.targets


class Malicious:
    """Object whose pickle would create a folder when it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("pickle-ran-code",)


def test_cifar_pickle_runs_no_code(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, rng, 10)
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "cifar-10-batches-py" / "data_batch_2", {"data": Malicious()})
    with pytest.raises(UserError, match=r"data_batch_2 .*refuses posix\.mkdir|refuses nt\.mkdir"):
        load("cifar10", tmp_path)
    assert not Path("pickle-ran-code").exists()


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_svhn(tmp_path: Path, rng: np.random.Generator, folder: str) -> None:
    pixels = write_svhn(tmp_path / folder, rng)
    dataset = load("svhn", tmp_path)
    assert dataset.train.pixels.numpy().tolist() == pixels.tolist()
    assert dataset.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert not dataset.flips


def test_first_available(tmp_path: Path, rng: np.random.Generator) -> None:
    assert load(None, tmp_path).name == first_available(tmp_path) == "digits"
    write_mnist(tmp_path / "fashion-mnist", rng)
    assert load(None, tmp_path).name == "fashion-mnist"
    write_cifar(tmp_path, rng, 10)
    assert load(None, tmp_path).name == "cifar10"


def test_fingerprint(tmp_path: Path, rng: np.random.Generator) -> None:
    write_mnist(tmp_path / "mnist", rng)
    first, again = load("mnist", tmp_path).fingerprint, load("mnist", tmp_path).fingerprint
    assert first == again == json.loads(json.dumps(first))
    assert (first["images"], first["classes"], first["shape"]) == (30, 10, [1, 28, 28])
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte", np.arange(10)[::-1])
    assert load("mnist", tmp_path).fingerprint["sha256"] != first["sha256"]


def test_fingerprint_counts_images_per_class() -> None:
    train, test = (
        Images(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels))
        for labels in ([2, 0, 2, 1, 2], [0, 2])
    )
    counts = Dataset("own", train, test, ("a", "b", "c", "d"), False).fingerprint["counts"]
    assert counts == [2, 1, 4, 0]


FINGERPRINT = {"name": "a", "images": 9, "classes": 3, "counts": [2, 3, 4], "shape": [1, 8, 8],
         "sha256": "0"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said", "more"),
    [
        ({}, None, False),
        ({"name": "moved"}, None, False),
        ({"counts": [2, 9, 5], "images": 16}, "7 more images (2 classes grew)", True),
        ({"counts": [2, 3, 5], "images": 10}, "1 more image (1 class grew)", True),
        ({"counts": [1, 1, 4], "images": 6}, "3 fewer images (2 classes shrank)", False),
        (
            {"counts": [1, 3, 5]},
            "1 more image (1 class grew) and 1 fewer image (1 class shrank)",
            False,
        ),
        ({"sha256": "1"}, "other pixels or labels, as many as before", False),
        ({"shape": [3, 8, 9]}, "images of 3x8x9, were 1x8x8", False),
        ({"shape": [1, 4, 16], "sha256": "0"}, "images of 1x4x16, were 1x8x8", False),
        ({"classes": 4, "counts": [2, 3, 4, 1]}, "other classes (4, were 3)", False),
        ({"name": "b", "counts": [9, 9, 9]}, "other data set (b, was a)", False),
    ],
)
def test_changed_describes_the_difference(
    changes: dict[str, Any], said: str | None, more: bool
) -> None:
    fresh = {"sha256": "1"} if set(changes) - {"name"} else {}
    assert changed(FINGERPRINT, {**FINGERPRINT, **fresh, **changes}) == said
    assert grown(FINGERPRINT, {**FINGERPRINT, **fresh, **changes}) == more


def test_fingerprint_of_earlier_version_has_no_counts() -> None:
    old = {name: value for name, value in FINGERPRINT.items() if name != "counts"}
    assert changed(old, FINGERPRINT) is None
    assert changed(old, {**FINGERPRINT, "sha256": "1", "images": 12}) == "other images (12, were 9)"
    assert changed({}, FINGERPRINT) == "images of 1x8x8, were unknown size"
    assert not grown(old, {**FINGERPRINT, "images": 12})


def test_resize(tmp_path: Path, rng: np.random.Generator) -> None:
    write_mnist(tmp_path / "mnist", rng)
    dataset = load("mnist", tmp_path, image_size=16)
    assert dataset.image_size == (16, 16) and dataset.train.pixels.dtype == torch.uint8
    assert dataset.test is not None and dataset.test.pixels.shape == (10, 1, 16, 16)


def test_resize_agrees_with_torchvision(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = torch.from_numpy(write_mnist(tmp_path / "mnist", rng))
    for size in (16, 28, 40):
        ours = load("mnist", tmp_path, image_size=size).train.pixels[:, 0]
        theirs = resize(pixels.float(), [size, size], antialias=True).round()
        assert torch.equal(ours.float(), theirs)


def test_download(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(download: Callable[[Path], object]) -> None:
        monkeypatch.setitem(
            published.SOURCES, "mnist", published.SOURCES["mnist"]._replace(download=download)
        )

    def fail(root: Path) -> None:
        raise OSError("no\nnetwork")

    use(fail)
    with pytest.raises(UserError, match=r"cannot download mnist .*no network"):
        load("mnist", tmp_path, download=True)
    use(lambda root: write_mnist(root / "MNIST" / "raw", rng))
    assert load("mnist", tmp_path, download=True).train.count == 20
    use(fail)  # a complete data set is not downloaded again
    assert load("mnist", tmp_path, download=True).train.count == 20


def test_download_calls_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("FashionMNIST", "MNIST", "CIFAR10", "CIFAR100", "SVHN"):
        monkeypatch.setattr(
            datasets, name, lambda *a, name=name, **options: asked.append((name, *a, options))
        )
    for name in published.SOURCES:
        with pytest.raises(UserError, match=f"{name} not found"):
            load(name, tmp_path, download=True)
    assert asked == [
        ("FashionMNIST", tmp_path, {"download": True}),
        ("MNIST", tmp_path, {"download": True}),
        ("CIFAR10", tmp_path, {"download": True}),
        ("CIFAR100", tmp_path, {"download": True}),
        ("SVHN", tmp_path, {"download": True, "split": "train"}),
        ("SVHN", tmp_path, {"download": True, "split": "test"}),
    ]


# --- A folder of images ----------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "notes.txt").write_text("not an image")
    write_image(root / "cat" / ".thumbnails" / "0.png")
    dataset = load(f"folder:{root}", tmp_path)
    assert dataset.train.pixels.shape == (6, 3, 12, 12) and dataset.train.pixels.is_contiguous()
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.classes == ("cat", "dog") and dataset.test is None and dataset.flips


def test_folder_crops_center_and_rotates_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200  # the center square
    pixels[:10, 10:30] = 100  # its upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    for name in ("a", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "pets" / name / "0.png")
        Image.fromarray(pixels).save(tmp_path / "pets" / name / "1.png", exif=exif)
    crop = Reading(fit="crop")
    read = load(f"folder:{tmp_path / 'pets'}", tmp_path, image_size=20, how=crop).train.pixels
    plain, turned = read[:2]
    assert plain[:, :10].eq(100).all() and plain[:, 10:].eq(200).all()
    assert torch.equal(turned, plain.flip(1, 2))


def test_folder_of_gray_images_has_one_channel(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", mode="L")
    deep = np.full((9, 9), 128 * 257, np.uint16)
    Image.fromarray(deep).save(root / "cat" / "16-bit.png")
    dataset = load(f"folder:{root}", tmp_path, image_size=16)
    assert dataset.train.pixels.shape == (7, 1, 16, 16)
    assert dataset.train.pixels[2].eq(128).all()
    write_image(root / "dog" / "color.png")
    assert load(f"folder:{root}", tmp_path).channels == 3


@pytest.mark.parametrize(
    "parts, train, test",
    [
        (("train",), 6, None),
        (("train", "test"), 6, 6),
        (("train", "val"), 6, None),
        (("train", "val", "test"), 6, 6),
        (("", "test"), 6, 6),
    ],
)
def test_folder_parts(tmp_path: Path, parts: tuple[str], train: int, test: int | None) -> None:
    for part in parts:
        write_folder(tmp_path / "pets" / part)
    dataset = load(f"folder:{tmp_path / 'pets'}", tmp_path)
    assert dataset.classes == ("cat", "dog") and dataset.train.count == train
    assert (dataset.test.count if dataset.test else None) == test


def test_folder_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"folder:{write_folder(tmp_path / 'pets')}"
    first = load(name, tmp_path / "new" / "data")
    decoded: list[object] = []
    fill = pixel_cache._fill
    monkeypatch.setattr(pixel_cache, "_fill", lambda *a: decoded.append(a) or fill(*a))  # type: ignore
    again = load(name, tmp_path / "new" / "data")
    assert not decoded and again.fingerprint == first.fingerprint
    write_image(tmp_path / "pets" / "dog" / "new.png")
    assert load(name, tmp_path / "new" / "data").train.count == 7 and len(decoded) == 1
    load(name, tmp_path / "new" / "data", image_size=16)
    assert len(decoded) == 2
    files = sorted((tmp_path / "new" / "data" / "cache").iterdir())
    assert {file.suffix for file in files} == {".npy", ".json"}
    files = [file for file in files if file.suffix == ".npy"]
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read .*cache.folder-.*\.npy"):
        load(name, tmp_path / "new" / "data")


# --- Errors ----------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def break_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    truncate(root / "mnist" / "train-images-idx3-ubyte")


def break_idx_gz(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng, ".gz")
    truncate(root / "mnist" / "t10k-images-idx3-ubyte.gz")


def empty_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    (root / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"")


def wrong_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "train-labels-idx1-ubyte", np.zeros((2, 2)))


def miscounted_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "train-labels-idx1-ubyte", np.zeros(19))


def mislabeled_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "train-labels-idx1-ubyte", np.arange(20))


def tiny_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "train-images-idx3-ubyte", np.zeros((20, 7, 28)))


def no_images_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    write_idx(root / "mnist" / "train-labels-idx1-ubyte", np.zeros(0))


def unequal_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    write_idx(root / "mnist" / "t10k-images-idx3-ubyte", np.zeros((10, 20, 20)))


def missing_idx(root: Path, rng: np.random.Generator) -> None:
    write_mnist(root / "mnist", rng)
    (root / "mnist" / "t10k-labels-idx1-ubyte").unlink()


def break_cifar(root: Path, rng: np.random.Generator) -> None:
    write_cifar(root, rng, 10)
    truncate(root / "cifar-10-batches-py" / "data_batch_3")


def mislabeled_cifar(root: Path, rng: np.random.Generator) -> None:
    write_cifar(root, rng, 100)
    entry = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}
    write_pickle(root / "cifar-100-python" / "test", entry)


def keyless_cifar(root: Path, rng: np.random.Generator) -> None:
    write_cifar(root, rng, 100)
    write_pickle(root / "cifar-100-python" / "train", {"data": np.zeros((1, 3072), np.uint8)})


def floating_cifar(root: Path, rng: np.random.Generator) -> None:
    write_cifar(root, rng, 100)
    entry = {"data": np.zeros((1, 3072)), "fine_labels": [0]}
    write_pickle(root / "cifar-100-python" / "train", entry)


def break_svhn(root: Path, rng: np.random.Generator) -> None:
    write_svhn(root, rng)
    path = root / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])


def floating_svhn(root: Path, rng: np.random.Generator) -> None:
    write_svhn(root, rng)
    savemat(root / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))})


def nothing(root: Path, rng: np.random.Generator) -> None:
    pass


def corrupt_folder(root: Path, rng: np.random.Generator) -> None:
    write_folder(root / "pets")
    (root / "pets" / "dog" / "bad.png").write_bytes(b"not a picture")


def truncated_folder(root: Path, rng: np.random.Generator) -> None:
    truncate(write_image(write_folder(root / "pets") / "dog" / "bad.jpg", size=(99, 99)))


def ghostscript_folder(root: Path, rng: np.random.Generator) -> None:
    write_folder(root / "pets")
    image = Image.new("RGB", (20, 20))
    image.save(root / "pets" / "dog" / "bad.png", format="EPS")


def tiny_folder(root: Path, rng: np.random.Generator) -> None:
    write_image(write_folder(root / "pets") / "cat" / "tiny.png", size=(20, 7))


def empty_folder(root: Path, rng: np.random.Generator) -> None:
    (root / "pets").mkdir()


def new_class(root: Path, rng: np.random.Generator) -> None:
    write_folder(root / "pets" / "train")
    write_image(write_folder(root / "pets" / "test") / "emu" / "0.png")


def blocked_cache(root: Path, rng: np.random.Generator) -> None:
    write_folder(root / "pets")
    (root / "cache").write_text("a file in the place of the cache folder")


Damage = Callable[[Path, np.random.Generator], None]


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("cifar11", nothing, "must be one of digits, .*svhn, folder:PATH, csv:PATH, got 'cifar11'"),
        ("mnist", nothing, r"mnist not found in .*MNIST.raw \(lacks train-.*--download.*--data-d"),
        ("fashion-mnist", nothing, "not found .*Debian package dataset-fashion-mnist"),
        ("cifar10", nothing, "cifar10 not found .*data_batch_1"),
        ("svhn", nothing, "svhn not found .*train_32x32.mat"),
        ("mnist", missing_idx, r"not found .*mnist \(lacks t10k-labels-idx1-ubyte\)"),
        ("mnist", break_idx, "cannot read .*train-images-idx3-ubyte .*cannot reshape"),
        ("mnist", break_idx_gz, "cannot read .*t10k-images-idx3-ubyte.gz .*EOFError"),
        ("mnist", empty_idx, "cannot read .*train-labels-idx1-ubyte"),
        ("mnist", wrong_idx, "cannot read .*train-labels-idx1-ubyte .*not an IDX file"),
        ("mnist", miscounted_idx, "train-labels-idx1-ubyte must .*, got 20 images and 19 labels"),
        (
            "mnist",
            mislabeled_idx,
            "labels must be 0 to 9, got 0 to 19 in .*train-labels-idx1-ubyte",
        ),
        ("mnist", tiny_idx, "must have at least 8x8 pixels, got 7x28 in .*train"),
        ("mnist", no_images_idx, "must have at least one image, got none"),
        ("mnist", unequal_idx, r"must have one shape, got \(1, 28, 28\) and \(1, 20, 20\)"),
        ("cifar10", break_cifar, "cannot read .*data_batch_3"),
        ("cifar100", mislabeled_cifar, "labels must be 0 to 99, got 100 to 100 in .*test"),
        ("cifar100", keyless_cifar, "cannot read .*train .*fine_labels"),
        ("cifar100", floating_cifar, "cannot read .*train .*must be uint8, got float64"),
        ("svhn", break_svhn, "cannot read .*test_32x32.mat"),
        ("svhn", floating_svhn, "cannot read .*train_32x32.mat .*float64"),
        ("folder:", nothing, "folder:PATH must name a folder, got folder:; give one"),
        ("folder:{}", nothing, "must name a folder, got folder:.*pets"),
        (
            "folder:{}",
            empty_folder,
            "pets must have one sub-folder of images per class",
        ),
        ("folder:{}", new_class, "every class in .*test must be in .*train too, got 'emu'"),
        (
            "folder:{}",
            corrupt_folder,
            "1 of 7 images .*dog.bad.png .*--skip-broken",
        ),
        ("folder:{}", truncated_folder, "1 of 7 images cannot be read: .*dog.bad.jpg .*truncated"),
        ("folder:{}", ghostscript_folder, "1 of 7 images cannot be read: .*dog.bad.png"),
        ("folder:{}", tiny_folder, "must have at least 8x8 pixels, got 7x20 in .*cat.tiny.png"),
        ("folder:{}", blocked_cache, "cannot write .*cache.*; choose another --data-dir"),
    ],
)
def test_load_reports_errors(
    tmp_path: Path, rng: np.random.Generator, name: str, damage: Damage, message: str
) -> None:
    damage(tmp_path, rng)
    with pytest.raises(UserError, match=message) as caught:
        load(name.format(tmp_path / "pets"), tmp_path)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_load_rejects_small_image_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image size must be at least 8 pixels, got 7"):
        load("digits", tmp_path, image_size=7)


@pytest.mark.parametrize(
    "dataset, arguments, message",
    [
        (
            toy([9, 2]),
            {},
            "at least 3 images for training and validation and test, got 2 of 'class1' in toy",
        ),
        (toy([9, 0]), {}, "got 0 of 'class1' in toy"),
        (toy([9, 1], [1, 1]), {}, "2 images for training and validation, got 1 of 'class1'"),
        (toy([10, 10]), {"subset": 17}, "subset must be 1 to 16, the images of toy .*, got 17"),
        (toy([10, 10]), {"subset": 0}, "subset must be 1 to 16, .*, got 0"),
        (toy([10, 10]), {"subset": 3}, "2 images outside .*, got 1 of 'class1' with subset 3"),
        (
            toy([10, 10]),
            {"validation": 1.0},
            "validation fraction must be above 0 and below 1, got 1.0",
        ),
        (toy([10, 10]), {"test": 0.0}, "test fraction must be above 0 and below 1, got 0.0"),
    ],
)
def test_split_reports_errors(dataset: Dataset, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split(dataset, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- Splits ----------------------------------------------------------------------------------


def shares(images: Images, classes: int) -> list[int]:
    return torch.bincount(images.labels, minlength=classes).tolist()


def assert_stratified(drawn: list[int], available: list[int], share: float) -> None:
    for got, count in zip(drawn, available, strict=True):
        assert abs(got - count * share) <= 1 and got >= 1


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_splits_of_random_data(seed: int, official: bool) -> None:
    chance = random.Random(seed)
    counts = [chance.randint(3, 90) for _ in range(chance.randint(2, 12))]
    dataset = toy(counts, [1] * len(counts) if official else None)
    validation, test = chance.uniform(0.1, 0.6), chance.uniform(0.1, 0.3)
    total, classes = sum(counts), len(counts)
    parts = split(dataset, validation=validation, test=test, seed=seed)

    if official:
        assert parts.test is dataset.test
        kept = counts
        mine = indices(parts.train) + indices(parts.validation)
    else:
        held_out = shares(parts.test, classes)
        assert_stratified(held_out, counts, round(test * total) / total)
        kept = [count - out for count, out in zip(counts, held_out, strict=True)]
        mine = indices(parts.train) + indices(parts.validation) + indices(parts.test)
    assert sorted(mine) == list(range(total))  # disjoint and complete
    whole = sum(kept)
    assert_stratified(shares(parts.validation, classes), kept, round(validation * whole) / whole)
    assert min(shares(parts.train, classes)) >= 1
    for part in parts:  # every image keeps its label
        own = part.labels if official and part is parts.test else dataset.train.labels
        chosen = own if own is part.labels else own[indices(part)]
        assert torch.equal(chosen, part.labels)

    again = split(dataset, validation=validation, test=test, seed=seed)
    assert [indices(a) for a in again] == [indices(a) for a in parts]


@pytest.mark.parametrize("subset", [40, 41, 99])
@pytest.mark.parametrize("official", [False, True])
def test_subset(subset: int, official: bool) -> None:
    counts = [50, 40, 30, 20]
    parts = split(toy(counts, [2, 2, 2, 2] if official else None), subset=subset, seed=3)
    train, validation = indices(parts.train), indices(parts.validation)
    assert len(set(train + validation)) == len(train + validation) == subset
    assert official or not set(train + validation) & set(indices(parts.test))
    drawn = [sum(pair) for pair in zip(*(shares(p, 4) for p in parts[:2]), strict=True)]
    assert_stratified(drawn, counts, subset / sum(counts))
    assert_stratified(shares(parts.validation, 4), drawn, 0.5)


def test_test_images_are_the_same_for_every_search() -> None:
    dataset = toy([30, 40, 50])
    reference = indices(split(dataset).test)
    searches = [split(dataset, seed=seed) for seed in range(5)]
    searches += [split(dataset, subset=20), split(dataset, validation=0.2, seed=9)]
    assert all(indices(parts.test) == reference for parts in searches)
    assert len({tuple(indices(parts.train)) for parts in searches}) == len(searches)


# --- Batches ---------------------------------------------------------------------------------


def batches(count: int, size: int, seed: int = 0) -> tuple[Batches, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    images = Images(
        torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8),
        torch.arange(count),
    )
    return Batches(images, size, generator), generator


@pytest.mark.parametrize("count, size", [(12, 4), (13, 4), (7, 7), (9, 5), (3, 1)])
def test_batches_are_full_and_do_not_repeat_within_an_epoch(count: int, size: int) -> None:
    stream, _ = batches(count, size)
    epochs = [torch.cat([next(stream)[1] for _ in range(count // size)]) for _ in range(3)]
    for seen in epochs:
        assert len(seen) == len(set(seen.tolist())) == count // size * size
    assert len({tuple(seen.tolist()) for seen in epochs}) > 1  # every epoch has a new order


def test_batch_shapes_and_dtypes() -> None:
    stream, _ = batches(256, 32)
    x, y = next(iter(stream))
    assert x.shape == (32, 3, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x[:, 0, 0, 0], y / 255)  # the pixels of image i are i


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_batches_resume_exactly(steps: int) -> None:
    stream, generator = batches(13, 4)
    for _ in range(steps):
        next(stream)
    saved, random_state = stream.state_dict(), generator.get_state()
    expected = [next(stream)[1].tolist() for _ in range(8)]
    resumed, other = batches(13, 4, seed=99)
    next(resumed)
    resumed.load_state_dict(saved)
    other.set_state(random_state)
    assert [next(resumed)[1].tolist() for _ in range(8)] == expected


def test_batches_report_errors() -> None:
    for size in (0, 6):
        with pytest.raises(UserError, match=f"batch size must be 1 to 5, .*, got {size}"):
            batches(5, size)
    stream, _ = batches(6, 2)
    next(stream)
    with pytest.raises(UserError, match="must be an order of 5 images, got 6 entries"):
        batches(5, 2)[0].load_state_dict(stream.state_dict())


def test_evaluation_batches() -> None:
    images = batches(10, 1)[0].images
    parts = list(evaluation_batches(images, 4))
    assert [len(y) for _, y in parts] == [4, 4, 2]
    assert torch.cat([y for _, y in parts]).tolist() == list(range(10))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in parts)
    assert torch.equal(torch.cat([x for x, _ in parts]), images.pixels.float() / 255)


def test_images() -> None:
    images = toy([4, 4]).train
    assert images.count == 8
    assert indices(images.select(torch.tensor([5, 2]))) == [5, 2]
    assert torch.equal(images.to("cpu").pixels, images.pixels)
