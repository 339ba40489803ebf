"""Pictures of a run as arrays [H, W, 3] of uint8. Imports neither torch nor pyplot."""

from darts_lite.reporting.pictures.calibration import calibration_plot
from darts_lite.reporting.pictures.canvas import Image, save
from darts_lite.reporting.pictures.genotypes import draw_genotype
from darts_lite.reporting.pictures.heat_maps import confusion_matrix, heat_map
from darts_lite.reporting.pictures.image_grids import (
    captioned_grid,
    image_grid,
    labeled_grid,
    stack,
)
from darts_lite.reporting.pictures.roads import Spot, roads_plot
from darts_lite.reporting.pictures.schedules import parameter_plot
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
    "Spot",
    "Step",
    "best_so_far_plot",
    "calibration_plot",
    "captioned_grid",
    "confusion_matrix",
    "correlation_plot",
    "draw_genotype",
    "heat_map",
    "image_grid",
    "labeled_grid",
    "parameter_plot",
    "roads_plot",
    "save",
    "stack",
    "trial_scatter",
]
