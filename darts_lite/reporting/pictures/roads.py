"""Picture of roads to a smaller network: accuracy against parameters, MACs and milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from darts_lite.reporting.pictures.canvas import DPI, INK, Image, plain, render, text_width
from darts_lite.reporting.pictures.studies import COLORS, MARKERS

WIDTH, HEIGHT = 12.0, 4.8  # inches
STAR: dict[str, Any] = {"marker": "*", "ms": 13, "color": INK, "ls": ""}


class Spot(NamedTuple):
    """Size, speed and accuracy of one network.

    `milliseconds` are those of a batch of 32 images.
    """

    road: str
    parameters: int
    macs: int
    milliseconds: float
    accuracy: float


def roads_plot(spots: Sequence[Spot], original: Spot, title: str) -> Image:
    """Plot the test accuracy of networks in three panels: against parameters, MACs and time.

    Arguments:
        spots: networks at the ends of the roads; each road has its own marker, and a line through
            its networks.
        original: the network that all roads start from, drawn as a star, its accuracy as a dotted
            line.
        title: one line above the panels.
    """
    figure = Figure(
        (max(WIDTH, text_width(title, 13) + 0.4), HEIGHT), dpi=DPI, layout="constrained"
    )
    figure.suptitle(plain(title), size=13, color=INK)
    panels = figure.subplots(1, 3, sharey=True)
    handles: list[Line2D] = []
    for axes, (name, label) in zip(
        panels,
        (
            ("parameters", "parameters"),
            ("macs", "MACs per image"),
            ("milliseconds", "ms per batch of 32 images"),
        ),
    ):
        handles = _panel(axes, spots, original, name)
        axes.set_xlabel(label, color=INK)
    panels[0].set_ylabel("accuracy on test images", color=INK)
    panels[0].yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:g}%")
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles)}
    figure.legend(handles=handles, frameon=False, fontsize=9, **place)
    return render(figure)


def _panel(axes: Axes, spots: Sequence[Spot], original: Spot, name: str) -> list[Line2D]:
    """Draw one panel, with a value of the networks on its x axis; return the legend."""
    handles: list[Line2D] = []
    roads = dict.fromkeys(spot.road for spot in spots)
    for road, marker, color in zip(roads, itertools.cycle(MARKERS), itertools.cycle(COLORS)):
        own = sorted((getattr(s, name), s.accuracy) for s in spots if s.road == road)
        style: dict[str, Any] = {"marker": marker, "color": color, "lw": 1, "ms": 6}
        x, y = [value for value, _ in own], [accuracy for _, accuracy in own]
        handles += axes.plot(x, y, label=plain(road), **style)
    axes.axhline(original.accuracy, color=INK, ls=":", lw=1)
    handles += axes.plot(
        getattr(original, name), original.accuracy, label=plain(original.road), **STAR
    )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}" if name == "milliseconds" else EngFormatter())
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return handles
