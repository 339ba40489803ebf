"""Population based training (PBT), and population based augmentation (PBA).

Every member is trained one generation at a time. Before its next generation, one of the worst
members takes the weights and values of one of the best members, and its values are perturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from zlib import crc32

import torch

from darts_lite.hpo.pareto import ranked
from darts_lite.hpo.records import Job, Record
from darts_lite.hpo.space import LIMITS, Values
from darts_lite.schedules import Schedule

FACTORS = (0.8, 1.25)  # factors of a perturbed value
RESAMPLED = 0.25  # probability that PBT draws a new value instead
PBA_RESAMPLED = 0.2  # probability that PBA draws a new value instead
PBA_STEPS = 3  # maximum change of a value, in tenths of its range


@dataclass(frozen=True, kw_only=True)
class Population:
    """Asynchronous population based training or augmentation.

    - Selection: a member of the worst quarter is replaced by a member of the best quarter.
    - "pbt" (Jaderberg et al. 2017): learning rate, weight decay and the values of the augmentation
      are multiplied by 0.8 or 1.25; with probability 0.25, a value is drawn again.
    - "pba" (Ho et al. 2019, algorithm 1): the values of the augmentation start at zero and move by
      up to 0.3; with probability 0.2, a value is drawn again.

    When every member is trained in full, a new population starts.

    Arguments:
        size: Number of members.
        generations: Generations of one full training.
        explore: "pbt" or "pba".
        begin: First values of every member; None draws them.
        seed: Seed of the decisions. A decision depends only on seed, population, member and
            generation.
        sampler: Sampler of the first values.
        prunes: Whether Hyperband may end a trial; always False.
    """

    size: int
    generations: int
    explore: Literal["pbt", "pba"] = "pbt"
    begin: Values | None = None
    seed: int = 0
    sampler: str = "random"
    prunes: bool = False

    def first(self, records: Sequence[Record]) -> Job | None:
        return None  # `follow` starts the members

    def follow(self, records: Sequence[Record]) -> list[Job]:
        known = [r for r in records if "member" in r.job.notes]
        if any(r.state == "waiting" for r in known):
            return []  # wait: later, more members can be compared
        keys = {r.job.key for r in known if r.counts}
        jobs: list[Job] = []
        latest = max((r.job.notes["population"] for r in known), default=0)
        current = [r for r in known if r.job.notes["population"] == latest]
        finished = [r for r in current if r.done]
        if self._ended(finished):
            latest, current, finished = latest + 1, [], []
        for member in range(self.size):
            own = [r for r in finished if r.job.notes["member"] == member]
            last = max(own, key=lambda r: r.job.notes["generation"], default=None)
            if last is None:
                job = self._job(latest, member, 1, self.begin, None)
            elif last.job.notes["generation"] < self.generations:
                job = self._next(latest, member, last, finished)
            else:
                continue
            if job.key not in keys:
                jobs.append(job)
        return jobs

    def _ended(self, finished: Sequence[Record]) -> bool:
        ended = {
            r.job.notes["member"] for r in finished if r.job.notes["generation"] == self.generations
        }
        return len(ended) == self.size

    def _job(
        self,
        population: int,
        member: int,
        generation: int,
        values: Values | None,
        start: int | None,
    ) -> Job:
        return Job(
            fidelities=(generation / self.generations,),
            values=values,
            key=f"population {population}, member {member}, generation {generation}",
            start=start,
            notes={"population": population, "member": member, "generation": generation},
        )

    def _next(self, population: int, member: int, last: Record, finished: Sequence[Record]) -> Job:
        """Return the next generation of a member, continued from itself or from its replacement."""
        generation = last.job.notes["generation"] + 1
        generator = torch.Generator().manual_seed(
            crc32(f"{self.seed} {population} {member} {generation}".encode())
        )
        newest: dict[int, Record] = {}
        for record in finished:
            mine = record.job.notes
            other = newest.get(mine["member"])
            if other is None or other.job.notes["generation"] < mine["generation"]:
                newest[mine["member"]] = record
        order = ranked(newest.values())
        quarter = len(order) // 4 if len(order) > 3 else len(order) // 2
        source = last
        if quarter and last in order[-quarter:]:
            source = order[int(torch.randint(quarter, (), generator=generator))]
        replaced = source is not last
        values = source.values
        if replaced or self.explore == "pba":
            values = self._explored(values, generator)
        job = self._job(population, member, generation, values, source.trial)
        reached = source.job.notes["generation"]
        if replaced and reached >= generation:
            # the source is ahead: this generation is already trained
            jump = min(reached + 1, self.generations)
            notes = {**job.notes, "generation": jump}
            return replace(job, fidelities=(jump / self.generations,), notes=notes)
        return job

    def _explored(self, values: Values, generator: torch.Generator) -> Values:
        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        found = dict(values)
        for name, value in values.items():
            limits = explorable(name)
            if limits is None or not isinstance(value, float):
                continue
            low, high = limits
            if self.explore == "pba":
                if uniform() < PBA_RESAMPLED:
                    found[name] = uniform()
                else:
                    step = int((PBA_STEPS + 1) * uniform()) / 10
                    found[name] = min(max(value + (step if uniform() < 0.5 else -step), 0.0), 1.0)
            elif uniform() < RESAMPLED:
                found[name] = low * (high / low) ** uniform() if low > 0 else high * uniform()
            else:
                found[name] = min(max(value * FACTORS[uniform() < 0.5], low), high)
        return found


def explorable(name: str) -> tuple[float, float] | None:
    """Return the range of a value that may change during a training; None for other values."""
    kind, _, rest = name.partition(".")
    if name in LIMITS:
        return LIMITS[name]
    if kind == "magnitude":
        return LIMITS[kind]
    if kind == "probability":
        return (0.02, 0.98)
    return (0.0, 30.0) if (kind, rest) == ("randaugment", "m") else None


def lineage(last: Record, records: Mapping[int, Record]) -> dict[str, Schedule]:
    """Return the piecewise constant schedules of the training of a record's weights.

    Arguments:
        last: Record of the weights.
        records: Records by trial, with all ancestors of `last`.
    """
    chain = [last]
    while (start := chain[-1].job.start) is not None and start in records:
        chain.append(records[start])
    schedules: dict[str, list[tuple[float, float]]] = {name: [] for name in last.learned}
    before = 0.0
    for record in reversed(chain):
        if record.fidelity <= before:
            continue
        for name, knots in schedules.items():
            value = record.learned.get(name, last.learned[name])
            if not knots or knots[-1][1] != value:
                knots.append((before, value))  # two knots at one fraction make a jump
            knots.append((record.fidelity, value))
        before = record.fidelity
    return {name: tuple(knots) for name, knots in schedules.items()}
