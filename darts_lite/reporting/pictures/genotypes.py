"""Drawings of genotypes: cells as graphs, chains of blocks as rows of boxes.

All lengths are in inches; the widths of labels are measured.
"""

from __future__ import annotations

import itertools
import math

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path

from darts_lite.architecture.operations import CANDIDATES
from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.reporting.pictures.canvas import (
    BAND,
    DPI,
    INK,
    PALE,
    Image,
    plain,
    render,
    text_width,
    write,
)

SIZES = {"kernel": "{0}×{0}", "ratio": "÷{0}", "expansion": "×{0}"}
DASHES = (0, (4, 2))
LANE, LABEL, CURVE = 0.44, 0.3, 0.5  # height of a lane; height of a label; width of a curve


def draw_genotype(space: SearchSpace, title: str = "") -> Image:
    """Draw a genotype: its cells as graphs, or its chain of blocks as rows of boxes.

    Arguments:
        space: with one option per edge.
        title: one line above the drawing.
    """
    if not space.is_discrete:
        raise ValueError(
            "the space must have one option per edge, got several; draw the space of a genotype"
        )
    figure = Figure(dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    chain = all(cell.inputs == cell.nodes == len(cell.edges) == 1 for cell in space.cells)
    top = -0.6 if title else -0.15
    drawn, bottom = (_draw_chain if chain else _draw_cells)(axes, space, top)

    used = {edge.operations[0].name for _, edge in space.edges}
    handles: list[Artist] = [
        Patch(fc=record.colors[0], ec=record.colors[1], label=name.replace("_", " "))
        for name, record in CANDIDATES.items()
        if name in used
    ]
    if not chain:
        handles.append(Line2D([], [], color=PALE, lw=1.2, ls=DASHES, label="concatenation"))
    legend = sum(text_width(str(handle.get_label()), 9) + 0.8 for handle in handles)
    width = max(drawn, legend, text_width(title, 13)) + 0.4
    height = 0.5 - bottom
    left = (drawn - width) / 2
    figure.set_size_inches(width, height)
    axes.set(xlim=(left, left + width), ylim=(-height, 0))
    axes.set_axis_off()
    axes.text(drawn / 2, -0.3, plain(title), size=13, color=INK, ha="center", va="center")
    axes.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return render(figure)


def _draw_cells(axes: Axes, space: SearchSpace, top: float) -> tuple[float, float]:
    """Draw the cells one below the other; return the width and the bottom of the drawing."""
    width = 0.0
    for cell in space.cells:
        places = [name == cell.name for name in space.sequence]
        x, y = text_width(f"{cell.name} cell", 11, bold=True) + 0.2, top - 0.15
        write(axes, 0, y, f"{cell.name} cell", size=11, weight="bold", ha="left")
        for i, here in enumerate(places):  # one box per cell of the network
            box = Rectangle((x + 0.14 * i, y - 0.05), 0.1, 0.1, ec=PALE, lw=0.7)
            box.set_facecolor(INK if here else "none")
            axes.add_patch(box)
        note = f"{sum(places)} of {len(places)}"
        note += ", half the resolution, twice the width" if cell.reduction else ""
        x += 0.14 * len(places) + 0.06
        write(axes, x, y, note, size=9, color=PALE, ha="left")
        drawn, top = _draw_cell(axes, cell, top - 0.4)
        width = max(width, drawn, x + text_width(note, 9))
        top -= 0.2
    return width, top


def _draw_cell(axes: Axes, cell: Cell, top: float) -> tuple[float, float]:
    """Draw one cell from left to right; return the width and the bottom of the drawing."""
    links, lanes = _links(cell), _lanes(cell)
    labels = [_label(edge.operations[0]) for edge in cell.edges]
    heights = [1.0, -1.0] if cell.inputs == 2 else [0.0]  # of the inputs, in lanes
    middle = top - (max(0.5, *lanes, *heights) + 0.5) * LANE
    bottom = middle + (min(-0.5, *lanes, *heights) - 0.5) * LANE

    # Columns: the inputs, then each node, then the output. The label of an edge stands in the gap
    # before the edge's target, so that all operations that a node sums up stand in front of it.
    columns = [0] * cell.inputs + list(range(1, cell.nodes + 2))
    half = [0.32] + [0.2] * cell.nodes + [0.32]
    rooms = [0.0] * (cell.nodes + 1)
    for label, (_, target) in zip(labels, links):
        gap = columns[target] - 1
        rooms[gap] = max(rooms[gap], text_width(label, 9) + 0.24)
    xs = [half[0]]
    for gap, room in enumerate(rooms):
        xs.append(xs[-1] + half[gap] + 2 * CURVE + room + half[gap + 1])

    arrivals: dict[int, list[int]] = {}
    for (_, target), lane in zip(links, lanes):
        arrivals.setdefault(target, []).append(lane)
    for i, ((source, target), lane) in enumerate(zip(links, lanes)):
        fill, line = (
            CANDIDATES[cell.edges[i].operations[0].name].colors if i < len(labels) else ("", PALE)
        )
        rank = sorted(arrivals[target]).index(lane) - (len(arrivals[target]) - 1) / 2
        height = heights[source] if source < cell.inputs else 0
        x0, x1 = xs[columns[source]] + half[columns[source]], xs[columns[target]]
        x1 -= half[columns[target]] + 0.03
        y0, y1, y = middle + height * LANE, middle + 0.09 * rank, middle + lane * LANE
        _arrow(axes, _bend(x0, y0, y, x1, y1), line, dashed=i >= len(labels))
        if i < len(labels):
            gap = columns[target] - 1
            x = xs[gap] + half[gap] + CURVE + rooms[gap] / 2
            _box(axes, x, y, text_width(labels[i], 9) + 0.18, LABEL, labels[i], fill, line)

    names = ["c[k-2]", "c[k-1]"][-cell.inputs :] + [str(n) for n in range(cell.nodes)] + ["c[k]"]
    for node, name in enumerate(names):
        x, height = xs[columns[node]], heights[node] if node < cell.inputs else 0.0
        wide = 2 * half[columns[node]]
        _box(axes, x, middle + height * LANE, wide, 0.4, name, "white", INK, size=10)
    return xs[-1] + half[-1], bottom


def _links(cell: Cell) -> list[tuple[int, int]]:
    """Return (source, target) of each line: first the edges, then each node to the output."""
    end = cell.inputs + cell.nodes
    edges = [(edge.source, edge.target) for edge in cell.edges]
    return edges + [(node, end) for node in range(cell.inputs, end)]


def _lanes(cell: Cell) -> list[int]:
    """Return the height of each link, as a number of lanes above the nodes.

    Short links choose first. In a gap between two columns a lane holds one link. Links that pass a
    node cannot use lane 0, where the nodes are.
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


def _draw_chain(axes: Axes, space: SearchSpace, top: float) -> tuple[float, float]:
    """Draw the blocks row by row; return the width and the bottom of the drawing."""
    blocks = [space.cell(name) for name in space.sequence]
    stages = list(itertools.accumulate(cell.reduction for cell in blocks))
    captions = [
        f"{space.channels * 2**s} channels, {_resolution(space.stem_stride * 2**s)}" for s in stages
    ]
    operations = [cell.edges[0].operations[0] for cell in blocks]
    labels = [_label(operation) for operation in operations]
    wide = max(
        max(text_width(t, 9) + 0.24 for t in labels), max(text_width(t, 8) for t in captions)
    )
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
        write(axes, x + band / 2, y - 0.9, captions[members[0]], size=8, color=PALE)
    for i, (cell, operation, label) in enumerate(zip(blocks, operations, labels)):
        x, y = i % per_row * step + 0.12 + wide / 2, top - i // per_row * pitch - 0.5
        name = f"{cell.name} ↓2" if cell.reduction else cell.name
        write(axes, x, y + 0.32, name, size=8, color=INK if cell.reduction else PALE)
        _box(axes, x, y, wide, 0.36, label, *CANDIDATES[operation.name].colors)
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


def _label(operation: Operation) -> str:
    """Return a short label: `inv. residual 5×5 ×4` for `inverted_residual k5 e4`."""
    sizes = [
        SIZES.get(choice, "{0}").format(value) for choice, (value,) in operation.choices.items()
    ]
    return " ".join([CANDIDATES[operation.name].label, *sizes])


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
    """Draw a rounded box with a label, centered at (x, y)."""
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, fc=fill, ec=line, lw=1.1, zorder=3)
    )
    write(axes, x, y, label, size=size, zorder=4)


def _bend(x0: float, y0: float, y: float, x1: float, y1: float) -> Path:
    """Return a curve from (x0, y0) to the height y, a straight line, and a curve to (x1, y1)."""
    a, b, half = x0 + CURVE, x1 - CURVE + 0.05, CURVE / 2
    points = [(x0, y0), (x0 + half, y0), (a - half, y), (a, y)]
    points += [(b, y), (b + half, y), (x1 - half, y1), (x1, y1)]
    curve = [Path.CURVE4] * 3
    return Path(points, [Path.MOVETO, *curve, Path.LINETO, *curve])


def _arrow(axes: Axes, path: Path, color: str, dashed: bool = False) -> None:
    arrow = FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=9, color=color, lw=1.2)
    arrow.set(linestyle=DASHES if dashed else "-", zorder=2)
    axes.add_patch(arrow)
