"""Shared parts of all pictures: colors, fonts, text widths, drawing on arrays, saving.

Two ways lead to a picture. Graphs and curves are figures of matplotlib's object-oriented interface:
no pyplot, so nothing global changes and nothing needs closing. Tables and grids are arrays with
text from Pillow (`Sheet`), because matplotlib needs about 0.3 s for a table of 65 numbers and
Pillow 0.01 s. Both use matplotlib's default font.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from darts_lite.files import replacing

Image = npt.NDArray[np.uint8]

DPI = 120
LONGEST = 28  # characters of the name of a class in a picture
INK, PALE, BAND = "#222222", "#8a8a8a", "#f3f3f0"


@lru_cache(maxsize=32)
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's default font.

    Arguments:
        size: in points, at `DPI`.
        bold: whether the weight is bold.
    """
    path = findfont(FontProperties(weight="bold" if bold else "normal"))
    return ImageFont.truetype(str(path), size * DPI / 72, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Return the characters that matplotlib's default font has."""
    return frozenset(FT2Font(str(findfont(FontProperties()))).get_charmap())


def legible(names: Sequence[str]) -> list[str]:
    """Return names of classes as a picture can show them.

    A long name loses its middle. Where the font lacks a character, the number of the class stands
    in front of what is left.

    Arguments:
        names: names of all classes, in their order.

    >>> legible(["cat", "\U0001f408 tom", "a" * 99])
    ['cat', '1: tom', 'aaaaaaaaaaaaaa…aaaaaaaaaaaaa']
    """
    found = []
    for number, name in enumerate(names):
        text = "".join(c for c in name if ord(c) in _drawable())
        text = name if text == name else f"{number}: {text.strip()}".rstrip(": ")
        half = LONGEST // 2
        found.append(f"{text[:half]}…{text[1 - half :]}" if len(text) > LONGEST else text)
    return found


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width of a text in inches.

    Arguments:
        text: one line; a line break counts as a space.
        size: of the font, in points.
        bold: whether the weight is bold.
    """
    return font(size, bold).getlength(_one_line(text)) / DPI


def text_pixels(text: str, size: float) -> int:
    """Return the width of a text in pixels, rounded up; arguments as for `text_width`."""
    return math.ceil(text_width(text, size) * DPI)


def plain(text: str) -> str:
    """Return the text escaped, so that matplotlib does not read it as mathematics."""
    return text.replace("$", r"\$")


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write a text into a matplotlib figure, centered at (x, y) unless `style` says otherwise."""
    axes.text(x, y, plain(text), **{"color": INK, "ha": "center", "va": "center_baseline", **style})


def render(figure: Figure) -> Image:
    """Return a matplotlib figure as an array; a character that the font lacks becomes a box."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Sheet:
    """White picture to draw on; all places and lengths are in pixels."""

    def __init__(self, height: int, width: int) -> None:
        self._image = PIL.Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def paste(self, image: Image, y: int, x: int) -> None:
        """Copy an image [H, W, 3] onto the sheet, its upper left corner at (y, x)."""
        self._image.paste(PIL.Image.fromarray(image), (x, y))

    def line(self, y0: float, x0: float, y1: float, x1: float) -> None:
        """Draw a thin straight line."""
        self._draw.line((x0, y0, x1, y1), fill=INK)

    def write(
        self,
        y: float,
        x: float,
        text: str,
        size: float,
        *,
        align: str = "center",
        color: str = INK,
    ) -> None:
        """Write one line of text.

        Arguments:
            y: middle of the line.
            x: left end, center or right end of the text, as `align` says.
            text: a line break becomes a space, a character that the font lacks becomes a box.
            size: of the font, in points.
            align: "left", "center" or "right".
            color: as "#rrggbb" or by name.
        """
        anchor = {"left": "lm", "center": "mm", "right": "rm"}[align]
        self._draw.text((x, y), _one_line(text), fill=color, font=font(size), anchor=anchor)

    def array(self) -> Image:
        """Return the sheet as an array [H, W, 3]."""
        return np.array(self._image)


def save(path: Path, image: Image) -> None:
    """Write a PNG file: first under a temporary name, then renamed, so that it is never partial."""
    with replacing(path, "wb") as file:
        PIL.Image.fromarray(image).save(file, format="PNG")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
