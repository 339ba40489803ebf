"""Short-horizon bias of each estimator on the noisy quadratic (Wu et al. 2018).

    python experiments/noisy_quadratic.py --horizons 100,1000,10000    # 9 minutes of a busy core

The training loss of a step is 1/2 sum_i h_i (w_i - c_i)^2 with fresh c_i ~ N(0, 1/h_i): 1000
directions, curvatures h_i from 1 to 1/1000, gradient noise of covariance h. The objective is the
expected loss 1/2 sum_i h_i w_i^2 after T steps of SGD, without the constant that noise adds.

- The *greedy* schedule minimizes this loss after every single step, so its learning rate falls too
  soon.
- The best *simple* schedule comes from a grid of constant, cosine, polynomial and inverse-time
  decays.

Both are exact, because E[w_i^2] obeys a recursion. An estimator learns the logarithm of its rate
while it trains on noisy losses, by a hypergradient of one noisy held-out loss per window. The gap
closed is (log greedy - log loss) / (log greedy - log simple): 0% for greedy, 100% for the best
simple schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import matplotlib
import torch
from torch import Tensor

from darts_lite.hypergradient import (
    Bilevel,
    Estimator,
    Forward,
    LearningRateFinder,
    OneStep,
    Online,
    Unrolled,
)
from darts_lite.hypergradient.hyperparameters import HyperParameters, HyperSpec, LogInterval
from darts_lite.hypergradient.optimizers import SGD
from darts_lite.hypergradient.problem import Hyper, InnerState, Loss, Params

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# float64, in which the differences that Forward takes of a quadratic are exact
CURVATURE = torch.logspace(0, -3, 1000, dtype=torch.float64)
VARIANCE = 1 / CURVATURE  # of c
BEGIN = 1 / CURVATURE  # w^2 before the first step: as far off as the noise is wide
LIMIT = 1.9  # of the rates of exact schedules; above 2 the steepest direction grows
RANGE = LogInterval(1e-4, 10.0)  # of a learned rate; far beyond what is stable, on purpose
SEEDS = 3  # rows of one tensor, with one learned rate between them
SWEEPS = 10  # of the optimal schedule
DIVERGED = 1e6  # times the loss at the start: no way back


# --- exact: schedules and what becomes of them ----------------------------------------------------


def advance(square: Tensor, lr: Tensor | float) -> Tensor:
    """Return E[w^2] after a step of SGD, from E[w^2] before it."""
    return (1 - lr * CURVATURE) ** 2 * square + (lr * CURVATURE) ** 2 * VARIANCE


def excess(square: Tensor) -> Tensor:
    """Return the expected loss without its constant."""
    return 0.5 * (CURVATURE * square).sum(-1)


def best_rate(square: Tensor, weight: Tensor) -> Tensor:
    """Return the rate of a step that minimizes sum_i weight_i E[w_i^2] after the step."""
    falling = (weight * CURVATURE * square).sum()
    return falling / (weight * CURVATURE**2 * (square + VARIANCE)).sum()


def cosine(part: Tensor) -> Tensor:
    """Return a cosine from 1 to 0 over a run."""
    return 0.5 * (1 + torch.cos(math.pi * part))


def greedy(steps: int) -> Tensor:
    square, rates = BEGIN, []
    for _ in range(steps):
        rates.append(best_rate(square, CURVATURE))
        square = advance(square, rates[-1])
    return torch.stack(rates)


def optimal(schedule: Tensor) -> Tensor:
    """The best of all schedules below the limit, from one that is not bad.

    Coordinate descent: the final loss is a quadratic function of each step's rate, given the past
    of the step (E[w^2]) and its future (the factor by which the final loss depends on E[w^2]).
    """
    rates = schedule.clone()
    for _ in range(SWEEPS):
        future = [CURVATURE]
        for lr in rates[1:].flip(0):
            future.append((1 - lr * CURVATURE) ** 2 * future[-1])
        square = BEGIN
        for t, weight in enumerate(reversed(future)):
            rates[t] = best_rate(square, weight).clamp(max=LIMIT)
            square = advance(square, rates[t])
    return rates


def simple(steps: int) -> dict[str, Tensor]:
    """Return the best schedule of each simple family, and the best of all last."""
    t = torch.arange(steps, dtype=torch.float64) / steps
    rates = torch.logspace(-2, math.log10(LIMIT), 16, dtype=torch.float64)
    families = {
        "constant": [torch.ones_like(t)],
        "cosine": [cosine(t + 0.5 / steps)],
        "polynomial": [(1 - t) ** p for p in (1, 2, 3)],
        "inverse time": [(1 + k * t) ** -p for k in (10, 100) for p in (0.5, 1, 2)],
    }
    found = []
    for name, shapes in families.items():
        grid = torch.cat([rates[:, None] * shape for shape in shapes])
        square = BEGIN.expand(len(grid), -1)
        for lr in grid.T:
            square = advance(square, lr[:, None])
        best = int(excess(square).argmin())
        found.append((float(excess(square)[best]), name, grid[best]))
    return {name: schedule for _, name, schedule in sorted(found, key=lambda x: -x[0])}


@dataclass
class Run:
    """Rate and loss at every step; loss of the weights' running average (see `window`)."""

    lr: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    average: float = math.inf
    every: int = 1  # steps between two entries

    @property
    def final(self) -> float:
        return self.loss[-1]


def window(steps: int) -> float:
    """Return the length of the running average of the weights, in steps."""
    return steps / 10


def expected(schedule: Tensor) -> Run:
    """Return the exact result of a schedule, from E[w^2], E[w average] and E[average^2]."""
    run, b = Run(lr=schedule.tolist()), 1 / window(len(schedule))
    square = cross = average = BEGIN
    for lr in run.lr:
        moved = (1 - lr * CURVATURE) * cross  # E[w+ average]; the step's noise is independent
        square = advance(square, lr)
        cross = (1 - b) * moved + b * square
        average = (1 - b) ** 2 * average + 2 * b * (1 - b) * moved + b**2 * square
        run.loss.append(float(excess(square)))
    run.average = float(excess(average))
    return run


# --- learned: the estimators as they are used -----------------------------------------------------


@dataclass(frozen=True)
class Method:
    """An estimator, and whether its held-out loss is taken at the weights' running average.

    Then its gradient is that of the average, while its derivative passes to the weights.
    """

    estimator: Estimator
    averaged: bool = False
    search: bool = False  # a LearningRateFinder sets the lr as the training begins; then it stays


METHODS: Mapping[str, Method] = {
    "OneStep": Method(OneStep()),
    "OneStep, averaged": Method(OneStep(), averaged=True),
    "Online": Method(Online()),
    "Unrolled(5)": Method(Unrolled(5)),
    "Unrolled(25)": Method(Unrolled(25)),
    "Unrolled(25), averaged": Method(Unrolled(25), averaged=True),
    "Forward(0.9)": Method(Forward(0.9, product="one_sided")),
    "Forward(0.99)": Method(Forward(0.99, product="one_sided")),
    "Forward(1.0)": Method(Forward(1.0, product="one_sided")),
    "LearningRateFinder": Method(OneStep(), search=True),
}


def bind(method: Method, noise: Tensor, average: Tensor, rate: LogInterval) -> Bilevel:
    """Return one window; `noise` holds c of its training steps and, last, of the held-out loss."""

    def loss(weights: Tensor, c: Tensor) -> Loss:
        return 0.5 * (CURVATURE * (weights - c) ** 2).sum(), None

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        return loss(params[0], noise[t])

    def outer(params: Params, hyper: Hyper) -> Loss:
        weights = params[0]
        return loss(average + weights - weights.detach() if method.averaged else weights, noise[-1])

    return Bilevel(inner, outer, SGD(0.0), lambda hyper: {"lr": rate.forward(hyper["lr"])})


def learn(method: Method, schedule: Tensor, start: float, travel: float) -> Run:
    """Train in whole windows until divergence; the rate is a learned value times a schedule."""
    generator = torch.Generator().manual_seed(0)
    every, steps = method.estimator.steps, len(schedule)
    first = torch.tensor(start, dtype=torch.float64)
    learned = HyperParameters((HyperSpec("lr", first, RANGE, "optimizer", travel),))
    params = (BEGIN.sqrt().repeat(SEEDS, 1),)
    state, average, run = InnerState(params, SGD(0.0).init(params)), params[0], Run(every=every)
    search = LearningRateFinder(looks=16 if method.search else 0)
    for t in range(0, steps - every + 1, every):
        while search.due(t / steps):
            k = search.estimator.steps
            noise = torch.randn(k + 1, SEEDS, len(CURVATURE), generator=generator)
            looked = bind(method, noise * VARIANCE.sqrt(), average, RANGE)
            ahead = search.estimator(looked, state, learned.leaves(), learned.kinds)
            search.update(learned, ahead.hypergradient)
        part = float(schedule[t : t + every].mean())  # in a window the rate does not change
        normal = torch.randn(every + 1, SEEDS, len(CURVATURE), generator=generator)
        run.lr.append(float(learned.values()["lr"]) * part)
        # scaling the range scales the rate, for less than a product costs in forward mode
        scaled = LogInterval(RANGE.low * part, RANGE.high * part)
        problem = bind(method, normal * VARIANCE.sqrt(), average, scaled)
        ahead = method.estimator(problem, state, learned.leaves(), learned.kinds)
        state, weights = ahead.state, ahead.state.params[0]
        average = average + every / max(every, window(steps)) * (weights - average)
        run.loss.append(float(excess(weights**2).mean()))
        if not run.final < DIVERGED * excess(BEGIN):
            run.loss[-1] = math.inf
            return run
        if not method.search:
            learned.update(ahead.hypergradient, every / steps)
    run.average = float(excess(average**2).mean())
    return run


# --- tables and picture ---------------------------------------------------------------------------

Runs = dict[tuple[str, bool], Run]  # by estimator, and whether the rate multiplies a cosine


@dataclass(frozen=True)
class Study:
    """One horizon: what schedules give, exactly, and what is learned from the usual start."""

    steps: int
    references: dict[str, Run]
    learned: Runs

    def closed(self, loss: float) -> str:
        if loss == math.inf:
            return "-∞"
        worst, best = (math.log(self.references[n].final) for n in ("greedy", "best simple"))
        return f"{(worst - math.log(loss)) / (worst - best):.0%}"

    def cells(self, run: Run) -> str:
        losses = (f"{loss:.3g} | {self.closed(loss)}" for loss in (run.final, run.average))
        return f"{run.lr[len(run.lr) // 2]:.2g} | {' | '.join(losses)} |".replace("inf", "∞")


HEAD = "lr half-way | loss | gap closed | of the average | gap closed |"


def run_all(steps: int, start: float, travel: float, variants: Sequence[bool]) -> Runs:
    runs: Runs = {}
    for on in variants:
        part = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        schedule = cosine(part) if on else torch.ones_like(part)
        runs["not learned", on] = expected(start * schedule)
        for name, method in METHODS.items():
            runs[name, on] = learn(method, schedule, start, travel)
    return runs


def show(result: Study, start: float, learned: Runs) -> None:
    print(f"\nLearned from {start:.3g}:\n\n| estimator | variant | {HEAD}\n|{'---|' * 7}")
    for (name, on), run in learned.items():
        print(f"| {name} | {'lr × cosine' if on else 'lr'} | {result.cells(run)}")


def study(steps: int, travel: float, off: bool) -> Study:
    families = simple(steps)
    best, schedule = list(families.items())[-1]
    schedules = {"greedy": greedy(steps), "constant": families["constant"]}
    schedules |= {"cosine": families["cosine"], "best simple": schedule}
    schedules["optimal"] = optimal(schedule)
    references = {name: expected(lr) for name, lr in schedules.items()}
    start = 0.1 * float(schedule[0])
    result = Study(steps, references, run_all(steps, start, travel, (False, True)))
    print(f"\n## T = {steps}\n\nBest simple schedule: {best}, from {schedule[0]:.3g}.\n")
    print(f"| schedule | {HEAD}\n|{'---|' * 6}")
    for name, run in references.items():
        print(f"| {name} | {result.cells(run)}")
    show(result, start, result.learned)
    for wrong in (0.1 * start, 10 * start) if off else ():
        show(result, wrong, run_all(steps, wrong, travel, (True,)))
    return result


COLORS = {
    "greedy": "black",
    "best simple": "tab:green",
    "optimal": "tab:gray",
    "OneStep": "tab:red",
    "Unrolled(25)": "tab:orange",
    "Forward(1.0)": "tab:purple",
    "OneStep, averaged": "tab:blue",
}


def draw(studies: Sequence[Study], path: Path) -> None:
    """Plot rates above and losses below, with one column per horizon."""
    plt.rcParams.update({"font.size": 12, "axes.grid": True, "grid.alpha": 0.3})
    size = (max(10.5, 4.8 * len(studies)), 8)
    figure, axes = plt.subplots(2, len(studies), figsize=size, sharex="col", squeeze=False)
    for (above, below), result in zip(axes.T, studies):
        above.set_title(f"T = {result.steps}")
        below.set_xlabel("step")
        curves(above, below, result)
    axes[0, 0].set_ylabel("learning rate")
    axes[1, 0].set_ylabel("expected loss")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def curves(above: Axes, below: Axes, result: Study) -> None:
    for name, color in COLORS.items():
        runs = {name: result.references[name]} if name in result.references else {}
        runs |= {n + " × cosine" * on: r for (n, on), r in result.learned.items() if n == name}
        for label, run in runs.items():
            style = {"color": color, "linewidth": 2.5 if name in result.references else 1.2}
            style["linestyle"] = "--" if label in METHODS else "-"
            after = [i * run.every for i in range(1, len(run.lr) + 1)]
            above.loglog(after, run.lr, label=label, **style)
            below.loglog(after, run.loss, **style)
    above.set_ylim(5e-4, 12)
    below.set_ylim(0.5 * result.references["optimal"].final, 3 * float(excess(BEGIN)))


@click.command()
@click.option("--horizons", default="100,1000,10000", show_default=True, help="Steps, by commas.")
@click.option("--travel", default=4.0, show_default=True, help="Of the raw rate in a whole run.")
@click.option("--off", default=0, show_default=True, help="Horizon to start 10 times off, too.")
@click.option("--picture", default="docs/noisy_quadratic.png", show_default=True)
def main(horizons: str, travel: float, off: int, picture: str) -> None:
    began = time.perf_counter()
    print(
        f"{len(CURVATURE)} directions, condition {CURVATURE[0] / CURVATURE[-1]:.0f}, SGD without "
        f"momentum, loss {excess(BEGIN):.3g} at the start, {SEEDS} seeds that share the learned "
        f"rate, travel {travel:g} in {RANGE}, average over T/10 steps, torch {torch.__version__}"
    )
    studies = [study(t, travel, t == off) for t in map(int, horizons.split(","))]
    draw(studies, Path(picture))
    print(f"\n{time.perf_counter() - began:.0f} s; {picture}")


if __name__ == "__main__":
    main()
