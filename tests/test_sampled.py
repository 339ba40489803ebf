"""Decisions of random search, TPE, BOHB and ASHA, played without training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import AGAIN, FOR_GOOD, NINTH, THIRD, Play, fronts, record

from darts_lite.hpo.methods.sampled import Asha, Sampled, rungs
from darts_lite.hpo.records import Job, Record

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
def test_rungs_of_successive_halving(lowest: float, found: tuple[float, ...]) -> None:
    assert rungs(lowest) == pytest.approx(found, rel=1e-15)
    assert rungs(lowest)[-1] == 1.0  # exactly 1, because this fidelity means a complete training


@given(st.floats(1e-4, 1))
def test_rungs_go_down_by_thirds_to_the_lowest_fidelity(lowest: float) -> None:
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
def test_asha_agrees_with_algorithm_2_of_the_paper(seed: int, levels: int) -> None:
    accuracy, count = noise(seed), 90
    play = Play(Asha(rungs(3.0 ** (1 - levels))))
    for _ in range(count):
        begun = play.begin()
        assert begun is not None
        play.end(begun.trial, accuracy(origin(begun), rung(begun)))
    expected = algorithm_2(accuracy, levels, count)
    assert [(origin(r), rung(r)) for r in play.records] == expected
    assert sum(k == levels - 1 for _, k in expected) >= 2


@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("seed", range(2))
def test_asha_promotes_from_the_top_third_and_never_twice(
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


def test_asha_promotes_the_best_of_three_from_its_checkpoint() -> None:
    asha = Asha(LEVELS)
    assert asha.follow(rung_0(2)) == []
    assert asha.first(rung_0(2)) == Job(**FIRST)
    assert asha.follow(rung_0(3)) == [PROMOTED]


def test_asha_promotes_at_the_highest_fidelity_first() -> None:
    """From the trial that was promoted, not from the one that began."""
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
def test_a_failed_promotion_is_repeated(state: str) -> None:
    asha = Asha(LEVELS)
    assert asha.follow([*rung_0(3), record(3, 0.5, THIRD, job=PROMOTED, state=state)]) == [PROMOTED]
    later = record(4, 0.5, THIRD, job=replace(PROMOTED, start=3))
    assert asha.follow([*rung_0(3), record(3, job=PROMOTED, state=state), later]) == []


@pytest.mark.parametrize("state", FOR_GOOD)
def test_a_running_or_finished_promotion_is_not_repeated(state: str) -> None:
    asha = Asha(LEVELS)
    assert asha.follow([*rung_0(3), record(3, 0.5, THIRD, job=PROMOTED, state=state)]) == []


@pytest.mark.parametrize("state", ["diverged", "pruned", "waiting", "running", *AGAIN])
def test_asha_promotes_paused_trials_only(state: str) -> None:
    assert Asha(LEVELS).follow(rung_0(9, state)) == []
    if state != "diverged":  # other states do not count
        assert Asha(LEVELS).follow([*rung_0(2), *rung_0(9, state, first=2)]) == []
