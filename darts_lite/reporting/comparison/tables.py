"""Table of methods: the median over seeds, with the lowest and the highest in brackets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from darts_lite.errors import UserError
from darts_lite.reporting.comparison.compare import best_so_far, by_method, improvements, time_to
from darts_lite.reporting.comparison.study import Study

OUTCOMES = {  # outcome -> states of a trial that count for it
    "complete": ("complete",),
    "cut short": ("pruned", "paused", "stopped"),
    "infeasible": ("infeasible",),
    "failed": ("failed", "diverged", "lost"),
}
HEADER = (
    "method",
    "seeds",
    f"trials: {' / '.join(OUTCOMES)}",
    "best on validation",
    "its parameters",
    "time to best",
    "test accuracy",
)
NOTHING, NEVER = "–", "never"


def results_table(studies: Sequence[Study], reference: str | None = None) -> str:
    """Return the `rows` as a Markdown table."""
    header, *body = rows(studies, reference)
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *body)]
    return "".join(f"| {line} |\n" for line in lines)


def rows(studies: Sequence[Study], reference: str | None = None) -> list[list[str]]:
    """Return the cells of the table: a header, then one row per name of `by_method`.

    A reference adds two columns: the time at which a method reaches the median final accuracy of
    the reference, and the ratio of this time to the whole time of the reference.

    Medians are over the seeds that have a value. A seed that never reaches an accuracy counts as
    infinitely late.

    Arguments:
        studies: of all methods and seeds.
        reference: a name of `by_method`; by default "bohb", if it has a result.
    """
    groups = by_method(studies)
    body = [[name, str(len(own)), *_results(own)] for name, own in groups.items()]
    if reference is None and any(map(best_so_far, groups.get("bohb", []))):
        reference = "bohb"
    if reference is None:
        return [list(HEADER), *body]
    goal, whole = _goal(groups, reference)
    for cells, own in zip(body, groups.values()):
        times = [time_to(study, goal) for study in own if study.trials]
        late = [math.inf if time is None else time for time in times]
        ratios = [time / max(whole, 1e-9) for time in late]
        cells += [_spread(late, duration), _spread(ratios, _ratio)]
    columns = [f"time to {reference}'s {percent(goal)}", f"ratio to its {duration(whole)}"]
    return [[*HEADER, *columns], *body]


def percent(value: float) -> str:
    """Return a fraction as a percentage with two decimals."""
    return f"{value:.2%}"


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    Arguments:
        seconds: may be infinite.

    >>> duration(95), duration(1200), duration(9000), duration(math.inf)
    ('95 s', '20.0 min', '2.50 h', 'never')
    """
    if seconds == math.inf:
        return NEVER
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


def _ratio(value: float) -> str:
    return NEVER if value == math.inf else f"{value:.2f}"


def _results(studies: Sequence[Study]) -> list[str]:
    """Return the cells of one row that need no reference."""
    bests = [found[-1] for study in studies if (found := improvements(study))]
    finals = [study.final for study in studies if study.final is not None]
    sizes = [trial.parameters for _, trial in bests if trial.parameters is not None]
    return [
        _counts([study for study in studies if study.trials]),
        _spread([result.accuracy for result, _ in bests], percent),
        _spread(sizes or [final.parameters for final in finals], "{:.0f}".format),
        _spread([result.elapsed for result, _ in bests], duration),
        _spread([final.test_accuracy for final in finals], percent),
    ]


def _counts(studies: Sequence[Study]) -> str:
    """Return the median number of trials per outcome."""
    if not studies:
        return NOTHING
    states = [[trial.state for trial in study.trials] for study in studies]
    numbers = [
        median(sum(state in outcome for state in of_study) for of_study in states)
        for outcome in OUTCOMES.values()
    ]
    return " / ".join(f"{number:g}" for number in numbers)


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return NOTHING
    middle, low, high = (form(value) for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def _goal(groups: Mapping[str, Sequence[Study]], reference: str) -> tuple[float, float]:
    """Return final accuracy and whole time in seconds of the reference, medians over its seeds."""
    own = groups.get(reference, [])
    finals = [curve[-1][1] for study in own if (curve := best_so_far(study))]
    if not finals:
        known = ", ".join(groups)
        raise UserError(
            f"the reference must be a method with a result, got {reference!r}; choose from {known}"
        )
    return median(finals), median(study.seconds for study in own)
