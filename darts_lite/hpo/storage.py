"""The study in Optuna's storage, which its workers share: jobs, records and the clock.

A job is a trial of Optuna. The trial stores everything that a worker needs, so workers keep no
state and can run on several machines. Two rules make sure that each job is done once:

- The storage lets only one worker end a trial.
- Of two trials with one key, the trial with the lower number counts.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

import darts_lite.hpo.requirements  # noqa: F401  a clear error first
from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import UserError
from darts_lite.files import writing
from darts_lite.hpo.liveness import covered, is_dead
from darts_lite.hpo.optuna_adapters import Distributions, Suggest, pruner, sampler
from darts_lite.hpo.records import Job, Measurement, Method, Record
from darts_lite.hpo.space import Configuration, Space

NAME = "darts_lite"  # Hyperband derives the bracket of a trial from this name
HEARTBEAT = 5.0  # seconds between two worker heartbeats
STALE = 60.0  # seconds without a heartbeat after which a worker counts as dead


class Study:
    """One study, opened by one process.

    Arguments:
        storage: Journal file, or URL of a database.

    Raises:
        UserError: The storage cannot be opened.
    """

    def __init__(self, storage: str | Path) -> None:
        self.where = str(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _open(self.where)
        self._study: optuna.Study | None = None

    # --- settings -----------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether the storage holds a study."""
        with self._reading():
            return any(s.study_name == NAME for s in self._storage.get_all_studies())

    def create(self, settings: dict[str, Any], *, pareto: bool) -> None:
        """Create the study in the storage.

        Arguments:
            settings: Settings of all workers.
            pareto: Whether the study has two objectives, accuracy and parameters.

        Raises:
            UserError: The storage holds a study already, or cannot be read.
        """
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [up, down] if pareto else [up]
        taken = UserError(f"{self.where} already holds a study; join it with --resume")
        if self.exists():
            raise taken
        with self._reading():
            try:
                study = optuna.create_study(
                    storage=self._storage, study_name=NAME, directions=directions
                )
            except DuplicatedStudyError:  # another process created the study just now
                raise taken from None
            study.set_user_attr("settings", settings)
        self._study = study

    @property
    def settings(self) -> dict[str, Any]:
        with self._reading():
            found = self._load().user_attrs.get("settings")
        if not isinstance(found, dict):
            raise UserError(f"{self.where} holds no study of darts_lite; choose another --storage")
        return found

    def change(self, settings: dict[str, Any]) -> None:
        """Replace the settings, for example with a larger budget."""
        self._load().set_user_attr("settings", settings)

    def _load(self) -> optuna.Study:
        if self._study is None:
            try:
                self._study = optuna.load_study(study_name=NAME, storage=self._storage)
            except KeyError:
                raise UserError(
                    f"{self.where} holds no study; start a study without --resume"
                ) from None
        return self._study

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with writing(Path(self.where)):
                yield
        except (StorageInternalError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(
                f"cannot read the study {self.where} ({reason}); choose another --storage"
            ) from None

    # --- the clock ----------------------------------------------------------------------------

    def tick(self, session: str, started: float) -> None:
        """Write the heartbeat of a session that started at the time `started`."""
        self._load().set_user_attr(f"session {session}", [started, time.time()])

    def elapsed(self, now: float | None = None) -> float:
        """Return the seconds in which at least one session was alive.

        Arguments:
            now: Current time, if the newest session is known to be alive.
        """
        attributes = self._load().user_attrs
        spans = [tuple(v) for n, v in attributes.items() if n.startswith("session ")]
        if now is not None and spans:
            newest = max(spans, key=lambda span: span[1])
            spans.append((newest[0], max(now, newest[1])))
        return covered(spans)

    # --- trials -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records of all trials, in the order of their numbers."""
        found = (_record(trial) for trial in self._trials())
        return [record for record in found if record is not None]

    def genotype(self, trial: int) -> Genotype:
        """Return the genotype of a trial, also of a trial on another machine."""
        content = self._trials()[trial].user_attrs["genotype"]
        return Genotype.read(json.dumps(content), f"trial {trial} of {self.where}")

    def _trials(self) -> list[FrozenTrial]:
        return self._load().get_trials(deepcopy=False)

    def enqueue(self, jobs: Iterable[Job]) -> None:
        """Add jobs to the queue of all workers; skip jobs whose key the study has already."""
        known = {_job(t).get("key") for t in self._trials() if _counts(t)}
        for job in jobs:
            if not job.key or job.key not in known:
                known.add(job.key)
                self._load().enqueue_trial(dict(job.values or {}), {"job": job.to_json()})

    def begin(self, method: Method, worker: str, seed: int) -> Trial | None:
        """Take the next job: a waiting job, or a new configuration if the method wants one.

        Arguments:
            method: Search method.
            worker: Name of the worker.
            seed: Seed of the sampler.

        Returns:
            The trial of the job; None if there is no job now.
        """
        while (found := self._next(method, worker, seed)) is not None:
            if not self._is_duplicate(found.number, found.job.key):
                return found
            found.end("duplicate")
        return None

    def _next(self, method: Method, worker: str, seed: int) -> Trial | None:
        study = self._load()
        records = self.records()
        self.enqueue(method.follow(records))
        first = method.first(records)
        if first is None and not any(t.state == TrialState.WAITING for t in self._trials()):
            return None
        begun = sum(r.state != "waiting" and r.job.values is None for r in records)
        drawn = crc32(f"{seed} {worker.partition(' ')[0]} {begun}".encode())
        study.sampler = sampler(method.sampler, drawn)
        study.pruner = pruner(method.prunes, first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns that the sampler is experimental
            trial = study.ask()
        content = _job(trial)
        if not content and first is None:  # another worker took the job
            study.tell(trial, state=TrialState.FAIL)
            return self._next(method, worker, seed)
        job = Job.from_json(content) if content else first
        assert job is not None
        if not content:
            trial.set_user_attr("job", job.to_json())
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("alive", time.time())
        return Trial(self, trial, job)

    def _is_duplicate(self, number: int, key: str) -> bool:
        return bool(key) and any(
            t.number < number and _counts(t) and _job(t).get("key") == key for t in self._trials()
        )

    def take_over(self, dead: Sequence[str] = ()) -> int:
        """Put the jobs of dead workers into the queue again; return the number of trials.

        A worker is dead if its process is gone or if it has had no heartbeat for `STALE` seconds.

        Arguments:
            dead: Names of workers that are known to be dead.
        """
        count = 0
        for trial in self._trials():
            worker = trial.user_attrs.get("worker", "")
            if trial.state != TrialState.RUNNING or not _job(trial):
                continue
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            alive = trial.user_attrs.get("alive", began)
            gone = worker in dead or is_dead(worker) or time.time() - alive > STALE
            if gone and self._claim(trial.number):
                count += 1
        self.continue_jobs()
        return count

    def continue_jobs(self) -> None:
        """Put the rest of every lost or stopped job into the queue, once per job."""
        records = self.records()
        too_large = {r.job.key: r.trial for r in records if r.state == "infeasible"}
        rest = [
            (record.trial, record.rest())
            for record in records
            if record.state in ("lost", "stopped")
        ]
        # skip jobs whose configuration turned out to be too large
        self.enqueue(job for n, job in reversed(rest) if too_large.get(job.key, -1) < n)

    def _claim(self, number: int) -> bool:
        """End a trial as lost; return False if another worker ended it or it has finished."""
        try:
            self._load().tell(number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            return False
        return True

    def import_record(self, record: Record, space: Space, pareto: bool) -> None:
        """Add a result of another study on the same data, for the sampler to learn from.

        Arguments:
            record: Result of the other study.
            space: Space of this study.
            pareto: Whether this study has two objectives.
        """
        asked = Distributions(record.values)
        space.configure(asked)
        assert record.accuracy is not None and record.parameters is not None
        values = [record.accuracy, float(record.parameters)] if pareto else [record.accuracy]
        trial = optuna.create_trial(
            params=dict(record.values),
            distributions=asked.found,
            values=values,
            user_attrs={"record": record.to_json()},  # no job: the result is not of this study
        )
        self._load().add_trial(trial)


@dataclass
class Trial:
    """A job that this worker does; every result is written to the storage at once."""

    study: Study
    _trial: optuna.trial.Trial
    job: Job
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        self.record = Record(
            trial=self._trial.number,
            state="running",
            job=self.job,
            values=dict(self.job.values or {}),
            measurements=self.job.done,
        )
        self._over = threading.Event()
        self._reported = 0

    @property
    def number(self) -> int:
        return self._trial.number

    def configure(self, space: Space) -> Configuration:
        """Return the configuration of the job, or draw a new configuration."""
        found = space.configure(Suggest(self._trial))
        self.note(values=found.values, learned=found.recipe.last)
        return found

    def note(self, **changes: Any) -> None:
        """Change fields of the record, in the storage too."""
        self.record = replace(self.record, **changes)
        with suppress(UpdateFinishedTrialError):  # another worker took over; `end` handles it
            self._trial.set_user_attr("record", self.record.to_json())

    def trains(self, genotype: Genotype, max_params: int) -> None:
        """Store the genotype that is trained next, and its size."""
        excess = genotype.parameters / max_params - 1
        with suppress(UpdateFinishedTrialError):
            self._trial.set_user_attr("genotype", genotype.to_json())
        self.note(parameters=genotype.parameters, macs=genotype.macs, excess=excess)

    def measured(self, measurement: Measurement) -> None:
        """Add a measurement to the record."""
        self.note(
            measurements=(*self.record.measurements, measurement),
            accuracy=measurement.accuracy,
            elapsed=measurement.elapsed,
        )

    def is_worse(self) -> bool:
        """Report the measurements to Hyperband; tell whether it prunes the trial."""
        known = self.record.measurements
        for measurement in known[self._reported :]:  # a continued trial has reported none yet
            step = round(measurement.fidelity / known[0].fidelity)
            with suppress(UpdateFinishedTrialError):
                self._trial.report(measurement.accuracy, step)
        self._reported = len(known)
        return self._trial.should_prune()

    def end(self, outcome: str) -> None:
        """End the trial; the rest of a "stopped" trial goes into the queue again.

        Does nothing if another worker has taken over the trial.

        Arguments:
            outcome: Final state of the record; see `Record`.
        """
        self.note(state=outcome)
        known = self.record
        pareto = len(self.study._load().directions) > 1
        with suppress(ValueError, UpdateFinishedTrialError):
            if outcome in ("complete", "paused", "diverged"):
                accuracy = known.accuracy or 0.0
                values = [accuracy, float(known.parameters or 0)] if pareto else [accuracy]
                self.study._load().tell(self._trial, values)
            elif outcome in ("pruned", "infeasible"):
                self.study._load().tell(self._trial, state=TrialState.PRUNED)
            else:
                self.study._load().tell(self._trial, state=TrialState.FAIL)
                if outcome == "stopped":
                    self.study.continue_jobs()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Write worker heartbeats in a separate thread inside the block."""

        def beat() -> None:
            while not self._over.wait(HEARTBEAT):
                with suppress(UpdateFinishedTrialError):
                    self._trial.set_user_attr("alive", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


@contextmanager
def reachable(where: str) -> Iterator[None]:
    """Turn a lost connection to the storage, or a full disk, into a `UserError`."""
    try:
        with writing(Path(where)):
            yield
    except StorageInternalError as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"lost the connection to the study {where} ({reason}); all results are kept, "
            "continue with --resume"
        ) from None


def _open(where: str) -> BaseStorage:
    try:
        if "://" in where:
            return RDBStorage(where, engine_kwargs={"pool_pre_ping": True})
        # absolute, because Optuna's lock is a link to the path; it detects no stale relative link
        return JournalStorage(JournalFileBackend(str(Path(where).absolute())))
    except Exception as error:  # database drivers raise any exception
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"cannot open --storage {where}: {type(error).__name__} ({reason}); give a file, or "
            "the URL of a database with an installed driver, such as "
            "postgresql+psycopg://user@host/name"
        ) from None


def _counts(trial: FrozenTrial) -> bool:
    """Tell whether no other trial needs to do the job."""
    record = _record(trial)
    return record is not None and record.counts


def _job(trial: FrozenTrial | optuna.trial.Trial) -> dict[str, Any]:
    return trial.user_attrs.get("job") or {}


def _record(trial: FrozenTrial) -> Record | None:
    """Return the record of a trial; None for duplicates and for imported results."""
    content = _job(trial)
    if not content:
        return None
    job = Job.from_json(content)
    known = dict(trial.user_attrs.get("record", {}))
    state = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.FAIL: "stopped" if known.get("state") == "stopped" else "lost",
    }.get(trial.state, known.get("state", "running"))
    if known.get("state") == "duplicate":
        return None
    known["measurements"] = tuple(Measurement(*m) for m in known.get("measurements", job.done))
    known.setdefault("values", dict(job.values or {}))
    return Record(**{**known, "trial": trial.number, "job": job, "state": state})
