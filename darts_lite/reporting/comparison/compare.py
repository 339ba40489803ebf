"""Quantities that compare studies: best accuracy so far over time, and the Pareto front."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from statistics import median

from darts_lite.errors import UserError
from darts_lite.reporting.comparison.study import Measurement, Study, Trial
from darts_lite.reporting.pictures import Step

GROUPING = ("objective", "max_params", "epochs", "fidelity", "budget_hours", "workers")


def by_method(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Group the studies that differ only in their seed, under the name of their method.

    If the studies of a method differ in other settings, these join the name: "asha, workers 2".
    """
    groups: dict[str, list[Study]] = {}
    for study in studies:
        method = study.settings.method
        rivals = [other.settings for other in studies if other.settings.method == method]
        varied = [v for v in GROUPING if len({getattr(settings, v) for settings in rivals}) > 1]
        values = [f"{v.replace('_', ' ')} {getattr(study.settings, v)}" for v in varied]
        groups.setdefault(", ".join([method, *values]), []).append(study)
    return groups


def metric_of(studies: Sequence[Study]) -> str:
    """Return the validation metric of the trials; all studies with trials have the same.

    Raises: `UserError` if they do not.
    """
    found = {study.settings.select_by: study.folder for study in studies if study.trials}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UserError(
            f"all studies of a report must have the same --select-by, got {one} in {first} and "
            f"{other} in {second}; write one report per metric"
        )
    return next(iter(found), "accuracy")


def improvements(study: Study) -> list[tuple[Measurement, Trial]]:
    """Return the measurements that beat all earlier ones, each with its trial, oldest first.

    Only networks under the study's parameter limit count; a network of unknown size does not.
    Partly trained trials count like fully trained ones.
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


def _fits(trial: Trial, limit: int | None) -> bool:
    return trial.parameters is not None and (limit is None or trial.parameters <= limit)


def best_so_far(study: Study) -> list[tuple[float, float]]:
    """Return (seconds, accuracy) of each of the `improvements`: the corners of a step function."""
    return [(result.elapsed, result.accuracy) for result, _ in improvements(study)]


def time_to(study: Study, accuracy: float) -> float | None:
    """Return the seconds until the best so far reached an accuracy; None if it never did."""
    return next((time for time, best in best_so_far(study) if best >= accuracy), None)


def median_best_so_far(studies: Sequence[Study]) -> list[Step]:
    """Return the median, lowest and highest best accuracy so far of several seeds over time.

    The first step is where the last seed has its first result. Before it, the median would be over
    fewer seeds, and it could fall when a seed with a low first result joins. From then on no line
    falls, because each seed keeps its best result to the end. A step follows wherever a seed
    improves, and a last one where the longest study ends. Seeds without any result are left out.

    Arguments:
        studies: one per seed.
    """
    curves = [curve for study in studies if (curve := best_so_far(study))]
    if not curves:
        return []
    start = max(curve[0][0] for curve in curves)
    times = sorted({time for curve in curves for time, _ in curve if time >= start})
    steps = []
    for time in times:
        bests = [curve[bisect_right(curve, (time, math.inf)) - 1][1] for curve in curves]
        steps.append(Step(time, median(bests), min(bests), max(bests)))
    end = max(study.seconds for study in studies)
    return [*steps, steps[-1]._replace(seconds=end)]


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the Pareto-optimal trials, smallest network first.

    A fully trained trial is on the front if no trial of at most its size is at least as accurate.
    """
    whole = [(trial.point, trial) for trial in trials if trial.point and trial.fidelity == 1]
    front: list[Trial] = []
    best = -math.inf
    for (_, accuracy), trial in sorted(whole, key=lambda row: (row[0][0], -row[0][1])):
        if accuracy > best:
            front.append(trial)
            best = accuracy
    return front
