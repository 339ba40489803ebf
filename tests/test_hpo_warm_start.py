"""Studies that start from earlier ones: what they train first, learn from, and say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from studies import SMALL, call, optuna_study, refuse, work_within

from darts_lite.architecture.genotype import Genotype
from darts_lite.hpo import worker
from darts_lite.hpo.methods import gradient
from darts_lite.hpo.space import values_of
from darts_lite.hpo.storage import Study
from darts_lite.hpo.warm_start import saved
from darts_lite.reporting import comparison as report

TRIALS = 4


@pytest.fixture(autouse=True)
def _within(monkeypatch: pytest.MonkeyPatch) -> None:
    work_within(monkeypatch)
    monkeypatch.setattr(gradient, "STEPS", 4)


def tune(out: Path, method: str, *more: object) -> str:
    """Runs a study without pictures; returns what it says."""
    with patch.object(report, "write_report"):
        result = call("tune", "--method", method, *SMALL, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def said(output: str, path: Path) -> str:
    (line,) = [one for one in output.splitlines() if one.startswith(f"warm start from {path}: ")]
    return line.partition(": ")[2]


def trials(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def best_first(out: Path) -> list[dict[str, Any]]:
    return sorted(trials(out), key=lambda t: -t["accuracy"])


def imported(out: Path) -> list[float]:
    """Accuracies that came from elsewhere."""
    study = Study(out / "study.journal")
    own = {r.trial for r in study.records()}
    return [t.values[0] for t in optuna_study(study).trials if t.number not in own]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("earlier") / "out"
    with pytest.MonkeyPatch.context() as patch:
        work_within(patch)
        tune(out, "random", "--trials", TRIALS)
    accuracies = [t["accuracy"] for t in trials(out)]
    assert sorted(accuracies, reverse=True) != accuracies  # lest their order say nothing
    return out


# --- from a study -----------------------------------------------------------------------------


def test_the_same_data_reuse_configurations_and_results(earlier: Path, tmp_path: Path) -> None:
    """The best come first, with the same results, and TPE knows all of them beforehand."""
    out = tmp_path / "out"
    output = tune(out, "tpe", "--trials", 5, "--warm-start", earlier)
    assert said(output, earlier) == (
        f"data unchanged; {TRIALS} configurations to train first; {TRIALS} results to learn from"
    )
    known, found = best_first(earlier), trials(out)
    assert len(found) == 5
    for before, now in zip(known, found):
        assert (now["configuration"], now["accuracy"]) == (
            before["configuration"],
            before["accuracy"],
        )
    assert found[4]["configuration"] not in [t["configuration"] for t in known]
    assert sorted(imported(out)) == sorted(t["accuracy"] for t in known)
    (line,) = [one for one in output.splitlines() if one.startswith(f"{earlier}: its ")]
    assert f"its {known[0]['accuracy']:.2%} was reached after" in line
    assert line.endswith(("s saved", "s more"))
    assert call("report", earlier, out, "--out", tmp_path / "report").exit_code == 0


@pytest.mark.parametrize(
    ("method", "other", "difference"),
    [
        ("random", [], "data unchanged"),
        ("tpe", ["--seed", 1], "data unchanged"),
        ("tpe", ["--epochs", 1], "data unchanged"),
        ("tpe", ["--subset", 240], "data unchanged"),
        ("tpe", ["--max-params", 15_000], "data unchanged"),
        ("tpe", ["--image-size", 10], "images of 10 × 10 pixels, were 8 × 8"),
    ],
)
def test_other_data_or_settings_train_the_best_configurations_anew(
    earlier: Path, tmp_path: Path, method: str, other: Sequence[object], difference: str
) -> None:
    out = tmp_path / "out"
    output = tune(out, method, "--trials", 1, *other, "--warm-start", earlier)
    line = said(output, earlier)
    assert line.startswith(difference.split()[0])
    assert f"{TRIALS} configurations to train first" in line and "to learn from" not in line
    assert imported(out) == []
    waiting = [r.job.values for r in Study(out / "study.journal").records()]
    assert waiting == [t["configuration"] for t in best_first(earlier)]


def test_only_the_best_few_configurations_are_trained_first(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darts_lite.hpo.warm_start.TAKEN", 2)
    out = tmp_path / "out"
    output = tune(out, "tpe", "--trials", 1, "--warm-start", earlier)
    assert "2 configurations to train first; 4 results to learn from" in output
    records = Study(out / "study.journal").records()
    assert [r.job.values for r in records] == [t["configuration"] for t in best_first(earlier)[:2]]
    assert len(imported(out)) == TRIALS


@pytest.mark.parametrize("method", ["asha", "bohb", "pbt"])
def test_every_method_begins_with_the_best_configurations(
    earlier: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    tune(out, method, "--trials", 1, "--population", 2, "--warm-start", earlier)
    plain = tmp_path / "plain"
    tune(plain, method, "--trials", 1, "--population", 2)
    count = 2 if method == "pbt" else TRIALS
    known = [t["configuration"] for t in best_first(earlier)][:count]
    records = Study(out / "study.journal").records()
    assert [r.job.values for r in records] == known
    usual = Study(plain / "study.journal").records()[0].job
    assert {r.job.fidelities for r in records} == {usual.fidelities}
    assert records[0].job.notes == usual.notes
    assert len({r.job.key for r in records}) == count


def test_several_earlier_studies_are_merged_best_first_without_duplicates(
    earlier: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    tune(second, "random", "--trials", 2, "--seed", 1)
    out = tmp_path / "out"
    output = tune(out, "random", "--trials", 1, "--warm-start", second, "--warm-start", earlier,
                  "--warm-start", earlier)  # fmt: skip
    assert output.count(f"warm start from {earlier}: ") == 2
    known = sorted([*trials(second), *trials(earlier)], key=lambda t: -t["accuracy"])
    records = Study(out / "study.journal").records()
    assert sorted(json.dumps(r.job.values) for r in records) == sorted(
        json.dumps(t["configuration"]) for t in known
    )
    accuracy = {json.dumps(t["configuration"]): t["accuracy"] for t in known}
    order = [accuracy[json.dumps(r.job.values)] for r in records]
    assert order == sorted(order, reverse=True)


def test_configurations_of_another_space_are_left_out(earlier: Path, tmp_path: Path) -> None:
    output = tune(tmp_path / "out", "tpe", "--cells", 4, "--trials", 1, "--warm-start", earlier)
    line = said(output, earlier)
    assert "0 configurations to train first; 4 not of this space (" in line
    assert "block4" in line
    assert trials(tmp_path / "out")[-1]["state"] == "complete"


# --- from a genotype, and for the gradient ----------------------------------------------------


def test_a_genotype_is_trained_first(earlier: Path, tmp_path: Path) -> None:
    """What it says of its training included."""
    out, path = tmp_path / "out", earlier / "g.json"
    output = tune(out, "tpe", "--trials", 2, "--warm-start", path)
    assert said(output, path) == "data unchanged; 1 configurations to train first"
    first, second = trials(out)
    assert first["configuration"].items() <= values_of(Genotype.load(path)).items()
    best = best_first(earlier)[0]
    assert (first["configuration"], first["accuracy"]) == (best["configuration"], best["accuracy"])
    assert second["configuration"] != first["configuration"] and imported(out) == []
    assert f"{path}: its" not in output  # nothing is known of the time that it took


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[list[Genotype]]:
    """What each search of the gradient begins from."""
    found: list[list[Genotype]] = []
    search = worker.search_round

    def hearing(bench: Any, config: Any, job: Any, place: Path, earlier: Any, clock: bool) -> Any:
        found.append([genotype for genotype, _ in earlier])
        return search(bench, config, job, place, earlier, clock)

    monkeypatch.setattr(worker, "search_round", hearing)
    return found


@pytest.mark.parametrize("name", [".", "g.json"])
def test_the_gradient_method_starts_from_the_best_genotype(
    earlier: Path, tmp_path: Path, begun: list[list[Genotype]], name: str
) -> None:
    """In its second round from what it found itself."""
    out = tmp_path / "out"
    tune(out, "gradient", "--trials", 2, "--warm-start", earlier / name)
    given = Genotype.load(earlier / "g.json")
    own = Genotype.load(out / "trials" / "0" / "genotype.json")
    assert begun == [[given], [own, given]]
    assert len(trials(out)) == 2


def test_other_methods_train_what_the_gradient_method_found(tmp_path: Path) -> None:
    """By its trials, or by its result alone, as of a search."""
    first, searched = tmp_path / "first", tmp_path / "searched"
    tune(first, "gradient", "--trials", 2)
    searched.mkdir()
    shutil.copy(first / "g.json", searched)
    genotype = Genotype.load(first / "g.json")
    for path, name, count, method in ((first, "", 2, "tpe"), (searched, "g.json", 1, "asha")):
        out = tmp_path / method
        output = tune(out, method, "--trials", count, "--warm-start", path)
        line = said(output, path / name)
        assert line.startswith(f"data unchanged; {count} configurations to train first")
        first_trial = trials(out)[0]
        assert first_trial["parameters"] == genotype.parameters
        policy, _, _ = genotype.recipe.augment.partition(":")
        assert first_trial["configuration"]["augment"] == policy
        place = out / "trials" / str(first_trial["trial"])
        found = Genotype.load(place / "genotype.json")
        assert found.space == genotype.space
        assert found.recipe.batch_size == 32  # the nearest: half of the images are too few
        lr = min(max(genotype.recipe.last["lr"], 3e-3), 1.0)
        assert found.recipe.last["lr"] == pytest.approx(lr)


@pytest.mark.parametrize("method", ["random", "gradient"])
def test_a_study_continues_when_its_warm_start_is_deleted(
    earlier: Path, tmp_path: Path, method: str
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(earlier, copy)
    tune(out, method, "--trials", 1, "--warm-start", copy)
    again = ["--resume", "--warm-start", copy]  # the same words once more
    tune(out, method, "--trials", 2, *again)
    shutil.rmtree(copy)
    output = tune(out, method, "--trials", 3, *again)
    assert "warm start from" not in output  # it started long ago
    assert len([t for t in trials(out) if t["state"] == "complete"]) == 3
    line = refuse("tune", "--method", method, "--out", out, "--resume", "--warm-start", earlier)
    assert "warm_start" in line


# --- what was saved ---------------------------------------------------------------------------


def curve(folder: Path, like: Path, *points: tuple[float, float]) -> Path:
    """A study that measured these accuracies at these times."""
    folder.mkdir()
    shutil.copy(like / "study.json", folder)
    line = trials(like)[0]
    rows = [
        {**line, "trial": i, "accuracy": accuracy, "elapsed": elapsed,
         "measurements": [[elapsed, 1.0, accuracy]]}
        for i, (elapsed, accuracy) in enumerate(points)
    ]  # fmt: skip
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (
            [(10, 0.5), (90, 0.8), (95, 0.7)],
            [(5, 0.6), (20, 0.8)],
            "its 80.00% was reached after 20 s; the earlier study took 90 s: 70 s saved",
        ),
        (
            [(10, 0.8)],
            [(5, 0.6), (30, 0.9)],
            "its 80.00% was reached after 30 s; the earlier study took 10 s: 20 s more",
        ),
        ([(10, 0.8)], [(5, 0.6), (30, 0.7)], "its 80.00% was not reached, best is 70.00%"),
        ([(10, 0.8)], [], "its 80.00% was not reached, best is nothing"),
        ([], [(5, 0.6)], None),
    ],
)
def test_saved_reports_the_time_saved(
    earlier: Path,
    tmp_path: Path,
    before: list[tuple[float, float]],
    now: list[tuple[float, float]],
    expected: str | None,
) -> None:
    first = curve(tmp_path / "first", earlier, *before)
    second = curve(tmp_path / "second", earlier, *now)
    lines = saved([str(first), str(earlier / "g.json"), str(tmp_path / "gone")], second)
    assert lines == ([] if expected is None else [f"{first}: {expected}"])


# --- what is of no use ------------------------------------------------------------------------


def torn(folder: Path) -> None:
    (folder / "trials.jsonl").write_text("{torn\n")


def no_trials(folder: Path) -> None:
    (folder / "trials.jsonl").unlink()


def settings_torn(folder: Path) -> None:
    (folder / "study.json").write_text("{torn")


def genotype_torn(folder: Path) -> None:
    (folder / "study.json").unlink()
    (folder / "g.json").write_text("{torn")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (torn, "trials.jsonl line 1"),
        (no_trials, "must contain trials.jsonl"),
        (settings_torn, "study.json"),
        (genotype_torn, "g.json must be a genotype"),
    ],
)
def test_an_unreadable_warm_start_gives_a_one_line_error(
    earlier: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(earlier, copy)
    damage(copy)
    assert message in refuse("tune", "--method", "tpe", *SMALL, "--out", out, "--warm-start", copy)
    assert not out.exists()


def test_the_gradient_method_needs_a_genotype_to_start_from(earlier: Path, tmp_path: Path) -> None:
    """Which a study that was interrupted has not yet."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(earlier, copy)
    (copy / "g.json").unlink()
    line = refuse("tune", "--method", "gradient", *SMALL, "--trials", 1, "--out", out,
                  "--warm-start", copy)  # fmt: skip
    assert "g.json" in line
    assert not out.exists()
