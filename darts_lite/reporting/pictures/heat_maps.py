"""Heat maps and confusion matrices: tables whose cells are colored by their values in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt

from darts_lite.reporting.pictures.canvas import INK, Image, Sheet, legible, text_pixels

MAX_NUMBERS = 200  # cells of a heat map that still show their number
MAX_CLASSES = 20  # classes of a confusion matrix whose cells still show their count
TITLE, LABEL, SMALL_LABEL, NUMBER = 12, 9, 7, 8  # font sizes in points
ROW, COLUMN = 36, 52  # least height and width of a cell with a number, in pixels
SMALL_CELL, SMALL_TABLE = 16, 1440  # largest cell and table without numbers, in pixels
DARK = 0.6  # above this value the number is white
BAR, GAP = 22, 16  # width of the color bar, and of the space beside it, in pixels
MARGIN, HEADER = 10, 46  # in pixels


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: npt.ArrayLike, title: str
) -> Image:
    """Draw a table of probabilities, with their numbers if the table has at most 200 cells.

    Arguments:
        rows: names of the R rows.
        columns: names of the C columns.
        values: [R, C] in [0, 1]; a cell that is not a number stays blank, for an option that its
            row does not have.
        title: one line above the table.
    """
    table = np.asarray(values, dtype=float)
    texts = [["" if math.isnan(v) else f"{v:.2f}" for v in row] for row in table]
    numbers = texts if table.size <= MAX_NUMBERS else None
    return _draw_table(table, rows, columns, title, numbers)


def confusion_matrix(matrix: npt.ArrayLike, classes: Sequence[str], title: str) -> Image:
    """Draw a confusion matrix: counts, and the shares of the images of their true class as colors.

    Arguments:
        matrix: counts [K, K], the true class down, the predicted class across.
        classes: names of the K classes.
        title: one line above the matrix.
    """
    counts, classes = np.asarray(matrix), legible(classes)
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [
        [f"{n}\n{share:.0%}" if n else "" for n, share in zip(*pair)] for pair in zip(counts, rates)
    ]
    numbers = texts if len(classes) <= MAX_CLASSES else None
    return _draw_table(rates, classes, classes, title, numbers, ("true", "predicted"))


def _draw_table(
    table: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    numbers: Sequence[Sequence[str]] | None,
    axes: tuple[str, str] = ("", ""),
) -> Image:
    """Draw the cells, the names beside and below them, and a color bar.

    Arguments:
        table: values [R, C] in [0, 1] or NaN.
        rows: names of the R rows.
        columns: names of the C columns.
        title: one line above the table.
        numbers: texts [R][C] of the cells, of one or two lines; None for small cells without text.
        axes: what the rows and the columns are; may be empty.
    """
    size = LABEL if numbers else SMALL_LABEL
    beside, widest = (max(text_pixels(name, size) for name in names) for names in (rows, columns))
    line, axis = (text_pixels("MM", points) for points in (size, LABEL))  # heights of a line
    left = MARGIN + (axis if axes[0] else 0) + beside + 8
    right = GAP + BAR + 8 + text_pixels("0.0", NUMBER) + MARGIN
    spare = text_pixels(title, TITLE) + 2 * MARGIN - left - right  # what the title needs
    if numbers:
        every = [line for texts in numbers for text in texts for line in text.splitlines()]
        longest = max((text_pixels(line, NUMBER) for line in every), default=0)
        high, wide = ROW, max(COLUMN, longest + 14, math.ceil(spare / len(columns)))
    else:
        high = wide = min(SMALL_CELL, max(1, SMALL_TABLE // max(len(rows), len(columns))))
    height, width = len(rows) * high, len(columns) * wide
    whole = left + max(width, spare) + right
    left += max(0, spare - width) // 2  # centers a small table below a wide title
    upright = widest < wide - 6
    bottom = HEADER + height + 8 + (line if upright else widest)

    sheet = Sheet(bottom + (axis if axes[1] else 0) + MARGIN, whole)
    sheet.write(HEADER / 2, whole / 2, title, TITLE)
    sheet.paste(_colors(table).repeat(high, 0).repeat(wide, 1), HEADER, left)
    for i, name in _shown(rows, high, line):
        sheet.write(HEADER + (i + 0.5) * high, left - 8, name, size, align="right")
    if upright:
        for j, name in enumerate(columns):
            sheet.write(bottom - line / 2, left + (j + 0.5) * wide, name, size)
    else:
        turned = Sheet(width, widest)
        for j, name in _shown(columns, wide, line):
            turned.write((j + 0.5) * wide, widest, name, size, align="right")
        sheet.paste(np.rot90(turned.array()), HEADER + height + 8, left)
    if axes[0]:
        turned = Sheet(axis, height)
        turned.write(axis / 2, height / 2, axes[0], LABEL)
        sheet.paste(np.rot90(turned.array()), HEADER, left - 8 - beside - axis)
    sheet.write(bottom + axis / 2, left + width / 2, axes[1], LABEL)

    for i, texts in enumerate(numbers or []):
        for j, text in enumerate(texts):
            color = "white" if table[i, j] > DARK else INK
            lines = text.splitlines()
            for k, each in enumerate(lines, 1):
                y = HEADER + (i + k / (len(lines) + 1)) * high
                sheet.write(y, left + (j + 0.5) * wide, each, NUMBER, color=color)
    _draw_bar(sheet, left + width + GAP, height)
    return sheet.array()


def _draw_bar(sheet: Sheet, x: int, height: int) -> None:
    """Draw the color bar from 1 above to 0 below, with as many ticks as have room."""
    bar = np.linspace(1, 0, height)[:, None].repeat(BAR, 1)
    sheet.paste(_colors(bar), HEADER, x)
    steps = 5 if height > 110 else 2 if height > 50 else 1
    for i in range(steps + 1):
        y = HEADER + (height - 1) * (1 - i / steps)
        sheet.line(y, x + BAR, y, x + BAR + 4)
        sheet.write(y, x + BAR + 8, f"{i / steps:.1f}", NUMBER, align="left")


def _shown(names: Sequence[str], cell: int, line: int) -> list[tuple[int, str]]:
    """Return the names that have room, with their indices; `cell` and `line` are in pixels."""
    step = 1 if cell > 12 else math.ceil(0.7 * line / cell)
    return [(i, names[i]) for i in range(0, len(names), step)]


def _colors(table: npt.NDArray[np.floating]) -> Image:
    """Return the colors [R, C, 3] of values in [0, 1]; white where a value is not a number."""
    colors = matplotlib.colormaps["Blues"](np.nan_to_num(table), bytes=True)[..., :3]
    return np.where(np.isnan(table)[..., None], np.uint8(255), colors)
