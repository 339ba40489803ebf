"""Methods that train single configurations: random search, TPE, BOHB, ASHA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darts_lite.hpo.pareto import ranked
from darts_lite.hpo.records import Job, Record

ETA = 3  # one of ETA configurations at a fidelity continues to the next fidelity


def rungs(lowest: float) -> tuple[float, ...]:
    """Return the fidelities of successive halving: 1, 1/3, 1/9, ... down to `lowest`, ascending.

    >>> [round(f, 3) for f in rungs(0.1)]
    [0.111, 0.333, 1.0]
    """
    found = [1.0]
    while found[-1] / ETA >= lowest * (1 - 1e-9):
        found.append(found[-1] / ETA)
    return tuple(reversed(found))


@dataclass(frozen=True)
class Sampled:
    """Random search, TPE and BOHB: train every configuration in full, or until it is pruned.

    Arguments:
        sampler: "random" for random search (Bergstra & Bengio 2012), "tpe" for the tree-structured
            Parzen estimator (Bergstra et al. 2011; Watanabe 2023).
        fidelities: Fidelities to measure at, ascending. With several fidelities, Hyperband prunes;
            with "tpe", this is similar to BOHB (Falkner et al. 2018).
    """

    sampler: str
    fidelities: tuple[float, ...] = (1.0,)

    @property
    def prunes(self) -> bool:
        return len(self.fidelities) > 1

    def follow(self, records: Sequence[Record]) -> list[Job]:
        return []

    def first(self, records: Sequence[Record]) -> Job | None:
        return Job(fidelities=self.fidelities)


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving (Li et al. 2020, algorithm 2).

    A configuration pauses at each fidelity. When a worker is free, it looks at each fidelity, from
    the highest down. The best paused configuration of the top third continues from its checkpoint.
    If there is none, a new configuration starts at the lowest fidelity.

    Arguments:
        fidelities: Fidelities, ascending; the last is 1.
        pareto: Rank by the fronts of accuracy and parameters instead of by accuracy.
        sampler: Sampler of new configurations.
        prunes: Whether Hyperband may end a trial; always False.
    """

    fidelities: tuple[float, ...]
    pareto: bool = False
    sampler: str = "random"
    prunes: bool = False

    def first(self, records: Sequence[Record]) -> Job | None:
        return Job(fidelities=self.fidelities[:1], notes={"rung": 0})

    def follow(self, records: Sequence[Record]) -> list[Job]:
        keys = {r.job.key for r in records if r.counts}
        for rung in reversed(range(len(self.fidelities) - 1)):
            finished = [r for r in records if r.done and r.job.notes.get("rung") == rung]
            for record in ranked(finished, self.pareto)[: len(finished) // ETA]:
                origin = record.job.notes.get("origin", record.trial)
                key = f"{origin} to rung {rung + 1}"
                if key not in keys and record.state == "paused":
                    return [
                        Job(
                            fidelities=(self.fidelities[rung + 1],),
                            values=record.values,
                            key=key,
                            start=record.trial,
                            notes={"rung": rung + 1, "origin": origin},
                        )
                    ]
        return []
