"""Pictures of a run as arrays [H, W, 3] of uint8. Imports no torch, and never pyplot."""

from darts_lite.pictures.canvas import Image, save
from darts_lite.pictures.drawing import draw_genotype
from darts_lite.pictures.plots import (
    above,
    confusion_matrix,
    heat_map,
    image_grid,
    labelled_grid,
    parameter_plot,
)

__all__ = [
    "Image",
    "above",
    "confusion_matrix",
    "draw_genotype",
    "heat_map",
    "image_grid",
    "labelled_grid",
    "parameter_plot",
    "save",
]
