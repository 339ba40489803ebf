"""The one training loop: it drives a task by a budget, with progress, checkpoints and resuming.

`search` and `train` are tasks. The loop knows nothing of networks.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from darts_lite.errors import Diverged, Interrupted, UserError
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.budget import Budget

CLOSING = 6.0  # seconds kept for pictures and files
LOG_EVERY = 10  # steps between two synchronisations with the device
EVALUATIONS = 10  # in a run, unless they take more than
LOOKING = 0.05  # of its time


class Task(Protocol):
    """What the loop drives. Its state is everything that its next steps depend on."""

    @property
    def closing_steps(self) -> float:
        """How many steps' time the work after the loop takes."""

    def step(self, fraction: float) -> None:
        """One update at the given fraction of the budget."""

    def report(self) -> dict[str, float]:
        """Means since the last call; the only place that waits for the device."""

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Measures and pictures; later steps must not depend on it."""

    def status(self, values: dict[str, float]) -> str:
        """One short line for the progress bar."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Store:
    """Where a run keeps its checkpoint, and under which configuration."""

    path: Path
    kind: str
    config: Mapping[str, object]
    every: float = 50.0  # seconds

    def save(self, task: Task, step: int, evaluations: int, budget: Budget) -> None:
        """Writes a checkpoint; raises `Diverged` rather than keep a state that is not finite."""
        state = task.state_dict()
        if not checkpoint.is_finite(state["params"]):
            raise self.not_finite("a weight", step)
        progress = {"step": step, "evaluations": evaluations, "budget": budget.state_dict()}
        checkpoint.save(self.path, self.kind, self.config, {"task": state, **progress})

    def not_finite(self, name: str, step: int) -> Diverged:
        kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
        return Diverged(
            f"{name} is NaN or infinite at step {step}: try a larger --batch-size, another --seed "
            f"or, in derive, --hyperparameters default{kept}"
        )


class Start(NamedTuple):
    """Where a run goes on."""

    step: int = 0
    evaluations: int = 0


BEGINNING = Start()


def restore(task: Task, content: dict[str, Any] | None, path: Path, budget: Budget) -> Start:
    """Puts a loaded checkpoint into a task and a budget; returns where to go on."""
    if content is None:
        return BEGINNING
    try:
        state = content["state"]
        task.load_state_dict(state["task"])
        budget.load_state_dict(state["budget"])
        return Start(int(state["step"]), int(state["evaluations"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path} does not fit this run ({type(error).__name__}: {error}); it comes from "
            "another space or version: choose another --out"
        ) from None


def run(
    task: Task,
    budget: Budget,
    recorder: Recorder,
    store: Store,
    *,
    start: Start = BEGINNING,
    name: str | None = None,
    closes: bool = True,
) -> int:
    """Steps until the budget is exhausted; returns the number of steps.

    Arguments: `name`, what the progress bar says; without one there is no bar; `closes`, whether
    evaluations belong to the run, and pictures and files at its end, for which time is kept.

    Raises: `Interrupted` at Ctrl-C or SIGTERM, after saving; `Diverged` if a loss or a weight
    stops being finite, leaving the last good checkpoint as it is.
    """
    began = saved = time.monotonic()
    step, evaluations = start
    looking, reported = 0.0, step
    pace = math.inf  # of the fastest step: some do more than one step's work

    def record(values: dict[str, float]) -> None:
        if values:
            recorder.scalars(step, {**values, "seconds": budget.elapsed})

    def report() -> dict[str, float]:
        nonlocal reported
        values = task.report()
        reported = step
        for key, value in values.items():
            if key.startswith("loss") and not math.isfinite(value):
                raise store.not_finite(key, step)
        record(values)
        return values

    with _Signals() as signals, _Progress(name, budget, step) as progress:
        while not budget.exhausted(step):
            fraction, now = budget.fraction(step), time.monotonic()
            # By the clock, looking takes a bounded share; by steps, it must be reproducible.
            affordable = closes and (budget.steps is not None or looking <= LOOKING * (now - began))
            if fraction * EVALUATIONS >= evaluations + 1 and affordable:
                evaluations = int(fraction * EVALUATIONS)
                record(task.evaluate(step, recorder))
                looking += time.monotonic() - now
            before_step = time.monotonic()
            task.step(fraction)
            step += 1
            pace = min(pace, time.monotonic() - before_step)
            late = time.monotonic() - saved > store.every
            if step % LOG_EVERY == 0 or late or signals.received:
                progress.show(step, task.status(report()))
                if closes and step > start.step + 1:  # one step alone may have done much more
                    budget.reserve = CLOSING + task.closing_steps * pace
            if late or signals.received:
                store.save(task, step, evaluations, budget)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(signals.received, store.path)
        if step > reported:
            report()
        if step > start.step or not store.path.exists():
            store.save(task, step, evaluations, budget)
        if signals.received:
            raise Interrupted(signals.received, store.path)
    return step


class _Signals:
    """Turns Ctrl-C and SIGTERM into a request; a second one takes effect at once."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # somebody else passes it on
                    self._old[number] = signal.signal(number, self._receive)
        except ValueError:
            pass  # not the main thread: its owner handles signals
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, old in self._old.items():
            signal.signal(each, old)

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


class _Progress:
    """A bar in percent of the budget; on a file or pipe, a line now and then."""

    def __init__(self, name: str | None, budget: Budget, start: int):
        self._budget = budget
        self._began = (time.monotonic(), budget.fraction(start))
        self._bar = tqdm(
            total=100,
            desc=name,
            disable=name is None,
            mininterval=0.2 if sys.stderr.isatty() else 15,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {postfix}",
        )

    def __enter__(self) -> _Progress:
        return self

    def show(self, step: int, status: str) -> None:
        fraction = self._budget.fraction(step)
        began, first = self._began
        left = (time.monotonic() - began) * (1 - fraction) / max(fraction - first, 1e-6)
        clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02}:{int(left % 60):02} left"
        self._bar.set_postfix_str(f"{clock}, {status}", refresh=False)
        self._bar.update(100 * fraction - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def warn(message: str) -> None:
    """A warning that does not break the progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)
