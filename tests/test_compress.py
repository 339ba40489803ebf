"""The command `compress`: a smaller run from a run, killed in every phase, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from invoking import call, refuse
from killing import killed
from run_folders import read, same, weights
from run_folders import trained as small_run

import darts_lite as dl
from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.plain import PlainNetwork
from darts_lite.commands.compress import COPIED
from darts_lite.compression.int8 import load_int8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training."""
    return small_run(tmp_path_factory.mktemp("compress") / "out", epochs=12)


@pytest.fixture(scope="module")
def half(run: Path) -> int:
    return Genotype.load(run / "genotype.json").parameters // 2


@pytest.fixture(scope="module")
def pruned(run: Path, half: int) -> Path:
    """Return the folder of a finished compression."""
    out = run.parent.parent / "pruned"
    dl.compress(run, target_params=half, epochs=2, out=str(out), say=str)
    return out


# --- the result -----------------------------------------------------------------------------------


def test_the_result_is_smaller_measured_and_described(run: Path, pruned: Path, half: int) -> None:
    before, after = (Genotype.load(f / "genotype.json") for f in (run, pruned))
    assert 0.8 * half < after.parameters <= half
    assert cost_of(after) == (after.parameters, after.macs)
    assert sum(v.numel() for n, v in weights(pruned).items() if "running" not in n) <= half
    metrics = read(pruned / "metrics.json")
    assert metrics["parameters"] == after.parameters
    assert metrics["compressed_from"] == str(run)
    about = metrics["compression"]
    assert about["parameters"] == {"before": before.parameters, "after": after.parameters}
    assert about["macs"] == {"before": before.macs, "after": after.macs}
    accuracy = about["test_accuracy"]
    assert accuracy["before"] == read(run / "metrics.json")["test_accuracy"]
    assert accuracy["after"] == metrics["test_accuracy"]
    untuned = read(pruned / "compressed" / "metrics.json")
    assert accuracy["before fine-tuning"] == untuned["test_accuracy"]
    for times in about["milliseconds"].values():
        assert times.keys() == {"1", "32"} and min(times.values()) > 0
    options = read(pruned / "config.json")["options"]
    assert options["teacher"] == str(run) and options["start"] == str(pruned / "compressed")
    assert not same(pruned, pruned / "compressed")
    assert "compression" in read(pruned / "compressed" / "compress.json")["metrics"]


@pytest.mark.parametrize("folder", [".", "compressed"])
def test_every_command_takes_the_result(pruned: Path, tmp_path: Path, folder: str) -> None:
    path = pruned / folder
    assert isinstance(dl.load(path).network, PlainNetwork)
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    assert len(dl.load(path).predict(images).classes) == 5
    result = call("export", path, "--format", "torch", "--out", tmp_path / "model.pt2")
    assert result.exit_code == 0, result.output
    least = call("compress", path, "--target-params", 1, "--out", tmp_path / "c")
    assert "--target-params must be at least" in least.stderr


def test_a_report_and_derive_take_the_result(pruned: Path, run: Path, tmp_path: Path) -> None:
    result = call("report", pruned, run, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "compress prune" in result.output and "| derive |" in result.output
    again = call("derive", "--resume", "--out", pruned)
    assert again.exit_code == 0 and "metrics.json is finished" in again.output
    longer = call("derive", "--genotype", pruned / "genotype.json", "--from", pruned, "--epochs",
                  1, "--out", tmp_path / "d")  # fmt: skip
    assert longer.exit_code == 0, longer.output


def test_a_compressed_network_can_be_compressed(pruned: Path, half: int, tmp_path: Path) -> None:
    limit = int(0.7 * half)
    found = dl.compress(
        pruned, target_params=limit, epochs=1, rate=0.5, out=str(tmp_path / "a"), say=str
    )
    assert found["parameters"] <= limit
    twice = dl.compress(
        tmp_path / "a", target_params=limit - 200, epochs=1, rate=0.5, out=str(tmp_path / "b"),
        say=str,
    )  # fmt: skip
    assert twice["parameters"] <= limit - 200
    rates = [Genotype.load(f / "genotype.json").recipe.last["lr"]
             for f in (pruned, tmp_path / "a", tmp_path / "b")]  # fmt: skip
    assert rates[1] == pytest.approx(0.5 * rates[0]) and rates[2] == pytest.approx(rates[1])


@pytest.mark.parametrize("criterion", ["magnitude", "norm", "gates"])
def test_every_criterion_reaches_its_target(
    run: Path, half: int, tmp_path: Path, criterion: str
) -> None:
    options = {"criterion": criterion, "gate_steps": 10, "teacher": False, "epochs": 1}
    macs = Genotype.load(run / "genotype.json").macs // 2
    found = dl.compress(run, target_macs=macs, out=str(tmp_path), say=str, **options)
    assert found["macs"] <= macs
    assert read(tmp_path / "config.json")["options"]["teacher"] is None
    assert found["compression"]["criterion"] == criterion


def test_rounds_prune_step_by_step(run: Path, half: int, tmp_path: Path) -> None:
    found = dl.compress(run, target_params=half, rounds=2, epochs=3, out=str(tmp_path), say=str)
    whole = Genotype.load(run / "genotype.json").parameters
    between = Genotype.load(tmp_path / "stage1" / "genotype.json").parameters
    assert found["parameters"] <= half < between <= (whole * half) ** 0.5
    epochs = [read(f / "config.json")["options"]["epochs"] for f in (tmp_path / "stage1", tmp_path)]
    assert epochs == [1, 2]
    first, last = weights(tmp_path / "stage1"), weights(tmp_path / "compressed")
    assert set(last["stem.weight"].flatten().tolist()) <= set(
        first["stem.weight"].flatten().tolist()
    )


def test_distill_trains_a_narrower_network_and_can_be_pruned(
    run: Path, half: int, tmp_path: Path
) -> None:
    before = Genotype.load(run / "genotype.json")
    target = int(0.8 * half)
    found = dl.compress(run, method="distill,prune", target_params=target, epochs=2,
                        out=str(tmp_path), say=str)  # fmt: skip
    made = Genotype.load(tmp_path / "stage1" / "genotype.json")
    assert made.space == before.space.with_channels(made.space.channels)
    assert made.structure is None and made.space.channels < before.space.channels
    assert not (tmp_path / "stage1" / "compressed" / "model.pt").exists()
    options = read(tmp_path / "stage1" / "config.json")["options"]
    assert options["start"] is None and options["teacher"] == str(run)
    assert found["parameters"] <= target


def test_two_compressions_are_equal(run: Path, half: int, pruned: Path, tmp_path: Path) -> None:
    dl.compress(run, target_params=half, epochs=2, out=str(tmp_path), say=str)
    assert same(pruned / "compressed", tmp_path / "compressed") and same(pruned, tmp_path)


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_low_rank_methods_reach_their_target(run: Path, tmp_path: Path, method: str) -> None:
    if method != "svd":
        pytest.importorskip("tensorly")
    before = Genotype.load(run / "genotype.json")
    limit = int(0.9 * before.macs)
    found = dl.compress(run, method=method, target_macs=limit, epochs=1, out=str(tmp_path), say=str)
    assert found["macs"] <= limit and found["compression"]["methods"] == [method]
    structure = Genotype.load(tmp_path / "genotype.json").structure
    assert structure is not None and any(len(layers) > 1 for layers in structure.layers.values())


def test_a_chain_prunes_factorizes_and_quantizes(run: Path, half: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = dl.compress(run, method="prune,svd,int8", target_params=half, epochs=2,
                        out=str(tmp_path), say=str)  # fmt: skip
    assert found["parameters"] <= half
    about = found["compression"]
    assert about["methods"] == ["prune", "svd", "int8"]
    sizes = [(tmp_path / f).stat().st_size for f in ("model.onnx", "int8.onnx")]
    assert [about["int8"][n]["bytes"] for n in ("float32", "int8")] == sizes
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    assert len(load_int8(tmp_path).predict(images).classes) == 5
    assert about["int8"]["float32"]["accuracy"] == pytest.approx(found["test_accuracy"])


def test_int8_alone_needs_no_target_and_keeps_the_network(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = dl.compress(run, method="int8", out=str(tmp_path), say=str)
    assert same(run, tmp_path) and (tmp_path / "int8.onnx").exists()
    assert found["test_accuracy"] == read(run / "metrics.json")["test_accuracy"]
    again = call("derive", "--resume", "--out", tmp_path)
    assert again.exit_code == 0 and "is finished" in again.output


# --- resuming -------------------------------------------------------------------------------------

COMMAND = "darts_lite.commands.compress"


@pytest.mark.slow
@pytest.mark.against_another_process
@pytest.mark.parametrize(
    ("owner", "name", "at", "after"),
    [
        ((COMMAND, ""), "_made", 1, True),
        ((COMMAND, ""), "calibrated", 1, True),
        (("darts_lite.training.task", ".TrainTask"), "step", 5, False),
        ((COMMAND, ""), "_finished", 1, False),
        ((COMMAND, ""), "write_card", 1, False),
    ],
    ids=["before", "writing", "training", "measuring", "writing the results"],
)
def test_a_killed_compression_goes_on_to_the_same_weights(
    run: Path, half: int, pruned: Path, tmp_path: Path, owner: Any, name: str, at: int, after: bool
) -> None:
    line = ["compress", run, "--target-params", half, "--epochs", 2, "--out", tmp_path,
            "--checkpoint-seconds", 0]  # fmt: skip
    killed(*owner, name, at, after, *line)
    assert "compression" not in read_if(tmp_path / "compressed" / "compress.json")
    words = line if name == "_made" else ["compress", run, "--out", tmp_path]
    again = call(*words, "--resume")
    assert again.exit_code == 0, again.output
    assert same(pruned, tmp_path)
    assert "compression" in read(tmp_path / "metrics.json")
    finished = call("compress", run, "--out", tmp_path, "--resume")
    assert finished.exit_code == 0 and "is finished" in finished.output


def read_if(path: Path) -> Any:
    return read(path).get("metrics", {}) if path.exists() else {}


def test_a_compression_goes_on_with_its_own_run_and_settings(
    run: Path, pruned: Path, half: int, tmp_path: Path
) -> None:
    line = ["compress", run, "--out", pruned]
    assert "`compress --resume`" in refuse(*line, "--target-params", half)
    assert "target_params must be" in refuse(*line, "--target-params", half - 1, "--resume")
    other = refuse("compress", pruned / "compressed", "--out", pruned, "--resume")
    assert "was begun with" in other


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs --target-params, --target-macs or --target-ms"),
        (["--target-params", 900, "--target-macs", 9], "must be one target, got --target-params"),
        (["--target-params", 10], "--target-params must be at least"),
        (["--target-macs", 10], "--target-macs must be at least"),
        (["--target-ms", 1e-6], "--target-ms must be at least"),
        (["--target-params", 10**9], "--target-params must be below"),
        (
            ["--target-params", 10, "--method", "distill"],
            "smallest possible network by distill",
        ),
        (["--target-params", 900, "--method", "squeeze"], "got 'squeeze'"),
        (["--target-params", 900, "--method", "int8,prune"], "int8 as its last method"),
        (["--target-params", 900, "--method", "prune,distill"], "must have distill first"),
        (["--target-params", 900, "--method", "prune,prune"], "each method once"),
        (["--target-params", 900, "--epochs", 1, "--rounds", 2], "--epochs must be at least 2"),
        (["--target-params", 900, "--epochs", 1, "--budget-hours", 1], "not both"),
        (["--target-params", 900, "--device", "abacus"], "abacus"),
        (["--target-params", 900, "--criterion", "luck"], "luck"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, words: list[Any], said: str
) -> None:
    assert said in refuse("compress", run, *words, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_other_folders_are_refused(run: Path, tmp_path: Path) -> None:
    line = ["--target-params", 900, "--out", tmp_path / "c"]
    assert "must hold a finished training" in refuse("compress", tmp_path, *line)
    folds = tmp_path / "folds"
    result = call("derive", "--genotype", run / "genotype.json", "--epochs", 1, "--folds", 2,
                  "--out", folds)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "got the cross-validation" in refuse("compress", folds, *line)
    assert "--out must not be RUN itself" in refuse("compress", run, "--target-params", 900,
                                                    "--out", run)  # fmt: skip
    old = tmp_path / "old"
    old.mkdir()
    for name in COPIED:
        (old / name).write_bytes((run / name).read_bytes())
    content = read(old / "genotype.json")
    (old / "genotype.json").write_text(json.dumps({**content, "version": 99}))
    assert "of this version" in refuse("compress", old, *line)
