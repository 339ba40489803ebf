"""Schedules: functions of the spent fraction of the budget. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

Schedule = tuple[tuple[float, float], ...]  # (budget fraction, value), ascending in the fraction


def interpolate(schedule: Schedule, fraction: float) -> float:
    """Return the value of a piecewise linear schedule, constant before and after its knots.

    Arguments:
        schedule: Knots (budget fraction, value), ascending in the fraction.
        fraction: Spent fraction of the budget, 0 to 1.

    >>> interpolate(((0.0, 1.0), (1.0, 3.0)), 0.25)
    1.5
    """
    at = bisect_right([f for f, _ in schedule], fraction)
    if at == 0 or at == len(schedule):
        return schedule[min(at, len(schedule) - 1)][1]
    (f0, v0), (f1, v1) = schedule[at - 1], schedule[at]
    return v0 + (v1 - v0) * (fraction - f0) / (f1 - f0)


def cosine(fraction: float, warmup: float = 0.03) -> float:
    """Return the factor of a schedule with linear warmup, then half a cosine down to zero.

    Arguments:
        fraction: Spent fraction of the budget, 0 to 1.
        warmup: Fraction of the budget where the warmup ends; there the factor is 1.

    >>> cosine(0.03), round(cosine(1.0), 6)
    (1.0, 0.0)
    """
    if fraction < warmup:
        return (fraction + 0.1 * warmup) / (1.1 * warmup)
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine}
"""Factor of the learning rate over the budget's fraction, by its name in a recipe."""
