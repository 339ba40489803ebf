"""Calibration plot: accuracy against confidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from darts_lite.reporting.pictures.canvas import DPI, INK, PALE, Image, plain, render

FILL, LINE = "#d6e6f5", "#2f6fab"


def calibration_plot(
    count: npt.NDArray[np.floating],
    confidence: npt.NDArray[np.floating],
    right: npt.NDArray[np.floating],
    title: str,
) -> Image:
    """Draw the accuracy of each bin of confidence beside the diagonal, and its images below.

    Arguments:
        count: images of each of the B bins, which divide [0, 1] equally.
        confidence: sum of the confidences of its images.
        right: number of its right predictions.
        title: one line above the plot.
    """
    figure = Figure((4.8, 5.4), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), size=12, color=INK)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    width, full = 1 / len(count), count > 0
    left = np.arange(len(count)) * width
    accuracy, sure = right[full] / count[full], confidence[full] / count[full]
    above.bar(left[full], accuracy, width, align="edge", color=FILL, edgecolor=LINE, lw=0.8)
    above.plot([0, 1], [0, 1], color=PALE, lw=1, ls="--")
    above.plot(sure, accuracy, color=LINE, marker="o", ms=4, lw=1.2)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    below.bar(left, count, width, align="edge", color=FILL, edgecolor=LINE, lw=0.8)
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axes in (above, below):
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    return render(figure)
