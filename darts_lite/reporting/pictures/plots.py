"""Tables, grids and curves: heat maps, confusion matrices, images, learned schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from darts_lite.reporting.pictures.canvas import DPI, INK, Image, plain, render, text_width, write

LINE = "#2f6fab"
MAX_NUMBERS = 200  # cells of a heat map that still get their number
MAX_CLASSES = 20  # classes of a confusion matrix that still get theirs
LOGARITHMIC = ("lr", "weight_decay")


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: npt.ArrayLike,
    title: str,
    *,
    vmin: float = 0,
    vmax: float = 1,
) -> Image:
    """Probabilities [rows, columns], with their numbers as long as these are not too many.

    What is not a number is left blank: an option that its row does not have.
    """
    table = np.asarray(values, dtype=float)
    texts = [["" if math.isnan(v) else f"{v:.2f}" for v in row] for row in table]
    numbers = texts if table.size <= MAX_NUMBERS else None
    figure, _ = _matrix(table, rows, columns, title, numbers, (vmin, vmax))
    return render(figure)


def confusion_matrix(matrix: npt.ArrayLike, classes: Sequence[str], title: str) -> Image:
    """Counts [K, K], true class down, predicted class across; the colour is the rate in a row."""
    counts = np.asarray(matrix)
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [[str(n) if n else "" for n in row] for row in counts]
    numbers = texts if len(classes) <= MAX_CLASSES else None
    figure, axes = _matrix(rates, classes, classes, title, numbers, (0, 1))
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    return render(figure)


def image_grid(images: npt.ArrayLike, columns: int = 8, zoom: int | None = None) -> Image:
    """Images [N, 1 or 3, H, W] in [0, 1], in the memory of the CPU, as tiles with a thin border.

    A pixel becomes zoom x zoom pixels; by default small images grow to at least 64 pixels.
    """
    batch = np.asarray(images, dtype=np.float32)
    if batch.ndim != 4 or not len(batch) or batch.shape[1] not in (1, 3):
        raise ValueError(f"a grid needs images [N, 1 or 3, H, W], not the shape {batch.shape}")
    zoom = zoom or max(1, math.ceil(64 / min(batch.shape[2:])))
    columns = min(columns, len(batch))
    rows = math.ceil(len(batch) / columns)
    border = 2
    tiles = np.rint(batch.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = tiles.repeat(zoom, 1).repeat(zoom, 2)
    height, width = tiles.shape[1] + border, tiles.shape[2] + border
    grid = np.full((rows * height + border, columns * width + border, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * height + border, index % columns * width + border
        grid[y : y + height - border, x : x + width - border] = tile
    return grid


def labelled_grid(
    images: npt.ArrayLike, rows: Sequence[str], columns: Sequence[str], title: str
) -> Image:
    """Images [rows, columns, 1 or 3, H, W] in [0, 1] as tiles, with names beside and above."""
    table = np.asarray(images, dtype=np.float32)
    grid = image_grid(table.reshape(-1, *table.shape[2:]), columns=len(columns))
    high, wide = grid.shape[0] / len(rows) / DPI, grid.shape[1] / len(columns) / DPI
    left = max(text_width(name, 9) for name in rows) + 0.4
    above, below = 0.7, 0.1
    width = max(len(columns) * wide + left + 0.1, text_width(title, 12) + 0.4)
    height = len(rows) * high + above + below
    figure = Figure((width, height), dpi=DPI)  # laid out by hand, which is much faster
    place = (left / width, below / height, len(columns) * wide / width, len(rows) * high / height)
    axes = figure.add_axes(place)
    figure.text(0.5, 1 - 0.2 / height, plain(title), size=12, color=INK, ha="center")
    axes.imshow(grid, interpolation="nearest")
    for axis, names, length in (
        (axes.xaxis, columns, grid.shape[1]),
        (axes.yaxis, rows, grid.shape[0]),
    ):
        ticks = [(i + 0.5) * length / len(names) for i in range(len(names))]
        axis.set_ticks(ticks, [plain(n) for n in names], size=9, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return render(figure)


def above(first: Image, second: Image) -> Image:
    """Two pictures, one above the other, on white."""
    width = max(first.shape[1], second.shape[1])
    parts = [
        np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in (first, second)
    ]
    return np.vstack(parts)


def parameter_plot(schedules: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Image:
    """A panel per learned hyperparameter: its value against the fraction of the budget spent."""
    columns = min(4, math.ceil(math.sqrt(len(schedules)))) or 1
    rows = math.ceil(len(schedules) / columns) or 1
    size = max(3.0 * columns, 4.0, text_width(title, 13) + 0.4), 2.0 * rows + 0.7
    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), size=13, color=INK)
    figure.supxlabel("budget spent", size=10, color=INK)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, schedule) in zip(panels, schedules.items()):
        _draw_schedule(axes, name, schedule)
    for axes in panels[len(schedules) :]:
        axes.set_axis_off()
    return render(figure)


def _draw_schedule(axes: Axes, name: str, schedule: Sequence[tuple[float, float]]) -> None:
    """Few points as dots on a line, many as a line; equal values lie in the middle of the panel."""
    fractions, values = [f for f, _ in schedule], [v for _, v in schedule]
    marker = "o" if len(schedule) < 30 else ""
    axes.plot(fractions, values, color=LINE, lw=1.6, marker=marker, ms=3)
    axes.set_title(plain(name), size=10, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if name in LOGARITHMIC and all(value > 0 for value in values):
        axes.set_yscale("log")
        narrow = bool(values) and max(values) < 10 * min(values)
        if narrow:  # room for some ticks
            axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
        subs = (1, 2, 3, 5, 7) if narrow else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _matrix(
    table: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    numbers: Sequence[Sequence[str]] | None,
    limits: tuple[float, float],
) -> tuple[Figure, Axes]:
    """A table as coloured cells of one size, with labelled rows and columns."""
    longest = max((text_width(n, 8) for row in numbers or [] for n in row), default=0)
    high = 0.28 if numbers else min(0.13, 12 / len(rows))
    wide = max(longest + 0.12, 0.42) if numbers else min(0.13, 12 / len(columns))
    font = 9 if numbers else 7
    upright = max(text_width(name, font) for name in columns) < wide - 0.06
    left = max(text_width(name, font) for name in rows)
    above = 0.1 if upright else max(text_width(name, font) for name in columns)
    width = max(len(columns) * wide + left + 1.4, text_width(title, 12) + 0.4)
    figure = Figure((width, len(rows) * high + above + 0.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(plain(title), size=12, color=INK)
    image = axes.imshow(table, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    thin = max(5, len(rows) * high / 0.15)
    bar = figure.colorbar(image, ax=axes, fraction=0.3, pad=0.02, aspect=thin)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    for axis, names, cell in ((axes.xaxis, columns, wide), (axes.yaxis, rows, high)):
        ticks = range(0, len(names), math.ceil(font / 72 / cell) if cell < 0.1 else 1)
        axis.set_ticks(list(ticks), [plain(names[i]) for i in ticks], size=font, color=INK)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0 if upright else 90)
    axes.spines[:].set_visible(False)
    dark = limits[0] + 0.6 * (limits[1] - limits[0])
    for i, line in enumerate(numbers or []):
        for j, number in enumerate(line):
            write(axes, j, i, number, size=8, color="white" if table[i, j] > dark else INK)
    return figure, axes
