"""Decode image files to arrays of one size: upright, over a background, in the range 0 to 255."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

from darts_lite.architecture.reading import Reading
from darts_lite.data.checks import reading, shown
from darts_lite.data.images import MIN_SIZE
from darts_lite.errors import UserError

DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


class Look(NamedTuple):
    """What the header of an image file says, and its values if they have more than 8 bits.

    Attributes:
        width, height: pixels, upright.
        gray: whether the image has no color.
        range: smallest and largest value of a file of more than 8 bits; None for 8 bits.
    """

    width: int
    height: int
    gray: bool
    range: tuple[float, float] | None


def look(path: Path) -> Look:
    """Read the header of an image file, and its values if they have more than 8 bits.

    Raises: `UserError` if it is no image, too small, or has values that are no numbers.
    """
    with _opened(path) as image:
        width, height = image.size
        if min(image.size) < MIN_SIZE:
            raise UserError(
                f"images must have at least {MIN_SIZE}x{MIN_SIZE} pixels,"
                f" got {height}x{width} in {shown(path)}; replace or delete the file"
            )
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # stored on its side
            width, height = height, width
        found = None
        if image.mode.startswith(DEEP):
            values = np.asarray(image)
            if not np.isfinite(values).all():
                raise ValueError("it has values that are not finite")
            found = float(values.min()), float(values.max())
        return Look(width, height, Image.getmodebase(image.mode) == "L", found)


def require_color(text: str) -> None:
    """Raise `UserError` if a text is no color."""
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise UserError(
            f"--background must be a color such as white or #00ff00, got {text!r}; change it"
        ) from None


def decode(path: Path, mode: str, size: tuple[int, int], how: Reading) -> np.ndarray:
    """Decode one image to a shape.

    Arguments:
        path: image file.
        mode: "L" for gray, "RGB" for color.
        size: height and width in pixels, H and W.
        how: the way to the shape.

    Returns: uint8 [H, W] in mode "L", uint8 [H, W, 3] in mode "RGB".

    Raises: `UserError` if the file cannot be read, or the image is too small.
    """
    wide = (size[1], size[0])  # as PIL says it
    with _opened(path) as image:
        if min(image.size) < MIN_SIZE:
            raise UserError(
                f"images must have at least {MIN_SIZE}x{MIN_SIZE} pixels, got "
                f"{image.size[1]}x{image.size[0]} in {shown(path)}; replace or delete the file"
            )
        image.draft(None, (2 * wide[0], 2 * wide[1]))  # a large JPEG is decoded at reduced scale
        upright = ImageOps.exif_transpose(image)
        plain = _plain(upright, how).convert(mode)
        if plain.size == wide:
            return np.asarray(plain)
        if how.fit == "stretch":
            return np.asarray(plain.resize(wide, Image.Resampling.BICUBIC))
        if how.fit == "pad":
            color: Any = ImageColor.getcolor(how.background, mode)
            return np.asarray(ImageOps.pad(plain, wide, Image.Resampling.BICUBIC, color))
        return np.asarray(ImageOps.fit(plain, wide, Image.Resampling.BICUBIC))


def _plain(image: Any, how: Reading) -> Any:
    """Return an image of 8 bits without transparency."""
    if image.mode.startswith(DEEP):
        values = np.asarray(image, dtype=np.float64)
        low = values.min() if how.low is None else how.low
        high = values.max() if how.high is None else how.high
        scaled = (values - low) * (255 / max(high - low, 1e-12))
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.mode in ALPHA or "transparency" in image.info:
        clear = image.convert("RGBA")
        behind = Image.new("RGBA", clear.size, ImageColor.getrgb(how.background))
        return Image.alpha_composite(behind, clear).convert("RGB")
    return image


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an image file; any fault of a decoder is a `UserError` with its path."""
    with reading(path), Image.open(path, formats=formats()) as image:
        yield image


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that PIL decodes itself. EPS would run Ghostscript and the file's code."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind != "EPS")
