"""Budgets: fractions, exhaustion, the reserve, resuming."""

import time

import pytest

from darts_lite.budget import Budget


def test_steps_give_exact_fractions() -> None:
    budget = Budget(steps=4)
    assert [budget.fraction(i) for i in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert not budget.exhausted(3)
    assert budget.exhausted(4)


def test_seconds_count_from_the_start_of_the_process_and_include_earlier_ones() -> None:
    budget = Budget(seconds=1000.0, spent=400.0)
    assert budget.elapsed > 400.0
    assert 0.4 < budget.fraction(0) < 1.0
    assert Budget(seconds=1000.0, spent=1000.0).exhausted(0)


def test_the_reserve_brings_the_end_forward_and_the_fraction_never_falls() -> None:
    budget = Budget(seconds=1e6)
    budget.reserve = 1e6 - 1e-3
    assert budget.exhausted(0)
    budget.reserve = 0.0
    assert budget.fraction(0) == 1.0


def test_the_clock_moves() -> None:
    budget = Budget(seconds=1000.0)
    before = budget.fraction(0)
    time.sleep(0.01)
    assert budget.fraction(0) > before


@pytest.mark.parametrize("both", [{}, {"seconds": 1.0, "steps": 1}])
def test_a_budget_is_one_of_the_two(both: dict) -> None:
    with pytest.raises(ValueError, match="either"):
        Budget(**both)
