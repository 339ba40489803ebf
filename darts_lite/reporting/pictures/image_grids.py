"""Grids of images, with or without names of the rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from darts_lite.reporting.pictures.canvas import Image, Sheet, text_pixels

BORDER = 2  # around each image, in pixels
SMALLEST = 64  # pixels of the shorter side, to which small images grow
TITLE, LABEL, SMALL_LABEL = 12, 9, 8  # font sizes in points
CAPTION = 150  # least width of a caption, in pixels
MARGIN, HEADER = 12, 84  # in pixels


def image_grid(images: npt.ArrayLike, columns: int = 8, zoom: int | None = None) -> Image:
    """Show images side by side, row by row, with a thin white border.

    Arguments:
        images: [N, 1 or 3, H, W] in [0, 1], on the CPU.
        columns: images per row.
        zoom: side of the square that a pixel becomes, in pixels; by default small images grow to
            at least 64 pixels.
    """
    batch = np.asarray(images, dtype=np.float32)
    if batch.ndim != 4 or not len(batch) or batch.shape[1] not in (1, 3):
        raise ValueError(
            f"the images of a grid must have the shape [N, 1 or 3, H, W] with N > 0, got "
            f"{batch.shape}; reshape them"
        )
    zoom = zoom or max(1, math.ceil(SMALLEST / min(batch.shape[2:])))
    columns = min(columns, len(batch))
    rows = math.ceil(len(batch) / columns)
    tiles = np.rint(batch.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = tiles.repeat(zoom, 1).repeat(zoom, 2)
    height, width = tiles.shape[1] + BORDER, tiles.shape[2] + BORDER
    grid = np.full((rows * height + BORDER, columns * width + BORDER, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * height + BORDER, index % columns * width + BORDER
        grid[y : y + height - BORDER, x : x + width - BORDER] = tile
    return grid


def labeled_grid(
    images: npt.ArrayLike, rows: Sequence[str], columns: Sequence[str], title: str
) -> Image:
    """Show a table of images with the names of its rows on the left and of its columns above.

    Arguments:
        images: [R, C, 1 or 3, H, W] in [0, 1], on the CPU.
        rows: names of the R rows.
        columns: names of the C columns.
        title: one line above the table.
    """
    table = np.asarray(images, dtype=np.float32)
    grid = image_grid(table.reshape(-1, *table.shape[2:]), columns=len(columns))
    high, wide = grid.shape[0] / len(rows), grid.shape[1] / len(columns)
    left = max(text_pixels(name, LABEL) for name in rows) + 2 * MARGIN
    width = max(left + grid.shape[1] + MARGIN, text_pixels(title, TITLE) + 2 * MARGIN)
    sheet = Sheet(HEADER + grid.shape[0] + MARGIN, width)
    sheet.write(20, width / 2, title, TITLE)
    sheet.paste(grid, HEADER, left)
    for i, name in enumerate(rows):
        sheet.write(HEADER + (i + 0.5) * high, left - 8, name, LABEL, align="right")
    for j, name in enumerate(columns):
        sheet.write(HEADER - 16, left + (j + 0.5) * wide, name, LABEL)
    return sheet.array()


def captioned_grid(
    images: npt.ArrayLike, captions: Sequence[tuple[str, ...]], title: str, columns: int = 6
) -> Image:
    """Show images row by row, each with lines of text below it.

    Arguments:
        images: [N, 1 or 3, H, W] in [0, 1], on the CPU.
        captions: lines of each of the N images; as many lines for each. A line that is wider than
            the image is cut off.
        title: one line above the images.
        columns: images per row.
    """
    tiles = [image_grid(image[None]) for image in np.asarray(images, dtype=np.float32)]
    high, wide = tiles[0].shape[0], max(tiles[0].shape[1], CAPTION)
    line = text_pixels("MM", SMALL_LABEL)
    columns = min(columns, len(tiles))
    cell = high + line * len(captions[0]) + MARGIN
    across = columns * (wide + MARGIN) + MARGIN
    across = max(across, text_pixels(title, TITLE) + 2 * MARGIN)
    sheet = Sheet(2 * MARGIN + 20 + math.ceil(len(tiles) / columns) * cell, across)
    sheet.write(MARGIN + 10, across / 2, title, TITLE)
    for index, (tile, lines) in enumerate(zip(tiles, captions)):
        y = 2 * MARGIN + 20 + index // columns * cell
        x = MARGIN + index % columns * (wide + MARGIN)
        sheet.paste(tile, y, x + (wide - tile.shape[1]) // 2)
        for i, text in enumerate(lines):
            middle = y + high + (i + 0.5) * line
            sheet.write(middle, x + wide / 2, _cut(text, wide), SMALL_LABEL)
    return sheet.array()


def _cut(text: str, width: int) -> str:
    """Return the text, without its middle if it is wider than `width` pixels."""
    for kept in range(len(text) // 2, 0, -1):
        if text_pixels(text, SMALL_LABEL) <= width:
            break
        text = f"{text[:kept]}…{text[-kept:]}"
    return text


def stack(upper: Image, lower: Image) -> Image:
    """Put one picture above the other; the narrower one gets a white margin on its right."""
    width = max(upper.shape[1], lower.shape[1])
    parts = [
        np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in (upper, lower)
    ]
    return np.vstack(parts)
