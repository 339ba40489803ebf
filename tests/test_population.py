"""Populations without training: sources of members, their values, and the schedules of their
weights."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import AGAIN, Play, record

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.augment import Augmentation, Learned, Scheduled
from darts_lite.data import Dataset, Splits
from darts_lite.hpo.methods.population import Population, explorable, lineage
from darts_lite.hpo.records import Job, Record
from darts_lite.hpo.space import ConfigurationSpace, Known, Random, Values
from darts_lite.nas.random_networks import uniform_random
from darts_lite.schedules import Schedule, interpolate
from darts_lite.training.options import DeriveOptions
from darts_lite.training.task import TrainTask

SPACE = ConfigurationSpace(
    architecture=blocks(4, 2),
    batch_sizes=(32, 64),
    learnable=Augmentation(Learned(channels=1, crop=1)),
)
NAMES = SPACE.learnable.policy.names
ZEROS: Values = dict.fromkeys(NAMES, 0.0)
PBT = Population(size=8, generations=5)
PBA = Population(size=8, generations=5, explore="pba", begin=ZEROS)
RANGES = {
    "sgd.lr": (3e-3, 1.0),
    "sgd.weight_decay": (1e-6, 1e-2),
    "adamw.lr": (1e-4, 3e-2),
    "adamw.weight_decay": (1e-4, 0.5),
    "randaugment.m": (0.0, 30.0),
    **{n: (0.01, 1.0) if n.startswith("magnitude") else (0.02, 0.98) for n in NAMES},
}


def notes(found: Record) -> dict[str, int]:
    return found.job.notes


def played(method: Population, workers: int = 1, seed: int = 0, trouble: float = 0.0) -> Play:
    """Return a study until the next population starts, with random accuracies and order.

    Arguments:
        method: Population to run.
        workers: Number of workers.
        seed: Random seed.
        trouble: Probability that a job fails or diverges.
    """
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    play = Play(method, lambda: SPACE.configure(Random(generator)).values)
    flying: list[int] = []
    while True:
        while len(flying) < workers and (begun := play.begin()) is not None:
            if notes(begun)["population"] == 1:
                return play
            flying.append(begun.trial)
        accuracy, state = chance.random(), ""
        trial = flying.pop(chance.randrange(len(flying)))
        if chance.random() < trouble:
            first = notes(play.records[trial])["generation"] == 1
            state = chance.choice(
                [*AGAIN[: 2 + first], "diverged"]
            )  # only a new configuration is too large
        play.end(trial, accuracy, state)


def own(play: Play, member: int) -> list[Record]:
    """Return the records of a member of the first population that count, in order."""
    mine = [r for r in play.records if notes(r) and notes(r)["member"] == member and r.done]
    return [r for r in mine if notes(r)["population"] == 0]


def selected(member: int, before: tuple[Record, ...]) -> tuple[Record, list[Record]]:
    """Return the last record of a member, and its possible sources by the rule of the paper."""
    done = [r for r in before if r.done]
    newest = {m: max((r for r in done if notes(r)["member"] == m), key=generation)
              for m in {notes(r)["member"] for r in done}}  # fmt: skip
    order = sorted(newest.values(), key=lambda r: (-(r.accuracy or 0.0), r.trial))
    quarter = len(order) // 4 if len(order) > 3 else len(order) // 2
    last = newest[member]
    return last, order[:quarter] if last in order[len(order) - quarter :] else [last]


def generation(found: Record) -> int:
    return notes(found)["generation"]


def decisions(play: Play) -> list[tuple[Job, Record, Record, bool]]:
    """Return job, last record, source and replacement flag of jobs after the first generation."""
    found = []
    for job, before in play.decided:
        again = job.start is not None and before[job.start].state in ("lost", "stopped")
        if job.notes["population"] == 0 and job.notes["generation"] > 1 and not again:
            last, sources = selected(job.notes["member"], before)
            assert job.start in [r.trial for r in sources]
            assert job.start is not None
            found.append((job, last, before[job.start], sources != [last]))
    return found


# --- Sources of members -----------------------------------------------------------------------


@pytest.mark.parametrize("method", [PBT, PBA, replace(PBT, size=2), replace(PBT, size=3)])
def test_one_worker_trains_every_member_through_every_generation(method: Population) -> None:
    play = played(method)
    for member in range(method.size):
        mine = own(play, member)
        assert [generation(r) for r in mine] == [1, 2, 3, 4, 5]
        assert [r.fidelity for r in mine] == [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]
        assert [r.state for r in mine] == [*["paused"] * 4, "complete"]
        assert mine[0].job.start is None and mine[0].job.values == method.begin
    assert len(play.records) == 6 * method.size  # the next population has started


@pytest.mark.parametrize("trouble", [0.0, 0.3])
@pytest.mark.parametrize("workers", [3, 8, 20])
@pytest.mark.parametrize("method", [PBT, PBA])
def test_several_workers_train_no_generation_twice(
    method: Population, workers: int, trouble: float
) -> None:
    """The order of the workers and failed jobs do not matter."""
    for seed in range(3):
        play = played(method, workers, seed, trouble)
        keys = [r.job.key for r in play.records if r.counts]
        assert len(keys) == len(set(keys))
        for member in range(method.size):
            trained = [generation(r) for r in own(play, member)]
            assert trained == sorted(set(trained)) and trained[0] == 1 and trained[-1] == 5
            assert trouble or all(
                r.job.fidelities == (generation(r) / 5,) for r in own(play, member)
            )
        for job, last, source, replaced in decisions(play):
            step = job.notes["generation"] - generation(last)
            further = generation(source) > generation(last)
            assert step == 1 or (replaced and further)
            assert job.fidelities == (job.notes["generation"] / 5,)
            assert generation(source) <= job.notes["generation"]


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("method", [PBT, PBA])
def test_a_member_of_the_worst_quarter_starts_from_one_of_the_best(
    method: Population, workers: int
) -> None:
    """The others from their own weights and, in population based training, with their values."""
    count: Counter[bool] = Counter()
    for seed in range(5):
        for job, last, source, replaced in decisions(played(method, workers, seed, trouble=0.1)):
            count[replaced] += 1
            if replaced:
                assert (source.accuracy or 0) >= (last.accuracy or 0)
                assert notes(source)["member"] != notes(last)["member"]
            else:
                assert source == last
                assert method is PBA or job.values == last.values
            assert (job.values == source.values) is (method is PBT and not replaced)
    assert count[True] > 20 and count[False] > 80


def finished(accuracies: list[float], at: Mapping[int, int] | None = None) -> list[Record]:
    """Return members after their first generation, or after the generation in `at`."""
    found = []
    for i, accuracy in enumerate(accuracies):
        reached = (at or {}).get(i, 1)
        job = Job(
            fidelities=(reached / 5,),
            key=f"population 0, member {i}, generation {reached}",
            notes={"population": 0, "member": i, "generation": reached},
        )
        values: Values = {"sgd.lr": 0.05, "sgd.momentum": 0.9, "randaugment.m": 10.0}
        state = "complete" if reached == 5 else "paused"
        found.append(record(i, accuracy, reached / 5, job=job, values=values, state=state))
    return found


def next_of(member: int, records: list[Record], method: Population = PBT) -> Job:
    (job,) = (j for j in method.follow(records) if j.notes["member"] == member)
    return job


EIGHT = [0.5, 0.9, 0.4, 0.8, 0.2, 0.6, 0.3, 0.7]  # 4 and 6 are worst, 1 and 3 are best


def test_two_of_eight_members_are_replaced_by_either_of_the_best_two() -> None:
    starts: Counter[int | None] = Counter()
    for seed in range(200):
        for job in replace(PBT, seed=seed).follow(finished(EIGHT)):
            member = job.notes["member"]
            if member in (4, 6):
                starts[job.start] += 1
            else:
                assert job.start == member
    assert starts.keys() == {1, 3}
    assert all(150 < count < 250 for count in starts.values())


def test_a_diverged_member_is_replaced() -> None:
    records = finished(EIGHT)
    records[1] = replace(records[1], state="diverged", accuracy=0.0, measurements=())
    assert next_of(1, records).start in (3, 7)
    assert next_of(6, records).start == 6  # not one of the two worst any more


def test_a_member_replaced_by_a_longer_trained_one_continues_from_there() -> None:
    """Under its own key, so that it is not done twice."""
    records = finished([0.5, 0.1, 0.9, 0.6], at={2: 3})
    job = next_of(1, records)
    assert (job.start, job.fidelities) == (2, (4 / 5,))
    assert job.key == "population 0, member 1, generation 2"
    assert job.notes == {"population": 0, "member": 1, "generation": 4}
    records.append(record(4, 0.7, 4 / 5, job=job, values=job.values))
    assert next_of(1, records).notes["generation"] == 5
    records = finished([0.5, 0.1, 0.9, 0.6], at={2: 5})
    job = next_of(1, records)
    assert (job.start, job.fidelities, job.notes["generation"]) == (2, (1.0,), 5)


@pytest.mark.parametrize("state", AGAIN)
def test_a_failed_generation_is_repeated(state: str) -> None:
    """A configuration above the cap is drawn anew."""
    begun = PBT.follow([])
    assert [(j.values, j.start, j.fidelities) for j in begun] == [(None, None, (1 / 5,))] * 8
    records = [record(i, job=j, state="running") for i, j in enumerate(begun)]
    assert PBT.follow(records) == []
    records[3] = replace(records[3], state=state, values={"sgd.lr": 0.1})
    assert PBT.follow(records) == [begun[3]]
    other = record(8, job=begun[3], state="waiting")
    assert PBT.follow([*records, other]) == []
    later = next_of(2, finished(EIGHT))
    assert later in PBT.follow([*finished(EIGHT), record(8, job=later, state=state)])


def test_the_next_population_begins_when_all_members_are_fully_trained() -> None:
    last = dict.fromkeys(range(8), 5)
    for member in range(8):
        jobs = PBT.follow(finished(EIGHT, at={**last, member: 4}))
        assert [j.notes["member"] for j in jobs] == [member]
    jobs = PBT.follow(finished(EIGHT, at=last))
    expected = [{"population": 1, "member": i, "generation": 1} for i in range(8)]
    assert [j.notes for j in jobs] == expected
    assert [j.values for j in jobs] == [None] * 8
    assert not {j.key for j in jobs} & {r.job.key for r in finished(EIGHT)}
    started = [record(8 + i, job=j, state="waiting") for i, j in enumerate(jobs)]
    assert PBT.follow([*finished(EIGHT, at=last), *started]) == []
    running = [replace(r, state="running") for r in started[1:]]
    begun = [record(8, 0.5, 1 / 5, job=jobs[0], values={"sgd.lr": 0.1}), *running]
    (job,) = PBT.follow([*finished(EIGHT, at=last), *begun])  # the old population does not count
    assert (job.start, job.values) == (8, {"sgd.lr": 0.1})


def test_records_of_other_methods_are_no_members() -> None:
    """Such as what an earlier study has measured."""
    assert PBT.first([]) is None
    assert PBT.follow([record(0, 0.9)]) == PBT.follow([])


def test_decisions_depend_only_on_the_seed() -> None:
    def story(method: Population, seed: int = 0) -> list[Job]:
        return [job for job, _ in played(method, 3, seed).decided]

    for method in (PBT, PBA):
        assert story(method) == story(method)
        assert story(method) != story(replace(method, seed=1))
    four, six = (
        [next_of(m, finished(EIGHT), replace(PBT, seed=s)).values for s in range(8)] for m in (4, 6)
    )
    assert four != six  # different for each member and seed
    assert all(any(other != each[0] for other in each) for each in (four, six))


# --- Values -----------------------------------------------------------------------------------


def test_explorable_values() -> None:
    configurations = [SPACE.configure(Random(torch.Generator().manual_seed(s))) for s in range(99)]
    names = {n for c in configurations for n in c.values}
    assert {n: explorable(n) for n in names if explorable(n)} == RANGES
    assert {n for n in names if explorable(n) is None} > {
        "channels", "block1.0-1", "optimizer", "batch_size", "sgd.momentum", "sgd.nesterov",
        "adamw.beta1", "adamw.beta2", "label_smoothing", "augment", "randaugment.n",
    }  # fmt: skip


def test_explored_values_stay_in_range_and_other_values_unchanged() -> None:
    """They are configurations as they stand: nothing of them would be clipped."""
    explored = 0
    for seed in range(4):
        for job, _, source, replaced in decisions(played(PBT, 4, seed)):
            assert job.values is not None and job.values.keys() == source.values.keys()
            assert SPACE.configure(Known(job.values)).values == job.values
            for name, value in job.values.items():
                before = source.values[name]
                if not replaced or name not in RANGES:
                    assert value == before and type(value) is type(before)
                else:
                    low, high = RANGES[name]
                    assert isinstance(value, float) and low <= value <= high
                    explored += value != before
    assert explored > 50


def test_pbt_multiplies_values_or_draws_one_in_four_anew() -> None:
    """In the logarithm, where the range is one of the logarithm."""
    rates, drawn, sizes = Counter[float](), [], []
    for seed in range(400):
        values = next_of(4, finished(EIGHT), replace(PBT, seed=seed)).values
        assert values is not None and values["sgd.momentum"] == 0.9
        rate = float(values["sgd.lr"])
        if rate in (0.05 * 0.8, 0.05 * 1.25):
            rates[rate] += 1
        else:
            drawn.append(rate)
        sizes.append(float(values["randaugment.m"]))
    assert len(rates) == 2 and all(110 < count < 190 for count in rates.values())
    assert 65 < len(drawn) < 135
    middle = (3e-3 * 1.0) ** 0.5
    assert 0.35 < sum(rate < middle for rate in drawn) / len(drawn) < 0.65
    fresh = [m for m in sizes if m not in (8.0, 12.5)]
    assert 65 < len(fresh) < 135 and 0.35 < sum(m < 15 for m in fresh) / len(fresh) < 0.65


def test_a_value_at_the_end_of_its_range_stays_there() -> None:
    values: Values = {"sgd.lr": 1.0, "adamw.weight_decay": 1e-4, "probability.rotate": 0.02}
    records = [replace(r, values=values) for r in finished(EIGHT)]
    for seed in range(30):
        found = next_of(4, records, replace(PBT, seed=seed)).values
        assert found is not None
        for name, value in found.items():
            low, high = RANGES[name]
            assert isinstance(value, float) and low <= value <= high


def test_pba_moves_values_in_tenths_or_draws_them_anew() -> None:
    """From zero on, up to three of them, at every generation of every member."""
    steps: Counter[int] = Counter()
    for seed in range(4):
        for job, _, source, _ in decisions(played(PBA, 2, seed)):
            assert job.values is not None and set(job.values) == set(NAMES)
            for name, value in job.values.items():
                before = source.values[name]
                assert isinstance(value, float) and isinstance(before, float)
                assert 0 <= value <= 1
                tenths = 10 * (value - before)
                if abs(tenths - round(tenths)) < 1e-9 and abs(tenths) < 3.5:
                    if 0.3 <= before <= 0.7:  # far from both ends of the range
                        steps[round(tenths)] += 1
                elif value not in (0.0, 1.0):
                    steps[99] += 1 if 0.3 <= before <= 0.7 else 0
    count = sum(steps.values())
    assert count > 500
    shares = {step: steps[step] / count for step in (-3, -2, -1, 0, 1, 2, 3, 99)}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.pop(99) == pytest.approx(0.2, abs=0.06)
    assert shares.pop(0) == pytest.approx(0.2, abs=0.06)
    assert shares == pytest.approx(dict.fromkeys((-3, -2, -1, 1, 2, 3), 0.1), abs=0.05)


# --- Lineage ----------------------------------------------------------------------------------

RATE, ROTATE = "lr", "magnitude.rotate"


def member(
    trial: int, start: int | None, quarter: int, rate: float, rotate: float, **changes: Any
) -> Record:
    """Return a record trained up to a generation, with these values in its last part."""
    job = Job(fidelities=(quarter / 4,), start=start, notes={"member": 0, "generation": quarter})
    learned = {RATE: rate, "weight_decay": 1e-3, ROTATE: rotate, "probability.rotate": 0.5}
    return record(trial, 0.5, quarter / 4, job=job, learned=learned, **changes)


CHAIN = [
    member(0, None, 1, rate=0.1, rotate=0.1),
    member(1, None, 1, rate=0.2, rotate=0.2),  # the replacement of the member
    member(2, 1, 2, rate=0.16, rotate=0.25),
    member(3, 2, 3, rate=0.16, rotate=0.25, state="lost", measurements=()),
    member(4, 3, 3, rate=0.16, rotate=0.25),
    member(5, 4, 4, rate=0.2, rotate=0.25),
    member(6, 0, 4, rate=0.9, rotate=0.9),  # another chain
]
RECORDS = {r.trial: r for r in CHAIN}
SCHEDULES = {
    RATE: ((0, 0.2), (1 / 4, 0.2), (1 / 4, 0.16), (1 / 2, 0.16), (3 / 4, 0.16), (3 / 4, 0.2),
           (1, 0.2)),
    ROTATE: ((0, 0.2), (1 / 4, 0.2), (1 / 4, 0.25), (1 / 2, 0.25), (3 / 4, 0.25), (1, 0.25)),
    "weight_decay": ((0, 1e-3), (1 / 4, 1e-3), (1 / 2, 1e-3), (3 / 4, 1e-3), (1, 1e-3)),
}  # fmt: skip


def close(found: Schedule, expected: Schedule) -> None:
    """Check equal values at almost equal fractions, because one step takes some time."""
    assert [v for _, v in found] == [v for _, v in expected]
    assert [f for f, _ in found] == pytest.approx([f for f, _ in expected], abs=2e-6)
    assert [f for f, _ in found] == sorted(f for f, _ in found)


def test_the_lineage_of_a_replaced_member() -> None:
    found = lineage(CHAIN[5], RECORDS)
    assert found.keys() == CHAIN[5].learned.keys()
    for name, expected in SCHEDULES.items():
        close(found[name], expected)


def test_the_lineage_of_members_that_were_never_replaced() -> None:
    close(lineage(CHAIN[0], RECORDS)[RATE], ((0, 0.1), (1 / 4, 0.1)))
    close(lineage(CHAIN[6], RECORDS)[RATE], ((0, 0.1), (1 / 4, 0.1), (1 / 4, 0.9), (1, 0.9)))


def test_a_lineage_omits_values_that_trained_no_weights() -> None:
    """Who takes over what is trained in full already has nothing left to train."""
    jump = member(7, 5, 4, rate=0.7, rotate=0.7)
    assert lineage(jump, RECORDS | {7: jump}) == lineage(CHAIN[5], RECORDS)


def test_a_lineage_omits_an_unknown_start() -> None:
    """As on another machine, of an earlier study."""
    stray = member(8, 99, 2, rate=0.3, rotate=0.3)
    close(lineage(stray, RECORDS)[RATE], ((0, 0.3), (1 / 2, 0.3)))


@pytest.fixture(scope="module")
def genotype(digits: tuple[Dataset, Splits]) -> Genotype:
    space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(1))
    cost = network_cost(space, (1, 8, 8), 10)
    return Genotype(
        space=space,
        image=(1, 8, 8),
        classes=digits[0].classes,
        parameters=cost.parameters,
        macs=cost.macs,
        recipe=Recipe(augment="learned", schedules=lineage(CHAIN[5], RECORDS)),
    )


def test_a_training_follows_the_schedules_of_a_lineage(
    digits: tuple[Dataset, Splits], genotype: Genotype, tmp_path: Path
) -> None:
    """In each generation, values and augmented pixels equal the values of the generation."""
    genotype.save(tmp_path / "g.json")
    task = TrainTask(
        DeriveOptions(), Genotype.load(tmp_path / "g.json"), *digits, torch.device("cpu")
    )
    assert isinstance(task.plain.augment.policy, Scheduled)
    trained = [CHAIN[1], CHAIN[2], CHAIN[4], CHAIN[5]]
    for i, generation in enumerate(trained):
        for fraction in (i / 4 + 1e-5, i / 4 + 0.1, (i + 1) / 4 - 1e-5, (i + 1) / 4 - 1e-9):
            assert task.hyper.at(fraction) == generation.learned
            pixels = {n: v for n, v in generation.learned.items() if "rotate" in n}
            assert task.plain.augment.policy.at(fraction) == pixels
    task.step(0.3)
    assert task.report()["used/lr"] == pytest.approx(0.16)


def test_generation_starts_with_its_own_values() -> None:
    found = lineage(CHAIN[5], RECORDS)
    for fraction, rate in ((0.0, 0.2), (1 / 4, 0.16), (1 / 2, 0.16), (3 / 4, 0.2)):
        assert interpolate(found[RATE], fraction) == rate
