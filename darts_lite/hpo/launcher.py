"""The command `tune`: start or resume a study, run its workers, write the results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any
from zlib import crc32

import torch
from tqdm import tqdm

from darts_lite.architecture.genotype import Genotype
from darts_lite.data import Dataset
from darts_lite.errors import Interrupted, UserError
from darts_lite.files import quiet_threads, read_json, write_json
from darts_lite.hpo import results
from darts_lite.hpo import warm_start as history
from darts_lite.hpo.liveness import worker_name
from darts_lite.hpo.methods.gradient import Gradient
from darts_lite.hpo.options import TuneOptions
from darts_lite.hpo.setup import Setup, assemble, completed, threads
from darts_lite.hpo.storage import HEARTBEAT, Study, reachable
from darts_lite.hpo.worker import Worker, orphans_stop
from darts_lite.reporting import comparison as report
from darts_lite.training import checkpoint
from darts_lite.training.options import MAY_MOVE
from darts_lite.training.run import (
    Say,
    make_folder,
    read_data,
    require_free,
    require_same_data,
    stored_options,
)

JOURNAL = "study.journal"
CLOSING = 3.0  # seconds of the budget that are kept for writing the results
RESTARTS = 3  # restarts per worker after it was killed
FREE = MAY_MOVE | {"budget_hours", "trials", "workers", "storage"}


def tune(
    options: TuneOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> Path:
    """Run a study and write the best configuration to `g.json`.

    Arguments:
        options: Options of the study.
        resume: Names of the options that the user gave with --resume; all other options come from
            the study. None starts a new study.
        started: Start of the budget, on the clock of `time.monotonic`; None means now.
        say: Function that prints one line.

    Returns:
        Path of `g.json`.

    Raises:
        UserError: An option, the data or the storage are wrong.
        Interrupted: A signal stopped the study.
    """
    began = time.time() - (0.0 if started is None else time.monotonic() - started)
    out = Path(options.out)
    if resume is None or not _begun(options, say):
        if resume is None:
            require_free([out / n for n in ("study.json", JOURNAL, "g.json")], "tune")
        dataset, splits = read_data(options, options.seed, say)
        options = completed(options, dataset)
        setup = assemble(options, dataset, splits)
        earlier = history.read(options.warm_start)
        if isinstance(setup.method, Gradient):
            history.genotypes(options.warm_start)  # checks now that the genotypes exist
        study = _begin(options, dataset)
        history.start(study, setup.method, setup.space, earlier, options, dataset, say)
    else:
        study, options = _continue(options, resume)
        dataset, splits = read_data(options, options.seed, say)
        setup = assemble(options, dataset, splits)
    require_same_data(study.settings["data"], dataset, study.where)
    data = dict(dataset.fingerprint)
    make_folder(out)
    _write_settings(out, options, data)
    say(
        f"{options.method} on {options.dataset}: {setup.bench.splits.train.count} training and "
        f"{setup.bench.splits.validation.count} validation images, at most {options.max_params} "
        f"parameters, {options.epochs} epochs, {options.workers} workers, on {setup.bench.device}"
    )
    session = f"{worker_name(0)} {began}"
    with reachable(study.where):
        study.tick(session, began)
        launcher = _Launcher(study, options, session, began)
        try:
            launcher.run()
        finally:
            results.write_trials(out / "trials.jsonl", study.records())
        path = _finish(study, setup, options, say)
    for line in history.saved(options.warm_start, out):
        say(line)
    report.write_report([out], out / "report", say=lambda text: None)
    return path


def _begin(options: TuneOptions, dataset: Dataset) -> Study:
    where = options.storage or str(Path(options.out) / JOURNAL)
    if "://" not in where:
        make_folder(Path(where).parent)
    study = Study(where)
    settings = {
        "options": asdict(options),
        "data": dict(dataset.fingerprint),
        "threads": torch.get_num_threads(),
    }
    study.create(settings, pareto=options.pareto)
    return study


def _remembered(options: TuneOptions) -> str:
    """Return the storage of a study: from the option, else from study.json, else the default."""
    out = Path(options.out)
    if options.storage is not None:
        return options.storage
    try:
        said = read_json(out / "study.json")["storage"]
    except (UserError, KeyError):
        said = None
    return said or str(out / JOURNAL)


def _begun(options: TuneOptions, say: Say) -> bool:
    """Tell whether there is a study to resume; without one, --resume starts it anew."""
    where, result = _remembered(options), Path(options.out) / "g.json"
    if ("://" in where or Path(where).exists()) and Study(where).exists():
        return True
    if result.exists():
        raise UserError(
            f"{where} must hold a study, because {result} exists, got none; choose another --out"
        )
    say(f"there is no study in {where} to resume: starting anew")
    return False


def _continue(options: TuneOptions, given: Collection[str]) -> tuple[Study, TuneOptions]:
    where = _remembered(options)
    study = Study(where)
    settings = study.settings
    stored = asdict(stored_options(TuneOptions, settings, Path(where)))
    changed = {n: v for n, v in asdict(options).items() if n in given}
    checkpoint.check_config(Path(where), stored, {**stored, **changed}, set(FREE))
    free = {n: v for n, v in changed.items() if n in FREE}
    own = str(Path(options.out) / JOURNAL)
    free["storage"] = None if where == own else where
    options = TuneOptions(**{**stored, **free})
    larger = {n: v for n, v in free.items() if n in ("budget_hours", "trials")}
    if larger:
        study.change({**settings, "options": {**stored, **larger}})
    return study, options


def _write_settings(out: Path, options: TuneOptions, data: dict[str, Any]) -> None:
    """Write `study.json`, for `report` and for the user."""
    objective = "pareto" if options.pareto else "accuracy"
    write_json(out / "study.json", {**asdict(options), "objective": objective, "dataset": data})


def _finish(study: Study, setup: Setup, options: TuneOptions, say: Say) -> Path:
    """Write the best configuration; with --pareto, print the front too."""
    records, out = study.records(), Path(options.out)
    assert options.max_params is not None
    chosen = results.best(records, options.max_params)
    if chosen is None:
        raise UserError(
            f"the budget must suffice for one measurement, got none of {len(records)} started "
            "trials; continue with --resume and a larger --budget-hours"
        )
    if options.pareto:
        for record in results.pareto(records, options.max_params):
            say(f"{record.parameters} parameters: {record.accuracy:.2%}, trial {record.trial}")
    own = study.genotype(chosen.trial)
    genotype = results.write_best(setup.bench, records, chosen, own)
    say(
        f"{out / 'g.json'}: trial {chosen.trial} of {len(records)}, validation accuracy "
        f"{chosen.accuracy:.2%} at fidelity {chosen.fidelity:.0%}, {genotype.parameters} "
        f"parameters, {genotype.macs} MACs, {study.elapsed():.0f} s"
    )
    return out / "g.json"


# --- workers -----------------------------------------------------------------------------------


class _Launcher:
    """Start the workers, update the clock and the progress bar, restart killed workers."""

    def __init__(self, study: Study, options: TuneOptions, session: str, began: float) -> None:
        self.study, self.options, self.session, self.began = study, options, session, began
        self.deadline: float | None = None
        self.spent = study.elapsed()
        if options.budget_hours is not None:
            left = 3600 * options.budget_hours - self.spent - CLOSING
            self.deadline = time.time() + left
        context = multiprocessing.get_context("spawn")
        self.errors = context.SimpleQueue()
        self.context = context
        self.received = 0
        self.restarts = 0

    def run(self) -> None:
        old = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        workers = [self._start(i) for i in range(self.options.workers)]
        ticked = 0.0
        with tqdm(
            total=100,
            desc=self.options.method,
            mininterval=0.2 if sys.stderr.isatty() else 15,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {postfix}",
        ) as bar:
            try:
                while any(w is not None for w in workers):
                    for i, worker in enumerate(workers):
                        if worker is not None and worker.exitcode is not None:
                            workers[i] = self._replacement(i, worker.exitcode)
                    if time.monotonic() - ticked > HEARTBEAT:
                        ticked = time.monotonic()
                        self.study.tick(self.session, self.began)
                        self._show(bar)
                    time.sleep(0.1)
            finally:
                for worker in workers:
                    if worker is not None:
                        worker.terminate()
                        worker.join()
                for number, handler in old.items():
                    signal.signal(number, handler)
                self.study.tick(self.session, self.began)
                self._show(bar)
        if self.received:
            raise Interrupted(self.received, Path(self.options.out))

    def _start(self, index: int) -> Any:
        process = self.context.Process(
            target=_work,
            args=(self.options, index, self.deadline, os.getpid(), self.errors),
            daemon=False,
        )
        process.start()
        return process

    def _replacement(self, index: int, code: int) -> Any:
        """Return a new worker for a killed worker, None for a worker that has finished."""
        if not self.errors.empty():
            raise UserError(self.errors.get())
        if code == 0 or self.received:
            return None
        if code > 0:
            raise UserError(
                f"worker {index} failed (status {code}), see above; continue with --resume"
            )
        if self.restarts >= RESTARTS * self.options.workers:
            raise UserError(
                f"worker {index} was killed by {signal.Signals(-code).name}, after {self.restarts} "
                "other kills; check the memory, and use fewer --workers with --resume"
            )
        self.restarts += 1
        return self._start(index)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for child in multiprocessing.active_children():
            child.terminate()

    def _show(self, bar: Any) -> None:
        records = self.study.records()
        done = [r for r in records if r.done or r.state == "pruned"]
        fraction = 0.0
        if self.options.trials is not None:
            fraction = len(done) / self.options.trials
        if self.options.budget_hours is not None:
            spent = self.study.elapsed() / (3600 * self.options.budget_hours)
            fraction = max(fraction, spent)
        assert self.options.max_params is not None
        chosen = results.best(records, self.options.max_params)
        found = "" if chosen is None else f", best {chosen.accuracy:.1%}"
        running = sum(r.state == "running" for r in records)
        bar.set_postfix_str(f"{len(done)} done, {running} running{found}", refresh=False)
        bar.update(min(100, 100 * fraction) - bar.n)
        results.write_trials(Path(self.options.out) / "trials.jsonl", records)


def _work(
    options: TuneOptions, index: int, deadline: float | None, parent: int, errors: Any
) -> None:
    """Run one worker; the main function of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends SIGTERM instead
    torch.set_num_threads(threads(options.workers))
    try:
        setup = assemble(options, *read_data(options, options.seed, lambda text: None))
        bench = setup.bench
        if deadline is not None:
            bench = replace(bench, deadline=time.monotonic() + deadline - time.time())
        assert options.max_params is not None
        seeds: tuple[tuple[Genotype, Path | None], ...] = ()
        if isinstance(setup.method, Gradient):
            with suppress(UserError):  # deleted since; the study's own rounds suffice
                seeds = history.genotypes(options.warm_start)
        worker = Worker(
            study=Study(options.storage or Path(options.out) / JOURNAL),
            method=setup.method,
            space=setup.space,
            bench=bench,
            max_params=options.max_params,
            # differs from the seed of the earlier study, so that it draws other configurations
            seed=crc32(repr((options.seed, options.warm_start)).encode()),
            search=setup.search,
            trials=options.trials,
            seeds=seeds,
        )
        with orphans_stop(parent), reachable(worker.study.where), quiet_threads():
            worker.run(index)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except (UserError, OSError) as error:  # such as a full disk under the journal
        errors.put(str(error))
        sys.exit(2)
