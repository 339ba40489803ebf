"""Headers and pixels of many image files, cached as plain NumPy arrays; reading them runs no code.

Decoding goes on where a killed process stopped.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
from tqdm import tqdm

from darts_lite.architecture.reading import Reading
from darts_lite.data.checks import reading, shown
from darts_lite.data.decoding import Look, decode, look
from darts_lite.errors import UserError
from darts_lite.files import locked, read_json, write_json

CHUNK = 1024  # images between two notes of the progress
Found = TypeVar("Found")


class Pixels(NamedTuple):
    """Decoded images, and the files that could not be read.

    Attributes:
        rows: uint8 [N, C, H, W], zeros for a file that could not be read; mapped from the cache.
        broken: by index of the file, why it could not be read.
    """

    rows: np.ndarray
    broken: dict[int, str]


def looks(files: Sequence[Path], folder: Path, cache: Path) -> list[Look | str]:
    """Return what the header of every file says, or why it cannot be read.

    Arguments:
        files: image files.
        folder: folder that the paths of the cache are relative to.
        cache: folder of the cache.
    """
    target = cache / f"headers-{_key(files, folder)}.json"
    if target.is_file():
        return [row if isinstance(row, str) else Look(*row) for row in read_json(target)]
    bar = tqdm(total=len(files), desc="reading headers", leave=False, disable=None)
    found = list(_each(look, files, bar))
    with _writing(cache, target):
        write_json(target, found)
    return [Look(*row) if isinstance(row, tuple) else row for row in found]


def decoded(
    files: Sequence[Path], folder: Path, cache: Path, mode: str, size: tuple[int, int], how: Reading
) -> Pixels:
    """Return the pixels of all files, from the cache if the files have not changed.

    Arguments:
        files: image files.
        folder: folder that the paths of the cache are relative to.
        cache: folder of the cache.
        mode: "L" for gray, "RGB" for color.
        size: height and width in pixels.
        how: the way to the shape.
    Raises: `UserError` if the cache cannot be read or written.
    """
    way = ("NCHW", mode, size, how.fit, how.background, how.low, how.high)
    target = cache / f"folder-{_key(files, folder, repr(way))}.npy"
    note = target.with_suffix(".json")
    shape = (len(files), 1 if mode == "L" else 3, *size)
    if not target.is_file():
        with _writing(cache, target):
            _fill(target, note, shape, files, partial(decode, mode=mode, size=size, how=how))
    with reading(target):
        rows: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
        if rows.dtype != np.uint8 or rows.shape != shape:
            raise ValueError(f"holds {rows.dtype} {rows.shape}")
    broken = {int(index): why for index, why in read_json(note)["broken"].items()}
    return Pixels(rows, broken)


def _fill(
    target: Path,
    note: Path,
    shape: tuple[int, ...],
    files: Sequence[Path],
    read: Callable[[Path], np.ndarray],
) -> None:
    """Decode all files into an array on disk; continue that of a killed process."""
    part = target.with_suffix(".part")
    with part.open("ab+") as file:
        locked(file, wait=True)  # until another process has filled the same cache
        if target.is_file():  # made by the process that held the lock
            return
        done, broken = 0, {}
        if note.exists() and os.path.getsize(part) > 0:
            state = read_json(note)
            done, broken = state["done"], state["broken"]
            rows = np.lib.format.open_memmap(part, "r+")
        else:
            rows = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        left = files[done:]
        bar = tqdm(initial=done, total=len(files), desc="decoding", leave=False, disable=None)
        for i, found in enumerate(_each(read, left, bar), start=done):
            if isinstance(found, str):
                broken[str(i)] = found
            else:
                rows[i] = found if found.ndim == 2 else found.transpose(2, 0, 1)
            if (i + 1) % CHUNK == 0 or i + 1 == len(files):
                rows.flush()
                write_json(note, {"done": i + 1, "broken": broken})
        del rows
        os.replace(part, target)


def _each(
    read: Callable[[Path], Found], files: Sequence[Path], bar: tqdm[NoReturn]
) -> Iterator[Found | str]:
    """Read files on all cores, in order; yield the reason instead for a file that is broken."""

    def one(path: Path) -> Found | str:
        try:
            return read(path)
        except UserError as error:
            return str(error)

    with bar, warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # PIL releases the lock
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata
        for start in range(0, len(files), CHUNK):
            for found in pool.map(one, files[start : start + CHUNK]):
                bar.update()
                yield found


def _key(files: Sequence[Path], folder: Path, more: str = "") -> str:
    """Return the name of the content of files: their paths, sizes and times of change."""
    digest = hashlib.sha256(repr((os.fsencode(folder.resolve()), more)).encode())
    for path in files:
        try:
            stat = path.stat()
            row = (os.fsencode(path), stat.st_size, stat.st_mtime_ns)
        except OSError:
            row = (os.fsencode(path), 0, 0)
        digest.update(repr(row).encode())
    return digest.hexdigest()[:32]


@contextmanager
def _writing(cache: Path, target: Path) -> Iterator[None]:
    """Make the folder of the cache; an error of the disk names the remedy."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        with suppress(OSError):
            target.with_suffix(".part").unlink()
        raise UserError(
            f"cannot write {shown(target)} ({error.strerror}); choose another --data-dir"
        ) from error
