"""Small studies for tests: a space without networks; workers and commands in this process."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import optuna
import pytest
from click.testing import Result
from invoking import invoke, refusal
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from darts_lite.architecture.recipe import Recipe
from darts_lite.commands import cli
from darts_lite.data import Dataset, Splits
from darts_lite.hpo import launcher as launch
from darts_lite.hpo.options import TuneOptions
from darts_lite.hpo.setup import assemble, completed
from darts_lite.hpo.space import constant
from darts_lite.hpo.storage import NAME, Study
from darts_lite.hpo.worker import Worker
from darts_lite.training.run import read_data

SMALL = ["--dataset", "digits", "--space", "blocks", "--cells", "3", "--channels", "4",
         "--max-params", "20000", "--epochs", "2", "--subset", "200"]  # fmt: skip


def call(*arguments: object) -> Result:
    """Run a command whose clock starts now."""
    with patch.object(cli, "PROCESS_START", time.monotonic()):
        return invoke(cli.main, *arguments)


def refuse(*arguments: object) -> str:
    """Run a command with bad input; return its one-line error."""
    return refusal(call(*arguments))


@dataclass(frozen=True)
class Toy:
    """A space of three dimensions without networks."""

    def configure(self, choose: Any) -> Any:
        values = {
            "kind": choose.categorical("kind", ("a", "b")),
            "width": choose.integer("width", 2, 8, 2),
            "x": choose.real("x", 0.0, 1.0),
        }
        recipe = Recipe(schedules=constant({"lr": values["x"]}))
        return SimpleNamespace(values=values, recipe=recipe)


@lru_cache
def digits(subset: int) -> tuple[Dataset, Splits]:
    said = TuneOptions(method="random", dataset="digits", subset=subset)
    return read_data(said, 0, lambda text: None)


def small(folder: Path, method: str = "random", **changes: Any) -> Worker:
    """Return a worker of the study in a folder; create the study if needed."""
    said: dict[str, Any] = {
        "out": str(folder),
        "dataset": "digits",
        "subset": 200,
        "epochs": 2,
        "space": "blocks",
        "cells": 3,
        "channels": 4,
        "max_params": 20_000,
        "device": "cpu",
    }
    asked = TuneOptions(method=method, **{**said, **changes})
    assert asked.subset is not None
    dataset, splits = digits(asked.subset)
    options = completed(asked, dataset)
    setup = assemble(options, dataset, splits)
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(options.storage or folder / launch.JOURNAL)
    if not study.exists():
        settings = {"options": asdict(options), "data": dict(dataset.fingerprint)}
        study.create(settings, pareto=options.pareto)
    assert options.max_params is not None
    return Worker(
        study=study,
        method=setup.method,
        space=setup.space,
        bench=setup.bench,
        max_params=options.max_params,
        seed=options.seed,
        search=setup.search,
        trials=options.trials,
    )


def on(worker: Worker, **changes: Any) -> Worker:
    """Return the same worker with changes to its bench."""
    return replace(worker, bench=replace(worker.bench, **changes))


def optuna_study(study: Study) -> optuna.Study:
    """The study as Optuna sees it, opened anew."""
    storage: Any = study.where
    if "://" not in storage:
        storage = JournalStorage(JournalFileBackend(str(Path(storage).absolute())))
    return optuna.load_study(study_name=NAME, storage=storage)


def states(worker: Worker) -> list[str]:
    return [record.state for record in worker.study.records()]


class Within:
    """Replacement of a worker's process that does all work at its start, in this process."""

    def __init__(self, launcher: Any, index: int) -> None:
        ours = (launcher.options, index, launcher.deadline, os.getppid(), launcher.errors)
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.exitcode = 0
        try:
            launch._work(*ours)
        except SystemExit as stop:
            self.exitcode = int(stop.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def terminate(self) -> None:
        pass

    def join(self) -> None:
        pass


def work_within(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the workers of `tune` in this process, which saves five seconds per worker."""
    monkeypatch.setattr(launch._Launcher, "_start", lambda self, index: Within(self, index))


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` if the block takes too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not over after {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
