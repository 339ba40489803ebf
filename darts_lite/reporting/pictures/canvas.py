"""What all pictures share: colours, text whose width is known, and the way to an array.

Figures are made through matplotlib's object-oriented interface alone, so nothing global is touched
and nothing has to be closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

Image = npt.NDArray[np.uint8]

DPI = 120
INK, PALE, BAND = "#222222", "#8a8a8a", "#f3f3f0"


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width in inches of a text of `size` points."""
    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    shape = TextPath((0, 0), plain(text), size=size, prop=font)
    return float(shape.get_extents().width) / 72


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, plain(text), **{"color": INK, "ha": "center", "va": "center_baseline", **style})


def save(path: Path, image: Image) -> None:
    """A PNG file, under a temporary name until it is whole."""
    temporary = path.with_name(path.name + ".tmp")
    PIL.Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)


def render(figure: Figure) -> Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
