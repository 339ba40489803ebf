"""What a study consists of: jobs, and records of what came of them. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from darts_lite.hpo.space import Values


class Measurement(NamedTuple):
    """The validation accuracy at a fidelity, and when it was known on the study's clock."""

    elapsed: float
    fidelity: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration and how far to train it; one trial does one job.

    Arguments: `fidelities` to reach and measure at, ascending; `values` of the configuration, None
    to draw a new one; `key`, equal for jobs of which one suffices; `start`, the trial whose
    checkpoint it goes on from; `done`, what that trial had measured on the way to the same goal;
    `notes` of the method.
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
    """A job that was begun, and what has come of it so far.

    `state` is "waiting", "running", "complete" (in full), "paused" (as far as its job went),
    "pruned", "infeasible" (above the cap), "diverged", "stopped" or "lost" (its worker died).
    `excess` is the share by which its parameters exceed the cap.
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
        """How far it was trained."""
        return self.measurements[-1].fidelity if self.measurements else 0.0

    @property
    def counts(self) -> bool:
        """Whether its job need not be done by another trial."""
        return self.state not in ("lost", "stopped", "infeasible")

    @property
    def done(self) -> bool:
        """Whether its job was finished."""
        return self.state in ("complete", "paused", "diverged")


class Method(Protocol):
    """Decides what is worth training next, from the records alone: it keeps no state.

    Attributes: `sampler`, who draws new configurations, "random" or "tpe"; `prunes`, whether
    Hyperband may end a trial at a fidelity before the last.
    """

    @property
    def sampler(self) -> str: ...

    @property
    def prunes(self) -> bool: ...

    def follow(self, records: Sequence[Record]) -> list[Job]:
        """Jobs that follow from what is known; a key that is there already is left out later."""

    def first(self, records: Sequence[Record]) -> Job | None:
        """How to train a new configuration; None while no new one may begin."""
