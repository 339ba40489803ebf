"""Pictures of a run as arrays [H, W, 3] of uint8. Imports no torch, and never pyplot."""

from darts_lite.reporting.pictures.canvas import Image, save
from darts_lite.reporting.pictures.drawing import draw_genotype
from darts_lite.reporting.pictures.plots import (
    above,
    confusion_matrix,
    heat_map,
    image_grid,
    labelled_grid,
    parameter_plot,
)
from darts_lite.reporting.pictures.studies import (
    Point,
    Step,
    best_so_far_plot,
    correlation_plot,
    trial_scatter,
)

__all__ = [
    "Image",
    "Point",
    "Step",
    "above",
    "best_so_far_plot",
    "confusion_matrix",
    "correlation_plot",
    "draw_genotype",
    "heat_map",
    "image_grid",
    "labelled_grid",
    "parameter_plot",
    "save",
    "trial_scatter",
]
