"""The command `compress --compare`: five roads to one size, killed and resumed, and bad input."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invoking import call, refuse
from killing import killed
from PIL import Image
from run_folders import read, same
from run_folders import trained as small_run

import darts_lite as dl
from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.genotype import Genotype
from darts_lite.commands import compare_roads, fit, roads
from darts_lite.commands.roads import ROADS
from darts_lite.compression.options import CompressOptions
from darts_lite.errors import UserError
from darts_lite.reporting import pictures
from darts_lite.reporting.pictures import Spot
from darts_lite.training import loop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training."""
    return small_run(tmp_path_factory.mktemp("roads") / "out", epochs=6)


@pytest.fixture(scope="module")
def target(run: Path) -> int:
    return int(0.6 * Genotype.load(run / "genotype.json").parameters)


@pytest.fixture(scope="module")
def compared(run: Path, target: int) -> Path:
    """Return the folder of a finished comparison."""
    out = run.parent.parent / "roads"
    dl.compress(run, compare=True, target_params=target, epochs=1, out=str(out), say=str)
    return out


def trained(out: Path, target: int) -> dict[str, Path]:
    """Return the folder of the last training of every road."""
    found = {name: out / str(target) / name.replace(" ", "-") for name in ROADS}
    return {name: f / "derive" if name == "search" else f for name, f in found.items()}


def possible() -> list[str]:
    """Return the roads that this installation has."""
    try:
        import tensorly  # noqa: F401
    except ImportError:
        return [name for name in ROADS if name != "tucker"]
    return list(ROADS)


# --- the result -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_road_is_a_run_within_the_target(run: Path, compared: Path, target: int) -> None:
    account = read(compared / "compare.json")
    rows = {row["road"]: row for row in account["results"]}
    assert list(rows) == possible()
    assert [each["road"] for each in account["left_out"]] == [n for n in ROADS if n not in rows]
    for name, folder in trained(compared, target).items():
        if name not in rows:
            continue
        row, metrics = rows[name], read(folder / "metrics.json")
        genotype = Genotype.load(folder / "genotype.json")
        assert cost_of(genotype) == (row["parameters"], row["macs"])
        assert row["parameters"] <= target == row["target"]
        assert row["test_accuracy"] == metrics["test_accuracy"]
        assert row["milliseconds"].keys() == {"1", "32"} and min(row["milliseconds"].values()) > 0
        assert row["seconds"] >= metrics["seconds"] > 0
        options = read(folder / "config.json")["options"]
        assert options["teacher"] == (None if name == "search" else str(run))
        assert options["epochs"] == 1 and options["budget_hours"] is None
        assert dl.load(compared / row["folder"]).classes == tuple("0123456789")
    whole = account["original"]
    assert whole["parameters"] == Genotype.load(run / "genotype.json").parameters > target
    assert whole["test_accuracy"] == read(run / "metrics.json")["test_accuracy"]


@pytest.mark.slow
def test_the_roads_have_the_images_of_the_run(run: Path, compared: Path, target: int) -> None:
    before = Genotype.load(run / "genotype.json")
    folders = trained(compared, target)
    for name in possible():
        made = Genotype.load(folders[name] / "genotype.json")
        assert (made.seed, made.source, made.dataset) == (
            before.seed, before.source, before.dataset
        )  # fmt: skip
    searched = read(compared / str(target) / "search" / "search" / "config.json")["options"]
    assert searched["max_params"] == target and searched["steps"] == roads.LEAST_STEPS
    assert (searched["space"], searched["cells"], searched["batch_size"]) == ("blocks", 3, 32)
    random = Genotype.load(folders["distill random"] / "genotype.json")
    assert random.parameters >= 0.9 * target and random.structure is None
    narrower = Genotype.load(folders["distill searched"] / "genotype.json")
    assert narrower.space == before.space.with_channels(narrower.space.channels)


@pytest.mark.slow
def test_picture_table_and_report_name_every_road(
    run: Path, compared: Path, target: int, tmp_path: Path
) -> None:
    picture = np.asarray(Image.open(compared / "pictures" / "compare.png"))
    assert picture.shape[1] > 1000
    again = call("compress", run, "--out", compared, "--resume")
    assert again.exit_code == 0 and "compare.json is finished" in again.output
    result = call("report", compared, run, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Roads to a smaller network" in page and 'alt="compare"' in page
    for name in possible():
        assert f"| {target} | {name} | " in result.output and f"<td>{name}</td>" in page
    assert "|  | RUN | " in (tmp_path / "report" / "table.md").read_text()
    assert refuse("report", compared, "--out", compared).count("must not be the folder of a run")


@pytest.mark.slow
def test_two_comparisons_are_equal_and_the_seed_changes_them(
    run: Path, compared: Path, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("search", "distill random")
    monkeypatch.setattr(compare_roads, "ROADS", {name: ROADS[name] for name in chosen})
    for seed in (0, 1):
        dl.compress(run, compare=True, target_params=target, epochs=1, seed=seed,
                    out=str(tmp_path / str(seed)), say=str)  # fmt: skip
    folders = [trained(out, target) for out in (compared, tmp_path / "0", tmp_path / "1")]
    for name in chosen:
        first, second, other = (each[name] for each in folders)
        assert same(first, second) and not same(first, other)
    spaces = [Genotype.load(f["distill random"] / "genotype.json").space for f in folders]
    assert spaces[0] == spaces[1] != spaces[2]


# --- impossible roads -----------------------------------------------------------------------------


def hand_made(run: Path, folder: Path) -> Path:
    """Copy a training as one whose network is of no search space."""
    shutil.copytree(run, folder)
    genotype = Genotype.load(run / "genotype.json")
    space = replace(genotype.space, preset="hand")
    replace(genotype, space=space, search={}).save(folder / "genotype.json")
    return folder


@pytest.mark.slow
def test_an_impossible_road_is_left_out_with_its_line(
    run: Path, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("tucker and cp need tensorly, not installed; use svd")

    monkeypatch.setattr("darts_lite.compression.low_rank.require_packages", missing)
    hand = hand_made(run, tmp_path / "hand")
    result = call("compress", hand, "--compare", "--target-params", target, "--epochs", 1,
                  "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if " is left out: " in line]
    account = read(tmp_path / "out" / "compare.json")
    assert [each["road"] for each in account["left_out"]] == ["search", "tucker", "distill random"]
    assert [row["road"] for row in account["results"]] == ["prune", "distill searched"]
    for each, line in zip(account["left_out"], lines):
        assert line == f"{each['road']} to {target} parameters is left out: {each['reason']}"
    assert "must be one of cells, blocks, got 'hand'" in lines[0] and "tensorly" in lines[1]
    page = call("report", tmp_path / "out", "--out", tmp_path / "report")
    assert page.exit_code == 0, page.output
    assert lines[0] in page.output


def test_a_road_that_fails_after_its_start_is_not_left_out(
    run: Path, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: roads.Job) -> float:
        job.folder.mkdir(parents=True)
        (job.folder / "checkpoint.pt").touch()
        raise UserError("the disk is full")

    monkeypatch.setattr(compare_roads, "ROADS", {"prune": full})
    line = ["compress", run, "--compare", "--target-params", target, "--epochs", 1]
    assert "the disk is full" in refuse(*line, "--out", tmp_path)


def test_a_target_that_no_road_reaches_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("search", "prune", "distill searched")
    monkeypatch.setattr(compare_roads, "ROADS", {name: ROADS[name] for name in chosen})
    line = ["compress", run, "--compare", "--target-params", 10, "--epochs", 1, "--out", tmp_path]
    said = refuse(*line)
    assert "no road leads to --target-params 10" in said and "must be at least" in said
    assert refuse(*line) == said  # nothing is left to resume


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.against_another_process
@pytest.mark.parametrize(
    ("owner", "name", "at", "finished"),
    [
        (("darts_lite.nas.task", ".SearchTask"), "step", 2, 0),
        (("darts_lite.training.task", ".TrainTask"), "step", 16, 1),
        (("darts_lite.commands.compare_roads", ""), "in_turns", 1, 5),
    ],
    ids=["search", "prune", "measuring"],
)
def test_a_killed_comparison_goes_on_to_the_same_weights(
    run: Path, compared: Path, target: int, tmp_path: Path, owner: Any, name: str, at: int,
    finished: int,
) -> None:  # fmt: skip
    line = ["compress", run, "--compare", "--target-params", target, "--epochs", 1, "--out",
            tmp_path, "--checkpoint-seconds", 0]  # fmt: skip
    killed(*owner, name, at, False, *line)
    assert "results" not in read(tmp_path / "compare.json")
    folders = trained(tmp_path, target)
    done = [f / "metrics.json" for f in folders.values() if (f / "metrics.json").exists()]
    assert len(done) == min(finished, len(possible()))
    before = [path.stat().st_mtime_ns for path in done if path.parent.name == "derive"]
    report = refuse("report", tmp_path, "--out", tmp_path / "report")
    assert "must be of a finished comparison" in report
    again = call("compress", run, "--out", tmp_path, "--resume")
    assert again.exit_code == 0, again.output
    assert [p.stat().st_mtime_ns for p in done if p.parent.name == "derive"] == before
    for road in possible():
        assert same(trained(compared, target)[road], folders[road])
    assert len(read(tmp_path / "compare.json")["results"]) == len(possible())


@pytest.mark.slow
def test_a_comparison_and_a_compression_do_not_share_a_folder(
    run: Path, compared: Path, target: int, tmp_path: Path
) -> None:
    line = ["compress", run, "--target-params", target, "--epochs", 1, "--out", compared]
    assert "got compare.json" in refuse(*line)
    assert "`compress --compare --resume`" in refuse(*line, "--compare")
    assert "target_params must be" in refuse(*line[:2], "--target-params", target - 1, *line[4:],
                                             "--resume")  # fmt: skip
    other = compared / str(target) / "prune"
    assert "was begun with" in refuse("compress", other, "--out", compared, "--resume")


# --- the clock ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_roads_have_one_clock_with_all_that_they_do(
    run: Path, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "FIXED", 2.0)
    monkeypatch.setattr(loop, "CLOSING", 0.5)
    seconds = 7.0
    found = dl.compress(run, compare=True, target_params=target, budget_hours=seconds / 3600,
                        criterion="gates", gate_steps=30, out=str(tmp_path), say=str)  # fmt: skip
    for row in found["results"]:
        assert 0.6 * seconds < row["seconds"] < 2 * seconds, row
    folders = trained(tmp_path, target)
    hours = {n: read(folders[n] / "config.json")["options"]["budget_hours"] for n in possible()}
    assert all(3600 * h == pytest.approx(seconds) for n, h in hours.items() if n != "search")
    assert 1.9 < 3600 * hours["search"] < seconds - 1


# --- pictures -------------------------------------------------------------------------------------


def test_the_picture_has_a_marker_for_every_network() -> None:
    original = Spot("RUN", 1000, 50_000, 3.0, 0.9)
    spots = [Spot(name, size, 40 * size, 2.0, 0.8) for name in ROADS for size in (500, 250)]
    image = pictures.roads_plot(spots, original, "digits: $roads$")
    assert image.dtype == np.uint8 and image.ndim == 3
    fewer = pictures.roads_plot(spots[:2], original, "digits: $roads$")
    assert (image != fewer).any()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare"], "--compare needs --target-params"),
        (["--compare", "--target-params", "900", "--method", "prune"], "without --method"),
        (["--compare", "--target-macs", "900"], "must have a target in parameters"),
        (["--compare", "--target-params", "900", "--target-ms", "1"], "a target in parameters"),
        (["--compare", "--target-params", "900,1000000"], "--target-params must be below"),
        (["--compare", "--target-params", "900", "--no-teacher"], "without --no-teacher"),
        (["--compare", "--target-params", "900,x"], "got '900,x'"),
        (["--compare", "--target-params", "0"], "at least 1"),
        (["--compare", "--target-params", "900", "--budget-hours", "1e-5"], "--budget-hours must"),
        (["--compare", "--target-params", "900", "--budget-hours", "1", "--epochs", "1"],
         "not both"),
        (["--compare", "--target-params", "900", "--device", "abacus"], "abacus"),
        (["--target-params", "900,500"], "one number without --compare, got 900,500"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in refuse("compress", run, *words, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_targets_are_numbers_once_each() -> None:
    assert CompressOptions(target_params="900, 500,900").targets == (900, 500)
    assert CompressOptions(target_params="900").target_params == 900
    assert CompressOptions().targets == ()


def test_a_damaged_comparison_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"results": []}')
    said = refuse("report", tmp_path, "--out", tmp_path / "report")
    assert re.search(r"compare\.json: run: Field required", said)
    (tmp_path / "compare.json").write_text("[]")
    assert "must be written by" in refuse("report", tmp_path, "--out", tmp_path / "report")
