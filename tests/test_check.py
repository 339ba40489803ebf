"""The checker itself: which steps it compares, what it leaves out, and how it prints."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import Case, close, decay_of_the_optimizer, network, rate

from darts_lite.hypergradient import (
    SGD,
    Estimator,
    Forward,
    Neumann,
    OneStep,
    Online,
    Row,
    Table,
    Unrolled,
    check_hypergradient,
)


def check(case: Case, estimators: dict[str, Estimator], **knobs: Any) -> Table:
    return check_hypergradient(
        case.problem, case.state, case.hyper, case.kinds, estimators, **knobs
    )


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_truth_equals_the_closed_form(horizon: int) -> None:
    case = decay_of_the_optimizer(horizon)
    table = check(case, {"unrolled": Unrolled(horizon)}, horizon=horizon)
    assert [(r.estimator, r.name) for r in table.rows] == [("unrolled", n) for n in case.kinds]
    for row in table.rows:
        close(row.truth, case.expected[row.name], 1e-6)
        close(row.estimate, case.expected[row.name])
        assert row.error < 1e-6 and row.cosine == pytest.approx(1.0)


def test_every_entry_of_every_hyperparameter() -> None:
    """A network with hyperparameters of every kind and shape, and a wrong estimator."""
    case = network(SGD(0.9))
    exact = OneStep("double_backward", second_order=True)
    table = check(case, {"exact": exact, "first order": OneStep("double_backward")})
    for row in table.rows:
        assert row.truth.shape == row.estimate.shape == case.hyper[row.name].shape
        wrong = row.estimator == "first order" and row.name == "alpha"
        assert (row.error > 1e-3) if wrong else (row.error < 1e-6)
    assert len(table.rows) == 2 * len(case.kinds)


def test_a_shorter_window_sees_the_last_steps() -> None:
    """As in training, so it does not see the effect of the first steps on the weights."""
    case, horizon = network(SGD(0.9)), 3
    table = check(case, {"last": Unrolled(1), "all": Unrolled(horizon)}, horizon=horizon)
    state = case.state
    for t in range(horizon - 1):
        state, _ = case.problem.inner_step(state, case.hyper, t)
    late = case._replace(problem=case.problem.after(horizon - 1), state=state)
    expected = late(Unrolled(1)).hypergradient
    for row in table.rows:
        if row.estimator == "last":
            assert torch.equal(row.estimate, expected[row.name])
            assert row.error > 1e-3
        else:
            assert row.error < 1e-6


@pytest.mark.parametrize("horizon", [1, 4])
def test_tangents_are_carried_over_the_whole_horizon(horizon: int) -> None:
    table = check(
        network(SGD(0.9)), {"forward": Forward(), "forgetful": Forward(0.0)}, horizon=horizon
    )
    errors = {name: [r.error for r in table.rows if r.estimator == name] for name in
              ("forward", "forgetful")}  # fmt: skip
    assert max(errors["forward"]) < 1e-6
    assert max(errors["forgetful"]) < 1e-6 if horizon == 1 else min(errors["forgetful"]) > 1e-3


def test_unsupported_hyperparameters_are_left_out() -> None:
    """Neither an error nor zero; and Online has no estimate after one step."""
    case = network(SGD(0.9))
    names = {kind: {n for n, k in case.kinds.items() if k == kind} for kind in case.kinds.values()}
    estimators: dict[str, Estimator] = {"implicit": Neumann(2, 0.04, 20.0), "online": Online()}
    rows = check(case, estimators, horizon=2).rows
    assert {r.name for r in rows if r.estimator == "implicit"} == (
        names["architecture"] | names["loss"]
    )
    assert {r.name for r in rows if r.estimator == "online"} == names["optimizer"]
    assert {r.estimator for r in check(case, estimators, horizon=1).rows} == {"implicit"}


def test_a_window_longer_than_the_horizon_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least the 4 steps of Unrolled, got 3"):
        check(rate(3), {"long": Unrolled(4)}, horizon=3)


def test_nothing_is_changed() -> None:
    case = network(SGD(0.9))
    tensors = [*case.state.params, *case.state.optimizer.moments[0], *case.hyper.values()]
    before = [(t.detach().clone(), t._version) for t in tensors]
    check(case, {"forward": Forward()}, horizon=2)
    for tensor, (value, version) in zip(tensors, before):
        assert torch.equal(tensor, value) and tensor._version == version


def row(estimate: Any, truth: Any) -> Row:
    return Row("name", "x", *(torch.tensor(v, dtype=torch.float64) for v in (estimate, truth)))


@pytest.mark.parametrize(
    ("estimate", "truth", "error", "cosine"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 1.0),
        ([6.0, 8.0], [3.0, 4.0], 1.0, 1.0),
        ([-3.0, -4.0], [3.0, 4.0], 2.0, -1.0),
        ([4.0, -3.0], [3.0, 4.0], 1.75, 0.0),
        (-2.0, 1.0, 3.0, -1.0),  # of a scalar: whether the signs agree
        (1e-9, 1e-12, 999.0, 1.0),  # however small
        ([[0.0], [0.0]], [[0.0], [0.0]], 0.0, 0.0),
    ],
)
def test_error_and_cosine(estimate: Any, truth: Any, error: float, cosine: float) -> None:
    assert row(estimate, truth).error == pytest.approx(error)
    assert row(estimate, truth).cosine == pytest.approx(cosine)


def test_a_truth_of_zero_or_nan_is_no_agreement() -> None:
    assert row([1e-3], [0.0]).error > 1e100
    assert math.isnan(row([math.nan], [1.0]).error)


def test_the_table_is_markdown() -> None:
    """A long tensor shows four entries."""
    rows = (row(0.123456, 0.12), row([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0]))
    assert str(Table(7, rows)).splitlines() == [
        "| estimator | hyperparameter | estimate | truth over 7 steps | cosine | relative error |",
        "|---|---|---|---|---|---|",
        "| name | x | 0.1235 | 0.12 | 1.000000 | 2.9e-02 |",
        "| name | x | 1, 2, 3, 4, ... | 1, 2, 3, 4, ... | 0.995859 | 1.7e-01 |",
    ]


@pytest.mark.parametrize("width", [1e-2, 1e-3])
def test_the_width_of_the_differences(width: float) -> None:
    """The error of the differences is of second order in the width."""
    case = rate(3)
    errors = [
        float((r.truth - case.expected["log_lr"]).abs())
        for w in (2 * width, width)
        for r in check(case, {"exact": Unrolled(3)}, horizon=3, width=w).rows
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
