"""Methods that train a population side by side: PBT, and PBA for a schedule of augmentation.

Every member is trained for a generation at a time. Before its next one, a member among the worst
takes over weights and values of one of the best, and its values are then perturbed.
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

FACTORS = (0.8, 1.25)
RESAMPLED = 0.25  # probability that a value is drawn anew instead
PBA_RESAMPLED = 0.2
PBA_STEPS = 3  # of a tenth of the range, at the most


@dataclass(frozen=True, kw_only=True)
class Population:
    """Population based training (Jaderberg et al. 2017), asynchronous, or that of augmentation.

    Truncation selection: one of the worst quarter is replaced by one of the best. With explore
    "pbt" learning rate, weight decay and the augmentation's values are multiplied by 0.8 or 1.25
    or, one time in four, drawn anew; with "pba" the augmentation's values, all from zero on, move
    by up to three tenths or, one time in five, are drawn anew (Ho et al. 2019, algorithm 1). When
    every member has been trained in full, another population begins.

    Arguments: `size`; `generations` of a training; `explore`; `begin`, the values of every member,
    None to draw them; `seed` of every decision, which depends on nothing but it, the member and the
    generation.
    """

    size: int
    generations: int
    explore: Literal["pbt", "pba"] = "pbt"
    begin: Values | None = None
    seed: int = 0
    sampler: str = "random"
    prunes: bool = False

    def first(self, records: Sequence[Record]) -> Job | None:
        return None  # members are begun by `follow`

    def follow(self, records: Sequence[Record]) -> list[Job]:
        known = [r for r in records if "member" in r.job.notes]
        if any(r.state == "waiting" for r in known):
            return []  # later there is more to compare a member with
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
        """The next generation of a member, of its own or of what replaces it."""
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
            # from a member that is further: there is nothing left of this generation
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
    """The range of a value that may change while a network is trained; None for any other."""
    kind, _, rest = name.partition(".")
    if name in LIMITS:
        return LIMITS[name]
    if kind == "magnitude":
        return LIMITS[kind]
    if kind == "probability":
        return (0.02, 0.98)
    return (0.0, 30.0) if (kind, rest) == ("randaugment", "m") else None


def lineage(last: Record, records: Mapping[int, Record]) -> dict[str, Schedule]:
    """The schedules under which the weights of a record were trained, in steps.

    Arguments: records by trial, among them every one that it goes back to.
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
                knots.append((before, value))  # two at one fraction: it holds from there on
            knots.append((record.fidelity, value))
        before = record.fidelity
    return {name: tuple(knots) for name, knots in schedules.items()}
