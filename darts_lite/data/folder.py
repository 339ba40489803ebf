"""Reader of a user's own images: `folder:PATH` with a sub-folder per class, and `csv:PATH`.

`layout` or `csv_labels` say which files there are, `decoding` reads one, `pixel_cache` reads all,
`surveys` says what may be wrong with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from darts_lite.architecture.reading import Reading
from darts_lite.data import pixel_cache, surveys
from darts_lite.data.checks import checked_images, reading
from darts_lite.data.csv_labels import csv_beside, read_csv
from darts_lite.data.decoding import Look, decode, require_color
from darts_lite.data.images import Dataset, Found, Images
from darts_lite.data.layout import Layout, display, listed, read_layout
from darts_lite.data.shapes import chosen_fit, chosen_size
from darts_lite.errors import UserError

PARTS = ("train", "validation", "test")


def load_own(
    name: str, data_dir: Path, size: int | None, how: Reading, seconds: float | None
) -> Dataset:
    """Read a user's own images, or their cached pixels.

    Arguments:
        name: "folder:PATH" or "csv:PATH"; see `darts_lite.data.load`.
        data_dir: folder whose sub-folder `cache` keeps the decoded pixels.
        size: height and width of the images in pixels; None: as images and budget suggest.
        how: the way from files to images.
        seconds: budget of the training, for the size; None if there is no budget in time.

    Returns:
        The data set on the CPU; pixels uint8 [N, C, size, size], C 1 (all images gray) or 3.

    Raises:
        UserError: The layout is wrong, a file is broken, or the cache cannot be written.
    """
    require_color(how.background)
    layout = _layout(name)
    files, cache = layout.files, data_dir / "cache"
    headers = pixel_cache.looks(files, layout.root, cache)
    seen = [each for each in headers if isinstance(each, Look)]
    if not seen:
        raise UserError(_broken([h for h in headers if isinstance(h, str)], len(files)))
    notes = [_sizes(seen)]
    if how.fit is None:
        fit, why = chosen_fit(seen)
        how = replace(how, fit=fit)
        notes += [] if why is None else [why]
    if size is None:
        size, why = chosen_size(seen, len(files), seconds)
        notes.append(why)
    ranges = [each.range for each in seen if each.range is not None]
    if ranges:
        low, high = _range(ranges, alone=len(ranges) == len(seen))
        how = replace(how, low=low, high=high)
        notes.append(
            f"{len(ranges)} images have more than 8 bits; their values {low:g} to {high:g} "
            "become 0 to 255"
        )
    mode = "L" if all(each.gray for each in seen) else "RGB"
    pixels = pixel_cache.decoded(files, layout.root, cache, mode, (size, size), how)
    broken = pixels.broken | {i: why for i, why in enumerate(headers) if isinstance(why, str)}
    reasons = [broken[i] for i in sorted(broken)]
    if broken and not how.skip_broken:
        raise UserError(_broken(reasons, len(files)))
    parts = dict(_parts(layout, pixels.rows, broken))
    found = Found(dict(layout.passed_over), list(layout.problems), notes)
    if broken:
        found.passed_over["a file that cannot be read"] = len(broken)
        found.problems.append(_broken(reasons, len(files), skipped=True))
    dataset = Dataset(
        display(name),
        parts["train"],
        parts.get("test"),
        layout.classes,
        flips=bool(how.flips),
        validation=parts.get("validation"),
        reading=how,
        found=found,
    )
    return surveys.surveyed(dataset)


def _layout(name: str) -> Layout:
    """Return the files and classes that a name stands for."""
    kind, _, rest = name.partition(":")
    path = Path(rest).expanduser()
    if kind == "csv":
        if not rest or not path.is_file():
            raise UserError(
                f"csv:PATH must name a CSV file, got {name}; give one with the columns file and "
                "label"
            )
        return read_csv(path)
    if not rest or not path.is_dir():
        raise UserError(
            f"folder:PATH must name a folder, got {name}; give one with one sub-folder per class"
        )
    with reading(path):
        table = csv_beside(path)
        return read_layout(path) if table is None else read_csv(table, path)


def _parts(
    layout: Layout, pixels: np.ndarray, broken: Collection[int]
) -> Iterator[tuple[str, Images]]:
    """Yield the images of every split without the broken ones."""
    start = 0
    for part, files in layout.splits.items():
        index = range(start, start + len(files))
        kept = [i for i in index if i not in broken]
        labels = np.array([files[i - start].label for i in kept], np.int64)
        rows = pixels[start : start + len(files)] if len(kept) == len(files) else pixels[kept]
        yield part, checked_images(rows, labels, len(layout.classes), layout.root)
        start += len(files)


def _sizes(seen: Sequence[Look]) -> str:
    """Return a line about the files: how many, how large, gray or color."""
    small, large = (
        "x".join(
            str(side(values)) for values in ((h.width for h in seen), (h.height for h in seen))
        )
        for side in (min, max)
    )
    gray = sum(each.gray for each in seen)
    colors = "gray" if gray == len(seen) else "color" if not gray else f"{gray} of them gray"
    sizes = small if small == large else f"{small} to {large}"
    return f"{len(seen)} files of {sizes} pixels (width x height), {colors}"


def _range(ranges: Sequence[tuple[float, float]], alone: bool) -> tuple[float, float]:
    """Return the values that become 0 and 255: those that all images use.

    Beside images of 8 bits, they are those of the type, so that a gray stays the same gray.

    Arguments:
        ranges: smallest and largest value of every image of more than 8 bits.
        alone: whether there are no images of 8 bits.
    """
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if alone:
        return low, high
    return min(0.0, low), max(1.0 if high <= 1 else 65535.0, high)


def _broken(reasons: Sequence[str], total: int, skipped: bool = False) -> str:
    """Return one line about all files that cannot be read."""
    short = [reason.partition(";")[0].removeprefix("cannot read ") for reason in reasons]
    what = f"{len(reasons)} of {total} images cannot be read: {listed(short)}"
    return (
        f"{what}; they are left out" if skipped else f"{what}; replace them, or use --skip-broken"
    )


def read_images(
    paths: Sequence[Path], image: tuple[int, int, int], how: Reading | None = None
) -> Tensor:
    """Decode images to one shape, as training images are decoded.

    Arguments:
        paths: image files.
        image: channels (1 for gray, 3 for color), height and width.
        how: the way of the training images; None for the usual one.

    Returns: uint8 [N, C, H, W].

    Raises: `UserError` if a file cannot be read, or an image is too small.
    """
    channels, height, width = image
    mode, how = "L" if channels == 1 else "RGB", how or Reading()
    if not paths:
        return torch.zeros(0, *image, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter lock while it decodes
        rows = np.stack(list(pool.map(lambda p: decode(p, mode, (height, width), how), paths)))
    pixels = rows[:, None] if mode == "L" else rows.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))
