"""Worker of a study: take a job, train, record the result, until the budget is spent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import Diverged, Interrupted, UserError
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.liveness import worker_name
from darts_lite.hpo.methods.gradient import Gradient, search_round
from darts_lite.hpo.pareto import ranked
from darts_lite.hpo.records import Job, Measurement, Method
from darts_lite.hpo.space import Space
from darts_lite.hpo.storage import Study, Trial
from darts_lite.nas.options import SearchOptions

POLL = 0.5  # seconds between two checks for a job
PATIENCE = 1000  # consecutive configurations above the parameter limit before an error


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process that does the jobs of a study.

    Arguments:
        study: Study of the jobs.
        method: Search method.
        space: Space of configurations.
        bench: Bench of the trainings.
        max_params: Parameter limit.
        seed: Seed of the sampler.
        search: Settings of the first round of the method "gradient".
        seeds: Earlier genotypes for the first round of "gradient", with their search folders.
        trials: Number of trials of the whole study; None means no limit.
    """

    study: Study
    method: Method
    space: Space
    bench: Bench
    max_params: int
    seed: int
    search: SearchOptions
    seeds: tuple[tuple[Genotype, Path | None], ...] = ()
    trials: int | None = None

    def run(self, index: int = 0) -> None:
        """Do jobs until the deadline, or until there are enough trials.

        Arguments:
            index: Index of the worker in its session.

        Raises:
            Interrupted: A signal stopped the worker; the job is in the queue again.
            UserError: Too many consecutive configurations exceed the parameter limit.
        """
        name = worker_name(index)
        too_large = 0
        while not self.bench.late:
            self.study.take_over()
            enough = self._enough()
            trial = None if enough else self.study.begin(self.method, name, self.seed)
            if trial is None:
                states = {r.state for r in self.study.records()}
                if "running" not in states and (enough or "waiting" not in states):
                    return  # otherwise a worker may die or add jobs
                time.sleep(POLL)
                continue
            with trial.alive():
                self.do(trial)
            too_large = too_large + 1 if trial.record.state == "infeasible" else 0
            if too_large == PATIENCE:
                raise UserError(
                    f"a configuration must have at most {self.max_params} parameters, got more in "
                    f"{PATIENCE} consecutive draws; raise --max-params or lower --channels"
                )

    def _enough(self) -> bool:
        if self.trials is None:
            return False
        counted = [r for r in self.study.records() if r.done or r.state in ("pruned", "running")]
        return len(counted) >= self.trials

    def do(self, trial: Trial) -> None:
        """Do one job, to its end or until a signal stops it."""
        began = time.monotonic()
        before = trial.record.seconds
        try:
            outcome = self._do(trial, lambda: before + time.monotonic() - began)
        except Diverged:
            outcome = "diverged"
            trial.note(accuracy=0.0, elapsed=self.study.elapsed(time.time()))
        except Interrupted:
            trial.end("stopped")
            raise
        trial.end(outcome)

    def _do(self, trial: Trial, seconds: Callable[[], float]) -> str:
        job, bench = trial.job, self.bench
        place = bench.place(trial.number)
        genotype = self._genotype(trial, place)
        if genotype is None:
            return "stopped"
        trial.trains(genotype, self.max_params)
        if genotype.parameters > self.max_params:
            return "infeasible"
        place.mkdir(parents=True, exist_ok=True)
        genotype.save(place / "genotype.json")
        start = self._inherited(job)
        for fidelity in job.fidelities:
            accuracy = bench.measure(genotype, fidelity, place, start)
            trial.note(seconds=seconds())
            if accuracy is None:
                return "stopped"
            elapsed = self.study.elapsed(time.time())
            trial.measured(Measurement(elapsed, fidelity, accuracy))
            if self.method.prunes and fidelity < 1 and trial.is_worse():
                return "pruned"
        return "complete" if job.fidelities[-1] == 1 else "paused"

    def _inherited(self, job: Job) -> Path | None:
        """Return the folder whose checkpoint a job continues from: of its start, or of an ancestor.

        A trial that was lost before its first checkpoint has no checkpoint; then the trial that it
        started from is used.
        """
        starts = {r.trial: r.job.start for r in self.study.records()}
        trial = job.start
        while trial is not None:
            if (self.bench.place(trial) / "checkpoint.pt").exists():
                return self.bench.place(trial)
            trial = starts.get(trial)
        return None

    def _genotype(self, trial: Trial, place: Path) -> Genotype | None:
        if not isinstance(self.method, Gradient):
            return self.bench.genotype(trial.configure(self.space))
        clock = self.method.budget is not None
        found = search_round(self.bench, self.search, trial.job, place, self._earlier(), clock)
        if found is not None:
            trial.note(learned=found.recipe.last)
        return found

    def _earlier(self) -> list[tuple[Genotype, Path | None]]:
        """Return the genotypes of this study, the best first, then the earlier genotypes."""
        own = [r for r in self.study.records() if r.state == "complete"]
        found = [
            (self.study.genotype(r.trial), self.bench.place(r.trial) / "search")
            for r in ranked(own)
        ]
        return [*found, *self.seeds]


@contextmanager
def orphans_stop(parent: int) -> Iterator[None]:
    """Stop this process (SIGTERM) when its parent process is gone, inside the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(2.0):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
