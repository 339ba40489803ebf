"""Pictures of a run as arrays [H, W, 3] of uint8. Imports no torch, and never pyplot."""

from darts_lite.pictures.canvas import Image
from darts_lite.pictures.drawing import draw_genotype
from darts_lite.pictures.plots import confusion_matrix, heat_map, image_grid, parameter_plot

__all__ = [
    "Image",
    "confusion_matrix",
    "draw_genotype",
    "heat_map",
    "image_grid",
    "parameter_plot",
]
