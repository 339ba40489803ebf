"""What studies are compared by: the best so far over time, and the front of size and accuracy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from statistics import median

from darts_lite.reporting.comparison.study import Measurement, Study, Trial
from darts_lite.reporting.pictures import Step

VARIED = ("objective", "max_params", "epochs", "fidelity", "budget_hours", "workers")


def by_method(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Studies that differ in their seeds alone, under the name of their method.

    Settings in which the studies of a method differ join the name: "asha, workers 2".
    """
    groups: dict[str, list[Study]] = {}
    for study in studies:
        method = study.settings.method
        rivals = [other.settings for other in studies if other.settings.method == method]
        varied = [v for v in VARIED if len({getattr(settings, v) for settings in rivals}) > 1]
        values = [f"{v.replace('_', ' ')} {getattr(study.settings, v)}" for v in varied]
        groups.setdefault(", ".join([method, *values]), []).append(study)
    return groups


def improvements(study: Study) -> list[tuple[Measurement, Trial]]:
    """The measurements that were better than all before them, of networks within the cap.

    Trials in part count like those in full; a network of unknown size does not count.
    """
    results = [
        (result, trial)
        for trial in study.trials
        if trial.state != "infeasible" and _fits(trial, study.settings.max_params)
        for result in trial.results
    ]
    found: list[tuple[Measurement, Trial]] = []
    for result, trial in sorted(results, key=lambda pair: (pair[0].elapsed, -pair[0].accuracy)):
        if not found or result.accuracy > found[-1][0].accuracy:
            found.append((result, trial))
    return found


def _fits(trial: Trial, cap: int | None) -> bool:
    return trial.parameters is not None and (cap is None or trial.parameters <= cap)


def best_so_far(study: Study) -> list[tuple[float, float]]:
    """Seconds and accuracy of each of the `improvements`: the corners of a step function."""
    return [(result.elapsed, result.accuracy) for result, _ in improvements(study)]


def time_to(study: Study, accuracy: float) -> float | None:
    """Seconds until the best so far reached an accuracy; None if it never did."""
    return next((time for time, best in best_so_far(study) if best >= accuracy), None)


def band(studies: Sequence[Study]) -> list[Step]:
    """Median, lowest and highest best so far of several seeds, at every time one of them improves.

    A seed has no value before its first result and keeps its last one to the end. The median is
    that of the seeds that have a value; lowest and highest are NaN until all of them have one. The
    last step is where the longest study ends.
    """
    curves = [best_so_far(study) for study in studies]
    times = sorted({time for curve in curves for time, _ in curve})
    steps = []
    for time in times:
        values = [
            curve[after - 1][1]
            for curve in curves
            if (after := bisect_right(curve, time, key=lambda point: point[0]))
        ]
        whole = len(values) == len(studies)
        low, high = (min(values), max(values)) if whole else (math.nan, math.nan)
        steps.append(Step(time, median(values), low, high))
    end = max((study.seconds for study in studies), default=0)
    return [*steps, steps[-1]._replace(seconds=end)] if steps else []


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """The fully trained trials that no smaller or equally small one matches, smallest first."""
    whole = [(trial.point, trial) for trial in trials if trial.point and trial.fidelity == 1]
    front: list[Trial] = []
    best = -math.inf
    for (_, accuracy), trial in sorted(whole, key=lambda row: (row[0][0], -row[0][1])):
        if accuracy > best:
            front.append(trial)
            best = accuracy
    return front
