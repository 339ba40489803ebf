"""What studies found, side by side: pictures, a table, one page. Imports no torch of its own."""

from darts_lite.reporting.comparison.compare import (
    band,
    best_so_far,
    by_method,
    pareto_front,
    time_to,
)
from darts_lite.reporting.comparison.study import Final, Measurement, Settings, Study, Trial, read
from darts_lite.reporting.comparison.tables import table
from darts_lite.reporting.comparison.writing import write

__all__ = [
    "Final",
    "Measurement",
    "Settings",
    "Study",
    "Trial",
    "band",
    "best_so_far",
    "by_method",
    "pareto_front",
    "read",
    "table",
    "time_to",
    "write",
]
