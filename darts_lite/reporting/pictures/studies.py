"""Pictures of studies: accuracy against size, best so far over time, correlation of fidelities."""

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

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)  # Okabe and Ito
DASHES = ("-", "--", ":")  # the next style after every color is used once
MARKERS = "os^Dv<>Pp"
RECENCY = "viridis"  # color map: dark = first trial, bright = last trial
RING: dict[str, Any] = {"mfc": "none", "mec": INK, "mew": 1.5, "ls": "", "ms": 10}
WIDTH, HEIGHT = 8.0, 5.4  # inches
ERRORS = (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 0)  # ticks
LEAST_ERROR = 1e-3  # added to the error, so that 100% accuracy has a place on the axis
Floats = npt.NDArray[np.floating]


class Point(NamedTuple):
    """Size and accuracy of one network.

    `fidelity` is the fraction of the full training that the network had. `recency` is 0 for the
    first trial of a study and 1 for the last.
    """

    name: str
    parameters: int
    accuracy: float
    fidelity: float = 1.0
    recency: float = 1.0


class Step(NamedTuple):
    """Median, lowest and highest accuracy of several seeds from `seconds` on."""

    seconds: float
    median: float
    low: float
    high: float


def trial_scatter(
    trials: Sequence[Point],
    finals: Sequence[Point],
    front: Sequence[tuple[int, float]],
    limits: Sequence[int],
    title: str,
    metric: str = "accuracy",
) -> Image:
    """Plot the accuracy of trials, or another metric, against their number of parameters.

    Arguments:
        trials: on validation images. Each name has its own marker; bright is recent; partly
            trained networks are small and faint.
        finals: on test images, after the final training; drawn as rings.
        front: Pareto front [(parameters, accuracy)], drawn as a step line.
        limits: of the number of parameters, drawn as dotted lines.
        title: one line above the plot.
        metric: the metric, as for `--select-by`.
    """
    points = [*trials, *finals]
    figure, axes = _accuracy_figure(title, empty=not points)
    sizes = [*(point.parameters for point in points), *limits]
    markers = dict(zip(dict.fromkeys(point.name for point in points), itertools.cycle(MARKERS)))
    for name, marker in markers.items():
        own = [point for point in trials if point.name == name]
        _draw_points(
            axes, [point for point in own if point.fidelity < 1], marker, alpha=0.45, zorder=2
        )
        _draw_points(
            axes, [point for point in own if point.fidelity == 1], marker, alpha=1, zorder=2.5
        )
    for point in finals:
        marker = markers[point.name]
        axes.plot(point.parameters, point.accuracy, marker=marker, zorder=3, **RING)

    handles = [_legend_marker(name, marker, 6) for name, marker in markers.items()]
    if any(point.fidelity < 1 for point in trials):
        handles.append(_legend_marker("partly trained", MARKERS[0], 4, alpha=0.45))
    if finals:
        handles.append(
            Line2D(
                [], [], marker=MARKERS[0], label="after the final training, on test images", **RING
            )
        )
    line: dict[str, Any] = {"color": INK, "lw": 1.2, "zorder": 1.5}
    if front:
        x, y = [size for size, _ in front], [accuracy for _, accuracy in front]
        x, y, label = [*x, max(sizes)], [*y, y[-1]], "Pareto front"
        handles += axes.step(x, y, where="post", label=label, **line)
    for limit in limits:
        dotted = axes.axvline(limit, ls=":", label="parameter limit", **line)
        handles += [dotted] if limit == limits[0] else []

    _scale_x(axes, sizes, decades=1)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("parameters", color=INK)
    axes.set_ylabel(f"{_words(metric)} on validation images", color=INK)
    bar = figure.colorbar(ScalarMappable(cmap=RECENCY), ax=axes, pad=0.02, aspect=40)
    bar.set_ticks([0, 1], labels=["first trial", "last trial"])
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return _finish_figure(figure, axes, handles)


def _draw_points(
    axes: Axes, points: Sequence[Point], marker: str, alpha: float, zorder: float
) -> None:
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


def best_so_far_plot(
    curves: Mapping[str, Sequence[Step]], title: str, metric: str = "accuracy"
) -> Image:
    """Plot the best accuracy so far against time: the median in a band from lowest to highest.

    Arguments:
        curves: the steps of each method, by its label.
        title: one line above the plot.
        metric: the metric, as for `--select-by`.
    """
    figure, axes = _accuracy_figure(title, empty=not curves)
    times = [step.seconds for steps in curves.values() for step in steps]
    unit, name = (3600, "hours") if max(times, default=0) >= 7200 else (60, "minutes")
    styles = itertools.product(DASHES, COLORS)
    handles = []
    for (label, steps), (dashes, color) in zip(curves.items(), itertools.cycle(styles)):
        x = [step.seconds / unit for step in steps]
        low, high = [step.low for step in steps], [step.high for step in steps]
        axes.fill_between(x, low, high, step="post", color=color, alpha=0.15, lw=0)
        style: dict[str, Any] = {"color": color, "ls": dashes, "lw": 1.8, "label": plain(label)}
        handles += axes.step(x, [step.median for step in steps], where="post", **style)
    _scale_x(axes, [time / unit for time in times], decades=2)
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel(f"best {_words(metric)} so far, on validation images", color=INK)
    return _finish_figure(figure, axes, handles)


def correlation_plot(
    cheap: Sequence[tuple[str, Sequence[float]]], full: Sequence[float], title: str
) -> Image:
    """Plot the accuracies of N networks after full trainings against those at cheap fidelities.

    Arguments:
        cheap: label and N accuracies of each cheap fidelity.
        full: N accuracies after the full training.
        title: one line above the plot.
    """
    figure, axes = _accuracy_figure(title, empty=not full)
    axes.set_xscale("function", functions=(_log_error, _from_log_error))
    handles = []
    for (label, values), marker, color in zip(cheap, MARKERS, COLORS):
        style: dict[str, Any] = {"color": color, "marker": marker, "ls": "", "ms": 5, "alpha": 0.8}
        handles += axes.plot(values, full, label=plain(label), **style)
    axes.xaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:g}%")
    low, high = axes.get_xlim()
    ticks = [1 - error for error in ERRORS if low <= 1 - error <= high]
    if len(ticks) > 2:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xlabel("accuracy at the cheap fidelity, on validation images", color=INK)
    axes.set_ylabel("accuracy after the full training", color=INK)
    return _finish_figure(figure, axes, handles)


def _accuracy_figure(title: str, empty: bool) -> tuple[Figure, Axes]:
    """Make a figure whose y axis is logarithmic in the error, so that good accuracies lie apart."""
    size = (max(WIDTH, text_width(title, 13) + 0.4), HEIGHT)
    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), size=13, color=INK)
    axes = figure.subplots()
    axes.set_yscale("function", functions=(_log_error, _from_log_error))
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if empty:
        write(axes, 0.5, 0.5, "no trial has a result", transform=axes.transAxes, color=PALE)
    return figure, axes


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _log_error(accuracy: Floats) -> Floats:
    # matplotlib also asks for values above 100%, where no point lies
    return -np.log(np.maximum(1 + LEAST_ERROR - np.asarray(accuracy), LEAST_ERROR / 2))


def _from_log_error(value: Floats) -> Floats:
    return 1 + LEAST_ERROR - np.exp(-np.asarray(value))


def _finish_figure(figure: Figure, axes: Axes, handles: Sequence[Line2D]) -> Image:
    """Set the ticks of the y axis, put the legend below the axes in columns, and render."""
    low, high = axes.get_ylim()
    ticks = [1 - error for error in ERRORS if low <= 1 - error <= high]
    if len(ticks) > 2:  # in a narrower range the axis is nearly linear: default ticks
        axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:g}%")
    widest = max((text_width(str(handle.get_label()), 9) for handle in handles), default=0)
    columns = max(1, int(figure.get_figwidth() / (widest + 0.7)))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles=handles, frameon=False, fontsize=9, **place)
    return render(figure)


def _scale_x(axes: Axes, values: Sequence[float], decades: int) -> None:
    """Make the x axis logarithmic if the positive values span more than `decades`."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10**decades * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()


def _legend_marker(name: str, marker: str, size: float, alpha: float = 1.0) -> Line2D:
    style: dict[str, Any] = {"mfc": PALE, "mec": INK, "mew": 0.4, "ls": "", "ms": size}
    return Line2D([], [], marker=marker, label=plain(name), alpha=alpha, **style)
