"""The command `predict`: files, folders and CSV files, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoking import call, refuse

import darts_lite as dl
from darts_lite.errors import UserError
from darts_lite.training.predictor import Predictor

ROOT = Path(__file__).parent.parent


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def images(trained: Path, count: int = 5) -> list[Path]:
    return sorted((trained.parent / "data" / "test").rglob("*.png"))[:count]


def test_the_test_images_have_the_accuracy_of_the_training(trained: Path, tmp_path: Path) -> None:
    """To the last image, in a fresh process that knows only the folders."""
    test, table = trained.parent / "data" / "test", tmp_path / "found.csv"
    command = [sys.executable, str(ROOT / "run.py"), "predict", str(trained), str(test)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--csv", str(table)], check=True, cwd=tmp_path, env=environment)
    found = rows(table)
    right = sum(Path(row["file"]).parent.name == row["class"] for row in found)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert len(found) == sum(each["support"] for each in metrics["test_classes"])
    assert right / len(found) == metrics["test_accuracy"] > 0.15


def test_what_cannot_be_read_is_named_and_counted(trained: Path, tmp_path: Path) -> None:
    good = images(trained, 2)
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "torn.png").write_bytes(good[0].read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    given = [good[0], *(tmp_path / n for n in ("page.jpg", "torn.png", "empty.png", "gone.png"))]
    result = call("predict", trained, *given, tmp_path / "folder", good[1])
    assert result.exit_code == 0, result.output
    for name in ("page.jpg", "torn.png", "empty.png", "gone.png"):
        assert sum(name in line for line in result.stderr.splitlines()) == 1
    assert f"{tmp_path / 'folder'} holds no images" in result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == [str(path) for path in good]
    assert lines[2:] == ["2 images predicted, 4 could not be read"]
    expected = dl.load(trained).predict(good)
    for line, name, p in zip(lines, expected.classes, expected.probabilities.amax(1).tolist()):
        assert line.endswith(f": {name} {p:.2%}")


def test_nothing_to_predict_is_status_2_and_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "found.csv"
    assert "got 1 that are not" in refuse("predict", trained, tmp_path / "gone.png", "--csv", table)
    assert "must hold a finished training" in refuse("predict", tmp_path, images(trained)[0])
    assert not list(tmp_path.iterdir())


def test_a_csv_lists_files_beside_it(trained: Path, tmp_path: Path) -> None:
    test = trained.parent / "data" / "test"
    listed, table = test.parent / "list.csv", tmp_path / "found.csv"
    names = [str(path.relative_to(test.parent)) for path in images(trained)]
    listed.write_text("\ufefflabel,file\n" + "".join(f"x,{name}\n" for name in names))
    assert call("predict", trained, listed, "--csv", table, "--top", 3).exit_code == 0
    found = rows(table)
    assert [row["file"] for row in found[::3]] == [str(test.parent / name) for name in names]
    predictor = dl.load(trained)
    for i, row in enumerate(predictor.predict(images(trained)).probabilities):
        best = row.sort(descending=True)
        own = found[3 * i : 3 * i + 3]
        assert [r["class"] for r in own] == [predictor.classes[k] for k in best.indices[:3]]
        assert [float(r["probability"]) for r in own] == pytest.approx(
            best.values[:3].tolist(), abs=1e-6
        )
    listed.write_text("path\na.png\n")
    assert "must have a column 'file', got ['path']" in refuse("predict", trained, listed)
    listed.write_bytes(b"file\ncaf\xe9.png\n")
    assert "must be a CSV in UTF-8" in refuse("predict", trained, listed)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_a_file_name_that_is_no_text_is_written(trained: Path, tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(strange)).write_bytes(images(trained)[0].read_bytes())
    result = call("predict", trained, tmp_path, "--csv", tmp_path / "found.csv")
    assert result.exit_code == 0, result.output
    assert rows(tmp_path / "found.csv")[0]["file"].endswith("caf\\xe9.png")


def test_two_batches_of_pixels_are_in_memory(trained: Path) -> None:
    """Files are taken as they are needed, so any number of files fits."""
    taken: list[Path] = []
    files = (taken.append(path) or path for path in images(trained, 40))  # type: ignore[func-returns-value]
    predictor = dl.load(trained)
    parts = predictor.stream(files, batch_size=4)
    for count in range(1, 10):
        assert len(next(parts).files) == 4
        assert len(taken) <= 4 * (count + 1)
    together = predictor.predict(images(trained, 40)).probabilities
    again = [part.probabilities for part in predictor.stream(images(trained, 40), 4)]
    assert sum(len(part) for part in again) == 40
    assert all(abs(a - b).max() < 1e-6 for a, b in zip(again, together.split(4)))


def test_a_start_loads_no_library_of_the_training(trained: Path) -> None:
    """They take longer than torch."""
    code = (
        "import sys; from darts_lite.commands.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'matplotlib', 'tensorboard', 'torchvision', 'scipy', 'sklearn'} "
        "& set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "predict", str(trained), str(images(trained)[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_folder_above_is_the_same_run(trained: Path) -> None:
    above, own = (call("predict", run, *images(trained)) for run in (trained.parent, trained))
    assert above.exit_code == 0 and above.stdout == own.stdout


def test_the_library_refuses_a_file_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    predictor: Predictor = dl.load(trained)
    with pytest.raises(UserError, match="gone"):
        predictor.predict([*images(trained), tmp_path / "gone.png"])
