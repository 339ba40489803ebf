"""Methods side by side: medians over seeds, and in brackets from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from darts_lite.errors import UserError
from darts_lite.reporting.comparison.compare import best_so_far, by_method, improvements, time_to
from darts_lite.reporting.comparison.study import Study

OUTCOMES = {  # what is counted -> its states
    "complete": ("complete",),
    "cut short": ("pruned", "paused", "stopped"),
    "infeasible": ("infeasible",),
    "failed": ("failed", "diverged", "lost"),
}
HEAD = (
    "method",
    "seeds",
    f"trials: {' / '.join(OUTCOMES)}",
    "best on validation",
    "its parameters",
    "time to best",
    "test accuracy",
)
NOTHING, NEVER = "–", "never"


def table(studies: Sequence[Study], reference: str | None = None) -> str:
    """The `rows` as Markdown."""
    head, *body = rows(studies, reference)
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *body)]
    return "".join(f"| {line} |\n" for line in lines)


def rows(studies: Sequence[Study], reference: str | None = None) -> list[list[str]]:
    """The cells of a row for each name of `by_method`, below a head.

    With a reference, one of these names, two more columns: when each method reached the median
    final accuracy of the reference, and the ratio of that to the reference's whole time. Without
    one it is "bohb", if that has a result. Medians are over the seeds that have a value; a seed
    that never reached an accuracy is infinitely late.
    """
    groups = by_method(studies)
    body = [[name, str(len(own)), *_results(own)] for name, own in groups.items()]
    if reference is None and any(map(best_so_far, groups.get("bohb", []))):
        reference = "bohb"
    if reference is None:
        return [list(HEAD), *body]
    goal, whole = _goal(groups, reference)
    for cells, own in zip(body, groups.values()):
        times = [time_to(study, goal) for study in own if study.trials]
        late = [math.inf if time is None else time for time in times]
        ratios = [time / max(whole, 1e-9) for time in late]
        cells += [_spread(late, duration), _spread(ratios, _ratio)]
    columns = [f"time to {reference}'s {percent(goal)}", f"ratio to its {duration(whole)}"]
    return [[*HEAD, *columns], *body]


def percent(value: float) -> str:
    return f"{value:.2%}"


def duration(seconds: float) -> str:
    """
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
    """The cells of one row that need no reference."""
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
    """The median number of trials with each outcome."""
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
    """Final accuracy and whole time of the reference, medians over its seeds."""
    own = groups.get(reference, [])
    finals = [curve[-1][1] for study in own if (curve := best_so_far(study))]
    if not finals:
        known = ", ".join(groups)
        raise UserError(f"{reference!r} has no result to compare with; take one of {known}")
    return median(finals), median(study.seconds for study in own)
