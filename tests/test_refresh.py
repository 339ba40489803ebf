"""`refresh` on data that stay, grow, drift, are relabelled, lose and win classes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from invoking import call
from PIL import Image

import darts_lite as dl
from darts_lite.commands.refresh import Difference, _held_out, decide
from darts_lite.data import load, split
from darts_lite.data.surveys import image_hashes
from darts_lite.training.seen import Seen

NAMES = ("down", "up", "wide")


def picture(name: str, seed: int, light: float) -> np.ndarray:
    """Return a gray image whose upper, lower or middle third is bright."""
    noise = np.random.default_rng((seed, NAMES.index(name)))
    pixels = noise.normal(60, 30, (12, 12))
    rows = {"up": slice(0, 4), "down": slice(8, 12), "wide": slice(4, 8)}[name]
    pixels[rows] += 90
    return (pixels * light).clip(0, 255).astype(np.uint8)


def write(root: Path, counts: dict[str, int], start: int = 0, light: float = 1.0) -> None:
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            Image.fromarray(picture(name, i, light)).save(folder / f"{i:04}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `data` and a run in `out/derive`."""
    place = tmp_path_factory.mktemp("trained")
    write(place / "data", {"down": 60, "up": 60})
    options = {"device": "cpu", "data_dir": str(place / "cache"), "say": lambda text: None}
    dl.search(
        dataset=f"folder:{place / 'data'}", steps=3, cells=3, channels=4, batch_size=8,
        max_params=20_000, augment="standard", out=str(place / "out"), **options,
    )  # fmt: skip
    dl.derive(genotype=str(place / "out/g.json"), epochs=2, hyperparameters="default",
              augment="standard", **options)  # fmt: skip
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


def refresh(place: Path, seconds: float = 20) -> tuple[int, dict[str, object], str]:
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the budget does not begin with the process of pytest
        patch.setattr("darts_lite.commands.cli.PROCESS_START", time.monotonic())
        return invoked(place, seconds)


def invoked(place: Path, seconds: float) -> tuple[int, dict[str, object], str]:
    result = call(
        "refresh", place / "out/derive", "--dataset", f"folder:{place / 'data'}",
        "--data-dir", place / "cache", "--budget-hours", seconds / 3600, "--device", "cpu",
    )  # fmt: skip
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stdout.strip().splitlines()
    return result.exit_code, json.loads(lines[-1]) if lines else {}, result.stdout + result.stderr


def stay(data: Path) -> None:
    pass


def grow_a_little(data: Path) -> None:
    write(data, {"up": 2}, start=500)


def grow(data: Path) -> None:
    write(data, {"up": 15, "down": 15}, start=500)


def relabel(data: Path) -> None:
    for path in sorted((data / "up").iterdir())[:12]:
        path.rename(data / "down" / f"moved-{path.name}")


def double(data: Path) -> None:
    write(data, {"up": 70, "down": 70}, start=500)


def new_class(data: Path) -> None:
    write(data, {"wide": 40})


@pytest.mark.parametrize(
    "change, plan, reason",
    [
        (stay, "keep", "no image is new"),
        (grow_a_little, "keep", "2 images changed, less than 5%"),
        (grow, "fine-tune", "20% of the images are new"),
        (relabel, "fine-tune", "10% of the images are new or relabelled"),
        (double, "search", "260 images, were 120"),
        (new_class, "search", "new class wide"),
    ],
)
def test_the_rule_by_what_changed(
    place: Path, change: Callable[[Path], None], plan: str, reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import darts_lite.commands.refresh as module

    monkeypatch.setattr(module, "HELD_OUT", 10**6)  # no training here
    before = (place / "out/derive/model.pt").read_bytes()
    change(place / "data")
    code, account, output = refresh(place)
    assert code == 0 and account["plan"] == plan and reason in str(account["reason"]), output
    assert (place / "out/derive/model.pt").read_bytes() == before
    assert json.loads((place / "out/derive/refresh.json").read_text())["plan"] == plan


def test_drift_of_brightness_is_seen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import darts_lite.commands.refresh as module

    monkeypatch.setattr(module, "HELD_OUT", 10**6)
    monkeypatch.setattr(module, "MUCH", 2.0)  # the share of new images does not decide
    shutil.rmtree(place / "data")
    write(place / "data", {"down": 60, "up": 60}, light=0.4)
    _, account, _ = refresh(place)
    assert account["plan"] == "fine-tune" and "brightness has drifted" in str(account["reason"])
    difference = account["difference"]
    assert isinstance(difference, dict) and difference["new"] == difference["gone"] == 120


@pytest.mark.slow
def test_new_class_replaces_the_model_and_keeps_the_old(place: Path) -> None:
    before = (place / "out/derive/model.pt").read_bytes()
    write(place / "data", {"wide": 150, "up": 90, "down": 90}, start=900)
    code, account, output = refresh(place, seconds=25)
    assert code == 10 and account["status"] == 10, output
    assert account["new_accuracy"] > account["difference"]["accuracy"]  # type: ignore[index,operator]
    assert (place / "out/derive.1/model.pt").read_bytes() == before
    assert dl.load(place / "out/derive").classes == ("down", "up", "wide")
    assert not (place / "out/derive.new").exists()
    assert float(str(account["seconds"])) < 60
    again, account, _ = refresh(place)  # a cron job runs it again
    assert again == 0 and account["plan"] == "keep"


def test_a_worse_model_is_not_promoted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import darts_lite.commands.refresh as module

    monkeypatch.setattr(module, "_trained", lambda options, old, *rest: old)
    write(place / "data", {"up": 60, "down": 60}, start=500)
    code, account, output = refresh(place)
    assert code == 0 and account["new_accuracy"] == account["difference"]["accuracy"]  # type: ignore[index]
    assert "kept" in output and not (place / "out/derive.1").exists()


def test_held_out_images_were_never_trained_on(place: Path) -> None:
    seen = Seen.load(place / "out/derive")
    assert len(seen.hashes) == 120 and seen.learned.sum() == 96 and len(seen.confidence) == 24
    assert seen.brightness.min() > 0.1 and seen.brightness.max() < 0.6


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda place: (place / "out/derive/seen.npz").unlink(), "with seen.npz, got none"),
        (lambda place: (place / "out/derive/seen.npz").write_bytes(b"x"), "cannot read .*seen.npz"),
        (lambda place: (place / "out/derive/model.pt").unlink(), "must hold a finished training"),
    ],
)
def test_a_damaged_run_is_one_line(
    place: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(place)
    code, _, output = refresh(place)
    assert code == 2 and "Traceback" not in output
    import re

    assert re.search(message, output)


@pytest.mark.parametrize(
    "found, plan",
    [
        (Difference(0, 1, 0, 99, 100, [], [], {}), "keep"),
        (Difference(0, 0, 6, 100, 100, [], [], {}), "fine-tune"),
        (Difference(1, 0, 0, 101, 100, [], [], {}, confidence=0.3), "fine-tune"),
        (Difference(1, 0, 0, 101, 100, [], [], {}, fall=2.5), "fine-tune"),
        (Difference(1, 0, 0, 101, 100, [], ["x"], {}), "search"),
    ],
)
def test_decide(found: Difference, plan: str) -> None:
    assert decide(found)[0] == plan


def test_a_fine_tuned_network_remembers_what_its_weights_had_learned(place: Path) -> None:
    old = Seen.load(place / "out/derive")
    dl.derive(
        genotype=str(place / "out/g.json"), out=str(place / "tuned"),
        start=str(place / "out/derive"), epochs=1, hyperparameters="default", augment="standard",
        device="cpu",
        data_dir=str(place / "cache"), say=lambda text: None,
    )  # fmt: skip
    new = Seen.load(place / "tuned")
    assert len(old.earlier) == 0 and set(old.known) == set(old.hashes[old.learned])
    assert set(new.earlier) == set(old.known) and set(new.known) >= set(old.known)


def test_held_out_images_are_no_copies_of_what_a_new_model_trains_on(place: Path) -> None:
    write(place / "data", {"up": 30, "down": 30}, start=500)
    for path in list((place / "data" / "up").glob("05*")):
        for number in range(4):  # some are drawn for training, some for the test
            shutil.copy(path, path.with_name(f"{number}-{path.name}"))
    splits = split(load(f"folder:{place / 'data'}", place / "cache"))
    seen = Seen.load(place / "out/derive")
    held = set(image_hashes(_held_out(splits, seen)))
    trained = {h for part in splits[:2] for h in image_hashes(part)}
    assert held and not held & trained and not held & set(seen.known)
    assert set(image_hashes(splits.test)) & trained  # else there was nothing to leave out


def test_a_promotion_that_was_killed_is_finished(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "out/derive"
    (place / "out/derive.new").mkdir()
    shutil.copytree(run, place / "out/derive.new/derive")
    run.rename(place / "out/derive.1")
    code, account, output = refresh(place)
    assert code == 0 and account["plan"] == "keep", output
    assert dl.load(run).classes == ("down", "up")
