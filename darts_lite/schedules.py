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


def warming(fraction: float, warm_up: float) -> float:
    """Return the factor of a linear warm-up, from 1/11 at 0 to 1 at `warm_up`."""
    return (fraction + 0.1 * warm_up) / (1.1 * warm_up)


def cosine(fraction: float, warm_up: float = 0.03) -> float:
    """Return half a cosine from one to zero (Loshchilov and Hutter 2017), after a linear warm-up.

    Arguments:
        fraction: Spent fraction of the budget, 0 to 1.
        warm_up: Fraction of the budget where the warm-up ends; there the factor is 1.

    >>> cosine(0.03), round(cosine(1.0), 6)
    (1.0, 0.0)
    """
    if fraction < warm_up:
        return warming(fraction, warm_up)
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm_up) / (1 - warm_up)))


def one_cycle(fraction: float, warm_up: float = 0.3) -> float:
    """Return the cycle of `torch.optim.lr_scheduler.OneCycleLR` (Smith and Topin 2019).

    Half a cosine from 1/25 to 1 at `warm_up`, and half a cosine to 1/250000.
    """
    if fraction < warm_up:
        return _cosine_between(1 / 25, 1.0, fraction / warm_up)
    return _cosine_between(1.0, 1 / 25e4, (fraction - warm_up) / (1 - warm_up))


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def after_warm_up(shape: Callable[[float], float]) -> Callable[..., float]:
    """Return a schedule: a linear warm-up, then a shape over the rest of the budget.

    Arguments:
        shape: factor at a fraction of the rest of the budget, 0 to 1.
    """

    def schedule(fraction: float, warm_up: float = 0.03) -> float:
        if fraction < warm_up:
            return warming(fraction, warm_up)
        return shape((fraction - warm_up) / (1 - warm_up))

    return schedule


def stepwise(progress: float) -> float:
    """Return a tenth from the half on, and a hundredth from three quarters on (He et al. 2016)."""
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def stable_then_decay(progress: float) -> float:
    """Return one, and in the last fifth 1 - √x, x the part of the fifth (Hägele et al. 2024)."""
    return 1 - math.sqrt(max(0.0, (progress - 0.8) / 0.2))


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine,
    "one-cycle": one_cycle,
    "step": after_warm_up(stepwise),
    "linear": after_warm_up(lambda progress: 1 - progress),
    "polynomial": after_warm_up(lambda progress: (1 - progress) ** 2),
    "constant": after_warm_up(lambda progress: 1.0),
    "wsd": after_warm_up(stable_then_decay),
    "plateau": after_warm_up(lambda progress: 1.0),  # falls by `training.plateau`
}
"""Factor of the learning rate at (fraction of the budget, warm-up), by its name in a recipe."""


def lr_factor(name: str, fraction: float, warm_up: float | None = None) -> float:
    """Return the factor of the learning rate at a fraction of the budget.

    Arguments:
        name: Name of the schedule.
        fraction: Spent fraction of the budget, 0 to 1.
        warm_up: Fraction of the budget where the warm-up ends; None for the usual one, 0.03, or
            0.3 for one-cycle.

    >>> lr_factor("linear", 0.5, warm_up=0.0)
    0.5
    """
    schedule = SCHEDULES[name]
    return schedule(fraction) if warm_up is None else schedule(fraction, warm_up)
