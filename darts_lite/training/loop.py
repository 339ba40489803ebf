"""The training loop: runs a task within a budget, with progress, checkpoints and resuming.

A search and a final training are tasks. The loop does not depend on networks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from darts_lite.errors import Diverged, Interrupted, UserError
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.budget import Budget
from darts_lite.training.progress import Progress

CLOSING = 6.0  # seconds of the budget that are kept for pictures and files
LOG_EVERY = 10  # steps between two synchronizations with the device
SLOW = 1.0  # seconds after which the progress moves, also between these steps
EVALUATIONS = 10  # evaluations per run, or fewer if they take more than the share LOOKING
LOOKING = 0.05  # largest share of the time for evaluations


class Task(Protocol):
    """The work that the loop runs. Its state is everything that its next steps depend on."""

    @property
    def closing_steps(self) -> float:
        """Time of the work after the loop, in steps."""

    @property
    def finished(self) -> bool:
        """Whether the run ends before its budget."""

    def doing(self, fraction: float) -> str:
        """Return what makes the next step slow, such as a look-ahead; "" for a usual step."""

    def step(self, fraction: float) -> int:
        """Update at the given fraction of the budget; return the number of weight steps."""

    def report(self) -> dict[str, float]:
        """Return means since the last call; no other method waits for the device at every step."""

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Return measurements and record pictures; later steps must not depend on the call."""

    def status(self, values: dict[str, float]) -> str:
        """Return one short line for the progress bar."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Store:
    """File and configuration of the checkpoint of a run.

    Arguments:
        path: file of the checkpoint.
        kind: kind of the run, such as "search".
        config: configuration of the run, as JSON values.
        every: seconds between two checkpoints.
    """

    path: Path
    kind: str
    config: Mapping[str, object]
    every: float = 50.0

    def save(self, task: Task, step: int, evaluations: int, budget: Budget) -> None:
        """Write a checkpoint.

        Raises: `Diverged` if a weight is not finite; the file then keeps the last good state.
        """
        state = task.state_dict()
        if not checkpoint.is_finite(state["params"]):
            raise self.not_finite("a weight", step)
        progress = {"step": step, "evaluations": evaluations, "budget": budget.state_dict()}
        checkpoint.save(self.path, self.kind, self.config, {"task": state, **progress})

    def not_finite(self, name: str, step: int) -> Diverged:
        """Return the error for a value that is not finite."""
        kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
        return Diverged(
            f"{name} must be finite, got NaN or infinite at step {step}; use a larger "
            f"--batch-size, another --seed or, in derive, --hyperparameters default{kept}"
        )


class Start(NamedTuple):
    """Steps and evaluations before the start or the continuation of a run."""

    step: int = 0
    evaluations: int = 0


BEGINNING = Start()


def restore(task: Task, content: dict[str, Any] | None, path: Path, budget: Budget) -> Start:
    """Load a checkpoint into a task and a budget; return where the run continues.

    Arguments:
        task: task to change.
        content: content of the checkpoint; None for a new run.
        path: file of the checkpoint, for errors.
        budget: budget to change.
    Raises: `UserError` if the checkpoint does not fit the task.
    """
    if content is None:
        return BEGINNING
    try:
        state = content["state"]
        task.load_state_dict(state["task"])
        budget.load_state_dict(state["budget"])
        return Start(int(state["step"]), int(state["evaluations"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path} must fit this run, got {type(error).__name__}: {error}; it is from another "
            "space or version: choose another --out"
        ) from None


def run(
    task: Task,
    budget: Budget,
    recorder: Recorder,
    store: Store,
    *,
    start: Start = BEGINNING,
    progress: Progress | None = None,
    closes: bool = True,
) -> int:
    """Run the steps of a task until the budget is exhausted; return the number of steps.

    The first checkpoint of a new run is written before its first step.

    Arguments:
        task: task to run.
        budget: budget in seconds or steps.
        recorder: takes the scalars and pictures.
        store: file and configuration of the checkpoint.
        start: where the run continues.
        progress: progress bar; None for no bar.
        closes: whether the run has evaluations, and work after the loop for which time is kept.
    Raises: `Interrupted` at Ctrl-C or SIGTERM, after a checkpoint; `Diverged` if a loss or a weight
        is not finite; the checkpoint then keeps the last good state.
    """
    step, evaluations = start
    progress = progress or Progress(None)
    began = saved = shown = time.monotonic()
    looking, reported, status = 0.0, step, "first steps"
    pace = math.inf  # seconds of the fastest step: some steps do more than the work of one step

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

    with _Signals() as signals:
        if not store.path.exists():
            store.save(task, step, evaluations, budget)
        while not (budget.exhausted(step) or task.finished):
            fraction, now = budget.fraction(step), time.monotonic()
            # In a budget by the clock, evaluations take a bounded share of the time; in a budget
            # of steps, they must be reproducible.
            affordable = closes and (budget.steps is not None or looking <= LOOKING * (now - began))
            if fraction * EVALUATIONS >= evaluations + 1 and affordable:
                evaluations = int(fraction * EVALUATIONS)
                progress.doing("evaluating and drawing pictures")
                record(task.evaluate(step, recorder))
                looking += time.monotonic() - now
            if slow := task.doing(fraction):
                progress.doing(slow)
            before, before_step = step, time.monotonic()
            step += task.step(fraction)
            pace = min(pace, (time.monotonic() - before_step) / (step - before))
            late = time.monotonic() - saved > store.every
            if step // LOG_EVERY > before // LOG_EVERY or late or signals.received:
                status, shown = task.status(report()), 0.0
                if closes and before > start.step:  # the first step may take unusually long
                    budget.reserve = CLOSING + task.closing_steps * pace
            if time.monotonic() - shown > SLOW:
                progress.show(budget.fraction(step), status)
                shown = time.monotonic()
            if late or signals.received:
                store.save(task, step, evaluations, budget)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(signals.received, store.path)
        if step > reported:
            report()
        if step > start.step:
            store.save(task, step, evaluations, budget)
        if signals.received:
            raise Interrupted(signals.received, store.path)
    return step


class _Signals:
    """Turn Ctrl-C and SIGTERM into a request to stop; a second signal stops the process at once."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # another process passes it on
                    self._old[number] = signal.signal(number, self._receive)
        except ValueError:
            pass  # this is not the main thread; the main thread handles signals
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, old in self._old.items():
            signal.signal(each, old)

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
