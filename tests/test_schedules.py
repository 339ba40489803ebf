"""Schedules and losses by name: a new one is tested by being registered."""

import math
from typing import get_args, get_type_hints

import pytest

from darts_lite.architecture.recipe import Recipe
from darts_lite.schedules import SCHEDULES
from darts_lite.training.losses import LOSSES


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_factor_from_zero_to_one(name: str) -> None:
    values = [SCHEDULES[name](i / 200) for i in range(201)]
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in values)
    assert max(values) == pytest.approx(1, abs=0.01)


def test_a_recipe_names_what_is_registered() -> None:
    hints = get_type_hints(Recipe)
    assert get_args(hints["schedule"]) == tuple(SCHEDULES)
    assert get_args(hints["loss"]) == tuple(LOSSES)
