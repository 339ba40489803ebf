"""The bench: every fidelity, going on from a checkpoint to the same bits, deadlines, divergence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import record

from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import AdamW, Recipe
from darts_lite.data import Dataset, Images, Splits, load, resized, split, stratified
from darts_lite.errors import Diverged
from darts_lite.hpo import evaluator as benches
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.methods.population import lineage
from darts_lite.hpo.records import Job, Record
from darts_lite.hpo.space import constant
from darts_lite.nas.random_networks import uniform_random
from darts_lite.training import checkpoint
from darts_lite.training.budget import Budget
from darts_lite.training.task import TrainTask

EPOCHS, STEPS = 3, 27  # of 300 images in batches of 32
VALUES = {"lr": 0.05, "weight_decay": 1e-3, "magnitude.rotate": 0.5, "probability.rotate": 0.8}


@pytest.fixture
def bench(digits: tuple[Dataset, Splits], tmp_path: Path) -> Bench:
    return bench_of(*digits, tmp_path)


def bench_of(dataset: Dataset, splits: Splits, folder: Path, **changes: Any) -> Bench:
    usual: dict[str, Any] = {
        "device": torch.device("cpu"),
        "epochs": EPOCHS,
        "fidelity": "epochs",
        "seed": 3,
        "source": Source(dataset="digits"),
        "record": {},
    }
    return Bench(dataset=dataset, splits=splits, folder=folder, **{**usual, **changes})


def genotype(
    bench: Bench, *, size: int = 32, augment: str = "learned", **values: float
) -> Genotype:
    """A small network, its pixels augmented at random so that the generator's state matters."""
    found = bench.genotype_of(uniform_random(blocks(4, 3), torch.Generator().manual_seed(1)))
    return replace(
        found,
        recipe=Recipe(
            optimizer=AdamW(),
            batch_size=size,
            augment=augment,
            schedules=constant({**VALUES, **values}),
        ),
    )


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The trainings that were begun, with the steps that they took."""
    begun: list[Any] = []

    class Spy(TrainTask):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.count = 0
            begun.append(self)

        def step(self, fraction: float) -> int:
            self.count += 1
            return super().step(fraction)

    monkeypatch.setattr(benches, "TrainTask", Spy)
    yield begun


def kept(bench: Bench, trial: int) -> Any:
    return checkpoint.load(bench.place(trial) / "checkpoint.pt", "trial")["state"]


def alike(one: Any, other: Any) -> None:
    """The same states, bit for bit, but for the clock."""
    assert one["step"] == other["step"]
    assert set(one["task"]) == set(other["task"])
    for name in ("params", "optimizer"):
        assert_same(one["task"][name], other["task"][name])
    assert_same(one["task"]["feed"]["generator"], other["task"]["feed"]["generator"])
    assert one["task"]["fraction"] == other["task"]["fraction"]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other


def accuracies(bench: Bench, trial: int) -> list[tuple[int, float, float]]:
    """Step, fidelity and accuracy of every measurement that was recorded."""
    text = (bench.place(trial) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [(r["step"], r["fidelity"], r["accuracy/validation"]) for r in rows if "fidelity" in r]


class Cut(Budget):
    """Its deadline passes at a step."""

    at = 5

    def exhausted(self, step: int) -> bool:
        return step >= self.at or super().exhausted(step)


# --- epochs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment", ["learned", "standard", "randaugment:n=2,m=9", "trivialaugment"]
)
def test_a_continued_training_is_bit_identical_to_an_uninterrupted_one(
    bench: Bench, tasks: list[Any], augment: str
) -> None:
    """In its own folder as in another: accuracies, weights and the generator, bit for bit."""
    trained = genotype(bench, augment=augment)
    whole = bench.measure(trained, 1.0, bench.place(0))
    third = bench.measure(trained, 1 / 3, bench.place(1))
    assert third is not None and kept(bench, 1)["step"] == STEPS // 3
    elsewhere = bench.measure(trained, 1.0, bench.place(2), bench.place(1))
    assert kept(bench, 1)["step"] == STEPS // 3  # as it was
    assert bench.measure(trained, 1.0, bench.place(1)) == whole == elsewhere
    assert kept(bench, 0)["step"] == STEPS
    for trial in (1, 2):
        alike(kept(bench, trial), kept(bench, 0))
    assert accuracies(bench, 1) == [(9, 1 / 3, third), (27, 1.0, whole)]
    assert accuracies(bench, 2) == [(27, 1.0, whole)]
    assert [task.count for task in tasks] == [27, 9, 18, 18]


def test_training_rung_by_rung_measures_the_same_accuracies(bench: Bench, tasks: list[Any]) -> None:
    """Each step once; what is measured on the way is what a training to there measures."""
    trained = genotype(bench)
    found = [bench.measure(trained, f, bench.place(0)) for f in (1 / 9, 1 / 3, 1.0)]
    straight = [
        bench.measure(trained, f, bench.place(i)) for i, f in enumerate((1 / 9, 1 / 3, 1.0), 1)
    ]
    assert found == straight
    assert [step for step, _, _ in accuracies(bench, 0)] == [3, 9, 27]
    assert [kept(bench, i)["step"] for i in (1, 2, 3)] == [3, 9, 27]
    alike(kept(bench, 0), kept(bench, 3))
    assert [task.count for task in tasks] == [3, 6, 18, 3, 9, 27]
    before = kept(bench, 0)
    assert bench.measure(trained, 1.0, bench.place(0)) == found[-1]  # nothing is left to do
    alike(kept(bench, 0), before)


def test_a_trial_prefers_its_own_checkpoint_to_that_of_its_start(
    bench: Bench, tasks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that goes on from another one, and was interrupted itself."""
    trained = genotype(bench)
    bench.measure(trained, 1 / 3, bench.place(0))
    with monkeypatch.context() as patch:
        patch.setattr(benches, "Budget", Cut)
        patch.setattr(Cut, "at", 12)
        assert bench.measure(trained, 1.0, bench.place(1), bench.place(0)) is None
    found = bench.measure(trained, 1.0, bench.place(1), bench.place(0))
    assert [task.count for task in tasks] == [9, 3, 15]
    assert found == bench.measure(trained, 1.0, bench.place(2))


def test_training_images_train_and_validation_images_measure(
    bench: Bench, tasks: list[Any]
) -> None:
    """With the schedules and the batch size of the genotype; on the test images never."""
    blank = bench.splits.test._replace(pixels=torch.zeros_like(bench.splits.test.pixels))
    trained = genotype(bench, size=50)
    found = bench.measure(trained, 1.0, bench.place(0))
    other = replace(bench, splits=bench.splits._replace(test=blank))
    assert other.measure(trained, 1.0, bench.place(1)) == found
    task = tasks[0]
    assert torch.equal(task.images.pixels, bench.splits.train.pixels)
    assert task.feed.train.batch_size == 50 and kept(bench, 0)["step"] == EPOCHS * 6
    assert task.hyper.at(0.5) == VALUES
    assert task.validate() == found
    assert found == pytest.approx(round(found * 300) / 300)


def test_a_measurement_writes_only_to_the_folder_of_its_trial(bench: Bench) -> None:
    bench.measure(genotype(bench), 1 / 3, bench.place(4))
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    assert files and all(path.parent == bench.folder / "trials" / "4" for path in files)


def test_a_batch_size_above_the_number_of_images_is_reduced(bench: Bench) -> None:
    assert bench.measure(genotype(bench, size=1000), 1.0, bench.place(0)) is not None
    assert kept(bench, 0)["step"] == EPOCHS


@pytest.mark.parametrize("augment", ["none", "learned"])
def test_training_with_the_schedules_of_a_lineage_gives_the_same_weights(
    bench: Bench, augment: str
) -> None:
    """A member that was replaced and perturbed, and then a training by the schedules of it."""
    records: dict[int, Record] = {}
    for i, (rate, magnitude) in enumerate(((0.02, 0.1), (0.05, 0.9), (0.03, 0.4))):
        own = genotype(bench, augment=augment, lr=rate, **{"magnitude.rotate": magnitude})
        accuracy = bench.measure(own, (i + 1) / 3, bench.place(i), bench.place(i - 1))
        job = Job(fidelities=((i + 1) / 3,), start=i - 1 if i else None)
        records[i] = record(i, accuracy, (i + 1) / 3, job=job, learned=own.recipe.last)
    schedules = lineage(records[2], records)
    again = genotype(bench, augment=augment)
    again = replace(again, recipe=replace(again.recipe, schedules=schedules))
    bench.measure(again, 1.0, bench.place(3))
    alike(kept(bench, 3), kept(bench, 2))


# --- fewer images, smaller images -------------------------------------------------------------


@pytest.mark.parametrize(("fidelity", "count"), [(1 / 3, 100), (1 / 9, 33), (0.5, 150)])
def test_fidelity_subset_trains_on_fewer_images_in_fewer_steps(
    bench: Bench, tasks: list[Any], fidelity: float, count: int
) -> None:
    """As many epochs, on a part with the shares of the classes; what follows begins anew."""
    bench, trained = replace(bench, fidelity="subset"), genotype(bench)
    cheap = bench.measure(trained, fidelity, bench.place(0))
    assert cheap is not None and kept(bench, 0)["step"] == EPOCHS * (count // 32)
    train, part = bench.splits.train, tasks[0].images
    assert part.count == count
    whole, drawn = (torch.bincount(i.labels, minlength=10) for i in (train, part))
    assert (drawn - count / train.count * whole).abs().max() < 1
    known = {bytes(p.numpy()): int(y) for p, y in zip(train.pixels, train.labels)}
    assert all(known[bytes(p.numpy())] == int(y) for p, y in zip(part.pixels, part.labels))
    assert tasks[0].splits.validation is bench.splits.validation
    full = bench.measure(trained, 1.0, bench.place(0))
    assert bench.measure(trained, 1.0, bench.place(1)) == full
    assert bench.measure(trained, 1.0, bench.place(2), bench.place(0)) == full
    for trial in (0, 2):
        alike(kept(bench, trial), kept(bench, 1))
    assert [step for step, _, _ in accuracies(bench, 0)] == [STEPS]
    assert torch.equal(tasks[1].images.pixels, train.pixels)


@pytest.fixture(scope="module")
def larger() -> tuple[Dataset, Splits]:
    """160 digits of sixteen pixels a side."""
    dataset = load("digits", Path("data"), image_size=16)
    return dataset, split(dataset, subset=160)


@pytest.mark.parametrize(("fidelity", "side"), [(1 / 3, 9), (0.5, 11), (1 / 4, 8), (1 / 9, 8)])
def test_fidelity_resolution_trains_on_as_many_smaller_images(
    larger: tuple[Dataset, Splits],
    tasks: list[Any],
    tmp_path: Path,
    fidelity: float,
    side: int,
) -> None:
    """A third of the pixels is a side of 0.58; none is below eight."""
    bench = bench_of(*larger, tmp_path, epochs=1, fidelity="resolution")
    trained = genotype(bench)
    assert bench.measure(trained, fidelity, bench.place(0)) is not None
    assert kept(bench, 0)["step"] == 80 // 32
    task = tasks[0]
    assert task.images.pixels.shape == (80, 1, side, side)
    assert torch.equal(task.images.pixels, resized(bench.splits.train, side).pixels)
    assert torch.equal(task.images.labels, bench.splits.train.labels)
    assert task.splits.validation.pixels.shape == (80, 1, side, side)
    assert task.network.network.image == task.genotype.image == (1, side, side)
    assert task.genotype.space == trained.space
    full = bench.measure(trained, 1.0, bench.place(0))
    assert tasks[1].images.pixels.shape == (80, 1, 16, 16)
    assert bench.measure(trained, 1.0, bench.place(1)) == full


def test_fidelity_resolution_keeps_images_of_eight_pixels(bench: Bench, tasks: list[Any]) -> None:
    bench = replace(bench, fidelity="resolution", epochs=1)
    bench.measure(genotype(bench), 1 / 9, bench.place(0))
    assert torch.equal(tasks[0].images.pixels, bench.splits.train.pixels)


@pytest.mark.parametrize("fidelity", ["subset", "resolution"])
def test_an_interrupted_training_continues_at_its_fidelity(
    bench: Bench, fidelity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, trained = replace(bench, fidelity=fidelity), genotype(bench)
    whole = bench.measure(trained, 1 / 2, bench.place(0))
    with monkeypatch.context() as patch:
        patch.setattr(benches, "Budget", Cut)
        assert bench.measure(trained, 1 / 2, bench.place(1)) is None
    assert kept(bench, 1)["step"] == 5
    assert bench.measure(trained, 1 / 2, bench.place(2), bench.place(1)) == whole
    assert bench.measure(trained, 1 / 2, bench.place(1)) == whole
    for trial in (1, 2):
        alike(kept(bench, trial), kept(bench, 0))


# --- what may end it --------------------------------------------------------------------------


def test_a_training_stopped_by_the_deadline_continues_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first step, and amid it; to the same result."""
    trained = genotype(bench)
    whole = bench.measure(trained, 1 / 3, bench.place(0))
    late = replace(bench, deadline=0.0)
    assert late.late and not bench.late and not replace(bench, deadline=1e12).late
    assert late.measure(trained, 1 / 3, bench.place(1)) is None
    assert kept(bench, 1)["step"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(benches, "Budget", Cut)
        assert bench.measure(trained, 1 / 3, bench.place(1)) is None
    assert kept(bench, 1)["step"] == 5 and not accuracies(bench, 1)
    assert bench.measure(trained, 1 / 3, bench.place(1)) == whole
    alike(kept(bench, 1), kept(bench, 0))
    assert late.measure(trained, 1.0, bench.place(1)) is None
    assert kept(bench, 1)["step"] == STEPS // 3  # nothing is lost


@pytest.mark.parametrize("fidelity", [1 / 3, 1.0])
def test_a_diverging_training_raises_diverged(bench: Bench, fidelity: float) -> None:
    with pytest.raises(Diverged, match=r"NaN or infinite at step \d+"):
        bench.measure(genotype(bench, lr=1e30), fidelity, bench.place(0))
    assert kept(bench, 0)["step"] == 0  # the last good state


def test_a_diverging_training_leaves_its_start_checkpoint_unchanged(bench: Bench) -> None:
    """As a member of a population that its new values do not suit."""
    bench.measure(genotype(bench), 1 / 3, bench.place(0))
    before = kept(bench, 0)
    for place, start in ((1, bench.place(0)), (0, None)):
        with pytest.raises(Diverged):
            bench.measure(genotype(bench, lr=1e30), 1.0, bench.place(place), start)
    alike(kept(bench, 0), before)


# --- parts of data ----------------------------------------------------------------------------


def images(*counts: int, side: int = 8) -> Images:
    """Classes one after the other; the first two pixels of image i are its number."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    pixels = torch.zeros(len(labels), 1, side, side, dtype=torch.uint8)
    number = torch.arange(len(labels))
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number // 256, number % 256
    return Images(pixels, labels)


def numbers(part: Images) -> list[int]:
    first, second = part.pixels[:, 0, 0, :2].long().unbind(1)
    return (256 * first + second).tolist()


@pytest.mark.parametrize("fraction", [0.01, 1 / 9, 1 / 3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("counts", [(30, 30, 30), (200, 40, 7, 1), (1, 1), (500, 3, 100)])
def test_a_stratified_part_keeps_the_shares_of_the_classes(
    counts: tuple[int, ...], fraction: float
) -> None:
    """And at least one image of each."""
    whole = images(*counts)
    part = stratified(whole, fraction, seed=0)
    chosen = numbers(part)
    assert len(set(chosen)) == len(chosen) and torch.equal(part.labels, whole.labels[chosen])
    drawn = torch.bincount(part.labels, minlength=len(counts)).tolist()
    exact = round(fraction * sum(counts)) / sum(counts)
    for got, count in zip(drawn, counts):
        assert 1 <= got <= count
        assert abs(got - exact * count) < 1 or got == 1
    if min(exact * count for count in counts) >= 1:
        assert part.count == round(fraction * sum(counts))


def test_a_stratified_part_depends_on_its_seed_alone() -> None:
    whole = images(60, 60)
    one, two, other = (numbers(stratified(whole, 0.5, seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert numbers(stratified(whole, 1.0, 5)) == list(range(120))
    often = torch.zeros(120)
    for seed in range(200):
        often[numbers(stratified(whole, 0.5, seed))] += 1
    assert (often / 200 - 0.5).abs().max() < 0.16  # every image has its chance


def test_resized_images_average_their_pixels() -> None:
    """In more pieces than one; what is even stays so, and so does the mean of what is smooth."""
    grey = torch.arange(2000).remainder(256).to(torch.uint8)
    whole = Images(grey[:, None, None, None].repeat(1, 3, 16, 16), torch.arange(2000))
    found = resized(whole, 9)
    assert found.pixels.shape == (2000, 3, 9, 9) and found.pixels.dtype == torch.uint8
    assert torch.equal(found.pixels, grey[:, None, None, None].repeat(1, 3, 9, 9))
    assert torch.equal(found.labels, whole.labels)
    ramp = Images(
        (torch.arange(16) * 16).to(torch.uint8).repeat(1, 1, 16, 1), torch.zeros(1).long()
    )
    small = resized(ramp, 8).pixels[0, 0].float()
    assert torch.equal(small, small[:1].repeat(8, 1))
    assert torch.equal(small[0, 1:-1], 32 * torch.arange(1, 7) + 8.0)  # of two columns each
    assert (small[0].diff() > 0).all()
