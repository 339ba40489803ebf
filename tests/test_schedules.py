"""Schedules and losses by name: a new one is tested by being registered."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.optim.lr_scheduler as sched
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from darts_lite.architecture.recipe import LossName, ScheduleName
from darts_lite.schedules import SCHEDULES, cosine, lr_factor
from darts_lite.training.losses import LOSSES
from darts_lite.training.metrics import METRICS
from darts_lite.training.options import MetricName


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_factor_from_zero_to_one(name: str) -> None:
    values = [SCHEDULES[name](i / 200) for i in range(201)]
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in values)
    assert max(values) == pytest.approx(1, abs=0.01)


def test_a_recipe_names_what_is_registered() -> None:
    assert get_args(ScheduleName) == tuple(SCHEDULES)
    assert set(get_args(LossName)) == set(LOSSES)
    assert get_args(MetricName) == tuple(METRICS)


# --- against the schedulers of torch --------------------------------------------------------------

STEPS = 60  # step i is at the fraction i / STEPS


def of_torch(make: Callable[[Optimizer], LRScheduler]) -> list[float]:
    """Return the factor of the learning rate at each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


TORCH: dict[str, tuple[float, Callable[[Optimizer], LRScheduler]]] = {
    "cosine": (0.0, lambda o: sched.CosineAnnealingLR(o, STEPS)),
    "linear": (0.0, lambda o: sched.LinearLR(o, 1.0, 0.0, STEPS)),
    "polynomial": (0.0, lambda o: sched.PolynomialLR(o, STEPS, power=2.0)),
    "step": (0.0, lambda o: sched.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4])),
    "constant": (0.0, lambda o: sched.ConstantLR(o, factor=1.0)),
    "wsd": (0.0, lambda o: sched.LambdaLR(o, lambda i: 1 - max(0.0, 5 * i / STEPS - 4) ** 0.5)),
    # its last step, STEPS, is our fraction 1
    "one-cycle": (0.3, lambda o: sched.OneCycleLR(o, 1.0, total_steps=STEPS + 1, pct_start=0.3)),
}


@pytest.mark.parametrize("name", TORCH)
def test_a_schedule_is_that_of_torch_step_by_step(name: str) -> None:
    warm_up, make = TORCH[name]
    if name == "one-cycle":  # torch counts its phases in steps of total_steps - 1
        warm_up = (0.3 * (STEPS + 1) - 1) / STEPS
    found = [lr_factor(name, i / STEPS, warm_up) for i in range(STEPS)]
    assert found == pytest.approx(of_torch(make), abs=1e-9)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "one-cycle"])
def test_every_schedule_can_have_a_linear_warm_up(name: str) -> None:
    """A line to one, then the schedule over the rest of the budget."""
    warm_up = 0.25
    rising = [lr_factor(name, warm_up * i / 20, warm_up) for i in range(21)]
    line = of_torch(lambda o: sched.LinearLR(o, 1 / 11, 1.0, 20))[:21]
    assert rising == pytest.approx(line, abs=1e-9)
    for progress in (0.0, 0.3, 0.6, 0.9, 1.0):
        later = lr_factor(name, warm_up + (1 - warm_up) * progress, warm_up)
        assert later == pytest.approx(lr_factor(name, progress, 0.0), abs=1e-9)


def test_the_usual_warm_up_is_three_percent() -> None:
    assert lr_factor("cosine", 0.5) == cosine(0.5) == cosine(0.5, 0.03)
    assert lr_factor("linear", 0.03) == 1 > lr_factor("linear", 0.029)
    assert lr_factor("one-cycle", 0.3) == 1
