"""The training toolbox through the command line: every option does what it says, and resumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invoking import call, refuse
from killing import stopping
from PIL import Image

import darts_lite as dl
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.commands.selftrain import _trainings
from darts_lite.nas.loading import restored_search
from darts_lite.training.options import SelfTrainOptions

SEARCH = ["--dataset", "digits", "--subset", "400", "--space", "blocks", "--cells", "3",
          "--channels", "4", "--max-params", "3000", "--batch-size", "16"]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toolbox") / "out"
    result = call("search", *SEARCH, "--steps", 4, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def trained(searched: Path) -> Path:
    out = searched.parent / "trained"
    derive(searched, out, "--epochs", 8)
    return out


@pytest.fixture(scope="module")
def plain(searched: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a training without any option."""
    derive(searched, searched.parent / "plain")
    return weights(searched.parent / "plain")


def derive(searched: Path, out: Path, *words: object) -> dict[str, Any]:
    words = words if "--epochs" in words else ("--epochs", 2, *words)
    result = call("derive", "--genotype", searched / "g.json", "--out", out, *words)
    assert result.exit_code == 0, result.output
    return json.loads((out / "metrics.json").read_text())


def weights(out: Path, file: str = "model.pt") -> dict[str, torch.Tensor]:
    return torch.load(out / file, weights_only=True)


# --- every option -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--loss", "focal:gamma=1"],
        ["--loss", "soft_f1"],
        ["--loss", "bce", "--augment", "standard+cutmix"],
        ["--label-smoothing", 0],
        ["--schedule", "one-cycle", "--warm-up", 0.2],
        ["--schedule", "plateau"],
        ["--class-weights", "effective"],
        ["--sampling", "balanced"],
        ["--accumulate", 2],
        ["--clip", 0.1],
        ["--sharpness", 0.05],
        ["--ema", 0.9],
        ["--ema", "--clip", 1],
        ["--layer-decay", 0.5],
        ["--freeze", "features"],
        ["--precision", "bf16"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_an_option_changes_the_training(
    searched: Path, plain: dict[str, torch.Tensor], tmp_path: Path, words: list[Any]
) -> None:
    metrics = derive(searched, tmp_path, *words)
    assert metrics["epochs"] == pytest.approx(2, abs=0.2)
    other = weights(tmp_path)
    assert any(not torch.equal(plain[n], other[n]) for n in plain)
    assert all(v.isfinite().all() for v in other.values())


def test_frozen_features_keep_their_start_and_the_classifier_learns(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    derive(searched, tmp_path / "d", "--from", trained, "--freeze", "features")
    before, after = weights(trained), weights(tmp_path / "d")
    learned = [n for n in before if "running" not in n and "batches" not in n]
    moved = {n for n in learned if not torch.equal(before[n], after[n])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_the_weights_of_the_supernet_are_a_start(searched: Path, tmp_path: Path) -> None:
    derive(searched, tmp_path / "d", "--from", "supernet", "--freeze", "features")
    search = restored_search(searched / "search" / "checkpoint.pt")
    supernet, genotype = (
        search.network.export(search.inner.params),
        Genotype.load(searched / "g.json"),
    )
    start = Network(genotype.space, genotype.image, len(genotype.classes))
    start.inherit(supernet)
    after = weights(tmp_path / "d")
    for name, value in start.named_parameters():
        assert torch.equal(after[name], value) is not name.startswith("classifier"), name


def test_a_supernet_of_another_width_is_no_start(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        call("search", *SEARCH, "--search-channels", 2, "--steps", 2, "--out", out).exit_code == 0
    )
    line = ["derive", "--genotype", out / "g.json", "--epochs", 1, "--from", "supernet"]
    assert "needs a supernet as wide as its result, 4 channels, got 2" in refuse(*line)
    (out / "search" / "checkpoint.pt").unlink()
    assert "--from supernet needs the checkpoint of the search" in refuse(*line)


def test_a_frozen_block_learns_after_unfreezing(searched: Path, tmp_path: Path) -> None:
    derive(searched, tmp_path / "all", "--freeze", "2")
    derive(searched, tmp_path / "half", "--freeze", "2", "--unfreeze-at", 0.5)
    one, two = weights(tmp_path / "all"), weights(tmp_path / "half")
    assert not torch.equal(one["stem.weight"], two["stem.weight"])


def test_everything_learned_online_has_a_schedule(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    names = "label_smoothing,gamma,teacher_weight,temperature,layer_lr"
    derive(searched, tmp_path / "d", "--epochs", 3, "--hyperparameters", "online", "--estimator",
           "one_step", "--loss", "focal", "--teacher", trained, "--learn", names)  # fmt: skip
    learned = Genotype.load(tmp_path / "d" / "learned.json").recipe.schedules
    for name in [*names.split(",")[:4], "layer_lr.0", "layer_lr.4"]:
        values = [v for _, v in learned[name]]
        assert values[0] != values[-1], name
    again = call("derive", "--genotype", tmp_path / "d" / "learned.json", "--epochs", 1)
    assert again.exit_code == 0, again.output


def test_a_search_learns_the_loss_and_derive_follows(tmp_path: Path) -> None:
    result = call("search", *SEARCH, "--steps", 12, "--loss", "focal:gamma=1", "--learn",
                  "gamma,label_smoothing", "--schedule", "linear", "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe = Genotype.load(tmp_path / "g.json").recipe
    assert (recipe.loss, recipe.schedule) == ("focal", "linear")
    assert recipe.loss_settings == {"gamma": 1.0}
    assert {"gamma", "label_smoothing"} <= recipe.schedules.keys()
    assert recipe.schedules["gamma"][0][1] == pytest.approx(1.0, rel=1e-4)
    assert recipe.last["gamma"] != recipe.schedules["gamma"][0][1]
    derive(tmp_path, tmp_path / "d")
    lines = (tmp_path / "d" / "metrics.jsonl").read_text().splitlines()
    used = [json.loads(line).get("used/gamma") for line in lines]
    assert recipe.last["gamma"] == pytest.approx([u for u in used if u is not None][-1], rel=0.05)


# --- selection ------------------------------------------------------------------------------------


def test_patience_ends_a_training_that_does_not_move(searched: Path, tmp_path: Path) -> None:
    metrics = derive(searched, tmp_path / "d", "--epochs", 5, "--patience", 2, "--clip", 1e-9)
    assert metrics["epochs"] < 4 and metrics["validation_held_out"]


def test_the_best_weights_are_kept(searched: Path, tmp_path: Path) -> None:
    metrics = derive(searched, tmp_path / "d", "--epochs", 5, "--keep", 2, "--select", "best",
                     "--select-by", "log_loss")  # fmt: skip
    assert metrics["validation_held_out"]
    best, first = weights(tmp_path / "d"), weights(tmp_path / "d", "best1.pt")
    assert all(torch.equal(best[n], first[n]) for n in best)
    assert not torch.equal(best["stem.weight"], weights(tmp_path / "d", "best2.pt")["stem.weight"])


def test_metrics_of_every_class_and_test_time_augmentation_are_reported(
    searched: Path, tmp_path: Path
) -> None:
    metrics = derive(searched, tmp_path / "d", "--tta", "crops")
    assert len(metrics["test_classes"]) == 10
    assert sum(row["support"] for row in metrics["test_classes"]) == 359
    assert 0 <= metrics["test_ece"] <= 1 and 0 < metrics["test_accuracy_tta"] <= 1
    f1 = np.mean([row["f1"] for row in metrics["test_classes"]])
    assert metrics["test_macro_f1"] == pytest.approx(f1)


STOPS = [
    ["--ema", 0.9, "--select", "best", "--keep", 2, "--accumulate", 2, "--sampling", "balanced"],
    ["--schedule", "plateau", "--sharpness", 0.05, "--freeze", "1", "--unfreeze-at", 0.4],
]


@pytest.mark.parametrize("words", STOPS, ids=["average", "plateau"])
def test_an_interrupted_training_continues_to_the_same_weights(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any]
) -> None:
    derive(searched, tmp_path / "whole", "--epochs", 4, *words)
    line = ["derive", "--genotype", searched / "g.json", "--out", tmp_path / "d", "--epochs", 4]
    with stopping(monkeypatch, at=23):
        stopped = call(*line, *words)
    assert stopped.exit_code == 143, stopped.output
    again = call("derive", "--resume", "--out", tmp_path / "d")
    assert again.exit_code == 0, again.output
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "d")
    assert all(torch.equal(one[n], two[n]) for n in one)


# --- teachers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kl", "decoupled"])
@pytest.mark.parametrize("teacher", ["run", "ensemble", "supernet"])
def test_a_student_learns_from_a_teacher(
    searched: Path,
    trained: Path,
    plain: dict[str, torch.Tensor],
    tmp_path: Path,
    teacher: str,
    kind: str,
) -> None:
    named = {"run": trained, "ensemble": f"ensemble:{trained},{trained}", "supernet": "supernet"}
    derive(searched, tmp_path, "--teacher", named[teacher], "--distillation", kind)
    assert not torch.equal(plain["stem.weight"], weights(tmp_path)["stem.weight"])


def test_the_best_path_of_a_supernet_is_a_teacher(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--method", "single_path", "--steps", 8, "--out", out]
    assert call("search", *SEARCH, *words).exit_code == 0
    derive(out, tmp_path / "d", "--epochs", 1, "--teacher", "supernet", "--from", "supernet")
    assert all(v.isfinite().all() for v in weights(tmp_path / "d").values())


@pytest.mark.slow
def test_a_study_is_an_ensemble_of_its_trials(searched: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    small = ["--dataset", "digits", "--subset", 400, "--space", "blocks", "--cells", 3,
             "--channels", 4, "--max-params", 20000]  # fmt: skip
    result = call("tune", "--method", "random", *small, "--epochs", 1, "--trials", 2,
                  "--select-by", "macro_f1", "--out", study)  # fmt: skip
    assert result.exit_code == 0, result.output
    again = call("tune", "--resume", "--out", study)  # needs no other option
    assert again.exit_code == 0, again.output
    trials = [p.parent for p in study.glob("trials/*/model.pt")]
    assert trials
    one, two = tmp_path / "one", tmp_path / "two"
    derive(searched, one, "--epochs", 1, "--teacher", f"ensemble:{study}")
    derive(searched, two, "--epochs", 1, "--teacher", f"ensemble:{','.join(map(str, trials))}")
    first, second = weights(one), weights(two)
    assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)
    rows = [json.loads(x) for x in (study / "trials.jsonl").read_text().splitlines()]
    best = max((r for r in rows if r["accuracy"]), key=lambda r: r["accuracy"])
    scores = [json.loads(x) for x in (study / "trials" / str(best["trial"]) / "metrics.jsonl")
              .read_text().splitlines()]  # fmt: skip
    assert best["accuracy"] == pytest.approx([s["accuracy/validation"] for s in scores
                                              if "fidelity" in s][-1])  # fmt: skip


def test_a_study_of_a_metric_to_minimize_is_refused(tmp_path: Path) -> None:
    line = ["tune", "--method", "random", "--dataset", "digits", "--trials", 1, "--out", tmp_path]
    assert "must be a metric to maximize, accuracy" in refuse(*line, "--select-by", "ece")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune", "--dataset", "digits"], "--method must be one of random, tpe"),
        (["selftrain"], "--unlabelled must name a folder of images"),
    ],
)
def test_what_a_new_run_needs_is_said(tmp_path: Path, words: list[Any], said: str) -> None:
    assert said in refuse(*words, "--out", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


def test_with_the_whole_weight_and_many_epochs_the_student_agrees_with_its_teacher(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    derive(searched, tmp_path / "d", "--epochs", 30, "--teacher", trained, "--teacher-weight", 1,
           "--from", trained, "--augment", "none", "--hyperparameters", "default")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8, generator=generator)
    one, two = (dl.load(out).predict(images) for out in (trained, tmp_path / "d"))
    same = np.mean([a == b for a, b in zip(one.classes, two.classes)])
    assert same > 0.6  # on noise, which neither of them has seen


@pytest.mark.parametrize("how", ["--teacher", "--from"])
def test_validation_images_that_a_teacher_saw_are_not_called_held_out(
    searched: Path, trained: Path, tmp_path: Path, how: str
) -> None:
    """`trained` learned from all images; a training that held them out may teach."""
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--select", "held_out"]
    seen = call(*line, how, trained, "--out", tmp_path / "seen")
    assert "validation figures come out too high" in seen.stderr
    assert not json.loads((tmp_path / "seen" / "metrics.json").read_text())["validation_held_out"]
    derive(searched, tmp_path / "fair", "--epochs", 1, "--select", "held_out")
    fair = call(*line, how, tmp_path / "fair", "--out", tmp_path / "again")
    assert "too high" not in fair.stderr
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["validation_held_out"]


def test_the_users_values_win_over_learned_ones(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    names = "label_smoothing,teacher_weight,temperature"
    derive(searched, tmp_path / "d", "--epochs", 1, "--hyperparameters", "online", "--teacher",
           trained, "--learn", names)  # fmt: skip
    line = ["derive", "--genotype", tmp_path / "d" / "learned.json", "--epochs", 1]
    for out, words in (("learned", []), ("said", ["--label-smoothing", 0.2, "--temperature", 3])):
        result = call(*line, "--teacher", trained, *words, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    rows = [
        json.loads((tmp_path / out / "metrics.jsonl").read_text().splitlines()[1])
        for out in ("learned", "said")
    ]
    assert {f"used/{n}" for n in names.split(",")} <= rows[0].keys()
    assert not {"used/label_smoothing", "used/temperature"} & rows[1].keys()
    assert "used/teacher_weight" in rows[1]


def test_a_teacher_of_other_classes_needs_a_map(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    content = json.loads((trained / "genotype.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.pt").write_bytes((trained / "model.pt").read_bytes())
    content["classes"] = [f"digit {c}" for c in content["classes"]]
    (other / "genotype.json").write_text(json.dumps(content))
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--teacher", other]
    assert "give --teacher-map" in refuse(*line, "--out", tmp_path / "a")
    names = Genotype.load(searched / "g.json").classes
    (tmp_path / "map.json").write_text(json.dumps({c: f"digit {c}" for c in names[:9]}))
    said = refuse(*line, "--out", tmp_path / "b", "--teacher-map", tmp_path / "map.json")
    assert f"got none for {names[9]}" in said
    (tmp_path / "map.json").write_text(json.dumps({c: f"digit {c}" for c in names}))
    mapped = call(*line, "--out", tmp_path / "c", "--teacher-map", tmp_path / "map.json")
    assert mapped.exit_code == 0, mapped.output
    derive(searched, tmp_path / "d", "--epochs", 1, "--teacher", trained)
    one, two = weights(tmp_path / "c"), weights(tmp_path / "d")
    assert all(torch.equal(one[n], two[n]) for n in one)


# --- images without labels ------------------------------------------------------------------------


def test_pseudo_labels_are_counted_and_compared_with_the_truth(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    metrics = derive(searched, tmp_path / "d", "--teacher", trained, "--unlabelled", "rest:500",
                     "--confidence", 0.3)  # fmt: skip
    found = metrics["pseudo_labels"]
    assert 0 < found["count"] <= 500 and found["count"] == sum(found["by_class"].values())
    assert 0 < found["right"] <= 1
    task_images = metrics["steps"] * 16 / metrics["epochs"]
    assert task_images == pytest.approx(400 + found["count"], abs=16)


def test_a_folder_of_images_without_labels(searched: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(0, 255, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    metrics = derive(searched, tmp_path / "d", "--teacher", trained, "--unlabelled",
                     tmp_path / "photos", "--confidence", 0, "--no-balance", "--pseudo",
                     "hard")  # fmt: skip
    assert metrics["pseudo_labels"]["count"] == 12
    assert metrics["pseudo_labels"]["right"] is None


def test_every_training_of_selftrain_knows_where_the_data_lie(
    searched: Path, tmp_path: Path
) -> None:
    moved = {"dataset": "folder:moved", "data_dir": "there", "download": True, "seed": 7}
    options = SelfTrainOptions(genotype=str(searched / "g.json"), rounds=1, **moved)
    genotype = Genotype.load(searched / "g.json")
    trainings = list(_trainings(options, genotype, tmp_path).values())
    assert len(trainings) == 3
    for each in trainings:
        assert {name: getattr(each, name) for name in moved} == moved


@pytest.mark.slow
def test_self_training_goes_on_in_rounds(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    line = ["selftrain", "--genotype", searched / "g.json", "--unlabelled", "rest", "--rounds", 1,
            "--epochs", 2, "--confidence", 0.1, "--growth", 1.5, "--out", out]  # fmt: skip
    result = call(*line)
    assert result.exit_code == 0, result.output
    rounds = json.loads((out / "selftrain.json").read_text())["rounds"]
    assert [Path(r["folder"]).name for r in rounds] == ["round0", "round1", "last"]
    first, middle, last = rounds
    assert first["pseudo_labels"] == 0 < middle["pseudo_labels"]
    assert first["parameters"] == last["parameters"] < middle["parameters"]
    assert all(0 < r["right"] <= 1 for r in (middle, last))
    before = (out / "round1" / "model.pt").stat().st_mtime_ns
    (out / "last" / "metrics.json").unlink()
    again = call("selftrain", "--resume", "--out", out)
    assert again.exit_code == 0, again.output
    assert (out / "round1" / "model.pt").stat().st_mtime_ns == before  # kept
    assert json.loads((out / "selftrain.json").read_text())["rounds"][2]["parameters"]


# --- several trainings ----------------------------------------------------------------------------


def test_folds_predict_every_image_once_and_are_an_ensemble(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    result = call("derive", "--genotype", searched / "g.json", "--folds", 3, "--epochs", 2,
                  "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "folds.json").read_text())
    with (out / "out_of_fold.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400 and {r["fold"] for r in rows} == {"0", "1", "2"}
    right = np.mean([r["class"] == r["predicted"] for r in rows])
    assert found["out_of_fold_accuracy"] == pytest.approx(right)
    assert found["validation_accuracy"]["mean"] == pytest.approx(right, abs=0.02)
    assert found["test_accuracy"]["interval"] > 0
    images = torch.zeros(2, 1, 8, 8)
    whole = dl.load(out).predict(images).probabilities
    parts = [dl.load(out / f"fold{i}").predict(images).probabilities for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))
    derive(searched, tmp_path / "d", "--epochs", 1, "--teacher", out)
    again = call("derive", "--resume", "--folds", 3, "--out", out)
    assert again.exit_code == 0, again.output
    said = refuse("derive", "--genotype", searched / "g.json", "--folds", 3, "--out", out)
    assert "continue the run with `derive --folds 3 --resume`" in said


def test_repeats_have_an_interval(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    found = dl.derive(genotype=str(searched / "g.json"), repeats=2, epochs=1, out=str(out))
    values = found["test_accuracy"]["values"]
    assert len(values) == 2 and (out / "seed1" / "metrics.json").exists()
    assert found["test_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    # Student's t with one degree of freedom: 12.706 standard errors
    half = 12.7062 * abs(values[0] - values[1]) / 2
    assert found["test_accuracy"]["interval"] == pytest.approx(half, rel=1e-4)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss", "hinge"], "--loss must be one of cross_entropy, focal, bce, soft_f1"),
        (["--loss", "focal:alpha=1"], "the settings of focal are gamma from 0 to 5"),
        (["--loss", "focal:gamma=x"], "the settings of focal are gamma from 0 to 5"),
        (["--loss", "bce:gamma=1"], "the settings of bce are none"),
        (["--label-smoothing", 1], "'--label-smoothing': 1.0 is not in the range 0<=x<1"),
        (["--ema", 1], "'--ema': 1.0 is not in the range 0<=x<1"),
        (["--learn", "gamma"], "--learn needs --hyperparameters online"),
        (["--learn", "gamma", "--hyperparameters", "online"], "label_smoothing, got 'gamma'"),
        (["--learn", "layer_lr", "--hyperparameters", "online"], "needs an estimator"),
        (["--precision", "bf16", "--hyperparameters", "online"], "must be without --precision"),
        (["--accumulate", 2, "--hyperparameters", "online"], "must be without --accumulate"),
        (["--clip", 1, "--hyperparameters", "online"], "must be without --clip"),
        (["--sharpness", 0.05, "--hyperparameters", "online"], "must be without --sharpness"),
        (["--fold", 1], "--fold needs --folds"),
        (["--freeze", "9"], "--freeze must be features or a number"),
        (["--teacher", "nowhere"], "must hold a finished training"),
        (["--teacher", "timm:resnet18:no.pt"], "timm"),
        (["--from", "nowhere"], "must hold a finished training"),
        (["--unlabelled", "rest"], "--unlabelled needs a --teacher"),
        (["--folds", 3, "--fold", 3], "--fold must be 0 to 2"),
        (["--folds", 300], "--folds must be at most"),
        (["--folds", 3, "--repeats", 2], "must not be given together"),
        (["--schedule", "spiral"], "spiral"),
        (["--tta", "flip"], "--tta flip needs data"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, list) else "",
)
def test_bad_input_is_one_line(searched: Path, tmp_path: Path, words: list[Any], said: str) -> None:
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d"]
    assert said in refuse(*line, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unlabelled", "nowhere"], "must be a folder with images"),
        (["--unlabelled", "rest:0"], "must leave 1 to 1038 images"),
        (["--unlabelled", "rest:2000"], "must leave 1 to 1038 images"),
        (["--unlabelled", "rest", "--confidence", 1], "none at 1"),
    ],
)
def test_bad_images_without_labels_are_one_line(
    searched: Path, trained: Path, tmp_path: Path, words: list[Any], said: str
) -> None:
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d"]
    assert said in refuse(*line, "--teacher", trained, *words)
