"""The command `fit`: search, training and report under one clock, killed in every phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invoking import refusal
from killing import killed
from studies import call

import darts_lite as dl
from darts_lite.commands import fit as module
from darts_lite.commands.fit import search_seconds
from darts_lite.errors import UserError
from darts_lite.nas.options import SearchOptions
from darts_lite.training import loop

HOURS = 0.003
QUICK = {"dataset": "digits", "max_params": 5000, "subset": 400, "budget_hours": HOURS}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the fixed times, so that a budget of eleven seconds suffices."""
    monkeypatch.setattr(loop, "CLOSING", 0.5)
    monkeypatch.setattr(module, "FIXED", 3.0)
    monkeypatch.setattr(module, "CLOSING", 1.0)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_fit_searches_trains_and_reports_under_one_clock(tmp_path: Path) -> None:
    result = call("fit", *FLAGS, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "11 s: 4 s for the search and 7 s for the final training" in result.output
    assert f"next: `python run.py predict {tmp_path / 'derive'} IMAGES...`" in result.output
    account = read(tmp_path / "fit.json")
    assert account["metrics"] == read(tmp_path / "derive" / "metrics.json")
    assert account["metrics"]["parameters"] <= 5000
    assert account["options"]["budget_hours"] == HOURS
    hours = read(tmp_path / "derive" / "config.json")["options"]["budget_hours"]
    assert 3600 * hours == pytest.approx(max(3.0, 10.8 - account["search_seconds"] - 1))
    searched = read(tmp_path / "search" / "config.json")["options"]["budget_hours"]
    assert 3600 * searched == pytest.approx(3.96)
    assert (tmp_path / "report" / "index.html").exists()
    assert dl.load(tmp_path / "derive").classes == tuple("0123456789")
    assert list((tmp_path / "derive").glob("model.onnx")) + list(
        (tmp_path / "derive").glob("*.pt2")
    )
    assert "fit: search" in result.stderr and "fit: derive" in result.stderr

    again = call("fit", "--resume", "--out", tmp_path)
    assert again.exit_code == 0 and "fit.json is finished" in again.output
    line = refusal(call("fit", *FLAGS, "--out", tmp_path))
    assert "`fit --resume`" in line


PRELUDE = """
from darts_lite.commands import fit
from darts_lite.training import loop
loop.CLOSING, fit.FIXED, fit.CLOSING = 0.5, 3.0, 1.0
import time
from darts_lite.training import budget
budget.PROCESS_START = time.monotonic()  # the imports do not count, however busy the machine is
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "at", "there"),
    [
        (("darts_lite.nas.task", ".SearchTask"), "step", 1, "search/checkpoint.pt"),
        (("darts_lite.commands.fit", ""), "derive", 1, "g.json"),
        (("darts_lite.training.task", ".TrainTask"), "step", 3, "derive/checkpoint.pt"),
        (("darts_lite.commands.fit", ""), "write_report", 1, "derive/metrics.json"),
    ],
    ids=["search", "between", "training", "report"],
)
def test_fit_killed_in_a_phase_goes_on_there(
    tmp_path: Path, owner: tuple[str, str], name: str, at: int, there: str
) -> None:
    command = ["fit", *FLAGS, "--out", tmp_path, "--checkpoint-seconds", 0.5]
    killed(*owner, name, at, False, *command, prelude=PRELUDE)
    files = ("search/checkpoint.pt", "g.json", "derive/checkpoint.pt", "derive/metrics.json")
    before = {f: (tmp_path / f).read_bytes() for f in files if (tmp_path / f).exists()}
    assert list(before)[-1] == there and "metrics" not in read(tmp_path / "fit.json")

    said: list[str] = []
    account = dl.fit(out=str(tmp_path), resume=True, say=said.append)
    assert not any("anew" in line for line in said)
    assert account == read(tmp_path / "fit.json")
    assert account["options"] == {**account["options"], **QUICK}
    assert account["metrics"] == read(tmp_path / "derive" / "metrics.json")
    assert (tmp_path / "report" / "index.html").exists()
    for file in list(before)[:-1]:  # what was finished is not done again
        assert (tmp_path / file).read_bytes() == before[file]


def test_the_share_of_the_search_grows_from_a_half_to_a_fifth() -> None:
    shares = [search_seconds(total) / total for total in (6, 9, 60, 600, 6000, 60_000)]
    assert shares[0] == 0.5 and shares == sorted(shares, reverse=True)
    assert 0.2 < shares[-1] < 0.201


class Stop(Exception):
    pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SearchOptions]:
    """Collect the options of searches instead of searching."""
    found: list[SearchOptions] = []

    def search(options: SearchOptions, **_: Any) -> None:
        found.append(options)
        raise Stop

    monkeypatch.setattr(module, "search", search)
    return found


@pytest.mark.parametrize(("size", "hours"), [(None, 0.06), (16, 2.0)])
def test_the_default_budget_follows_the_size_of_the_images(
    tmp_path: Path, asked: list[SearchOptions], size: int | None, hours: float
) -> None:
    with pytest.raises(Stop):
        dl.fit(dataset="digits", image_size=size, out=str(tmp_path), say=str)
    assert asked[0].budget_hours == pytest.approx(search_seconds(3600 * hours) / 3600)
    assert read(tmp_path / "fit.json")["options"]["budget_hours"] == hours


def test_the_search_gets_the_options(tmp_path: Path, asked: list[SearchOptions]) -> None:
    given = {**QUICK, "augment": "standard", "seed": 3, "sampling": "balanced", "device": "cpu"}
    with pytest.raises(Stop):
        dl.fit(**given, out=str(tmp_path), say=str)
    found = vars(asked[0])
    assert {name: found[name] for name in given if name != "budget_hours"} == {
        name: value for name, value in given.items() if name != "budget_hours"
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget_hours": 0.001}, "--budget-hours must be at least 0.0017"),
        ({"budget_hours": float("nan")}, "--budget-hours must be a finite number"),
        ({"max_params": 50}, "smallest possible"),
        ({"augment": "guess"}, "guess"),
        ({"dataset": "folder:nowhere"}, "nowhere"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_input_leaves_no_run_behind(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        dl.fit(**{**QUICK, **options, "out": str(tmp_path / "out")}, say=str)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))


def test_resume_starts_anew_keeps_settings_and_refuses_other_runs(
    tmp_path: Path, asked: list[SearchOptions]
) -> None:
    said: list[str] = []
    out = str(tmp_path)
    with pytest.raises(Stop):
        dl.fit(**QUICK, out=out, resume=True, say=said.append)
    assert said[0] == f"there is no {tmp_path / 'fit.json'} to resume: starting anew"
    with pytest.raises(Stop):
        dl.fit(out=out, resume=True, say=str)
    assert asked[1] == asked[0]
    with pytest.raises(UserError, match="seed must be 0, got 3"):
        dl.fit(out=out, seed=3, resume=True, say=str)
    (tmp_path / "fit.json").unlink()
    (tmp_path / "g.json").write_text("{}")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"g\.json.*choose another --out"):
            dl.fit(**QUICK, out=out, resume=resume, say=str)
