"""Compares an estimator with central differences of the real look-ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import Bilevel, Estimator, Hyper, InnerState, constant


@dataclass(frozen=True)
class Row:
    """One estimator on one hyperparameter against the truth over `horizon` steps."""

    estimator: str
    name: str
    estimate: Tensor
    truth: Tensor

    @property
    def error(self) -> float:
        """Largest deviation over the largest entry of the truth."""
        scale = self.truth.abs().max().clamp(min=torch.finfo(self.truth.dtype).tiny)
        return float((self.estimate - self.truth).abs().max() / scale)

    @property
    def cosine(self) -> float:
        """Of the two, as vectors; a sign agreement for a scalar."""
        a, b = self.estimate.flatten(), self.truth.flatten()
        return float(torch.nn.functional.cosine_similarity(a, b, 0, eps=1e-300))


@dataclass(frozen=True)
class Table:
    """Rows that print as a table."""

    horizon: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [
            f"| estimator | hyperparameter | estimate | {self.horizon} steps really | cosine "
            "| relative error |",
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
    """Estimators against (L(hyper + h) - L(hyper - h)) / 2h of `horizon` real training steps.

    The window needs `horizon` batches. An estimator with a shorter window sees its last steps, as
    it would in training; one that carries tangents is called at every step. Use float64 and a
    smooth activation: with ReLU the difference quotient itself is noise. Every entry of every
    hyperparameter costs two trainings of `horizon` steps.

    Arguments: `width`, h in raw values.

    >>> from darts_lite.hypergradient import Bilevel, InnerState, OneStep
    >>> from darts_lite.hypergradient.optimizers import SGD
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
    """The truth: train `horizon` steps with the value changed, twice an entry."""
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
    """What an estimator says at the end of `horizon` steps of training."""
    if estimator.steps > horizon:
        raise ValueError(f"a window of {estimator.steps} steps in a horizon of {horizon}")
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
