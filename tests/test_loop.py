"""The training loop with a counting task: checkpoints, signals, values that are not finite."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_lite.errors import Interrupted, UserError
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget


class Counter:
    """Task whose state is its number of steps; it calls `what` at step `at`."""

    closing_steps = 0.0
    finished = False

    def __init__(self, at: int = -1, what: Any = None):
        self.count, self.at, self.what, self.evaluations = 0, at, what, 0
        self.loss = self.weight = 1.0

    def doing(self, fraction: float) -> str:
        return ""

    def step(self, fraction: float) -> int:
        self.count += 1
        if self.count == self.at:
            self.what(self)
        return 1

    def report(self) -> dict[str, float]:
        return {"loss/train": self.loss, "count": self.count}

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        self.evaluations += 1
        return {"evaluations": self.evaluations}

    def status(self, values: dict[str, float]) -> str:
        return f"count {values['count']}"

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "params": torch.tensor(self.weight)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def run(task: Counter, folder: Path, steps: int = 30, start: int = 0, every: float = 60.0) -> int:
    store = loop.Store(folder / "c.pt", "count", {}, every)
    with Recorder(folder, start or None) as recorder:
        return loop.run(task, Budget(steps=steps), recorder, store, start=loop.Start(start))


def test_the_loop_spends_its_budget_evaluates_and_saves(tmp_path: Path) -> None:
    task = Counter()
    assert run(task, tmp_path) == 30
    assert task.count == 30
    assert task.evaluations == loop.EVALUATIONS - 1
    assert checkpoint.load(tmp_path / "c.pt", "count")["state"]["task"]["count"] == 30


def test_the_first_checkpoint_is_written_before_the_first_step(tmp_path: Path) -> None:
    def look(task: Counter) -> None:
        saved = checkpoint.load(tmp_path / "c.pt", "count")["state"]
        assert (saved["step"], saved["task"]["count"]) == (0, 0)

    assert run(Counter(1, look), tmp_path) == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_run_resumes(tmp_path: Path, number: int) -> None:
    task = Counter(7, lambda _: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as stop:
        run(task, tmp_path)
    assert stop.value.signum == number
    content = checkpoint.load(tmp_path / "c.pt", "count")
    assert content["state"]["task"]["count"] == 7
    again, budget = Counter(), Budget(steps=30)
    start = loop.restore(again, content, tmp_path / "c.pt", budget)
    assert start == (7, 2)
    assert budget.elapsed > 0
    run(again, tmp_path, start=start.step)
    assert again.count == 30


def test_the_old_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(Counter(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    task = Counter(15, lambda t: setattr(t, "loss", bad))
    with pytest.raises(UserError, match="last good state") as error:
        run(task, tmp_path, every=0.0)
    assert "\n" not in str(error.value)
    assert checkpoint.load(tmp_path / "c.pt", "count")["state"]["task"]["count"] == 14


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    task = Counter(15, lambda t: setattr(t, "weight", float("nan")))
    with pytest.raises(UserError, match="a weight must be finite"):
        run(task, tmp_path, every=0.0)
    assert checkpoint.load(tmp_path / "c.pt", "count")["state"]["task"]["count"] == 14


def test_a_resumed_run_by_the_clock_continues_at_its_fraction(tmp_path: Path) -> None:
    """The fraction never falls after an interrupt, and no step runs twice."""
    budget, fractions = Budget(seconds=loop.CLOSING + 1), []

    class Slow(Counter):
        def step(self, fraction: float) -> int:
            fractions.append(fraction)
            super().step(fraction)
            time.sleep(0.02)
            if fraction > 0.3 and not self.at:
                self.at = 1
                os.kill(os.getpid(), signal.SIGINT)
            return 1

    store = loop.Store(tmp_path / "c.pt", "count", {})
    with Recorder(tmp_path) as recorder, pytest.raises(Interrupted):
        loop.run(Slow(at=0), budget, recorder, store)
    content = checkpoint.load(tmp_path / "c.pt", "count")
    again, rest = Slow(at=1), Budget(seconds=loop.CLOSING + 1)
    start = loop.restore(again, content, store.path, rest)
    with Recorder(tmp_path, start.step) as recorder:
        loop.run(again, rest, recorder, store, start=start)
    assert fractions == sorted(fractions)
    assert rest.exhausted(again.count)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must fit this run"):
        loop.restore(Counter(), {"state": {"task": {}}}, tmp_path / "c.pt", Budget(steps=1))


def test_slow_first_steps_do_not_raise_the_reserve(tmp_path: Path) -> None:
    """Slow steps, such as look-aheads, must not count as the time per step of the closing work."""

    class Looking(Counter):
        closing_steps = 100.0

        def step(self, fraction: float) -> int:
            super().step(fraction)
            time.sleep(0.2 if self.count <= 3 else 0.002)
            return 1

    budget = Budget(seconds=loop.CLOSING + 3)
    task, store = Looking(), loop.Store(tmp_path / "c.pt", "count", {})
    with Recorder(tmp_path) as recorder:
        loop.run(task, budget, recorder, store)
    assert (
        budget.reserve < loop.CLOSING + 1.5
    )  # with the mean of the first ten steps it would be 6 s more
    assert task.count > 20


def test_a_slow_first_step_does_not_end_the_run(tmp_path: Path) -> None:
    """The reserve is estimated at each checkpoint, and the first checkpoint is after one step."""

    class Slow(Counter):
        closing_steps = 100.0

        def step(self, fraction: float) -> int:
            super().step(fraction)
            time.sleep(0.5 if self.count == 1 else 0.002)
            return 1

    budget = Budget(seconds=loop.CLOSING + 2)
    task, store = Slow(), loop.Store(tmp_path / "c.pt", "count", {}, every=0.1)
    with Recorder(tmp_path) as recorder:
        loop.run(task, budget, recorder, store)
    assert task.count > 20


def test_a_paused_run_continues_with_the_fraction_of_the_whole_budget(tmp_path: Path) -> None:
    """`until` and `deadline` end a run early and do not change its schedules."""
    fractions = []

    class Watching(Counter):
        def step(self, fraction: float) -> int:
            fractions.append(fraction)
            return super().step(fraction)

    task, store = Watching(), loop.Store(tmp_path / "c.pt", "count", {})
    budget = Budget(steps=20, until=5)
    with Recorder(tmp_path) as recorder:
        assert loop.run(task, budget, recorder, store, closes=False) == 5
        budget.until, budget.deadline = None, time.monotonic() - 1
        assert loop.run(task, budget, recorder, store, start=loop.Start(5), closes=False) == 5
        budget.deadline = None
        assert loop.run(task, budget, recorder, store, start=loop.Start(5), closes=False) == 20
    assert fractions == [i / 20 for i in range(20)]
    assert task.evaluations == 0


def test_the_loop_keeps_ignoring_an_ignored_signal(tmp_path: Path) -> None:
    """A worker ignores Ctrl-C, because its launcher passes it on as another signal."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        task = Counter(7, lambda _: os.kill(os.getpid(), signal.SIGINT))
        assert run(task, tmp_path) == 30
    finally:
        signal.signal(signal.SIGINT, old)
