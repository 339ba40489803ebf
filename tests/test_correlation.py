"""Rank correlations of made-up measurements, and their table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from darts_lite.errors import UserError
from darts_lite.hpo.correlation import Correlation, compare, table

LOW, MIDDLE, FULL = 1 / 9, 1 / 3, 1.0


def rows(*columns: Sequence[float], seconds: Sequence[float] = (1, 3, 9)) -> list[dict[str, Any]]:
    """Return rows from the accuracies at each fidelity."""
    found = [{"accuracies": list(each)} for each in zip(*columns, strict=True)]
    return [{**row, "seconds": list(seconds)[-len(columns) :]} for row in found]


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's tau, variant b, from its definition."""
    x, y = (np.sign(np.subtract.outer(each, each)) for each in (a, b))
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


RANKING = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("cheap", "full", "tau", "regret"),
    [
        (RANKING, RANKING, 1.0, 0.0),
        ([0.01, 0.02, 0.5, 0.6, 0.61], RANKING, 1.0, 0.0),  # only ranks count
        (RANKING[::-1], RANKING, -1.0, 0.4),
        ([0.1, 0.2, 0.4, 0.3], [0.1, 0.2, 0.3, 0.4], 2 / 3, 0.1),
        ([0.1, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4], 5 / math.sqrt(30), 0.0),
        ([0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], 1.0, 0.0),
        ([0.1, 0.2, 0.2, 0.1], [0.1, 0.2, 0.1, 0.2], 0.0, 0.0),  # the first of equal configurations
        ([0.3, 0.1, 0.2], [0.5, 0.9, 0.7], -1.0, 0.4),
    ],
)
def test_exact_correlations(
    cheap: list[float], full: list[float], tau: float, regret: float
) -> None:
    assert kendall(cheap, full) == pytest.approx(tau)
    (found,) = compare((MIDDLE, FULL), rows(cheap, full))
    assert found.fidelity == MIDDLE
    assert found.tau == pytest.approx(tau) and found.regret == pytest.approx(regret)
    assert found.low <= found.tau + 1e-12 and found.tau <= found.high + 1e-12
    if abs(tau) == 1:
        assert found.low == pytest.approx(tau) and found.high == pytest.approx(tau)


def test_every_fidelity_is_compared_with_the_last() -> None:
    found = compare((LOW, MIDDLE, FULL), rows(RANKING[::-1], RANKING, RANKING))
    assert [c.fidelity for c in found] == [LOW, MIDDLE]
    assert [c.tau for c in found] == pytest.approx([-1, 1])
    assert [c.cost for c in found] == pytest.approx([1 / 9, 1 / 3])


def test_cost_is_the_mean_fraction_of_time() -> None:
    measured = rows(RANKING[:3], RANKING[:3])
    for row, seconds in zip(measured, ([1.0, 2.0], [10.0, 40.0], [3.0, 4.0])):
        row["seconds"] = seconds
    (found,) = compare((MIDDLE, FULL), measured)
    assert found.cost == pytest.approx((0.5 + 0.25 + 0.75) / 3)


def test_the_interval_agrees_with_the_bootstrap() -> None:
    """Narrower with more configurations, and the same each time."""
    rng, widths = np.random.default_rng(3), []
    for count in (10, 40):
        full = rng.random(count)
        cheap = full + 0.3 * rng.random(count)
        (found,) = compare((MIDDLE, FULL), rows(cheap.tolist(), full.tolist()))
        assert found == compare((MIDDLE, FULL), rows(cheap.tolist(), full.tolist()))[0]
        drawn = rng.integers(count, size=(3000, count))
        taus = [kendall(cheap[i], full[i]) for i in drawn]
        low, high = np.quantile(taus, (0.05, 0.95))
        assert found.tau == pytest.approx(kendall(cheap, full))
        assert (found.low, found.high) == (
            pytest.approx(low, abs=0.025),
            pytest.approx(high, abs=0.025),
        )
        widths.append(found.high - found.low)
    assert 0 < widths[1] < widths[0] / 1.5


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_configurations_are_refused(count: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"^a ranking must have at least 3 configurations, got {count}; measure more$",
    ):
        compare((MIDDLE, FULL), rows(RANKING[:count], RANKING[:count]))


@pytest.mark.parametrize("constant", [0, 1])
def test_equal_accuracies_have_no_ranking(constant: int) -> None:
    """This happens if a fidelity is too low to be better than chance."""
    columns = [RANKING, RANKING]
    columns[constant] = [0.1] * 5
    (found,) = compare((MIDDLE, FULL), rows(*columns))
    json.dumps(asdict(found), allow_nan=False)
    assert "no fidelity reliably ranks" in table("epochs", [found], 5)


# --- The table --------------------------------------------------------------------------------

SOUND = Correlation(fidelity=LOW, tau=0.8, low=0.62, high=0.9, cost=0.12, regret=0.0134)
POOR = Correlation(fidelity=MIDDLE, tau=0.6, low=0.31, high=0.8, cost=0.345, regret=0.0)


def test_table() -> None:
    lines = table("epochs", [POOR, SOUND], 20).splitlines()
    assert lines[0] == "| epochs | Kendall τ (90 % interval) | cost | accuracy lost by its choice |"
    assert lines[1] == "|---|---|---|---|"
    assert lines[2] == "| 0.33 | 0.60 (0.31 to 0.80) | 0.34 | 0.00 points |"
    assert lines[3] == "| 0.11 | 0.80 (0.62 to 0.90) | 0.12 | 1.34 points |"
    assert lines[4] == (
        "20 configurations: fidelity 0.11 (epochs) ranks them almost like the full training"
    )


def test_verdict_of_the_table() -> None:
    """The lowest fidelity whose whole interval is above a half; none is a matter of luck."""
    better = replace(SOUND, fidelity=MIDDLE)
    assert "fidelity 0.11 (subset) ranks" in table("subset", [SOUND, better], 9)
    for found in ([POOR], [POOR, replace(SOUND, low=0.5)], [replace(SOUND, low=math.nan)]):
        verdict = table("subset", found, 9).splitlines()[-1]
        assert verdict.startswith("9 configurations: no fidelity reliably ranks them")
        assert "a higher --lowest" in verdict
