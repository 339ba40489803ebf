"""Pictures of a run as arrays [H, W, 3] of uint8. Imports no torch, and never pyplot.

Figures are made through matplotlib's object-oriented interface alone, so nothing global is touched
and nothing has to be closed. Genotypes are laid out in inches, from measured label widths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, ScalarFormatter

from darts_lite.space import CHOICES, Cell, Operation, SearchSpace

Image = npt.NDArray[np.uint8]

DPI = 120
COLOURS = {  # operation -> (fill, line)
    "conv": ("#d6e6f5", "#2f6fab"),
    "bottleneck": ("#fde3c8", "#c26a12"),
    "inverted_residual": ("#d5edd6", "#2f8a43"),
    "skip": ("#ececec", "#757575"),
}
SIZES = {"kernel": "{0}×{0}", "ratio": "÷{0}", "expansion": "×{0}"}
INK, PALE, BAND = "#222222", "#8a8a8a", "#f3f3f0"
MAX_NUMBERS = 200  # cells of a heat map that still get their number
MAX_CLASSES = 20  # classes of a confusion matrix that still get theirs
DASHES = (0, (4, 2))
LOGARITHMIC = ("lr", "weight_decay")


def draw_genotype(space: SearchSpace, title: str = "") -> Image:
    """A discrete space for people: its cells as graphs, or its chain of blocks box by box."""
    if not space.is_discrete:
        raise ValueError("only a discrete space can be drawn: `derive` makes one of a search space")
    figure = Figure(dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    chain = all(cell.inputs == cell.nodes == len(cell.edges) == 1 for cell in space.cells)
    top = -0.6 if title else -0.15
    drawn, bottom = (_draw_chain if chain else _draw_cells)(axes, space, top)

    used = {edge.operations[0].name for _, edge in space.edges}
    handles: list[Artist] = [
        Patch(fc=COLOURS[name][0], ec=COLOURS[name][1], label=name.replace("_", " "))
        for name in CHOICES
        if name in used
    ]
    if not chain:
        handles.append(Line2D([], [], color=PALE, lw=1.2, ls=DASHES, label="concatenation"))
    legend = sum(_width(str(handle.get_label()), 9) + 0.8 for handle in handles)
    width = max(drawn, legend, _width(title, 13)) + 0.4
    height = 0.5 - bottom
    left = (drawn - width) / 2
    figure.set_size_inches(width, height)
    axes.set(xlim=(left, left + width), ylim=(-height, 0))
    axes.set_axis_off()
    axes.text(drawn / 2, -0.3, _plain(title), size=13, color=INK, ha="center", va="center")
    axes.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return _render(figure)


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
    return _render(figure)


def confusion_matrix(matrix: npt.ArrayLike, classes: Sequence[str], title: str) -> Image:
    """Counts [K, K], true class down, predicted class across; the colour is the rate in a row."""
    counts = np.asarray(matrix)
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [[str(n) if n else "" for n in row] for row in counts]
    numbers = texts if len(classes) <= MAX_CLASSES else None
    figure, axes = _matrix(rates, classes, classes, title, numbers, (0, 1))
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    return _render(figure)


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


def parameter_plot(schedules: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Image:
    """A panel per learned hyperparameter: its value against the fraction of the budget spent."""
    columns = min(4, math.ceil(math.sqrt(len(schedules)))) or 1
    rows = math.ceil(len(schedules) / columns) or 1
    size = max(3.0 * columns, 4.0, _width(title, 13) + 0.4), 2.0 * rows + 0.7
    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(_plain(title), size=13, color=INK)
    figure.supxlabel("budget spent", size=10, color=INK)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, schedule) in zip(panels, schedules.items()):
        _draw_schedule(axes, name, schedule)
    for axes in panels[len(schedules) :]:
        axes.set_axis_off()
    return _render(figure)


def _draw_schedule(axes: Axes, name: str, schedule: Sequence[tuple[float, float]]) -> None:
    """Few points as dots on a line, many as a line; equal values lie in the middle of the panel."""
    fractions, values = [f for f, _ in schedule], [v for _, v in schedule]
    marker = "o" if len(schedule) < 30 else ""
    axes.plot(fractions, values, color=COLOURS["conv"][1], lw=1.6, marker=marker, ms=3)
    axes.set_title(_plain(name), size=10, color=INK)
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


# Cells: nodes on one line, every connection on a lane of its own.

LANE, PILL, CURVE = 0.44, 0.3, 0.5  # height of a lane, of a label; width of a curve beside a node


def _draw_cells(axes: Axes, space: SearchSpace, top: float) -> tuple[float, float]:
    """Draws the cells below one another; returns the width and the bottom of the drawing."""
    width = 0.0
    for cell in space.cells:
        places = [name == cell.name for name in space.sequence]
        x, y = _width(f"{cell.name} cell", 11, bold=True) + 0.2, top - 0.15
        _text(axes, 0, y, f"{cell.name} cell", size=11, weight="bold", ha="left")
        for i, here in enumerate(places):  # the stack of the network, these cells filled
            box = Rectangle((x + 0.14 * i, y - 0.05), 0.1, 0.1, ec=PALE, lw=0.7)
            box.set_facecolor(INK if here else "none")
            axes.add_patch(box)
        note = f"{sum(places)} of {len(places)}"
        note += ", half the resolution, twice the width" if cell.reduction else ""
        x += 0.14 * len(places) + 0.06
        _text(axes, x, y, note, size=9, color=PALE, ha="left")
        drawn, top = _draw_cell(axes, cell, top - 0.4)
        width = max(width, drawn, x + _width(note, 9))
        top -= 0.2
    return width, top


def _draw_cell(axes: Axes, cell: Cell, top: float) -> tuple[float, float]:
    """Draws one cell from left to right; returns the width and the bottom of the drawing."""
    links, lanes = _links(cell), _lanes(cell)
    labels = [_short(edge.operations[0]) for edge in cell.edges]
    heights = [1.0, -1.0] if cell.inputs == 2 else [0.0]  # of the inputs, in lanes
    middle = top - (max(0.5, *lanes, *heights) + 0.5) * LANE
    bottom = middle + (min(-0.5, *lanes, *heights) - 0.5) * LANE

    # Columns: the inputs, then each node, then the output. A label stands in the gap before the
    # node that its edge enters, so that what a node sums up stands in front of it.
    columns = [0] * cell.inputs + list(range(1, cell.nodes + 2))
    half = [0.32] + [0.2] * cell.nodes + [0.32]
    rooms = [0.0] * (cell.nodes + 1)
    for label, (_, target) in zip(labels, links):
        gap = columns[target] - 1
        rooms[gap] = max(rooms[gap], _width(label, 9) + 0.24)
    xs = [half[0]]
    for gap, room in enumerate(rooms):
        xs.append(xs[-1] + half[gap] + 2 * CURVE + room + half[gap + 1])

    arrivals: dict[int, list[int]] = {}
    for (_, target), lane in zip(links, lanes):
        arrivals.setdefault(target, []).append(lane)
    for i, ((source, target), lane) in enumerate(zip(links, lanes)):
        fill, line = COLOURS[cell.edges[i].operations[0].name] if i < len(labels) else ("", PALE)
        rank = sorted(arrivals[target]).index(lane) - (len(arrivals[target]) - 1) / 2
        height = heights[source] if source < cell.inputs else 0
        x0, x1 = xs[columns[source]] + half[columns[source]], xs[columns[target]]
        x1 -= half[columns[target]] + 0.03
        y0, y1, y = middle + height * LANE, middle + 0.09 * rank, middle + lane * LANE
        _arrow(axes, _swing(x0, y0, y, x1, y1), line, dashed=i >= len(labels))
        if i < len(labels):
            gap = columns[target] - 1
            x = xs[gap] + half[gap] + CURVE + rooms[gap] / 2
            _box(axes, x, y, _width(labels[i], 9) + 0.18, PILL, labels[i], fill, line)

    names = ["c[k-2]", "c[k-1]"][-cell.inputs :] + [str(n) for n in range(cell.nodes)] + ["c[k]"]
    for node, name in enumerate(names):
        x, height = xs[columns[node]], heights[node] if node < cell.inputs else 0.0
        wide = 2 * half[columns[node]]
        _box(axes, x, middle + height * LANE, wide, 0.4, name, "white", INK, size=10)
    return xs[-1] + half[-1], bottom


def _links(cell: Cell) -> list[tuple[int, int]]:
    """What is to be drawn as a line: the edges, then the way of each node to the output."""
    end = cell.inputs + cell.nodes
    edges = [(edge.source, edge.target) for edge in cell.edges]
    return edges + [(node, end) for node in range(cell.inputs, end)]


def _lanes(cell: Cell) -> list[int]:
    """The height of each link, in lanes above the nodes.

    Short ones choose first. A lane belongs to one connection in each gap between two columns, and
    the lane of the nodes is closed to whatever passes a node.
    """
    links, end = _links(cell), cell.inputs + cell.nodes
    taken: set[tuple[int, int]] = set()
    lanes = [0] * len(links)

    def column(node: int) -> int:
        return max(0, node - cell.inputs + 1)

    for i in sorted(range(len(links)), key=lambda i: column(links[i][1]) - column(links[i][0])):
        source, target = links[i]
        gaps = range(column(source), column(target))
        side = -1 if target == end or (source == 1 and cell.inputs == 2) else 1
        wish = side if source < cell.inputs == 2 else 0
        nearest = sorted(
            range(-len(links), len(links) + 1), key=lambda n: (abs(n - wish), -n * side)
        )
        for lane in nearest:
            if (lane or len(gaps) == 1) and not any((gap, lane) in taken for gap in gaps):
                break
        taken |= {(gap, lane) for gap in gaps}
        lanes[i] = lane
    return lanes


# Chains: blocks in rows, on a band for each resolution.


def _draw_chain(axes: Axes, space: SearchSpace, top: float) -> tuple[float, float]:
    """Draws the blocks row by row; returns the width and the bottom of the drawing."""
    blocks = [space.cell(name) for name in space.sequence]
    stages = list(itertools.accumulate(cell.reduction for cell in blocks))
    captions = [
        f"{space.channels * 2**s} channels, {_resolution(space.stem_stride * 2**s)}" for s in stages
    ]
    operations = [cell.edges[0].operations[0] for cell in blocks]
    labels = [_short(operation) for operation in operations]
    wide = max(max(_width(t, 9) + 0.24 for t in labels), max(_width(t, 8) for t in captions))
    step, pitch = wide + 0.4, 1.25
    rows = math.ceil(len(blocks) * step / 10)
    per_row = math.ceil(len(blocks) / rows)

    for (row, _), group in itertools.groupby(
        range(len(blocks)), key=lambda i: (i // per_row, stages[i])
    ):
        members = list(group)
        x, y = members[0] % per_row * step, top - row * pitch
        band = (len(members) - 1) * step + wide + 0.24
        axes.add_patch(Rectangle((x, y - 1.05), band, 1.05, fc=BAND, ec="none"))
        _text(axes, x + band / 2, y - 0.9, captions[members[0]], size=8, color=PALE)
    for i, (cell, operation, label) in enumerate(zip(blocks, operations, labels)):
        x, y = i % per_row * step + 0.12 + wide / 2, top - i // per_row * pitch - 0.5
        name = f"{cell.name} ↓2" if cell.reduction else cell.name
        _text(axes, x, y + 0.32, name, size=8, color=INK if cell.reduction else PALE)
        _box(axes, x, y, wide, 0.36, label, *COLOURS[operation.name])
        right = x + wide / 2
        if i + 1 == len(blocks):
            continue
        if (i + 1) % per_row:
            _arrow(axes, Path([(right, y), (right + 0.38, y)]), INK)
        else:
            turn, start = y - 0.5 - (pitch - 1.05) / 2 - 0.05, 0.12 + wide / 2
            down = [(right, y), (right + 0.27, y), (right + 0.27, turn), (-0.15, turn)]
            _arrow(
                axes, Path([*down, (-0.15, y - pitch), (start - wide / 2 - 0.02, y - pitch)]), INK
            )
    return per_row * step - 0.16, top - (rows - 1) * pitch - 1.05


def _resolution(stride: int) -> str:
    return "full resolution" if stride == 1 else f"1/{stride} resolution"


# Pieces of drawings; lengths in inches.


def _short(operation: Operation) -> str:
    """`inv. residual 5×5 ×4` for what a program calls `inverted_residual k5 e4`."""
    sizes = [SIZES[choice].format(value) for choice, (value,) in operation.choices.items()]
    return " ".join([operation.name.replace("inverted_", "inv. "), *sizes])


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _width(text: str, size: float, bold: bool = False) -> float:
    """The width in inches of a text of `size` points."""
    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    shape = TextPath((0, 0), _plain(text), size=size, prop=font)
    return float(shape.get_extents().width) / 72


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(
        x, y, _plain(text), **{"color": INK, "ha": "center", "va": "center_baseline", **style}
    )


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    label: str,
    fill: str,
    line: str,
    size: float = 9,
) -> None:
    """A rounded box around (x, y)."""
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, fc=fill, ec=line, lw=1.1, zorder=3)
    )
    _text(axes, x, y, label, size=size, zorder=4)


def _swing(x0: float, y0: float, y: float, x1: float, y1: float) -> Path:
    """From (x0, y0) in a curve to the height y, along it, and in a curve to (x1, y1)."""
    a, b, half = x0 + CURVE, x1 - CURVE + 0.05, CURVE / 2
    points = [(x0, y0), (x0 + half, y0), (a - half, y), (a, y)]
    points += [(b, y), (b + half, y), (x1 - half, y1), (x1, y1)]
    curve = [Path.CURVE4] * 3
    return Path(points, [Path.MOVETO, *curve, Path.LINETO, *curve])


def _arrow(axes: Axes, path: Path, colour: str, dashed: bool = False) -> None:
    arrow = FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=9, color=colour, lw=1.2)
    arrow.set(linestyle=DASHES if dashed else "-", zorder=2)
    axes.add_patch(arrow)


def _matrix(
    table: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    numbers: Sequence[Sequence[str]] | None,
    limits: tuple[float, float],
) -> tuple[Figure, Axes]:
    """A table as coloured cells of one size, with labelled rows and columns."""
    longest = max((_width(n, 8) for row in numbers or [] for n in row), default=0)
    high = 0.28 if numbers else min(0.13, 12 / len(rows))
    wide = max(longest + 0.12, 0.42) if numbers else min(0.13, 12 / len(columns))
    font = 9 if numbers else 7
    upright = max(_width(name, font) for name in columns) < wide - 0.06
    left = max(_width(name, font) for name in rows)
    above = 0.1 if upright else max(_width(name, font) for name in columns)
    width = max(len(columns) * wide + left + 1.4, _width(title, 12) + 0.4)
    figure = Figure((width, len(rows) * high + above + 0.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(_plain(title), size=12, color=INK)
    image = axes.imshow(table, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    thin = max(5, len(rows) * high / 0.15)
    bar = figure.colorbar(image, ax=axes, fraction=0.3, pad=0.02, aspect=thin)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    for axis, names, cell in ((axes.xaxis, columns, wide), (axes.yaxis, rows, high)):
        ticks = range(0, len(names), math.ceil(font / 72 / cell) if cell < 0.1 else 1)
        axis.set_ticks(list(ticks), [_plain(names[i]) for i in ticks], size=font, color=INK)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0 if upright else 90)
    axes.spines[:].set_visible(False)
    dark = limits[0] + 0.6 * (limits[1] - limits[0])
    for i, line in enumerate(numbers or []):
        for j, number in enumerate(line):
            _text(axes, j, i, number, size=8, color="white" if table[i, j] > dark else INK)
    return figure, axes


def _render(figure: Figure) -> Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
