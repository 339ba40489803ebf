"""Comparison of estimators with central differences of the real look-ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient.estimators.interface import Estimator
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, constant


@dataclass(frozen=True)
class Row:
    """One estimator and one hyperparameter against the true derivative.

    Arguments:
        estimator: label of the estimator.
        name: name of the hyperparameter.
        estimate: hypergradient of the estimator.
        truth: central difference of the same shape.
    """

    estimator: str
    name: str
    estimate: Tensor
    truth: Tensor

    @property
    def error(self) -> float:
        """Largest absolute error divided by the largest absolute entry of the truth."""
        scale = self.truth.abs().max().clamp(min=torch.finfo(self.truth.dtype).tiny)
        return float((self.estimate - self.truth).abs().max() / scale)

    @property
    def cosine(self) -> float:
        """Cosine of estimate and truth as vectors; for a scalar, whether the signs agree."""
        a, b = self.estimate.flatten(), self.truth.flatten()
        return float(torch.nn.functional.cosine_similarity(a, b, 0, eps=1e-300))


@dataclass(frozen=True)
class Table:
    """Rows that print as a Markdown table.

    Arguments:
        horizon: number of training steps of the truth.
        rows: one row per estimator and hyperparameter.
    """

    horizon: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [
            f"| estimator | hyperparameter | estimate | truth over {self.horizon} steps "
            "| cosine | relative error |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.estimator} | {r.name} | {_show(r.estimate)} | {_show(r.truth)} "
            f"| {r.cosine:.6f} | {r.error:.1e} |"
            for r in self.rows
        ]
        return "\n".join(lines)


def check_hypergradient(
    problem: Bilevel,
    state: InnerState,
    hyper: Hyper,
    kinds: Mapping[str, Kind],
    estimators: Mapping[str, Estimator],
    *,
    horizon: int = 1,
    width: float = 1e-4,
) -> Table:
    """Compare estimators with (L(hyper + h) - L(hyper - h)) / 2h of real training steps.

    - Use float64 and a smooth activation: with ReLU the difference quotient itself is noise.
    - Every entry of every hyperparameter costs two trainings of `horizon` steps.
    - An estimator with a shorter window sees the last steps, as it does in training. An estimator
      that carries tangents is called at every step.
    - A hyperparameter whose kind an estimator does not support gets no row.

    Arguments:
        problem: window of `horizon` steps.
        state: state before the window.
        hyper: raw hyperparameters, as leaves that record gradients.
        kinds: hyperparameters to compare, with their kinds.
        estimators: estimators by label.
        horizon: number of training steps.
        width: h, in units of the raw values.
    Returns:
        Table with one row per estimator and hyperparameter; `print` shows it.
    Raises:
        ValueError: the window of an estimator is longer than the horizon.

    >>> from darts_lite.hypergradient import SGD, Bilevel, InnerState, OneStep
    >>> w, sgd = (torch.tensor([2.0], dtype=torch.float64),), SGD(0.0)
    >>> lr = {"lr": torch.tensor(0.1, dtype=torch.float64, requires_grad=True)}
    >>> def loss(w, hyper, t=0): return 0.5 * w[0].square().sum(), None
    >>> problem = Bilevel(loss, loss, sgd, lambda hyper: {"lr": hyper["lr"]})
    >>> state, kinds = InnerState(w, sgd.init(w)), {"lr": "optimizer"}
    >>> table = check_hypergradient(problem, state, lr, kinds, {"one step": OneStep()})
    >>> table.rows[0].error < 1e-8, f"{table.rows[0].truth:.3f}"
    (True, '-3.600')
    """
    truth = {n: lookahead_difference(problem, state, hyper, n, horizon, width) for n in kinds}
    rows = []
    for label, estimator in estimators.items():
        covered = {n: k for n, k in kinds.items() if k in estimator.supports}
        found = estimate(estimator, problem, state, hyper, covered, horizon)
        rows += [Row(label, n, found[n], truth[n]) for n in covered if n in found]
    return Table(horizon, tuple(rows))


def lookahead_difference(
    problem: Bilevel, state: InnerState, hyper: Hyper, name: str, horizon: int, width: float
) -> Tensor:
    """Return the true derivative: train `horizon` steps twice per entry, with it changed.

    Arguments:
        problem: window of `horizon` steps.
        state: state before the window.
        hyper: raw hyperparameters.
        name: hyperparameter to differentiate.
        horizon: number of training steps.
        width: half the distance between the two values, in units of the raw value.
    """
    fixed = constant(hyper)
    value = fixed[name]
    result = torch.zeros_like(value)
    for i in range(value.numel()):
        unit = torch.zeros_like(value).view(-1)
        unit[i] = width
        sides = []
        for sign in (1, -1):
            moved = {**fixed, name: value + sign * unit.view_as(value)}
            end = state
            for t in range(horizon):
                end, _ = problem.inner_step(end, moved, t)
            sides.append(problem.outer_loss(end.params, moved)[0].detach())
        result.view(-1)[i] = (sides[0] - sides[1]) / (2 * width)
    return result


def estimate(
    estimator: Estimator,
    problem: Bilevel,
    state: InnerState,
    hyper: Hyper,
    kinds: Mapping[str, Kind],
    horizon: int,
) -> dict[str, Tensor]:
    """Return the hypergradient that an estimator finds at the end of `horizon` training steps.

    Arguments:
        estimator: estimator of the hypergradient.
        problem: window of `horizon` steps.
        state: state before the window.
        hyper: raw hyperparameters, as leaves that record gradients.
        kinds: hyperparameters to differentiate, with their kinds.
        horizon: number of training steps.
    Raises:
        ValueError: the window of the estimator is longer than the horizon.
    """
    if estimator.steps > horizon:
        raise ValueError(
            f"horizon must be at least the {estimator.steps} steps of {type(estimator).__name__}, "
            f"got {horizon}; give more batches or a shorter window"
        )
    if estimator.carries:
        found: dict[str, Tensor] = {}
        for t in range(horizon):
            ahead = estimator(problem.after(t), state, hyper, kinds)
            state, found = ahead.state, ahead.hypergradient
        return found
    before = horizon - estimator.steps
    for t in range(before):
        state, _ = problem.inner_step(state, hyper, t)
    return estimator(problem.after(before), state, hyper, kinds).hypergradient


def _show(value: Tensor) -> str:
    entries = [f"{float(v):.4g}" for v in value.flatten()[:4]]
    return ", ".join(entries) + (", ..." if value.numel() > 4 else "")
