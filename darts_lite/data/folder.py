"""Reader of `folder:PATH`, a user's own images with one sub-folder per class.

The decoded pixels are cached as a plain NumPy array. Reading this array cannot run code.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from darts_lite.data.checks import checked_images, reading
from darts_lite.data.images import MIN_SIZE, Dataset, Images
from darts_lite.errors import UserError


def load_folder(name: str, data_dir: Path, size: int) -> Dataset:
    """Read a folder of images, or its cached pixels.

    Arguments:
        name: "folder:PATH"; see `darts_lite.data.load` for the layout of PATH.
        data_dir: Folder whose sub-folder `cache` keeps the decoded pixels.
        size: Height and width of the images, in pixels.

    Returns:
        The data set on the CPU; pixels uint8 [N, C, size, size], C 1 (all images gray) or 3.

    Raises:
        UserError: The layout is wrong, a file is broken, or the cache cannot be written.
    """
    folder = Path(name.removeprefix("folder:")).expanduser()
    if name == "folder:" or not folder.is_dir():
        raise UserError(
            f"folder:PATH must name a folder, got {name}; give one with one sub-folder per class"
        )
    with reading(folder):
        parts = {part: folder / part for part in ("train", "val", "test")}
        parts = {part: path for part, path in parts.items() if _subfolders(path)}
        root = parts.pop("train", folder)
        classes = tuple(p.name for p in _subfolders(root) if p not in parts.values())
        if not classes:
            raise UserError(
                f"{root} must have one sub-folder of images per class, got none; add sub-folders"
            )
        for path in parts.values():
            if extra := sorted({p.name for p in _subfolders(path)} - set(classes)):
                raise UserError(
                    f"every class in {path} must be in {root} too, got {extra[0]!r};"
                    " add this class there or remove its folder"
                )
        test_root = parts.pop("test", None) or parts.pop("val", None)
        train = [pair for path in (root, *parts.values()) for pair in _labeled(path, classes)]
        test = _labeled(test_root, classes) if test_root is not None else []
    pixels = _cached([path for path, _ in train + test], folder, data_dir / "cache", size)
    labels = np.array([label for _, label in train + test])
    images = checked_images(pixels, labels, len(classes), folder)
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


def _labeled(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return every image below `root` with its label."""
    pairs: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = image_files(root / name)
        if not files:
            raise UserError(
                f"every class must have images, got none of {name!r} in {root};"
                " add images or remove the class"
            )
        pairs += [(path, label) for path in files]
    return pairs


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted; skip hidden files and files without a decoder."""
    formats = _formats()
    extensions = {e for e, kind in Image.registered_extensions().items() if kind in formats}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _formats() -> tuple[str, ...]:
    """Return the formats that PIL decodes itself. EPS would run Ghostscript and the file's code."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind != "EPS")


def _cached(files: Sequence[Path], folder: Path, cache: Path, size: int) -> np.ndarray:
    """Return pixels uint8 [N, C, size, size]; decode only if `files` or `size` have changed."""
    key = hashlib.sha256(repr((str(folder.resolve()), size)).encode())
    for path in files:
        stat = path.stat()
        row = (str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns)
        key.update(repr(row).encode())
    target = cache / f"folder-{key.hexdigest()[:32]}.npy"
    if target.is_file():
        with reading(target):
            pixels: np.ndarray = np.load(target, allow_pickle=False)
            if pixels.dtype != np.uint8 or pixels.shape[::2] != (len(files), size):
                raise ValueError(f"holds {pixels.dtype} {pixels.shape}")
            return pixels
    mode = "L" if all(map(_is_gray, files)) else "RGB"
    pixels = _decoded(files, mode, (size, size))
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


def _decoded(files: Sequence[Path], mode: str, size: tuple[int, int]) -> np.ndarray:
    """Decode to pixels uint8 [N, C, H, W]; C is 1 in mode "L", 3 in mode "RGB"."""
    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter lock while it decodes
        rows = list(pool.map(partial(decode, mode=mode, size=size), files))
    pixels = np.stack(rows)
    return pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)


def _is_gray(path: Path) -> bool:
    """Tell whether the file's header declares a gray image."""
    with reading(path), Image.open(path, formats=_formats()) as image:
        return Image.getmodebase(image.mode) == "L"


def read_images(paths: Sequence[Path], image: tuple[int, int, int]) -> Tensor:
    """Decode images to one shape, as training images are decoded.

    Arguments:
        paths: Image files.
        image: Channels (1 for gray, 3 for color), height and width.

    Returns: uint8 [N, C, H, W].

    Raises: UserError: A file cannot be read, or an image is too small.
    """
    channels, height, width = image
    mode = "L" if channels == 1 else "RGB"
    if not paths:
        return torch.zeros(0, *image, dtype=torch.uint8)
    pixels = _decoded(paths, mode, (height, width))
    return torch.from_numpy(np.ascontiguousarray(pixels))


def decode(path: Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Decode one image: rotate it upright, crop its center to the shape, resize it.

    Arguments:
        path: Image file.
        mode: "L" for gray, "RGB" for color.
        size: Height and width in pixels, H and W.

    Returns: uint8 [H, W] in mode "L", uint8 [H, W, 3] in mode "RGB".

    Raises: UserError: The file cannot be read, or the image is too small.
    """
    wide = (size[1], size[0])  # as PIL says it
    with reading(path), Image.open(path, formats=_formats()) as image:
        width, height = image.size
        if min(image.size) < MIN_SIZE:
            raise UserError(
                f"images must have at least {MIN_SIZE}x{MIN_SIZE} pixels,"
                f" got {height}x{width} in {path}; replace or delete the file"
            )
        image.draft(None, (2 * wide[0], 2 * wide[1]))  # a large JPEG is decoded at reduced scale
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        square = ImageOps.fit(upright.convert(mode), wide, Image.Resampling.BICUBIC)
        return np.asarray(square)
