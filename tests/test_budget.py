"""Budgets: fraction, exhaustion, reserve, resuming."""

import time

import pytest

from darts_lite.training.budget import Budget


def test_steps_give_exact_fractions() -> None:
    budget = Budget(steps=4)
    assert [budget.fraction(i) for i in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert not budget.exhausted(3)
    assert budget.exhausted(4)


def test_seconds_count_from_the_start_and_include_earlier_processes() -> None:
    budget = Budget(seconds=1000.0, started=time.monotonic() - 100.0)
    budget.load_state_dict({"spent": 400.0, "reserve": 0.0, "reached": 0.1})
    assert budget.elapsed == pytest.approx(500.0, abs=1)
    assert 0.5 <= budget.fraction(0) < 0.52
    budget.load_state_dict({"spent": 900.0, "reserve": 0.0, "reached": 0.1})
    assert budget.exhausted(0)


def test_the_reserve_ends_the_budget_earlier_and_the_fraction_never_falls() -> None:
    budget = Budget(seconds=1e6, started=time.monotonic() - 1.0)
    budget.reserve = 1e6 - 1e-3
    assert budget.exhausted(0)
    budget.reserve = 0.0
    assert budget.fraction(0) == 1.0


def test_a_resumed_fraction_never_falls() -> None:
    """The state has reserve and fraction, so an exhausted budget stays exhausted."""
    first = Budget(seconds=100.0, started=time.monotonic() - 90.0)
    first.reserve = 12.0
    assert first.exhausted(0)
    second = Budget(seconds=100.0)
    second.load_state_dict(first.state_dict())
    assert second.exhausted(0)


def test_the_fraction_grows_with_the_clock() -> None:
    budget = Budget(seconds=1000.0)
    before = budget.fraction(0)
    time.sleep(0.01)
    assert budget.fraction(0) > before


@pytest.mark.parametrize("both", [{}, {"seconds": 1.0, "steps": 1}])
def test_a_budget_must_be_either_seconds_or_steps(both: dict) -> None:
    with pytest.raises(ValueError, match="either"):
        Budget(**both)
