"""Checkpoints: round trip, atomic writing, loading without code, match of the configuration."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from darts_lite.errors import UserError
from darts_lite.training import checkpoint


def test_a_checkpoint_has_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, "search", {"seed": 1}, {"w": (torch.arange(3.0),), "n": 2})
    content = checkpoint.load(path, "search")
    assert content["config"] == {"seed": 1}
    assert torch.equal(content["state"]["w"][0], torch.arange(3.0))
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, "search", {}, {"n": 1})
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, "search", {}, {"n": lambda: None})
    assert checkpoint.load(path, "search")["state"] == {"n": 1}


class _Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_the_error_of_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt") as error:
        checkpoint.load(path, "search")
    assert "\n" not in str(error.value)


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": "search", "version": 1, "x": _Evil()}, "c.pt")
    with pytest.raises(UserError):
        checkpoint.load(Path("c.pt"), "search")
    assert not Path("evil-was-here").exists()


@pytest.mark.parametrize("kind", ["derive", "search"])
def test_another_kind_or_version_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.pt"
    torch.save({"kind": "search", "version": 99, "config": {}, "state": {}}, path)
    with pytest.raises(UserError, match=r"must be a checkpoint of `derive`|version 99"):
        checkpoint.load(path, kind)


def test_another_setting_is_refused_by_name() -> None:
    saved, given = {"seed": 0, "out": "a"}, {"seed": 1, "out": "b"}
    with pytest.raises(UserError, match="seed must be 0, got 1"):
        checkpoint.check_config(Path("c.pt"), saved, given, {"out"})
    checkpoint.check_config(Path("c.pt"), saved, {**saved, "out": "b"}, {"out"})


@pytest.mark.parametrize(
    "found",
    [
        {"w": (torch.zeros(3),), "n": 1},
        {"w": (torch.zeros(2), torch.zeros(2)), "n": 1},
        {"v": (torch.zeros(2),), "n": 1},
        {"w": None, "n": 1},
    ],
)
def test_the_error_of_another_shape_names_the_state(found: dict) -> None:
    template = {"w": (torch.zeros(2),), "n": 0}
    checkpoint.require_like(template, {"w": (torch.ones(2),), "n": 5}, "state")
    with pytest.raises(ValueError, match="state"):
        checkpoint.require_like(template, found, "state")
