"""Methods that train configurations one by one: random search, TPE, BOHB, ASHA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darts_lite.hpo.pareto import ranked
from darts_lite.hpo.records import Job, Record

ETA = 3  # of the configurations at a fidelity, one in so many goes on to the next


def rungs(lowest: float) -> tuple[float, ...]:
    """The fidelities of successive halving: 1, 1/3, 1/9, ... down to `lowest`, ascending.

    >>> [round(f, 3) for f in rungs(0.1)]
    [0.111, 0.333, 1.0]
    """
    found = [1.0]
    while found[-1] / ETA >= lowest * (1 - 1e-9):
        found.append(found[-1] / ETA)
    return tuple(reversed(found))


@dataclass(frozen=True)
class Sampled:
    """Every configuration is trained in full, or until it is pruned.

    With "random" it is random search (Bergstra & Bengio 2012), with "tpe" the tree-structured
    Parzen estimator (Bergstra et al. 2011; Watanabe 2023), with "tpe" and `fidelities` Hyperband's
    pruning of TPE's configurations, which is like BOHB (Falkner et al. 2018).
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

    A configuration pauses at each fidelity. Whenever a worker is free, the best one that is among
    the top third of its fidelity goes on from its checkpoint, from the highest fidelity down; if
    there is none, a new configuration begins at the lowest. With `pareto`, best means the first
    fronts of accuracy and parameters.
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
