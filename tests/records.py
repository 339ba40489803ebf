"""Records of trials, and studies that are played without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from darts_lite.hpo.records import Job, Measurement, Method, Record
from darts_lite.hpo.space import Values

THIRD, NINTH = 1 / 3, 1 / 3 / 3
AGAIN = ("lost", "stopped", "infeasible")  # states after which a job is done by another trial
FOR_GOOD = ("waiting", "running", "complete", "paused", "pruned", "diverged")


def record(
    trial: int, accuracy: float | None = None, fidelity: float = 1.0, **changes: Any
) -> Record:
    """A finished job, measured at its fidelity if there is an accuracy."""
    measurements = () if accuracy is None else (Measurement(float(trial), fidelity, accuracy),)
    usual: dict[str, Any] = {
        "state": "complete" if fidelity == 1 else "paused",
        "job": Job(fidelities=(fidelity,)),
        "values": {},
        "parameters": 100,
        "measurements": measurements,
    }
    return Record(trial=trial, accuracy=accuracy, **{**usual, **changes})


@dataclass
class Play:
    """A study without training: asks a method as workers do, and notes what was known then.

    Arguments: `draw`, the values of a new configuration.
    """

    method: Method
    draw: Callable[[], Values] = dict
    records: list[Record] = field(default_factory=list)
    decided: list[tuple[Job, tuple[Record, ...]]] = field(default_factory=list)

    def begin(self) -> Record | None:
        """The next job, as `Study.begin` finds it: one that waits, or a new configuration."""
        known, before = {r.job.key for r in self.records if r.counts}, tuple(self.records)
        for job in self.method.follow(before):
            if job.key not in known:
                self._put(job, before)
        if not any(r.state == "waiting" for r in self.records):
            first = self.method.first(before)
            if first is None:
                return None
            self._put(first, before)
        now = next(r for r in self.records if r.state == "waiting")
        values = self.draw() if now.job.values is None else now.job.values
        return self._change(now, state="running", values=values)

    def end(self, trial: int, accuracy: float, state: str = "", **changes: Any) -> Record:
        """What came of a job; one that was stopped or lost is put up again, as `Study` does."""
        now, (*_, fidelity) = self.records[trial], self.records[trial].job.fidelities
        state = state or ("complete" if fidelity == 1 else "paused")
        if state in ("complete", "paused"):
            measured = Measurement(float(len(self.records)), fidelity, accuracy)
            changes |= {"accuracy": accuracy, "measurements": (measured,)}
        if state == "diverged":
            changes["accuracy"] = 0.0
        now = self._change(now, state=state, **changes)
        if state in ("lost", "stopped"):
            key = now.job.key or f"trial {trial}"
            job = replace(now.job, values=now.values, key=key, start=trial)
            self._put(job, tuple(self.records))
        return now

    def _put(self, job: Job, before: tuple[Record, ...]) -> None:
        self.decided.append((job, before))
        values = dict(job.values or {})
        number = len(self.records)
        self.records.append(Record(trial=number, state="waiting", job=job, values=values))

    def _change(self, now: Record, **changes: Any) -> Record:
        self.records[now.trial] = replace(now, **changes)
        return self.records[now.trial]


def fronts(records: Sequence[Record]) -> list[list[Record]]:
    """Layers of records that none of the rest equals or beats in both, from the definition."""
    rest, found = list(records), []
    while rest:
        found.append([r for r in rest if not any(dominates(o, r) for o in rest)])
        rest = [r for r in rest if r not in found[-1]]
    return found


def dominates(one: Record, other: Record) -> bool:
    """At least as good in both and better in one; of equal ones, the earlier."""
    mine, theirs = ((r.accuracy or 0.0, -(r.parameters or 0)) for r in (one, other))
    if mine == theirs:
        return one.trial < other.trial
    return all(a >= b for a, b in zip(mine, theirs))
