"""Studies as pictures: what each trial found at which size, and how soon the best was found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator

from darts_lite.reporting.pictures.canvas import (
    DPI,
    INK,
    PALE,
    Image,
    plain,
    render,
    text_width,
    write,
)

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)  # Okabe and Ito
DASHES = ("-", "--", ":")  # the next once every colour is taken
MARKERS = "os^Dv<>Pp"
RECENCY = "viridis"
RING: dict[str, Any] = {"mfc": "none", "mec": INK, "mew": 1.5, "ls": "", "ms": 10}
WIDTH, HEIGHT = 8.0, 5.4  # inches
ERRORS = (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 0)  # ticks
LEAST_ERROR = 1e-3  # added, so that the axis has a place for an accuracy of 100%
Floats = npt.NDArray[np.floating]


class Point(NamedTuple):
    """A network's size and accuracy; `recency` is 0 for the first trial of a study, 1 for the last.

    `fidelity` is the part of its training that it had.
    """

    name: str
    parameters: int
    accuracy: float
    fidelity: float = 1.0
    recency: float = 1.0


class Step(NamedTuple):
    """What several seeds have found from `seconds` on; NaN is left blank."""

    seconds: float
    median: float
    low: float
    high: float


def trial_scatter(
    trials: Sequence[Point],
    finals: Sequence[Point],
    front: Sequence[tuple[int, float]],
    caps: Sequence[int],
    title: str,
) -> Image:
    """Size and accuracy of trials; those trained in part are small and faint, `finals` are rings.

    Each name has its marker. The front [(parameters, accuracy)] is a step line, caps are dotted.
    """
    points = [*trials, *finals]
    figure, axes = _figure(title, empty=not points)
    sizes = [*(point.parameters for point in points), *caps]
    markers = dict(zip(dict.fromkeys(point.name for point in points), itertools.cycle(MARKERS)))
    for name, marker in markers.items():
        own = [point for point in trials if point.name == name]
        _draw(axes, [point for point in own if point.fidelity < 1], marker, alpha=0.45, zorder=2)
        _draw(axes, [point for point in own if point.fidelity == 1], marker, alpha=1, zorder=2.5)
    for point in finals:
        marker = markers[point.name]
        axes.plot(point.parameters, point.accuracy, marker=marker, zorder=3, **RING)

    handles = [_marker(name, marker, 6) for name, marker in markers.items()]
    if any(point.fidelity < 1 for point in trials):
        handles.append(_marker("trained in part", MARKERS[0], 4, alpha=0.45))
    if finals:
        handles.append(Line2D([], [], marker=MARKERS[0], label="final training, on test", **RING))
    line: dict[str, Any] = {"color": INK, "lw": 1.2, "zorder": 1.5}
    if front:
        x, y = [size for size, _ in front], [accuracy for _, accuracy in front]
        x, y, label = [*x, max(sizes)], [*y, y[-1]], "Pareto front"
        handles += axes.step(x, y, where="post", label=label, **line)
    for cap in caps:
        dotted = axes.axvline(cap, ls=":", label="cap", **line)
        handles += [dotted] if cap == caps[0] else []

    _scale(axes, sizes, decades=1)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("parameters", color=INK)
    axes.set_ylabel("accuracy on validation images", color=INK)
    bar = figure.colorbar(ScalarMappable(cmap=RECENCY), ax=axes, pad=0.02, aspect=40)
    bar.set_ticks([0, 1], labels=["first trial", "last trial"])
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return _finish(figure, axes, handles)


def _draw(axes: Axes, points: Sequence[Point], marker: str, alpha: float, zorder: float) -> None:
    axes.scatter(
        [point.parameters for point in points],
        [point.accuracy for point in points],
        s=[10 + 30 * point.fidelity for point in points],
        c=[point.recency for point in points],
        cmap=RECENCY,
        vmin=0,
        vmax=1,
        marker=marker,
        alpha=alpha,
        zorder=zorder,
        edgecolors=INK,
        linewidths=0.4,
    )


def best_so_far_plot(curves: Mapping[str, Sequence[Step]], title: str) -> Image:
    """Accuracies against the clock: the median of each name, in a band from lowest to highest."""
    figure, axes = _figure(title, empty=not curves)
    times = [step.seconds for steps in curves.values() for step in steps]
    unit, name = (3600, "hours") if max(times, default=0) >= 7200 else (60, "minutes")
    styles = itertools.product(DASHES, COLOURS)
    handles = []
    for (label, steps), (dashes, colour) in zip(curves.items(), itertools.cycle(styles)):
        x = [step.seconds / unit for step in steps]
        low, high = [step.low for step in steps], [step.high for step in steps]
        axes.fill_between(x, low, high, step="post", color=colour, alpha=0.15, lw=0)
        style: dict[str, Any] = {"color": colour, "ls": dashes, "lw": 1.8, "label": plain(label)}
        handles += axes.step(x, [step.median for step in steps], where="post", **style)
    _scale(axes, [time / unit for time in times], decades=2)
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel("best accuracy so far, on validation images", color=INK)
    return _finish(figure, axes, handles)


def correlation_plot(
    cheap: Sequence[tuple[str, Sequence[float]]], full: Sequence[float], title: str
) -> Image:
    """Accuracies at cheap fidelities, each with its label, against those of full trainings."""
    figure, axes = _figure(title, empty=not full)
    axes.set_xscale("function", functions=(_stretched, _accuracy))
    handles = []
    for (label, values), marker, colour in zip(cheap, MARKERS, COLOURS):
        style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "ms": 5, "alpha": 0.8}
        handles += axes.plot(values, full, label=plain(label), **style)
    axes.xaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:g}%")
    low, high = axes.get_xlim()
    ticks = [1 - error for error in ERRORS if low <= 1 - error <= high]
    if len(ticks) > 2:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xlabel("accuracy at the cheap fidelity, on validation images", color=INK)
    axes.set_ylabel("accuracy after the full training", color=INK)
    return _finish(figure, axes, handles)


def _figure(title: str, empty: bool) -> tuple[Figure, Axes]:
    """Accuracies on an axis that is logarithmic in the error: the best lie apart, not on a heap."""
    size = (max(WIDTH, text_width(title, 13) + 0.4), HEIGHT)
    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), size=13, color=INK)
    axes = figure.subplots()
    axes.set_yscale("function", functions=(_stretched, _accuracy))
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if empty:
        write(axes, 0.5, 0.5, "no trial has a result", transform=axes.transAxes, color=PALE)
    return figure, axes


def _stretched(accuracy: Floats) -> Floats:
    # matplotlib also asks for places above 100%, where nothing lies
    return -np.log(np.maximum(1 + LEAST_ERROR - np.asarray(accuracy), LEAST_ERROR / 2))


def _accuracy(stretched: Floats) -> Floats:
    return 1 + LEAST_ERROR - np.exp(-np.asarray(stretched))


def _finish(figure: Figure, axes: Axes, handles: Sequence[Line2D]) -> Image:
    """Ticks where the accuracies lie, and the legend below the axes in as many columns as fit."""
    low, high = axes.get_ylim()
    ticks = [1 - error for error in ERRORS if low <= 1 - error <= high]
    if len(ticks) > 2:  # else the range is so narrow that the axis is nearly linear
        axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:g}%")
    widest = max((text_width(str(handle.get_label()), 9) for handle in handles), default=0)
    columns = max(1, int(figure.get_figwidth() / (widest + 0.7)))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles=handles, frameon=False, fontsize=9, **place)
    return render(figure)


def _scale(axes: Axes, values: Sequence[float], decades: int) -> None:
    """A logarithmic x axis if the values span more than so many decades."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10**decades * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()


def _marker(name: str, marker: str, size: float, alpha: float = 1.0) -> Line2D:
    style: dict[str, Any] = {"mfc": PALE, "mec": INK, "mew": 0.4, "ls": "", "ms": size}
    return Line2D([], [], marker=marker, label=plain(name), alpha=alpha, **style)
