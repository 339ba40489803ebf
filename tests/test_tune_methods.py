"""Decisions of the methods, without training; order of records; jobs as JSON."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darts_lite.hpo.methods.sampled import Asha, Sampled, rungs
from darts_lite.hpo.pareto import front, ranked
from darts_lite.hpo.records import Job, Measurement, Method, Record
from darts_lite.hpo.space import Values

THIRD, NINTH = 1 / 3, 1 / 3 / 3
AGAIN = ("lost", "stopped", "infeasible")  # states after which another trial does the job
FOR_GOOD = ("waiting", "running", "complete", "paused", "pruned", "diverged")


def record(
    trial: int, accuracy: float | None = None, fidelity: float = 1.0, **changes: Any
) -> Record:
    """Return the record of a finished job, with a measurement if there is an accuracy."""
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
    """Study without training: asks a method like a worker, and stores the records of that time.

    Arguments:
        draw: Function that returns the values of a new configuration.
    """

    method: Method
    draw: Callable[[], Values] = dict
    records: list[Record] = field(default_factory=list)
    decided: list[tuple[Job, tuple[Record, ...]]] = field(default_factory=list)

    def begin(self) -> Record | None:
        """Return the next job like `Study.begin`: a waiting job, or a new configuration."""
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
        """End a job; put a stopped or lost job into the queue again, like `Study`."""
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


# --- Fidelities -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowest", "found"),
    [
        (1.0, (1.0,)),
        (0.5, (1.0,)),
        (0.34, (1.0,)),
        (1 / 3, (THIRD, 1.0)),
        (0.33, (THIRD, 1.0)),
        (0.112, (THIRD, 1.0)),
        (1 / 9, (NINTH, THIRD, 1.0)),
        (0.111, (NINTH, THIRD, 1.0)),
        (1 / 27, (NINTH / 3, NINTH, THIRD, 1.0)),
        (1 / 81, (NINTH / 9, NINTH / 3, NINTH, THIRD, 1.0)),
    ],
)
def test_rungs(lowest: float, found: tuple[float, ...]) -> None:
    assert rungs(lowest) == pytest.approx(found, rel=1e-15)
    assert rungs(lowest)[-1] == 1.0  # exactly 1, because this fidelity means a complete training


@given(st.floats(1e-4, 1))
def test_rungs_go_down_by_thirds_to_the_lowest(lowest: float) -> None:
    found = rungs(lowest)
    assert found[-1] == 1.0 and list(found) == sorted(found)
    assert all(low * 3 == pytest.approx(high) for low, high in itertools.pairwise(found))
    assert lowest * (1 - 1e-8) <= found[0] < 3 * lowest * (1 + 1e-8)


# --- Random search, TPE and BOHB --------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fidelities", "prunes"),
    [
        (Sampled("random"), (1.0,), False),
        (Sampled("tpe"), (1.0,), False),
        (Sampled("tpe", rungs(1 / 9)), rungs(1 / 9), True),
        (Sampled("tpe", rungs(0.5)), (1.0,), False),
    ],
)
def test_sampled_configurations_are_independent(
    method: Sampled, fidelities: tuple[float, ...], prunes: bool
) -> None:
    play = Play(method)
    for _ in range(5):
        begun = play.begin()
        assert begun is not None and begun.job == Job(fidelities=fidelities)
        play.end(begun.trial, 0.5)
    assert method.follow(play.records) == []
    assert method.prunes is prunes


# --- ASHA -------------------------------------------------------------------------------------

LEVELS = (NINTH, THIRD, 1.0)


def noise(seed: int) -> Callable[[int, int], float]:
    """Return accuracies by configuration and rung: they grow with the rung, all are different."""
    known: dict[tuple[int, int], float] = {}
    chance = random.Random(seed)

    def accuracy(configuration: int, rung: int) -> float:
        key = configuration, rung
        if key not in known:
            known[key] = known.get((configuration, rung - 1), 0.0) + chance.random()
        return known[key]

    return accuracy


def algorithm_2(
    accuracy: Callable[[int, int], float], rungs: int, count: int
) -> list[tuple[int, int]]:
    """Return Li et al. 2020, algorithm 2, with one worker: (configuration, rung) of every job.

    The name of a configuration is the number of its first job.
    """
    finished: list[dict[int, float]] = [{} for _ in range(rungs)]
    promoted: list[set[int]] = [set() for _ in range(rungs)]
    jobs: list[tuple[int, int]] = []

    def get_job() -> tuple[int, int]:
        for k in reversed(range(rungs - 1)):
            known = finished[k]
            candidates = sorted(known, key=lambda c: -known[c])[: len(known) // 3]
            promotable = [c for c in candidates if c not in promoted[k]]
            if promotable:
                promoted[k].add(promotable[0])
                return promotable[0], k + 1
        return len(jobs), 0

    while len(jobs) < count:
        configuration, k = get_job()
        jobs.append((configuration, k))
        finished[k][configuration] = accuracy(configuration, k)
    return jobs


def origin(found: Record) -> int:
    return found.job.notes.get("origin", found.trial)


def rung(found: Record) -> int:
    return found.job.notes["rung"]


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_asha_equals_algorithm_2(seed: int, levels: int) -> None:
    accuracy, count = noise(seed), 90
    play = Play(Asha(rungs(3.0 ** (1 - levels))))
    for _ in range(count):
        begun = play.begin()
        assert begun is not None
        play.end(begun.trial, accuracy(origin(begun), rung(begun)))
    expected = algorithm_2(accuracy, levels, count)
    assert [(origin(r), rung(r)) for r in play.records] == expected
    assert sum(k == levels - 1 for _, k in expected) >= 2


def fronts(records: Sequence[Record]) -> list[list[Record]]:
    """Return the fronts by definition: no other record of the rest equals or beats them in both."""
    rest, found = list(records), []
    while rest:
        found.append([r for r in rest if not any(dominates(o, r) for o in rest)])
        rest = [r for r in rest if r not in found[-1]]
    return found


def dominates(one: Record, other: Record) -> bool:
    """Tell whether a record is as good in both and better in one, or equal and earlier."""
    mine, theirs = ((r.accuracy or 0.0, -(r.parameters or 0)) for r in (one, other))
    if mine == theirs:
        return one.trial < other.trial
    return all(a >= b for a, b in zip(mine, theirs))


@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("seed", range(2))
def test_asha_promotes_only_the_top_third_and_each_once(
    seed: int, workers: int, pareto: bool
) -> None:
    """The order of the workers and their failures do not matter."""
    chance, flying = random.Random(seed), []
    play = Play(Asha(LEVELS, pareto))
    for _ in range(120):
        while len(flying) < workers:
            begun = play.begin()
            assert begun is not None
            flying.append(begun.trial)
        state = chance.choices(("", "diverged", *AGAIN), (20, 1, 1, 1, 1))[0]
        size = chance.randrange(50, 200)
        play.end(flying.pop(chance.randrange(workers)), chance.random(), state, parameters=size)
    promoted = 0
    for job, before in play.decided:
        if job.start is None:
            assert job.fidelities == LEVELS[:1] and job.notes == {"rung": 0} and not job.key
            continue
        start = before[job.start]
        assert job.values == start.values
        if start.state in ("lost", "stopped"):  # the same job, again in the queue
            assert (job.fidelities, job.notes) == (start.job.fidelities, start.job.notes)
            continue
        assert start.state == "paused"
        finished = [r for r in before if r.done and rung(r) == rung(start)]
        layers = fronts(finished) if pareto else [finished]
        last = next(i for i, layer in enumerate(layers) if start in layer)
        ahead = sum(map(len, layers[:last]))
        ahead += sum((r.accuracy or 0) > (start.accuracy or 0) for r in layers[last])
        assert ahead < len(finished) // 3
        assert job.fidelities == (LEVELS[rung(start) + 1],)
        assert job.notes == {"rung": rung(start) + 1, "origin": origin(start)}
        promoted += 1
    assert promoted > 10
    for level in (1, 2):
        done = [origin(r) for r in play.records if rung(r) == level and r.counts]
        assert len(done) == len(set(done)) > 0


def rung_0(count: int, state: str = "paused", first: int = 0) -> list[Record]:
    """Return records at the lowest fidelity, each better than the record before."""
    return [
        record(i, i / 100, NINTH, state=state, values={"x": i}, job=Job(**FIRST))
        for i in range(first, first + count)
    ]


FIRST: dict[str, Any] = {"fidelities": (NINTH,), "notes": {"rung": 0}}
PROMOTED = Job(
    fidelities=(THIRD,),
    values={"x": 2},
    key="2 to rung 1",
    start=2,
    notes={"rung": 1, "origin": 2},
)


def test_asha_needs_three_records_and_continues_the_best() -> None:
    asha = Asha(LEVELS)
    assert asha.follow(rung_0(2)) == []
    assert asha.first(rung_0(2)) == Job(**FIRST)
    assert asha.follow(rung_0(3)) == [PROMOTED]


def test_asha_promotes_from_the_highest_fidelity_down() -> None:
    """A promotion continues from the last trial, not from the first."""
    asha, known = Asha(LEVELS), rung_0(12)
    promoted = []
    for i, (job,) in enumerate(asha.follow(known) for _ in range(4)):
        promoted.append(job)
        known.append(record(12 + i, 0.5 - i / 100, THIRD, job=job, values=job.values))
        if i == 2:
            break
    assert [job.start for job in promoted] == [11, 10, 9]
    (highest,) = asha.follow(known)
    assert highest == Job(
        fidelities=(1.0,),
        values={"x": 11},
        key="11 to rung 2",
        start=12,
        notes={"rung": 2, "origin": 11},
    )
    known.append(record(15, 0.9, job=highest, values=highest.values))
    assert asha.follow(known)[0].key == "8 to rung 1"
    assert asha.follow([*known[:15], replace(known[15], state="lost")]) == [highest]


@pytest.mark.parametrize("state", AGAIN)
def test_failed_promotion_is_done_again(state: str) -> None:
    asha = Asha(LEVELS)
    assert asha.follow([*rung_0(3), record(3, 0.5, THIRD, job=PROMOTED, state=state)]) == [PROMOTED]
    later = record(4, 0.5, THIRD, job=replace(PROMOTED, start=3))
    assert asha.follow([*rung_0(3), record(3, job=PROMOTED, state=state), later]) == []


@pytest.mark.parametrize("state", FOR_GOOD)
def test_running_or_finished_promotion_is_not_done_again(state: str) -> None:
    asha = Asha(LEVELS)
    assert asha.follow([*rung_0(3), record(3, 0.5, THIRD, job=PROMOTED, state=state)]) == []


@pytest.mark.parametrize("state", ["diverged", "pruned", "waiting", "running", *AGAIN])
def test_only_paused_configurations_are_promoted(state: str) -> None:
    assert Asha(LEVELS).follow(rung_0(9, state)) == []
    if state != "diverged":  # other states do not count
        assert Asha(LEVELS).follow([*rung_0(2), *rung_0(9, state, first=2)]) == []


# --- Order of records -------------------------------------------------------------------------

ACCURACIES = st.sampled_from([None, 0.0, 0.25, 0.5, 0.75])
PAIRS = st.lists(st.tuples(ACCURACIES, st.integers(1, 5)), max_size=12)


def sized(pairs: Iterable[tuple[float | None, int]]) -> list[Record]:
    return [record(i, a, parameters=p) for i, (a, p) in enumerate(pairs)]


def test_ranked() -> None:
    records = sized([(0.5, 1), (None, 2), (0.75, 3), (0.5, 4), (0.0, 5)])
    assert [r.trial for r in ranked(reversed(records))] == [2, 0, 3, 1, 4]
    assert ranked([]) == ranked([], pareto=True) == front([]) == []


def test_fronts() -> None:
    """Check two fronts and a record that both dominate."""
    records = sized([(0.9, 90), (0.5, 20), (0.8, 95), (0.4, 20), (0.7, 40), (0.5, 50), (0.1, 99)])
    assert [r.trial for r in front(records)] == [0, 4, 1]
    assert [r.trial for r in ranked(records, pareto=True)] == [0, 4, 1, 2, 5, 3, 6]


@given(PAIRS, st.randoms())
def test_front_is_complete_and_not_dominated(
    pairs: list[tuple[float | None, int]], chance: random.Random
) -> None:
    """Of several equal records, the front has one."""
    records = sized(pairs)
    shuffled = chance.sample(records, len(records))
    found = front(shuffled)
    goods = [(r.accuracy or 0.0, -(r.parameters or 0)) for r in found]
    assert goods == sorted(set(goods), reverse=True)
    for i, (accuracy, size) in enumerate(goods):
        assert not any(a >= accuracy and p >= size for a, p in goods[:i] + goods[i + 1 :])
    for r in records:
        own = (r.accuracy or 0.0, -(r.parameters or 0))
        assert any(a >= own[0] and p >= own[1] for a, p in goods)


@given(PAIRS, st.randoms())
def test_ranked_by_fronts(pairs: list[tuple[float | None, int]], chance: random.Random) -> None:
    records = sized(pairs)
    shuffled = chance.sample(records, len(records))
    found = [r.trial for r in ranked(shuffled, pareto=True)]
    layers = [sorted(layer, key=lambda r: -(r.accuracy or 0.0)) for layer in fronts(records)]
    assert found == [r.trial for layer in layers for r in layer]


# --- Jobs and records -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        Job(fidelities=(1.0,)),
        Job(
            fidelities=(NINTH, THIRD, 1.0),
            values={"lr": 0.1, "n": 2, "kind": "sgd", "flag": False},
            key="3 to rung 1",
            start=3,
            done=(Measurement(1.5, NINTH, 0.25), Measurement(2.5, THIRD, 0.5)),
            notes={"rung": 1, "origin": 3},
        ),
    ],
)
def test_job_json_round_trip(job: Job) -> None:
    found = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert found == job
    assert all(isinstance(m, Measurement) for m in found.done)


@pytest.mark.parametrize("state", [*FOR_GOOD, *AGAIN])
def test_counts_and_done_of_each_state(state: str) -> None:
    found = record(0, state=state)
    assert found.counts is (state in FOR_GOOD)
    assert found.done is (state in ("complete", "paused", "diverged"))


def test_fidelity_of_a_record_is_the_last_measured() -> None:
    measured = (Measurement(1.0, NINTH, 0.5), Measurement(2.0, THIRD, 0.4))
    assert record(0).fidelity == 0.0
    assert record(0, measurements=measured).fidelity == THIRD
