"""Learned hyperparameters as curves over the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from darts_lite.reporting.pictures.canvas import DPI, INK, Image, plain, render, text_width

LINE = "#2f6fab"
LOGARITHMIC = ("lr", "weight_decay")


def parameter_plot(schedules: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Image:
    """Plot each learned hyperparameter in a panel of its own against the fraction of the budget.

    All magnitudes share one scale, and so do all probabilities; scales begin at zero. Otherwise the
    noise of a value that hardly moves would look like learning.

    Arguments:
        schedules: points (fraction of the budget, value) of each hyperparameter, by its name.
        title: one line above the panels.
    """
    columns = min(4, math.ceil(math.sqrt(len(schedules)))) or 1
    rows = math.ceil(len(schedules) / columns) or 1
    size = max(3.0 * columns, 4.0, text_width(title, 13) + 0.4), 2.0 * rows + 0.7
    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), size=13, color=INK)
    figure.supxlabel("budget spent", size=10, color=INK)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, schedule) in zip(panels, schedules.items()):
        _draw_schedule(axes, name, schedule, _top(schedules, name))
    for axes in panels[len(schedules) :]:
        axes.set_axis_off()
    return render(figure)


def _top(schedules: Mapping[str, Sequence[tuple[float, float]]], name: str) -> float:
    """Return the largest value of the hyperparameters of the same kind, such as `magnitude`."""
    kind = name.partition(".")[0]
    own = (points for other, points in schedules.items() if other.partition(".")[0] == kind)
    return max((value for points in own for _, value in points), default=0.0)


def _draw_schedule(
    axes: Axes, name: str, schedule: Sequence[tuple[float, float]], top: float
) -> None:
    """Draw the points as dots on a line, or as a line alone if there are 30 or more.

    Arguments:
        axes: panel.
        name: name of the hyperparameter.
        schedule: points (fraction of the budget, value).
        top: largest value of a linear scale.
    """
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
        if narrow:  # makes room for some ticks
            axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
        subs = (1, 2, 3, 5, 7) if narrow else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        if top > 0 and min(values, default=0.0) >= 0:
            axes.set_ylim(0, 1.08 * top)
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
