"""The one training loop: it drives a task by a budget, with progress, checkpoints and resuming.

`search` and `train` are tasks. The loop knows nothing of networks.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from tqdm import tqdm

from darts_lite import checkpoint
from darts_lite.budget import Budget
from darts_lite.errors import Interrupted, UserError
from darts_lite.record import Recorder

CLOSING = 4.0  # seconds kept for pictures and files
LOG_EVERY = 10  # steps between two synchronisations with the device
EVALUATIONS = 10  # in a run, unless they take more than
LOOKING = 0.05  # of its time


class Task(Protocol):
    """What the loop drives. Its state is everything that the next step depends on."""

    @property
    def closing_steps(self) -> float:
        """How many steps' time the work after the loop takes."""

    def step(self, fraction: float) -> None:
        """One update at the given fraction of the budget."""

    def report(self) -> dict[str, float]:
        """Means since the last call; the only place that waits for the device."""

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Measures and pictures; must not change the state."""

    def status(self, values: dict[str, float]) -> str:
        """One short line for the progress bar."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Store:
    """Where a run keeps its checkpoint, and under which configuration."""

    path: Path
    kind: str
    config: dict[str, object]
    every: float = 60.0  # seconds

    def save(self, task: Task, step: int, budget: Budget) -> None:
        state = {"task": task.state_dict(), "step": step, "elapsed": budget.elapsed}
        checkpoint.save(self.path, self.kind, self.config, state)


def restore(task: Task, content: dict[str, Any] | None, path: Path, budget: Budget) -> int:
    """Puts a loaded checkpoint into a task and a budget; returns the step to go on from."""
    if content is None:
        return 0
    state = content["state"]
    try:
        task.load_state_dict(state["task"])
        budget.spent, step = float(state["elapsed"]), int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path} does not fit this run ({type(error).__name__}: {error}); it comes from "
            "another space or version: choose another --out"
        ) from None
    return step


def run(
    task: Task,
    budget: Budget,
    recorder: Recorder,
    store: Store,
    *,
    start: int = 0,
    name: str = "",
) -> int:
    """Steps until the budget is exhausted; returns the number of steps.

    Raises: `Interrupted` at Ctrl-C or SIGTERM, after saving; `UserError` if a loss stops being
    finite, leaving the last good checkpoint as it is.
    """
    began = saved = time.monotonic()
    step, evaluated, looking = start, _due(budget, start), 0.0
    with _Signals() as signals, _Progress(name, budget, start) as progress:
        while not budget.exhausted(step):
            fraction = budget.fraction(step)
            now = time.monotonic()
            if _due(budget, step) > evaluated and looking <= LOOKING * (now - began):
                evaluated = _due(budget, step)
                recorder.scalars(step, task.evaluate(step, recorder))
                looking += time.monotonic() - now
            task.step(fraction)
            step += 1
            late = time.monotonic() - saved > store.every
            if step % LOG_EVERY == 0 or late or signals.received:
                values = task.report()
                _check_finite(values, step, store)
                recorder.scalars(step, values)
                progress.show(step, task.status(values))
                pace = (time.monotonic() - began - looking) / (step - start)
                budget.reserve = CLOSING + task.closing_steps * pace
            if late or signals.received:
                store.save(task, step, budget)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(signals.received, store.path)
        if step > start:
            values = task.report()
            _check_finite(values, step, store)
            recorder.scalars(step, values)
    store.save(task, step, budget)
    return step


def _due(budget: Budget, step: int) -> int:
    return int(budget.fraction(step) * EVALUATIONS)


def _check_finite(values: dict[str, float], step: int, store: Store) -> None:
    for name, value in values.items():
        if name.startswith("loss") and not math.isfinite(value):
            kept = f"; {store.path} holds the last good state" if store.path.exists() else ""
            raise UserError(
                f"{name} is {value} at step {step}: try a lower --lr or a larger --batch-size{kept}"
            )


class _Signals:
    """Turns Ctrl-C and SIGTERM into a request; a second one takes effect at once."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def __init__(self, name: str, budget: Budget, start: int):
        self._budget = budget
        self._began = (time.monotonic(), budget.fraction(start))
        self._bar = tqdm(
            total=100,
            desc=name,
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
