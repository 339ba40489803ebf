"""Gradient rounds: length of each search, time for its training, and its warm start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import AGAIN, record

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.space import Edge, Operation
from darts_lite.data import Dataset, Splits
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.methods import gradient
from darts_lite.hpo.methods.gradient import (
    BEGIN,
    CHANGES,
    SHARE,
    SPARE,
    STEPS,
    Gradient,
    search_round,
)
from darts_lite.hpo.records import Job, Record
from darts_lite.hypergradient.hyperparameters import select
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask, space_of
from darts_lite.nas.warm_start import Warm, prior, starts
from darts_lite.training import checkpoint
from darts_lite.training.budget import Budget
from darts_lite.training.problem import OPTIMIZERS

HOUR = 3600.0


def job(number: int, part: int = 0, length: int = 10, start: int | None = None) -> Job:
    notes = {"round": number, "part": part, "length": length}
    return Job(fidelities=(1.0,), key=f"round {number}, part {part}", start=start, notes=notes)


def done(trial: int, job: Job, elapsed: float, trained: float = 20.0, **changes: Any) -> Record:
    """Return the record of a round whose training took `trained` seconds."""
    seconds = job.notes["length"] + trained
    return record(trial, 0.5, job=job, elapsed=elapsed, seconds=seconds, **changes)


def clocked(budget: float, trained: float, parts: int = 1) -> list[tuple[int, float, float]]:
    """Return length, start and end of each search in a study with one worker."""
    method, records, now, found = Gradient(budget=budget, parts=parts), [], 0.0, []
    while jobs := method.follow(records):
        for each in jobs:
            length = each.notes["length"]
            searched = length if each.notes["part"] == 0 else 0
            if searched:
                found.append((length, now, now + length))
            now += searched + trained
            seconds = searched + trained
            records.append(record(len(records), 0.5, job=each, elapsed=now, seconds=seconds))
    return found


# --- how long ---------------------------------------------------------------------------------


def test_every_search_takes_a_fixed_share_of_the_budget() -> None:
    assert 0 < SHARE <= 0.1
    assert Gradient(budget=3.0).follow([]) == [job(0, length=1)]
    method, records, length = Gradient(budget=HOUR), [], round(SHARE * HOUR)
    for i in range(3):
        assert method.follow(records) == [job(i, length=length)]
        records.append(record(i, job=job(i, length=length), state="waiting"))
        assert method.follow(records) == []
        records[i] = done(i, job(i, length=length), elapsed=(i + 1) * (length + 20.0))


def test_rounds_without_a_clock_are_in_steps() -> None:
    method, records = Gradient(), []
    for i in range(3):
        assert method.follow(records) == [job(i, length=STEPS)]
        records.append(record(i, 0.5, job=job(i, length=STEPS)))


@pytest.mark.parametrize("trained", [5.0, 50.0, 200.0, 400.0, 3000.0])
@pytest.mark.parametrize("budget", [60.0, 360.0, 1000.0, HOUR, 10 * HOUR])
def test_every_search_leaves_time_for_its_training(budget: float, trained: float) -> None:
    """But for the first one, before which nobody knows how long a training takes."""
    rounds = clocked(budget, trained)
    for _, _, end in rounds[1:]:
        assert end + trained <= budget + 0.5  # lengths are in whole seconds
    lengths, usual = [length for length, _, _ in rounds], max(1, round(SHARE * budget))
    assert lengths[:-1] == [usual] * (len(lengths) - 1) and lengths[-1] <= usual
    last = rounds[-1]
    left = SPARE * (budget - last[2] - trained) - trained
    assert left <= usual / 4 + 0.5  # no other useful round would fit


def test_no_round_begins_when_none_fits_into_the_budget() -> None:
    method, usual = Gradient(budget=1000.0), round(SHARE * 1000.0)
    fits = done(0, job(0, length=usual), elapsed=870.0, trained=100.0)
    assert method.follow([fits]) == [job(1, length=17)]  # 0.9 of 130 s, minus the training
    for elapsed, trained in ((885.0, 100.0), (800.0, 176.0), (1000.0, 1.0), (1100.0, 0.0)):
        assert method.follow([done(0, job(0, length=usual), elapsed, trained)]) == []


def test_all_parts_of_a_front_come_before_the_next_round() -> None:
    method = Gradient(budget=HOUR, parts=3)
    whole = job(0, length=180)
    first = done(0, whole, elapsed=200.0)
    parts = [job(0, part, length=180, start=0) for part in (1, 2)]
    assert method.follow([record(0, job=whole, state="waiting")]) == []
    assert method.follow([first]) == parts
    assert method.follow([first, record(1, job=parts[0], state="waiting")]) == [parts[1]]
    waiting = [record(i + 1, job=part, state="waiting") for i, part in enumerate(parts)]
    assert method.follow([first, *waiting]) == []
    ended = [done(i + 1, part, elapsed=250.0) for i, part in enumerate(parts)]
    assert method.follow([first, *ended]) == [job(1, length=round(SHARE * HOUR))]


@pytest.mark.parametrize("state", ["diverged", "infeasible"])
def test_a_failed_round_has_no_other_parts(state: str) -> None:
    failed = done(0, job(0, length=180), elapsed=200.0, state=state)
    (found,) = Gradient(budget=HOUR, parts=3).follow([failed])
    assert (found.notes["round"], found.notes["part"]) == (1, 0)


@pytest.mark.parametrize("state", AGAIN)
def test_a_failed_part_is_repeated(state: str) -> None:
    method = Gradient(parts=2)
    first, part = record(0, 0.5, job=job(0, length=STEPS)), job(0, 1, length=STEPS, start=0)
    lost = record(1, job=part, state=state)
    assert method.follow([first, lost]) == [part]
    assert method.follow([first, lost, record(2, job=part, state="waiting")]) == []
    over = record(2, 0.5, job=part)
    assert method.follow([first, lost, over]) == [job(1, length=STEPS)]


@pytest.mark.parametrize("state", ["lost", "stopped"])
@pytest.mark.parametrize(
    "budget",
    [
        HOUR,
        pytest.param(None),
    ],
)
def test_a_repeated_round_does_not_lengthen_the_next(budget: float | None, state: str) -> None:
    """`Study` puts it up again under its key; nothing else begins meanwhile."""
    method = Gradient(budget=budget)
    (first,) = method.follow([])
    lost = record(0, job=first, state=state)
    again = record(1, job=replace(first, start=0), state="waiting")
    assert method.follow([lost, again]) == []
    ended = done(1, replace(first, start=0), elapsed=300.0)
    (following,) = method.follow([lost, ended])
    assert following.key == "round 1, part 0"
    assert following.notes["length"] == first.notes["length"]


@pytest.mark.parametrize("parts", [2, 3])
def test_rounds_leave_time_for_the_trainings_of_all_parts(parts: int) -> None:
    for trained in (50.0, 100.0, 200.0):
        for _, _, end in clocked(1000.0, trained, parts)[1:]:
            assert end + trained <= 1000.5


def test_a_diverged_search_does_not_shorten_the_expected_training_time() -> None:
    method = Gradient(budget=1000.0)
    good = done(0, job(0, length=50), elapsed=250.0, trained=200.0)
    bad = record(1, job=job(1, length=100), state="diverged", elapsed=350.0)
    third = record(2, job=job(2, length=200), state="diverged", elapsed=550.0)
    for records in ([good, bad], [good, bad, third]):
        for found in method.follow(records):
            assert (records[-1].elapsed or 0) + found.notes["length"] + 200.0 <= 1000.0


def test_a_continued_round_does_not_shorten_the_expected_training_time() -> None:
    """Its search was over when it was stopped: what is left for the second worker is to train."""
    first = done(0, job(0, length=120), elapsed=170.0, trained=50.0)
    lost = record(1, job=job(1, length=240), state="lost")
    again = record(2, 0.5, job=job(1, length=240, start=1), elapsed=500.0, seconds=50.0)
    for found in Gradient(budget=1000.0).follow([first, lost, again]):
        assert 500.0 + found.notes["length"] + 50.0 <= 1000.0


# --- a round ----------------------------------------------------------------------------------

CONFIG = SearchOptions(
    space="blocks",
    cells=3,
    channels=4,
    search_channels=4,
    max_params=2000,
    batch_size=16,
    stem_stride=1,
    estimator="one_step",
    seed=7,
)
LENGTH = 6  # steps


@pytest.fixture
def bench(digits: tuple[Dataset, Splits], tmp_path: Path) -> Bench:
    return Bench(
        dataset=digits[0],
        splits=digits[1],
        device=torch.device("cpu"),
        epochs=1,
        fidelity="epochs",
        seed=7,
        folder=tmp_path,
        source=Source(dataset="digits", subset=600),
        record={"method": "gradient"},
    )


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Record the started searches with their initial values."""
    begun: list[Any] = []

    class Spy(SearchTask):
        def __init__(self, config: SearchOptions, *arguments: Any) -> None:
            super().__init__(config, *arguments)
            self.warm: Warm = arguments[-1]
            self.first, self.count = self.inner.params, 0
            self.begins = select(self.hyper.variables.raw, "alpha.")
            begun.append(self)

        def step(self, fraction: float) -> int:
            self.count += 1
            return super().step(fraction)

    monkeypatch.setattr(gradient, "SearchTask", Spy)
    yield begun


def searched(
    bench: Bench,
    trial: int = 0,
    each: Job | None = None,
    earlier: Sequence[tuple[Genotype, Path | None]] = (),
    config: SearchOptions = CONFIG,
) -> Genotype | None:
    each = each or job(0, length=LENGTH)
    return search_round(bench, config, each, bench.place(trial), earlier, clock=False)


def kept(bench: Bench, trial: int = 0) -> Any:
    return checkpoint.load(bench.place(trial) / "search" / "checkpoint.pt", "search")["state"]


def test_a_round_returns_a_genotype_that_can_be_trained(bench: Bench, tasks: list[Any]) -> None:
    """And writes nothing outside its folder."""
    found = searched(bench, trial=3)
    assert found is not None and tasks[0].count == LENGTH == kept(bench, 3)["step"]
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    assert files and all(bench.place(3) / "search" in path.parents for path in files)
    assert not list(bench.folder.rglob("*.tmp"))
    assert found.parameters <= CONFIG.max_params
    assert (found.parameters, found.macs) == network_cost(found.space, (1, 8, 8), 10)
    assert found.source == bench.source and found.finished
    assert found.search.items() >= bench.record.items()
    assert found.dataset == bench.dataset.fingerprint
    assert tasks[0].warm == Warm() and tasks[0].options == replace(CONFIG, **BEGIN)
    accuracy = bench.measure(found, 1.0, bench.place(3))
    assert accuracy is not None and 0 <= accuracy <= 1


def test_the_second_round_starts_from_what_the_first_learned(
    bench: Bench, tasks: list[Any]
) -> None:
    """Its choices, its hyperparameters and the weights of its supernet; by another seed."""
    first = searched(bench)
    assert first is not None
    weights = kept(bench)["task"]["params"]
    folder = bench.place(0) / "search"
    found = searched(bench, 1, job(1, length=2 * LENGTH), [(first, folder)])
    assert found is not None
    second = tasks[1]
    assert second.options == replace(CONFIG, **{**BEGIN, **CHANGES[0]}, seed=8)
    assert second.warm.starts == starts([first])
    expected = prior(space_of(CONFIG), [first])
    assert second.warm.alpha.keys() == expected.keys() and len(expected) > 3
    for name, logits in expected.items():
        assert torch.equal(second.warm.alpha[name], logits)
        assert torch.equal(second.begins[name], logits)
    assert all(torch.equal(a, b) for a, b in zip(second.first, weights, strict=True))
    assert not torch.equal(second.first[0], tasks[0].first[0])
    assert second.count == kept(bench, 1)["step"] == 2 * LENGTH
    begin = found.recipe.schedules["lr"][0][1]
    assert begin == pytest.approx(first.recipe.last["lr"], rel=1e-4)
    assert torch.equal(kept(bench)["task"]["params"][0], weights[0])  # as it was


def test_a_round_starts_from_the_best_earlier_genotype(bench: Bench, tasks: list[Any]) -> None:
    """Without a folder, or from a supernet of another width, it gives no weights."""
    first = searched(bench)
    assert first is not None
    folder = bench.place(0) / "search"
    schedules = {**first.recipe.schedules, "lr": ((0.0, 0.5),)}
    other = replace(first, recipe=replace(first.recipe, schedules=schedules))
    narrow = replace(first, search={**first.search, "search_channels": 2})
    for earlier in ((first, None), (first, folder.parent), (narrow, folder)):
        searched(bench, 1, earlier=[earlier, (other, folder)])
        assert tasks[-1].warm.starts == starts([first])
        assert tasks[-1].warm.params is None
        assert torch.equal(tasks[-1].first[0], tasks[0].first[0])  # from the same seed
        (bench.place(1) / "search" / "checkpoint.pt").unlink()


def test_each_round_changes_one_setting_without_a_gradient(bench: Bench, tasks: list[Any]) -> None:
    """One change a round, of the best before; when all are tried, none."""
    best = searched(bench)
    assert best is not None
    earlier = [(replace(best, recipe=replace(best.recipe, batch_size=24)), None)]
    for number in range(len(CHANGES) + 2):
        searched(bench, 1 + number, job(number, length=1), earlier)
        change = CHANGES[number - 1] if 1 <= number <= len(CHANGES) else {}
        expected = {**BEGIN, "batch_size": 24, **change}
        assert tasks[-1].options == replace(CONFIG, **expected, seed=CONFIG.seed + number)


def test_another_optimizer_finds_its_learning_rate_anew(bench: Bench, tasks: list[Any]) -> None:
    """For new weights: from trained ones only low rates work."""
    first = searched(bench)
    assert first is not None
    number = 1 + CHANGES.index({"optimizer": "adamw"})
    earlier = [(first, bench.place(0) / "search")]
    found = searched(bench, 1, job(number, length=LENGTH), earlier)
    assert found is not None and found.recipe.optimizer.name == "adamw"
    warm = tasks[1].warm
    assert warm.params is None and "lr" not in warm.starts
    assert warm.alpha.keys() == prior(space_of(CONFIG), [first]).keys()
    assert found.recipe.schedules["lr"][0][1] == pytest.approx(OPTIMIZERS["adamw"].start["lr"])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"dataset": {"name": "digits", "sha256": "0"}}, id="data"),
        pytest.param({"source": Source(dataset="digits", subset=300)}, id="subset"),
        pytest.param({"seed": 5}, id="seed"),
    ],
)
def test_weights_trained_on_current_validation_images_are_not_reused(
    bench: Bench, tasks: list[Any], changes: dict[str, Any]
) -> None:
    first = searched(bench)
    assert first is not None
    searched(bench, 1, earlier=[(replace(first, **changes), bench.place(0) / "search")])
    assert tasks[1].warm.params is None


def test_weights_of_another_space_are_not_reused(bench: Bench, tasks: list[Any]) -> None:
    longer = replace(CONFIG, cells=4)
    first = searched(bench, config=longer)
    assert first is not None
    assert searched(bench, 1, earlier=[(first, bench.place(0) / "search")]) is not None
    assert tasks[1].warm.params is None


def test_a_genotype_of_a_later_round_has_the_seed_that_split_the_data(bench: Bench) -> None:
    found = searched(bench, 1, job(1, length=LENGTH))
    assert found is not None
    assert found.seed == bench.seed


def test_a_part_is_derived_from_the_same_search_under_half_the_limit(
    bench: Bench, tasks: list[Any]
) -> None:
    """With a head start for the largest network, which both caps are too low for."""
    space = space_of(CONFIG)
    largest = (Edge(0, 1, (Operation("inverted_residual", {"kernel": (5,), "expansion": (6,)}),)),)
    cells = tuple(replace(cell, edges=largest) for cell in space.cells)
    earlier = [(bench.genotype_of(replace(space, cells=cells)), None)]
    assert earlier[0][0].parameters > CONFIG.max_params
    first = searched(bench, earlier=earlier)
    part = searched(bench, 1, job(0, part=1, length=LENGTH, start=0), earlier)
    assert first is not None and part is not None
    assert [task.count for task in tasks] == [LENGTH, 0]
    assert tasks[1].options.max_params == CONFIG.max_params // 2
    assert part.parameters <= CONFIG.max_params // 2 < first.parameters <= CONFIG.max_params
    assert part.recipe.schedules == first.recipe.schedules
    last = searched(bench, 2, job(0, part=2, length=LENGTH, start=0), earlier)
    assert last is not None and last.parameters <= CONFIG.max_params // 4


class Cut(Budget):
    """Budget whose deadline passes at the third step."""

    def exhausted(self, step: int) -> bool:
        return step >= 3 or super().exhausted(step)


def test_a_search_stopped_by_the_deadline_continues_to_the_same_genotype(
    bench: Bench, tasks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own or another trial's folder gives the genotype of an uninterrupted run."""
    whole = searched(bench, 0)
    assert whole is not None
    assert searched(replace(bench, deadline=0.0), 1) is None
    assert kept(bench, 1)["step"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(gradient, "Budget", Cut)
        assert searched(bench, 1) is None and searched(bench, 2) is None
    assert kept(bench, 1)["step"] == kept(bench, 2)["step"] == 3
    assert searched(bench, 1) == whole
    assert searched(bench, 3, job(0, length=LENGTH, start=2)) == whole
    assert kept(bench, 2)["step"] == 3  # as it was
    assert [task.count for task in tasks] == [LENGTH, 0, 3, 3, LENGTH - 3, LENGTH - 3]


def test_a_finished_search_is_not_repeated(bench: Bench, tasks: list[Any]) -> None:
    """If its training was stopped: the genotype is there already."""
    whole = searched(bench, 0)
    assert whole is not None
    kept_there = replace(whole, search={**whole.search, "note": "there"})
    kept_there.save(bench.place(0) / "genotype.json")
    assert searched(bench, 1, job(0, length=LENGTH, start=0)) == kept_there
    assert len(tasks) == 1
