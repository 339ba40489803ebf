"""Learning-rate finder: when it looks, how it changes the lr, and where the lr ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import OPTIMIZERS, Case, close, network, normal, walk
from torch import Tensor, nn

from darts_lite.data import Dataset, Splits
from darts_lite.hypergradient import (
    Hyper,
    HyperParameters,
    HyperSpec,
    Learner,
    LearningRateFinder,
    LogInterval,
    OneStep,
    Unrolled,
)
from darts_lite.schedules import cosine

WIDE = LogInterval(1e-6, 1e2)


def rate(start: Any = 0.1, range_: LogInterval = WIDE) -> HyperParameters:
    value = torch.as_tensor(start, dtype=torch.float64)
    return HyperParameters((HyperSpec("lr", value, range_, "optimizer"),))


# --- The annealed look-ahead -------------------------------------------------------------------


def annealed_end(case: Case, hyper: Hyper, steps: int) -> Tensor:
    """Validation loss after `steps` steps by hand, with the lr of step t times 1 - t/steps."""
    state = case.state
    for t in range(steps):

        def settings(hyper: Hyper, t: int = t) -> dict[str, Any]:
            own = dict(case.problem.settings(hyper))
            return {**own, "lr": own["lr"] * (1 - t / steps)}

        problem = replace(case.problem.after(t), settings=settings)
        state = walk(case._replace(problem=problem, state=state), hyper, 1)
    return case.problem.outer_loss(state.params, hyper)[0]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_the_annealed_window_is_right_and_takes_no_step(name: str, steps: int) -> None:
    """Central differences of the annealed look-ahead, for every hyperparameter."""
    case = network(OPTIMIZERS[name])
    fixed = {n: h.detach() for n, h in case.hyper.items()}
    ahead = case(Unrolled(steps, anneal=True))
    assert ahead.state is case.state
    for variable, value in fixed.items():
        expected = torch.zeros_like(value)
        for i in range(value.numel()):
            unit = torch.zeros_like(value)
            unit.view(-1)[i] = 1e-5
            above, below = (
                annealed_end(case, {**fixed, variable: value + side * unit}, steps)
                for side in (1, -1)
            )
            expected.view(-1)[i] = (above - below) / 2e-5
        close(ahead.hypergradient[variable], expected, 1e-6)


def test_annealing_asks_for_a_higher_lr_than_a_plain_window() -> None:
    """In a noisy valley the plain window sees only noise, and lowers the lr to avoid it."""
    curvature = torch.logspace(0, -2, 20, dtype=torch.float64)
    noise = normal(400, 10, 20)

    def look(estimator: Unrolled, window: Tensor) -> Tensor:
        case = network(OPTIMIZERS["sgd"])
        start = torch.where(curvature > 0.5, 0.5, 3.0).to(curvature)  # the steep part is done
        problem = replace(
            case.problem,
            inner_loss=lambda p, h, t: (0.5 * (curvature * (p[0] - window[t]) ** 2).sum(), None),
            outer_loss=lambda p, h: (0.5 * (curvature * p[0] ** 2).sum(), None),
            settings=lambda h: {"lr": h["lr"]},
        )
        state = case.state._replace(params=(start,), optimizer=problem.optimizer.init((start,)))
        hyper = {"lr": torch.tensor(0.9, dtype=torch.float64, requires_grad=True)}
        return estimator(problem, state, hyper, {"lr": "optimizer"}).hypergradient["lr"]

    plain, annealed = (
        torch.stack([look(e, window) for window in noise[:60]]).mean()
        for e in (Unrolled(10), Unrolled(10, anneal=True))
    )
    assert plain > 0 > annealed


# --- When it looks -----------------------------------------------------------------------------


def looked(finder: LearningRateFinder, fractions: list[float]) -> list[float]:
    """Fractions at which a caller looks, if it looks whenever a look is due."""
    found = []
    for fraction in fractions:
        while finder.due(fraction):
            found.append(fraction)
            finder.done += 1
    return found


@pytest.mark.parametrize(("looks", "before", "until"), [(16, 6, 0.06), (5, 0, 0.04), (4, 3, 0.1)])
def test_it_looks_before_the_first_step_and_then_evenly(
    looks: int, before: int, until: float
) -> None:
    found = looked(LearningRateFinder(looks, before, until), [i / 10_000 for i in range(10_000)])
    assert len(found) == looks and found[:before] == [0.0] * before
    after = looks - before
    expected = [until * (k + 1) / after for k in range(after)]
    assert found[before:] == pytest.approx(expected, abs=1e-4)


def test_no_look_is_due_after_share() -> None:
    """A short training leaves some looks out, since looks count as training time."""
    assert looked(LearningRateFinder(), [0.0, 0.05, 0.11, 0.5]) == [0.0] * 6 + [0.05] * 8
    assert looked(LearningRateFinder(), [0.101]) == []
    assert len(looked(LearningRateFinder(), [0.099])) == 16


# --- How it changes the lr ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "direction"),
    [
        (1e-9, -1),
        (-1e9, 1),
        (0.0, 0),
        (math.nan, -1),
        (math.inf, -1),
        (-math.inf, -1),  # overflow is the mark of a rate too high, whatever its sign
    ],
)
def test_a_look_moves_by_its_stride(gradient: float, direction: int) -> None:
    """The change shrinks from look to look, whatever the size of the hypergradient."""
    variables, finder = rate(), LearningRateFinder(looks=4, stride=0.8)
    logs = [math.log(0.1)]
    for _ in range(4):
        finder.update(variables, {"lr": torch.tensor(gradient).double()})
        logs.append(float(variables.values()["lr"].log()))
    moves = torch.tensor(logs, dtype=torch.float64).diff().tolist()
    assert moves == pytest.approx([direction * s for s in (0.8, 0.6, 0.4, 0.2)], abs=1e-9)
    assert finder.done == 4 and not finder.due(0.0)


def test_groups_change_independently() -> None:
    variables, finder = rate([0.1, 0.1, 0.1]), LearningRateFinder()
    finder.update(variables, {"lr": torch.tensor([1.0, -1.0, math.nan]).double()})
    low, high = 0.1 * math.exp(-0.8), 0.1 * math.exp(0.8)
    torch.testing.assert_close(
        variables.values()["lr"], torch.tensor([low, high, low], dtype=torch.float64)
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_lr_stays_in_its_range(sign: float) -> None:
    """And leaves the end of the range at once."""
    variables, finder = rate(0.1, LogInterval(0.05, 0.2)), LearningRateFinder()
    for _ in range(8):
        finder.update(variables, {"lr": torch.tensor(sign).double()})
        assert 0.05 < float(variables.values()["lr"]) < 0.2
    end = float(variables.values()["lr"])
    finder.update(variables, {"lr": torch.tensor(-sign).double()})
    moved = math.log(float(variables.values()["lr"]) / end)
    assert moved == pytest.approx(sign * 0.8 * (1 - 8 / 16), rel=1e-6)


def test_no_other_hyperparameter_changes() -> None:
    other = HyperSpec("weight_decay", torch.tensor(0.1), WIDE, "optimizer")
    variables = HyperParameters((*rate().specs, other))
    before = variables.raw["weight_decay"].clone()
    finder = LearningRateFinder()
    finder.update(variables, {"lr": torch.ones(()), "weight_decay": torch.ones(())})
    assert torch.equal(variables.raw["weight_decay"], before)
    assert set(finder.kinds) == {"lr"}


def test_a_resumed_finder_continues() -> None:
    whole, variables = LearningRateFinder(), rate()
    for _ in range(7):
        whole.update(variables, {"lr": torch.ones(()).double()})
    again = LearningRateFinder()
    again.load_state_dict(whole.state_dict())
    other = rate(float(variables.values()["lr"]))
    for finder, own in ((whole, variables), (again, other)):
        assert finder.due(0.012) and not finder.due(0.011)
        finder.update(own, {"lr": -torch.ones(()).double()})
    torch.testing.assert_close(variables.values(), other.values())


# --- Where it ends -----------------------------------------------------------------------------


def found_rate(images: Tensor, labels: Tensor, start: float, seed: int, steps: int = 400) -> float:
    """The lr after a tenth of a training with momentum, BatchNorm and a cosine schedule."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.SiLU(), nn.Linear(32, 10)
        )
    optimizer = torch.optim.SGD(model.parameters(), start, momentum=0.9, nesterov=True)
    spec = HyperSpec("lr", torch.tensor(start), WIDE, "optimizer")
    generator = torch.Generator().manual_seed(seed)

    def batch(first: int, last: int, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(first, last, (count,), generator=generator)
        return images[rows], labels[rows]

    def loss(model: Callable[..., Tensor], batch: tuple[Tensor, Tensor], _: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    learner = Learner(model, optimizer, loss, [spec], steps, OneStep())
    finder = LearningRateFinder()
    for i in range(steps // 10):
        while finder.due(i / steps):
            learner.look(finder, [batch(0, 400, 64) for _ in range(10)], batch(400, 600, 128))
        optimizer.param_groups[0]["lr"] = start * cosine(i / steps)
        learner.step(batch(0, 400, 64))
    assert finder.done == finder.looks
    return float(learner.values()["lr"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* learns the lr greedily")
def test_every_start_ends_at_a_similar_lr(digits: tuple[Dataset, Splits]) -> None:
    """Starts of 1/30, 1 and 10 times 0.1; from the highest start not every seed comes down."""
    parts = digits[1].train, digits[1].validation
    images = torch.cat([p.pixels for p in parts]).flatten(1).float() / 255
    labels = torch.cat([p.labels for p in parts]).long()
    low, right, high = (
        sorted(found_rate(images, labels, 0.1 * factor, seed) for seed in range(5))
        for factor in (1 / 30, 1.0, 10.0)
    )
    assert all(0.08 < end < 0.8 for end in low)
    assert 1 / 3 < low[2] / right[2] < 3
    assert 1 / 3 < low[2] / high[0] < 3
