"""Plateau: equal to `ReduceLROnPlateau` of torch step by step, state, and errors."""

import math
import random
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from darts_lite.errors import UserError
from darts_lite.training.plateau import Plateau

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "impatient": {"patience": 0, "factor": 0.5},
    "patient": {"patience": 5, "factor": 0.3},
    "only large improvements": {"threshold": 0.2},
    "any improvement": {"threshold": 0.0},
}


def metrics(seed: int, count: int = 120) -> list[float]:
    """Return noisy metrics above 0 that stop improving, with ties and NaN."""
    draw = random.Random(seed)
    found = [round(1 - math.exp(-i / 20) + 0.3 * draw.random(), 2) for i in range(count)]
    return [math.nan if draw.random() < 0.05 else metric for metric in found]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("larger_is_better", [True, False])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_plateau_equals_that_of_torch(
    settings: dict[str, Any], larger_is_better: bool, seed: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    mode = "max" if larger_is_better else "min"
    given = {"factor": 0.1, "patience": 2, "threshold": 1e-4, **settings}
    scheduler = ReduceLROnPlateau(optimizer, mode=mode, **given)  # type: ignore[arg-type]
    plateau = Plateau(**settings, larger_is_better=larger_is_better)
    values = []
    for metric in metrics(seed):
        metric = metric if larger_is_better else 1.5 - metric
        scheduler.step(metric)
        plateau.update(metric)
        values.append(plateau.value)
        assert plateau.value == optimizer.param_groups[0]["lr"]
    assert 0 < values[-1] < 1 and values == sorted(values, reverse=True)


@pytest.mark.parametrize("larger_is_better", [True, False])
@pytest.mark.parametrize("at", [0, 1, 7, 40])
def test_plateau_resumes_exactly(at: int, larger_is_better: bool) -> None:
    whole, part, resumed = (Plateau(larger_is_better=larger_is_better) for _ in range(3))
    values = metrics(7, 60)
    for metric in values[:at]:
        whole.update(metric)
        part.update(metric)
    resumed.load_state_dict(part.state_dict())
    for metric in values[at:]:
        whole.update(metric)
        resumed.update(metric)
        assert resumed.value == whole.value
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"factor": 1.0}, "factor must be above 0 and below 1, got 1.0"),
        ({"factor": 0.0}, "factor must be above 0 and below 1, got 0.0"),
        ({"patience": -1}, "patience must be 0 updates or more, got -1"),
        ({"threshold": -1e-9}, "threshold must be 0 or more, got -1e-09"),
        ({"threshold": math.nan}, "threshold must be 0 or more, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Plateau(**change)
