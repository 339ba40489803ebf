"""Faults around a run: killed before its first checkpoint, two in one folder, a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoking import call, refusal, refuse
from killing import ENVIRONMENT, ROOT, killed
from test_cli import SEARCH, SMALL

from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import UserError
from darts_lite.reporting import pictures
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.lock import Lock


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search."""
    out = tmp_path_factory.mktemp("faults") / "out"
    assert call(*SEARCH, "--out", out).exit_code == 0
    return out


# --- killed before the first checkpoint -------------------------------------------------------


@pytest.mark.slow
def test_a_search_killed_before_its_first_checkpoint_starts_anew(
    searched: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed("darts_lite.training.checkpoint", "", "save", 1, False, *SEARCH, "--out", out)
    path = out / "search" / "checkpoint.pt"
    assert not path.exists()
    again = call(*SEARCH, "--out", out, "--resume")
    assert again.exit_code == 0, again.output
    assert f"there is no {path} to resume: starting anew" in again.output
    assert Genotype.load(out / "g.json") == Genotype.load(searched / "g.json")


@pytest.mark.slow
def test_a_training_killed_at_its_first_step_resumes(searched: Path, tmp_path: Path) -> None:
    command = ["derive", "--genotype", searched / "g.json", "--epochs", 1]
    killed("darts_lite.training.task", ".TrainTask", "step", 1, False,
           *command, "--out", tmp_path / "d")  # fmt: skip
    again = call("derive", "--resume", "--out", tmp_path / "d")
    assert again.exit_code == 0 and "anew" not in again.output, again.output
    whole = call(*command, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("d", "whole"))
    timed = {"seconds": 0, "latency": 0}
    assert one | timed == two | timed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["derive", "--epochs", 1], "metrics.json"),
        (["derive", "--epochs", 1, "--random", 1], "random.json"),
        (["derive", "--epochs", 1, "--repeats", 2], "repeats.json"),
        (
            ["selftrain", "--epochs", 1, "--rounds", 1, "--unlabelled=rest:40", "--confidence", 0],
            "selftrain.json",
        ),
    ],
    ids=["derive", "random", "repeats", "selftrain"],
)
def test_resume_without_a_run_starts_anew_and_resumes_a_run(
    tmp_path: Path, command: list[Any], result: str
) -> None:
    """A script that always says --resume works, the first time and every other time."""
    search = call("search", *SMALL, "--subset", 300, "--steps", 2, "--out", tmp_path)
    assert search.exit_code == 0, search.output
    command += ["--genotype", tmp_path / "g.json", "--out", tmp_path / "d", "--resume"]
    first = call(*command)
    assert first.exit_code == 0 and "starting anew" in first.output, first.output
    before = json.loads((tmp_path / "d" / result).read_text())
    again = call(*command)
    assert again.exit_code == 0 and "starting anew" not in again.output, again.output
    assert json.loads((tmp_path / "d" / result).read_text()) == before


def test_a_result_without_its_checkpoint_is_not_written_over(
    searched: Path, tmp_path: Path
) -> None:
    genotype = (searched / "g.json").read_bytes()
    (tmp_path / "g.json").write_bytes(genotype)
    line = refuse(*SEARCH, "--out", tmp_path, "--resume")
    assert "checkpoint.pt must exist" in line and "choose another --out" in line
    assert (tmp_path / "g.json").read_bytes() == genotype


# --- two at once ------------------------------------------------------------------------------


STOPPED = """
import os, signal, sys
from darts_lite.nas.task import SearchTask
original = SearchTask.step
def step(self, fraction):
    print("at the first step", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return original(self, fraction)
SearchTask.step = step
from darts_lite.commands.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Give the folder and the process of a search that stands still at its first step."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", STOPPED, *SEARCH, "--out", str(out)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    while "at the first step" not in process.stdout.readline():
        assert process.poll() is None
    yield out, process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(
    running: tuple[Path, subprocess.Popen[str]],
) -> None:
    out, process = running
    before = sorted(p.name for p in (out / "search").iterdir())
    for resume in ([], ["--resume"]):
        line = refuse(*SEARCH, "--out", out, *resume)
        assert f"{out / 'search'} must have one run at a time" in line
    assert sorted(p.name for p in (out / "search").iterdir()) == before
    process.kill()
    process.wait()
    again = call("search", "--resume", "--out", out)
    assert again.exit_code == 0 and "anew" not in again.output, again.output


def test_the_slower_of_two_starts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run begins while this one reads its data."""
    from darts_lite.training import run

    other, read = Lock(tmp_path / "search"), run.read_data

    def reading(*arguments: Any) -> Any:
        other.folder.mkdir()
        other.take()
        return read(*arguments)

    monkeypatch.setattr(run, "read_data", reading)
    with other:
        assert "one run at a time" in refuse(*SEARCH, "--out", tmp_path)
    assert [p.name for p in other.folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["random", "repeats"])
def test_commands_of_several_trainings_lock_their_folder(
    searched: Path, tmp_path: Path, name: str
) -> None:
    with Lock(tmp_path) as lock:
        command = ["derive", "--genotype", searched / "g.json", f"--{name}", 2, "--epochs", 1]
        assert "one run at a time" in refuse(*command, "--out", lock.folder)
        assert os.listdir(tmp_path) == [".lock"]


def test_a_lock_is_free_after_its_context_and_after_its_process(tmp_path: Path) -> None:
    with Lock(tmp_path) as lock:
        lock.take()  # once more is allowed
        with pytest.raises(UserError, match="one run at a time"), Lock(tmp_path):
            pass
    code = (
        "import os, sys; from pathlib import Path; from darts_lite.training.lock import Lock\n"
        f"with Lock(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    with Lock(tmp_path):
        pass


# --- a full disk ------------------------------------------------------------------------------


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that lets no file grow beyond a size, from a call of a function on.

    The system reports such a write as "File too large", and else as it reports a full disk.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at(owner: Any, name: str, number: int, size: int) -> None:
        original, count = getattr(owner, name), 0

        def filling(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            return original(*arguments, **more)

        monkeypatch.setattr(owner, name, filling)

    yield at
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "number", "size", "file"),
    [
        (checkpoint, "save", 4, 20_000, "search/checkpoint.pt"),
        (Recorder, "scalars", 2, 300, "search"),
        (pictures, "save", 2, 300, "search"),
        (Genotype, "save", 1, 300, "g.json"),
    ],
    ids=["checkpoint", "events", "picture", "JSON"],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    searched: Path, tmp_path: Path, fill: Any, monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, number: int, size: int, file: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    with monkeypatch.context():
        fill(owner, name, number, size)
        failed = call(*SEARCH, "--out", out, "--checkpoint-seconds", 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.undo()
    line = refusal(failed)
    assert f"cannot write {out / file}" in line and "free some space" in line
    assert "Traceback" not in failed.stderr
    assert not list(out.rglob("*.tmp"))
    assert checkpoint.load(out / "search" / "checkpoint.pt", "search")
    again = call("search", "--resume", "--out", out)
    assert again.exit_code == 0, again.output
    assert Genotype.load(out / "g.json") == Genotype.load(searched / "g.json")
