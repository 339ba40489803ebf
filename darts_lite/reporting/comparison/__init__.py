"""Comparison of studies: pictures, a table, one HTML page."""

from darts_lite.reporting.comparison.compare import (
    best_so_far,
    by_method,
    median_best_so_far,
    pareto_front,
    time_to,
)
from darts_lite.reporting.comparison.report import write_report
from darts_lite.reporting.comparison.study import (
    Final,
    Measurement,
    Settings,
    Study,
    Trial,
    read_study,
)
from darts_lite.reporting.comparison.tables import results_table

__all__ = [
    "Final",
    "Measurement",
    "Settings",
    "Study",
    "Trial",
    "best_so_far",
    "by_method",
    "median_best_so_far",
    "pareto_front",
    "read_study",
    "results_table",
    "time_to",
    "write_report",
]
