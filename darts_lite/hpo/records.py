"""Data of a study: jobs, and the records of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

from darts_lite.hpo.space import Values


class Measurement(NamedTuple):
    """One measurement.

    Attributes:
        elapsed: Time of the measurement on the clock of the study, in seconds.
        fidelity: Fraction of the full training.
        accuracy: Validation accuracy (0 to 1).
    """

    elapsed: float
    fidelity: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration to train, and how far to train it. One trial does one job.

    Arguments:
        fidelities: Fidelities to measure at, ascending.
        values: Values of the configuration; None draws a new configuration.
        key: Jobs with one key are the same job: one of them suffices. Empty means no key.
        start: Trial whose checkpoint the job continues from; None means new weights.
        done: Measurements of the trial `start` that belong to this job.
        notes: Notes of the method.
    """

    fidelities: tuple[float, ...]
    values: Values | None = None
    key: str = ""
    start: int | None = None
    done: tuple[Measurement, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Job:
        own = {f.name: content[f.name] for f in fields(Job)}
        done = tuple(Measurement(*m) for m in own["done"])
        return Job(**{**own, "fidelities": tuple(own["fidelities"]), "done": done})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trial: a job and its results so far.

    Attributes:
        trial: Number of the trial.
        state: One of "waiting", "running", "complete" (trained in full), "paused" (trained as far
            as its job says), "pruned", "infeasible" (too many parameters), "diverged", "stopped"
            and "lost" (its worker died).
        job: Job of the trial.
        values: Values of the configuration, by dimension.
        learned: Learned values of the genotype, by name.
        parameters: Number of trainable parameters.
        excess: Parameters above the limit, relative to the limit; negative below it.
        macs: Multiply-accumulate operations per image.
        accuracy: Latest validation accuracy (0 to 1).
        measurements: All measurements, in order.
        seconds: Seconds that the trial took.
        elapsed: Time of the latest measurement on the clock of the study, in seconds.
    """

    trial: int
    state: str
    job: Job
    values: Values
    learned: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    excess: float = 0.0
    macs: int | None = None
    accuracy: float | None = None
    measurements: tuple[Measurement, ...] = ()
    seconds: float = 0.0
    elapsed: float | None = None

    @property
    def fidelity(self) -> float:
        """Fidelity of the last measurement; 0 before the first."""
        return self.measurements[-1].fidelity if self.measurements else 0.0

    @property
    def counts(self) -> bool:
        """Whether no other trial needs to do the job."""
        return self.state not in ("lost", "stopped", "infeasible")

    @property
    def done(self) -> bool:
        """Whether the job is finished."""
        return self.state in ("complete", "paused", "diverged")

    def rest(self) -> Job:
        """Return the rest of the unfinished job."""
        job = self.job
        left = tuple(f for f in job.fidelities if f > self.fidelity) or job.fidelities[-1:]
        return replace(
            job,
            fidelities=left,
            values=self.values or job.values,
            key=job.key or f"trial {self.trial}",
            start=self.trial,
            done=self.measurements,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields without trial and job, which the trial of the storage has itself."""
        return {n: v for n, v in asdict(self).items() if n not in ("trial", "job")}


class Method(Protocol):
    """A search method: decides the next jobs from the records only, and keeps no state.

    Attributes:
        sampler: Sampler of new configurations, "random" or "tpe".
        prunes: Whether Hyperband may end a trial before its last fidelity.
    """

    @property
    def sampler(self) -> str: ...

    @property
    def prunes(self) -> bool: ...

    def follow(self, records: Sequence[Record]) -> list[Job]:
        """Return the jobs that follow from the records; the study skips keys that it has."""

    def first(self, records: Sequence[Record]) -> Job | None:
        """Return the job of a new configuration; None if no new configuration may start."""
