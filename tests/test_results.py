"""Results of a study on disk: the best configuration, every trial, and files for other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import AGAIN, FOR_GOOD, NINTH, THIRD, record

from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.presets import blocks
from darts_lite.augment import Scheduled, TrivialAugment, load
from darts_lite.augment.policies.fixed import RandAugment
from darts_lite.data import Dataset, Images, Splits
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.methods.population import lineage
from darts_lite.hpo.records import Job, Measurement, Record
from darts_lite.hpo.results import best, pareto, write_best, write_trials
from darts_lite.hpo.space import POLICIES, ConfigurationSpace, Random, Value
from darts_lite.nas.loading import load_genotype
from darts_lite.reporting import comparison as report
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import augmentation_for
from darts_lite.training.task import TrainTask

CAP = 100


def sized(
    trial: int, accuracy: float | None, parameters: int | None, fidelity: float = 1
) -> Record:
    return record(trial, accuracy, fidelity, parameters=parameters)


# --- The best ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([], None),
        ([sized(0, 0.2, 100, NINTH), sized(1, 0.3, 90, NINTH)], 1),
        ([sized(0, 0.9, 90, NINTH), sized(1, 0.5, 90, THIRD), sized(2, 0.4, 90, THIRD)], 1),
        ([sized(0, 0.9, 90, THIRD), sized(1, 0.1, 90, 1.0)], 1),  # the higher fidelity wins
        ([sized(0, 0.9, 101), sized(1, 0.5, 100), sized(2, 0.4, 1)], 1),
        ([sized(0, 0.9, 101), sized(1, 0.5, 100, NINTH)], 1),
        ([sized(0, 0.5, 90), sized(1, 0.5, 10)], 0),
        ([sized(0, 0.9, None), sized(1, None, 90)], None),
        ([sized(0, 0.9, 101)], None),
    ],
)
def test_the_best_is_the_most_accurate_of_the_longest_trained_within_the_limit(
    records: list[Record], found: int | None
) -> None:
    for some in (records, records[::-1]):
        chosen = best(some, CAP)
        assert (None if chosen is None else chosen.trial) == found


def test_the_front_has_fully_trained_networks_within_the_limit() -> None:
    records = [
        sized(0, 0.9, 101),
        sized(1, 0.8, 100),
        sized(2, 0.8, 99, THIRD),
        sized(3, 0.7, 50),
        sized(4, 0.6, 60),
        sized(5, 0.5, 10),
        sized(6, None, 1),
    ]
    assert [r.trial for r in pareto(records, CAP)] == [1, 3, 5]
    assert pareto(records[:1], CAP) == []


# --- Every trial ------------------------------------------------------------------------------

DATA: dict[str, Any] = {"name": "digits", "sha256": "a" * 64, "shape": [1, 8, 8]}
STUDY = {"method": "asha", "seed": 1, "max_params": CAP, "dataset": DATA, "objective": "accuracy"}


def test_report_reads_every_trial(tmp_path: Path) -> None:
    measured = (Measurement(3.25, NINTH, 0.25), Measurement(9.5, 1.0, 0.75))
    values: dict[str, Value] = {"optimizer": "sgd", "sgd.lr": 0.1, "channels": 4, "flag": True}
    full = record(
        0,
        0.75,
        values=values,
        macs=9000,
        measurements=measured,
        seconds=9.126,
        elapsed=9.5,
        job=Job(fidelities=(1.0,), notes={"rung": 2, "origin": 0}),
    )
    searched = record(1, 0.5, learned={"lr": 0.2}, elapsed=4.0)
    write_trials(tmp_path / "trials.jsonl", [full, searched])
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    study = report.read_study(tmp_path)
    assert (study.settings.method, study.settings.max_params) == ("asha", CAP)
    first, second = study.trials
    assert first == report.Trial(
        trial=0,
        state="complete",
        accuracy=0.75,
        parameters=100,
        macs=9000,
        fidelity=1.0,
        elapsed=9.5,
        seconds=9.13,
        measurements=tuple(report.Measurement(*m) for m in measured),
        configuration=values,
    )
    assert second.configuration == {"lr": 0.2}  # a search has no chosen values
    assert study.seconds == 9.5
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["notes"] == {"rung": 2, "origin": 0}
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_the_report_knows_every_state(tmp_path: Path) -> None:
    """What waits has not begun; the file is written anew each time."""
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    write_trials(tmp_path / "trials.jsonl", [record(9, 0.5)])
    states = [*FOR_GOOD, *AGAIN]
    begun = [record(i, state=s, parameters=None, seconds=0.0) for i, s in enumerate(states)]
    write_trials(tmp_path / "trials.jsonl", begun)
    found = {t.trial: t.state for t in report.read_study(tmp_path).trials}
    expected = {i: "failed" if s in ("lost", "diverged") else s for i, s in enumerate(states)}
    assert found == {i: s for i, s in expected.items() if s != "waiting"}
    write_trials(tmp_path / "trials.jsonl", [])
    assert report.read_study(tmp_path).trials == ()


# --- The best configuration -------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return a bench with a few noise images in two classes."""
    pixels = torch.randint(256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = Images(pixels.to(torch.uint8), torch.arange(8) % 2)
    return Bench(
        dataset=Dataset("noise", images, images, ("a", "b"), flips=False),
        splits=Splits(images, images, images),
        device=torch.device("cpu"),
        epochs=1,
        fidelity="epochs",
        seed=0,
        folder=tmp_path,
        source=Source(dataset="noise"),
        record={},
    )


def genotype(bench: Bench, policy: str) -> Genotype:
    """Return a random configuration with an augmentation policy."""

    class Chooser(Random):
        def categorical(self, name: str, choices: Sequence[Value]) -> Any:
            return policy if name == "augment" else super().categorical(name, choices)

    space = ConfigurationSpace(
        architecture=blocks(4, 2),
        batch_sizes=(4,),
        learnable=augmentation_for(bench.dataset, "learned"),
    )
    return bench.genotype(space.configure(Chooser(torch.Generator().manual_seed(1))))


def trained(bench: Bench, found: Genotype) -> TrainTask:
    """As `derive` would begin."""
    options = DeriveOptions(batch_size=found.recipe.batch_size)
    task = TrainTask(options, found, bench.dataset, bench.splits, bench.device)
    task.step(0.5)
    return task


@pytest.mark.parametrize("policy", POLICIES)
def test_derive_and_augment_read_the_best_configuration(bench: Bench, policy: str) -> None:
    """And its augmentation for `--augment`; nothing else is written."""
    known = genotype(bench, policy)
    assert write_best(bench, [record(0, 0.5)], record(0, 0.5), known) == known
    assert load_genotype(bench.folder / "g.json", None) == known
    augment = load(bench.folder / "augment.json", channels=1)
    task = trained(bench, known)
    assert augment == task.plain.augment
    if policy == "randaugment":
        assert isinstance(augment.policy, RandAugment)
        assert augment.policy.m == pytest.approx(30 * known.recipe.last["magnitude.all"])
    if policy == "trivialaugment":
        assert isinstance(augment.policy, TrivialAugment)
    assert {p.name for p in bench.folder.iterdir()} == {"g.json", "augment.json"}


def members(learned: list[Mapping[str, float]]) -> list[Record]:
    """Return the records of one member, one per generation."""
    count = len(learned)
    return [
        record(
            i,
            0.5,
            (i + 1) / count,
            job=Job(
                fidelities=((i + 1) / count,),
                start=i - 1 if i else None,
                notes={"population": 0, "member": 0, "generation": i + 1},
            ),
            learned=dict(own),
        )
        for i, own in enumerate(learned)
    ]


def test_the_best_member_of_a_population_keeps_the_schedule_it_followed(bench: Bench) -> None:
    """From no augmentation at all to some."""
    known = genotype(bench, "learned")
    names = [n for n in known.recipe.schedules if n not in ("lr", "weight_decay")]
    own = {"lr": 0.05, "weight_decay": 1e-3}
    steps = [own | dict.fromkeys(names, size) for size in (0.0, 0.3, 0.2)]
    records = members(steps)
    found = write_best(bench, records, records[-1], known)
    expected = lineage(records[-1], {r.trial: r for r in records})
    assert found == replace(known, recipe=replace(known.recipe, schedules=expected))
    assert load_genotype(bench.folder / "g.json", None) == found
    augment = load(bench.folder / "augment.json", channels=1)
    assert isinstance(augment.policy, Scheduled)
    assert augment.policy.knots == {n: expected[n] for n in names}
    for fraction, values in zip((0.2, 0.5, 0.9), steps):
        assert augment.policy.at(fraction) == {n: values[n] for n in names}
    assert trained(bench, found).hyper.at(0.5) == steps[1]


def test_the_best_member_keeps_the_schedule_of_randaugment(bench: Bench) -> None:
    known = genotype(bench, "randaugment")
    own = {"lr": 0.05, "weight_decay": 1e-3}
    records = members([own | {"magnitude.all": size} for size in (0.2, 0.8)])
    found = write_best(bench, records, records[-1], known)
    task, largest = trained(bench, found), []
    for fraction in (0.2, 0.9):
        task.hyper.begin_step(fraction, 0.0)
        task.fraction = fraction
        choices = task.batch().choices
        assert choices is not None
        values = {n: torch.tensor(v) for n, v in task.hyper.at(fraction).items()}
        units, reach = choices.policy.units, task.plain.augment.policy.reach(values)
        largest.append(float((units if reach is None else units * reach).abs().sum()))
    assert largest[0] < largest[1] / 2
