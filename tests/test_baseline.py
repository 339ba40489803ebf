"""`derive --random`: trainings, interruptions, and the comparison with the searched genotype."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from invoking import call, refuse
from killing import killed

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import SearchSpace
from darts_lite.commands import random_baseline, several
from darts_lite.data import load
from darts_lite.nas.random_networks import random_genotypes, uniform_random
from darts_lite.training.options import DeriveOptions
from darts_lite.training.task import TrainTask

SHOWN = ("parameters", "macs", "epochs", "test_accuracy")


def genotype(space: SearchSpace) -> Genotype:
    """Return the genotype of a discrete space, as a search on 160 digits writes it."""
    dataset = load("digits", Path("data"))
    image = dataset.image
    cost = network_cost(space, image, len(dataset.classes))
    schedules = {"lr": ((0.0, 0.1), (1.0, 0.2)), "weight_decay": ((0.0, 1e-3),)}
    return Genotype(
        space=space,
        image=image,
        classes=tuple(dataset.classes),
        parameters=cost.parameters,
        macs=cost.macs,
        recipe=Recipe(augment="standard", schedules=schedules),
        source=Source(dataset="digits", subset=160),
        dataset=dict(dataset.fingerprint),
    )


LIKE = genotype(uniform_random(blocks(6, 3), torch.Generator().manual_seed(99)))
COMMAND = ("--random", 2, "--epochs", 1, "--batch-size", 16)


def derive(out: Path, *arguments: object) -> Any:
    """Run `derive` on the genotype in a folder; create the folder if it is missing."""
    if not (out / "g.json").exists():
        out.mkdir(parents=True)
        LIKE.save(out / "g.json")
    return call("derive", "--genotype", out / "g.json", *arguments)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def weights(out: Path, name: str) -> dict[str, bytes]:
    state = torch.load(out / "derive" / name / "model.pt", weights_only=True)
    return {key: value.numpy().tobytes() for key, value in state.items()}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Set one thread, as in the other processes: a run stores its number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of two trained random networks, and the output of the command."""
    out = tmp_path_factory.mktemp("baseline") / "out"
    result = derive(out, *COMMAND)
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture
def out(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a copy of the trained folder, to change."""
    return Path(shutil.copytree(trained[0], tmp_path / "out"))


def test_random_networks_have_the_recipe_of_the_genotype(trained: tuple[Path, str]) -> None:
    out, _ = trained
    settings = [read(out / "derive" / f"random{i}" / "config.json") for i in range(2)]
    kept = [Genotype.load(out / "derive" / f"random{i}" / "genotype.json") for i in range(2)]
    for i, (config, random) in enumerate(zip(settings, kept)):
        own = {"out": str(out / "derive" / f"random{i}")}
        own["genotype"] = f"{own['out']}/genotype.json"
        assert config == {**settings[0], "options": {**settings[0]["options"], **own}}
        assert config["options"]["epochs"] == 1 and config["options"]["seed"] == 0
        same = {"space": LIKE.space, "parameters": LIKE.parameters, "macs": LIKE.macs}
        assert replace(random, **same) == LIKE
        assert abs(random.parameters - LIKE.parameters) <= LIKE.parameters / 10
    assert len({LIKE.space, *(random.space for random in kept)}) == 3
    assert weights(out, "random0") != weights(out, "random1")


def test_each_random_network_is_a_complete_run(trained: tuple[Path, str]) -> None:
    """Its folder equals the folder of `derive` on its genotype."""
    out, _ = trained
    alone = call("derive", "--genotype", out / "derive" / "random1" / "genotype.json",
                 *COMMAND[2:], "--out", out.parent / "alone")  # fmt: skip
    assert alone.exit_code == 0, alone.output
    folder = out / "derive" / "random1"
    names = [
        {path.name.partition("tfevents")[0] for path in each.iterdir()}
        for each in (folder, out.parent / "alone")
    ]
    assert names[0] == names[1] and "metrics.jsonl" in names[0]
    by_hand = read(out.parent / "alone" / "metrics.json")
    timed = {name: by_hand[name] for name in ("seconds", "latency")}
    assert {**read(folder / "metrics.json"), **timed} == by_hand


def test_the_table_has_the_metrics_of_the_trainings(trained: tuple[Path, str]) -> None:
    out, said = trained
    result = read(out / "derive" / "random.json")
    metrics = [read(out / "derive" / f"random{i}" / "metrics.json") for i in range(2)]
    accuracies = [each["test_accuracy"] for each in metrics]
    assert [{name: row[name] for name in SHOWN} for row in result["random"]] == [
        {name: each[name] for name in SHOWN} for each in metrics
    ]
    assert result["mean"] == pytest.approx(sum(accuracies) / 2)
    assert result["standard_deviation"] == pytest.approx(statistics.stdev(accuracies))
    assert result["searched"] is None and "without --random" in said
    for i, each in enumerate(metrics):
        assert (
            f"| random{i} | {each['parameters']} | {each['macs']} | {each['epochs']} "
            f"| {each['test_accuracy']:.2%} |"
        ) in said
    mean = f"{sum(accuracies) / 2:.2%}, standard deviation {statistics.stdev(accuracies):.2%}"
    assert f"| mean of 2 random | | | | {mean} |" in said


@pytest.mark.parametrize(
    "name, flags, same",
    [
        ("derive", ["--epochs", 1], True),
        ("another", ["--epochs", 1, "--max-params", 99_999, "--checkpoint-seconds", 7], True),
        ("derive", ["--epochs", 2], False),
        ("another", ["--epochs", 1, "--select", "best"], False),
        ("another", ["--epochs", 1, "--seed", 1], False),
        ("another", ["--epochs", 1, "--augment", "none"], False),
    ],
)
def test_the_searched_network_is_compared_only_with_the_same_recipe(
    out: Path, name: str, flags: list[object], same: bool
) -> None:
    own = derive(out, *flags, "--batch-size", 16, "--out", out / name)
    assert own.exit_code == 0, own.output
    again = derive(out, "--random", 2, "--resume")
    assert again.exit_code == 0, again.output
    assert again.output.count("is finished") == 2
    result = read(out / "derive" / "random.json")
    searched = result["searched"]
    assert (searched is not None) is same
    card = (out / name / "MODEL_CARD.md").read_text()
    assert ("2 random networks of this size, by the same recipe" in card) is same
    if same:
        metrics = read(out / name / "metrics.json")
        assert searched["folder"] == str(out / name)
        assert {n: searched[n] for n in SHOWN} == {n: metrics[n] for n in SHOWN}
        accuracy = metrics["test_accuracy"]
        others = [row["test_accuracy"] for row in result["random"]]
        assert searched["above_mean"] == pytest.approx(accuracy - sum(others) / 2)
        assert searched["beats"] == sum(accuracy > other for other in others)
        assert f"| searched | {LIKE.parameters} | {LIKE.macs} | 1.0 | {accuracy:.2%} |" in (
            again.output
        )
        assert f"{100 * searched['above_mean']:+.2f} points from the mean" in again.output
        assert f"better than {searched['beats']} of 2" in again.output


def test_the_training_of_another_genotype_is_not_compared(out: Path) -> None:
    """A folder that only looks like a run is not compared either."""
    shutil.copytree(out / "derive" / "random0", out / "another")
    (out / "alien").mkdir()
    for name in ("config.json", "metrics.json"):
        (out / "alien" / name).write_text("[]")
    assert derive(out, "--random", 2, "--resume").exit_code == 0
    assert read(out / "derive" / "random.json")["searched"] is None


def test_one_random_network_has_no_deviation_and_more_can_be_added(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    one = derive(tmp_path / "out", "--random", 1, *COMMAND[2:])
    assert one.exit_code == 0, one.output
    path = tmp_path / "out" / "derive" / "random.json"
    assert read(path)["standard_deviation"] is None and "deviation" not in one.output
    two = derive(tmp_path / "out", "--random", 2, "--resume")
    assert two.exit_code == 0, two.output
    same = {"folder": ""}
    assert [{**row, **same} for row in read(path)["random"]] == [
        {**row, **same} for row in read(trained[0] / "derive" / "random.json")["random"]
    ]


def assert_equal_to_uninterrupted(out: Path, plain: Path) -> None:
    results = [
        (each / "derive" / "random.json").read_text().replace(str(each), "")
        for each in (out, plain)
    ]
    moved = [json.loads(text) for text in results]
    for result in moved:
        result["options"]["checkpoint_seconds"] = 0
    assert moved[0] == moved[1]
    for i in range(2):
        assert weights(out, f"random{i}") == weights(plain, f"random{i}")
        lines = (out / "derive" / f"random{i}" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(steps)
    before = (out / "derive" / "random.json").read_bytes()
    assert derive(out, "--random", 2, "--resume").exit_code == 0
    assert (out / "derive" / "random.json").read_bytes() == before


def test_an_interrupted_baseline_resumes(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt is in the second training: the first is kept, the second continues."""
    taken: list[float] = []
    original = TrainTask.step

    def step(self: TrainTask, fraction: float) -> int:
        taken.append(fraction)
        if len(taken) == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, fraction)

    monkeypatch.setattr(TrainTask, "step", step)
    stopped = derive(tmp_path / "out", *COMMAND)
    assert stopped.exit_code == 130, stopped.output
    folder = tmp_path / "out" / "derive"
    assert str(folder / "random1" / "checkpoint.pt") in stopped.stderr
    assert (folder / "random0" / "metrics.json").exists()
    assert not (folder / "random1" / "metrics.json").exists()
    assert derive(tmp_path / "out", "--random", 2, "--resume").exit_code == 0
    assert len(taken) == 20  # two epochs of 160 images, 16 images per batch
    assert_equal_to_uninterrupted(tmp_path / "out", trained[0])


@pytest.mark.slow
@pytest.mark.against_another_process
def test_a_killed_baseline_resumes(trained: tuple[Path, str], tmp_path: Path) -> None:
    """The kill is in the first training, in a separate process."""
    out = tmp_path / "out"
    out.mkdir()
    LIKE.save(out / "g.json")
    killed("darts_lite.training.task", ".TrainTask", "step", 6, False, "derive", "--genotype",
           out / "g.json", *COMMAND, "--checkpoint-seconds", 0)  # fmt: skip
    assert (out / "derive" / "random0" / "checkpoint.pt").exists()
    assert not (out / "derive" / "random1" / "config.json").exists()
    assert derive(out, "--random", 2, "--resume").exit_code == 0
    assert_equal_to_uninterrupted(out, trained[0])


class Killed(BaseException):
    """Exception that nothing catches; on disk it has the effect of a kill."""


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 8, 10, 12, 17])
def test_a_kill_between_any_two_files_loses_nothing(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    renamed: list[str] = []
    original = os.replace

    def rename(source: Path, target: Path) -> None:
        renamed.append(str(target))
        if len(renamed) == at:
            raise Killed
        original(source, target)

    out = tmp_path / "out"
    out.mkdir()
    LIKE.save(out / "g.json")
    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(Killed):
        random_baseline.derive_random(
            DeriveOptions(genotype=str(out / "g.json"), epochs=1, batch_size=16, random=2), say=str
        )
    monkeypatch.undo()
    begun = (out / "derive" / "random.json").exists()
    assert begun is (at > 3)
    assert derive(out, *COMMAND, *(["--resume"] if begun else [])).exit_code == 0
    assert_equal_to_uninterrupted(out, trained[0])


def test_each_random_network_has_the_whole_budget(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first budget starts with the process, each other budget with its training.

    During the trainings, random.json keeps the earlier results.
    """
    began: list[float | None] = []
    metrics = read(out / "derive" / "random0" / "metrics.json")
    before = read(out / "derive" / "random.json")

    def train(options: DeriveOptions, **rest: Any) -> dict[str, Any]:
        began.append(rest["started"])
        meanwhile = read(out / "derive" / "random.json")
        assert all(meanwhile[name] == before[name] for name in ("random", "mean", "searched"))
        return metrics

    monkeypatch.setattr(several, "derive", train)
    options = DeriveOptions(genotype=str(out / "g.json"), out=str(out / "derive"), random=4)
    now = time.monotonic()
    random_baseline.derive_random(options, resume={"random"}, started=now - 100, say=str)
    first, second, third, fourth = began
    assert first == second == third == now - 100  # two trainings were finished
    assert fourth is not None and fourth >= now


def test_a_resumed_baseline_has_its_first_number_of_threads(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads adds in another order, which changes results."""
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    path = out / "derive" / "random.json"
    path.write_text(json.dumps({**read(path), "threads": 3}))
    shutil.rmtree(out / "derive" / "random1")
    derive(out, "--random", 2, "--resume")
    assert seen[0] == 3


def test_random_networks_are_within_the_limit(tmp_path: Path) -> None:
    result = derive(tmp_path / "out", *COMMAND, "--max-params", LIKE.parameters)
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "out" / "derive" / "random.json")["random"]
    assert all(row["parameters"] <= LIKE.parameters for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--random", 0], "--random"),
        (["--random", "many"], "--random"),
        (["--random", 2], "random.json; continue the run with `derive --random 2 --resume`"),
        (["--random", 2, "--resume", "--seed", 3], "seed must be 0, got 3"),
        (["--random", 2, "--resume", "--epochs", 2], "epochs must be 1, got 2"),
        (["--random", 2, "--epochs", 1, "--budget-hours", 1, "--out", "x"], "not both"),
    ],
)  # fmt: skip
def test_the_error_of_bad_input_is_one_line(
    out: Path, arguments: list[object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out)
    before = (out / "derive" / "random.json").read_bytes()
    assert said in refuse("derive", "--genotype", out / "g.json", *arguments)
    assert (out / "derive" / "random.json").read_bytes() == before


def test_the_error_of_another_genotype_or_a_damaged_file_is_one_line(out: Path) -> None:
    path = out / "derive" / "random.json"
    replace(LIKE, recipe=Recipe(schedules={"lr": ((0.0, 0.3),)})).save(out / "g.json")
    line = refuse("derive", "--genotype", out / "g.json", "--random", 2, "--resume")
    assert "got another genotype" in line
    for content, said in (("{", "no JSON"), ("{}", "start a new run"), ("[]", "start a new run")):
        path.write_text(content)
        line = refuse("derive", "--genotype", out / "g.json", "--random", 2, "--resume")
        assert str(path) in line and said in line


def test_the_error_of_a_small_space_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = genotype(uniform_random(blocks(6, 1), torch.Generator().manual_seed(0)))
    like.save(tmp_path / "g.json")
    few = partial(random_genotypes, draws=200)
    monkeypatch.setattr(random_baseline, "random_genotypes", few)
    line = refuse("derive", "--genotype", tmp_path / "g.json", "--random", 5, "--epochs", 1)
    assert "other networks within a tenth" in line and not (tmp_path / "derive").exists()


def test_the_genotype_may_be_moved(out: Path) -> None:
    moved = Path(shutil.move(out, out.with_name("moved")))
    last = moved / "derive" / "random1"
    (last / "metrics.json").unlink()  # as after a stop at the end of the training
    result = derive(moved, "--random", 2, "--resume")
    assert result.exit_code == 0, result.output
    assert read(moved / "derive" / "random.json")["random"][1]["folder"] == str(last)
    assert read(last / "config.json")["options"]["out"] == str(last)


def test_the_runs_may_be_moved(out: Path, tmp_path: Path) -> None:
    """A training in another folder than the genotype is compared too."""
    far = Path(shutil.move(out / "derive", tmp_path / "far"))
    for command in (["--epochs", 1, "--batch-size", 16], ["--random", 2, "--resume"]):
        result = derive(out, *command, "--out", far)
        assert result.exit_code == 0, result.output
    assert read(far / "random.json")["searched"]["folder"] == str(far)
