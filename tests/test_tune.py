"""The commands `tune`, `correlate` and `report`: every method, several workers, kill -9, bad input.

Tests that kill workers use real processes. All other tests run the workers in this process, for
speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import ENVIRONMENT, ROOT
from optuna.exceptions import StorageInternalError
from PIL import Image
from spaces import random_member
from studies import (
    SMALL,
    at_most,
    call,
    optuna_study,
    refuse,
    small,
    work_within,
)

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import AdamW, Sgd
from darts_lite.augment import load
from darts_lite.augment.policies.learned import Scheduled
from darts_lite.hpo import correlation, setup
from darts_lite.hpo import launcher as launch
from darts_lite.hpo.methods import gradient
from darts_lite.hpo.methods.population import lineage
from darts_lite.hpo.records import Record
from darts_lite.hpo.storage import Study
from darts_lite.hpo.worker import Worker
from darts_lite.reporting import comparison as report
from darts_lite.training.task import TrainTask

METHODS = {"random": 2, "tpe": 2, "bohb": 2, "asha": 4, "pbt": 4, "pba": 4, "gradient": 2}
KEPT = ("random", "tpe", "asha", "gradient")  # methods with two objectives


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> None:
    work_within(monkeypatch)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the number of draws and the length of a search, for speed."""
    for module in (setup, correlation):
        monkeypatch.setattr(module, "DRAWS", 20)
    monkeypatch.setattr(gradient, "STEPS", 6)


def tune(out: Path, method: str, *more: object) -> list[object]:
    return ["tune", "--method", method, *SMALL, "--out", out, *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def finished(records: list[Record]) -> list[Record]:
    return [r for r in records if r.done or r.state == "pruned"]


def png(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 100


# --- Methods ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a finished study of a method, made on first use."""
    folder = tmp_path_factory.mktemp("studies")

    def made(method: str) -> Path:
        out = folder / method
        if not out.exists():
            command = tune(out, method, "--trials", METHODS[method], "--population", 2)
            result = call(*command)
            assert result.exit_code == 0, result.output
            assert f"{out / 'g.json'}: trial" in result.output
        return out

    return made


@pytest.mark.parametrize("method", METHODS)
def test_derive_trains_the_best_configuration_of_every_method(
    within: None, studies: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    out = studies(method)
    genotype = Genotype.load(out / "g.json")
    assert 0 < genotype.parameters <= 20_000
    assert genotype.search["method"] == method
    records = Study(out / "study.journal").records()
    assert len(finished(records)) == METHODS[method]

    result = call("derive", "--genotype", out / "g.json", "--epochs", 1, "--out", tmp_path / "d")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    size = genotype.recipe.batch_size
    assert metrics["steps"] == 200 // size and metrics["parameters"] == genotype.parameters
    state = torch.load(tmp_path / "d" / "checkpoint.pt", weights_only=True)["state"]["task"]
    adam = genotype.recipe.optimizer.name == "adamw"
    assert len(state["optimizer"][1]) == (2 if adam else 1)

    read = report.read_study(out)
    assert (read.settings.method, read.settings.max_params) == (method, 20_000)
    assert [t.trial for t in read.trials] == [r.trial for r in records]
    best = max(t.accuracy or 0 for t in read.trials if t.fidelity == 1 or method == "asha")
    chosen = [t for t in read.trials if t.accuracy == best and t.parameters == genotype.parameters]
    assert chosen or method == "asha"
    assert (out / "report" / "index.html").stat().st_size > 1000


def test_derive_uses_the_optimizer_and_batch_size_of_the_genotype(
    within: None, studies: Callable[[str], Path], tmp_path: Path
) -> None:
    """Test one configuration per kind, because the best ones above may be alike."""
    (tmp_path / "search").mkdir()
    usual = Genotype.load(studies("random") / "g.json")
    for optimizer, moments in ((Sgd(), 1), (AdamW(), 2)):
        path, out = tmp_path / f"{optimizer.name}.json", tmp_path / optimizer.name
        recipe = replace(usual.recipe, optimizer=optimizer, batch_size=40)
        replace(usual, recipe=recipe).save(path)
        result = call("derive", "--genotype", path, "--epochs", 1, "--out", out)
        assert result.exit_code == 0, result.output
        state = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
        assert state["step"] == 5 and len(state["task"]["optimizer"][1]) == moments


def test_a_larger_network_replays_the_schedule_of_pba(
    within: None,
    studies: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = studies("pba")
    found = Genotype.load(out / "g.json")
    policy = load(out / "augment.json").policy
    assert isinstance(policy, Scheduled)
    schedules = found.recipe.schedules
    knots = {n: s for n, s in schedules.items() if n not in ("lr", "weight_decay")}
    assert policy.knots == knots and knots
    assert all(schedule[0] == (0.0, 0.0) for schedule in knots.values())
    changing = [s for s in knots.values() if s[-1][1] > 0]
    assert changing and all(s[-1][0] == 1.0 and len(s) == 4 for s in changing)
    records = {r.trial: r for r in Study(out / "study.journal").records()}
    last = [r for r in records.values() if r.fidelity == 1]
    assert schedules in [lineage(r, records) for r in last]

    space = random_member(blocks(16, 5), seed=0)
    larger = replace(
        small(tmp_path / "bench").bench.genotype_of(space),
        recipe=replace(
            found.recipe,
            augment="none",
            schedules={"lr": ((0.0, 0.05),), "weight_decay": ((0.0, 1e-4),)},
        ),
    )
    assert larger.parameters > 2 * found.parameters
    larger.save(tmp_path / "g.json")
    asked = []
    at = Scheduled.at
    monkeypatch.setattr(
        Scheduled, "at", lambda self, f: asked.append((self.knots, f)) or at(self, f)
    )
    result = call("derive", "--genotype", tmp_path / "g.json", "--epochs", 2,
                  "--augment", out / "augment.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(replayed == knots for replayed, _ in asked)
    assert {0.0, 0.5} < {f for _, f in asked}
    assert Genotype.load(tmp_path / "derive" / "genotype.json") == larger


def test_pba_trains_the_network_of_the_given_genotype(
    within: None, studies: Callable[[str], Path], tmp_path: Path
) -> None:
    given = studies("random") / "g.json"
    command = tune(tmp_path / "out", "pba", "--trials", 2, "--population", 2, "--genotype", given)
    result = call(*command)
    assert result.exit_code == 0, result.output
    found, before = Genotype.load(tmp_path / "out" / "g.json"), Genotype.load(given)
    assert found.space == before.space and found.recipe.augment == "learned"
    assert found.recipe.last["lr"] == before.recipe.last["lr"]
    assert found.recipe.optimizer == before.recipe.optimizer


@pytest.mark.parametrize("method", KEPT)
def test_pareto_prints_the_front_of_parameters_and_accuracy(
    within: None, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    result = call(*tune(out, method, "--trials", 3, "--pareto", "--lowest", 1, "--epochs", 1))
    assert result.exit_code == 0, result.output
    assert json.loads((out / "study.json").read_text())["objective"] == "pareto"
    said = [line for line in result.stdout.splitlines() if " parameters: " in line]
    points = [(t["parameters"], t["accuracy"]) for t in lines(out / "trials.jsonl")]
    front = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert len(said) == len(front) > 0
    for parameters, accuracy in front:
        assert sum(line.startswith(f"{parameters} parameters: {accuracy:.2%}") for line in said)
    if (
        method == "gradient"
    ):  # one search gives networks with the full, half and a quarter of the limit
        assert [t["notes"]["part"] for t in lines(out / "trials.jsonl")] == [0, 1, 2]
        assert all(p <= 20_000 >> part for part, (p, _) in enumerate(points))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in KEPT])
def test_methods_with_one_objective_refuse_pareto(tmp_path: Path, method: str) -> None:
    assert "--pareto" in refuse(*tune(tmp_path / "out", method, "--pareto"))
    assert not (tmp_path / "out").exists()


# --- Resuming and joining ---------------------------------------------------------------------


def test_a_study_is_resumed_with_more_trials_and_joined_from_another_folder(
    within: None, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    begin = tune(one, "random", "--trials", 2, "--seed", 1)
    assert call(*begin).exit_code == 0
    before = lines(one / "trials.jsonl")

    assert "--resume" in refuse(*begin)
    assert "method must be 'random', got 'tpe'" in refuse(*tune(one, "tpe", "--resume"))
    assert "epochs must be 2, got 3" in refuse(*tune(one, "random", "--resume", "--epochs", 3))
    assert lines(one / "trials.jsonl") == before

    again = call(*begin, "--resume", "--trials", 3)
    assert again.exit_code == 0, again.output
    after = lines(one / "trials.jsonl")
    assert after[:2] == before and len(after) == 3
    assert Study(one / "study.journal").settings["options"]["trials"] == 3  # for workers that join
    assert after[2]["elapsed"] > after[1]["elapsed"]

    joined = call("tune", "--method", "random", "--resume", "--trials", 4, "--out", two,
                  "--storage", one / "study.journal")  # fmt: skip
    assert joined.exit_code == 0, joined.output
    assert lines(two / "trials.jsonl")[:3] == after
    assert [p.name for p in (two / "trials").iterdir()] == ["3"]
    best = max(lines(two / "trials.jsonl"), key=lambda t: (t["accuracy"], -t["trial"]))
    found = Genotype.load(two / "g.json")
    assert found.parameters == best["parameters"]
    assert json.loads((two / "study.json").read_text())["seed"] == 1
    trained = call("derive", "--genotype", two / "g.json", "--epochs", 1)
    assert trained.exit_code == 0, trained.output
    for place in (one, two):  # nothing is left to do; both folders know the storage
        nothing = call("tune", "--method", "random", "--resume", "--trials", 4, "--out", place)
        assert nothing.exit_code == 0 and (place / "study.journal").exists() == (place == one)
    assert lines(one / "trials.jsonl") == lines(two / "trials.jsonl")


def test_resume_without_a_study_starts_anew(within: None, tmp_path: Path) -> None:
    """A script that always says --resume works; a result without its study is not written over."""
    result = call(*tune(tmp_path / "a", "random", "--trials", 1, "--resume"))
    assert result.exit_code == 0, result.output
    assert "no study in" in result.output and "starting anew" in result.output
    again = call(*tune(tmp_path / "a", "random", "--trials", 1, "--resume"))
    assert again.exit_code == 0 and "starting anew" not in again.output, again.output
    (tmp_path / "a" / "study.journal").unlink()
    line = refuse(*tune(tmp_path / "a", "random", "--trials", 1, "--resume"))
    assert "must hold a study" in line and "choose another --out" in line


def test_resume_remembers_the_database_and_the_settings(within: None, tmp_path: Path) -> None:
    out, storage = tmp_path / "out", f"sqlite:///{tmp_path}/study.db"
    result = call(*tune(out, "asha", "--trials", 3, "--storage", storage))
    assert result.exit_code == 0, result.output
    assert not (out / "study.journal").exists()
    assert "holds a study" in refuse(*tune(tmp_path / "b", "asha", "--storage", storage))
    again = call("tune", "--method", "asha", "--resume", "--out", out, "--trials", 5)
    assert again.exit_code == 0, again.output
    assert not (out / "study.journal").exists()  # the folder knows the storage
    assert len(lines(out / "trials.jsonl")) == 5
    assert [t["fidelity"] for t in lines(out / "trials.jsonl")].count(pytest.approx(1 / 9)) >= 3


@pytest.mark.slow
def test_the_budget_in_hours_covers_all_sessions(
    within: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second session has the rest of the budget; time between sessions does not count."""
    monkeypatch.setattr(launch, "CLOSING", 0.5)
    out = tmp_path / "out"
    command = tune(out, "random", "--budget-hours", 4 / 3600, "--epochs", 1)
    with at_most(60):
        assert call(*command).exit_code == 0
    first = lines(out / "trials.jsonl")
    assert all(t["elapsed"] <= 4 for t in first if t["elapsed"])
    time.sleep(1.0)
    began = time.monotonic()
    assert call(*command, "--resume", "--budget-hours", 6 / 3600).exit_code == 0
    assert time.monotonic() - began < 4.5
    second = lines(out / "trials.jsonl")
    done = [[t for t in some if t["state"] == "complete"] for some in (first, second)]
    assert done[1][: len(done[0])] == done[0] != []
    assert all(t["elapsed"] <= 6 for t in done[1])


# --- Processes --------------------------------------------------------------------------------


def trials_of(study: Study) -> list[tuple[str, str, bool]]:
    """Return state, worker and whether it is trained, of every trial."""
    found = {r.trial: r for r in study.records()}
    return [
        (found[t.number].state, t.user_attrs["worker"], bool(found[t.number].parameters))
        for t in optuna_study(study).trials
        if t.number in found and "worker" in t.user_attrs
    ]


def stop_amid_training(study: Study, pid: int, seconds: float = 60) -> None:
    """Stop a process while a worker trains and no process writes to the journal."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
        training = any(state == "running" and ready for state, _, ready in trials_of(study))
        if training and not os.path.lexists(study.where + ".lock"):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} never trained: {trials_of(study)}")


def until(what: Callable[[], object], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run an action in another thread and raise its errors here."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


EPOCHS = 25
LONG = ["--epochs", EPOCHS, "--checkpoint-seconds", 0]  # long enough for a kill


def amid_training(study: Study, out: Path, pid: int) -> Record:
    """Stop a worker well before the end of a training, and return the record of this training."""
    while True:
        stop_amid_training(study, pid)
        (record,) = (r for r in study.records() if r.state == "running")
        path = out / "trials" / str(record.trial) / "checkpoint.pt"
        if path.exists():
            step = torch.load(path, weights_only=True)["state"]["step"]
            if step < EPOCHS * (100 // int(record.values["batch_size"])) - 5:
                return record
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)


def opened(path: Path) -> Study:
    """Wait for a journal, and return its study."""
    until(lambda: path.exists() and Study(path).exists())
    return Study(path)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_continued(tmp_path: Path) -> None:
    """Another takes its place and its trial."""
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        study = opened(out / "study.journal")
        both = until(lambda: len({w for _, w, _ in trials_of(study)}) > 1 and trials_of(study))
        victim = next(w for state, w, _ in reversed(both) if w.startswith("1 "))
        pid = int(victim.rpartition(" ")[2])

        def working() -> bool:
            return any(s == "running" and w == victim and r for s, w, r in trials_of(study))

        while not killed:
            stop_amid_training(study, pid)
            if working():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            else:
                os.kill(pid, signal.SIGCONT)

    with at_most(300), meanwhile(kill):
        result = call(*tune(out, "random", "--trials", 6, "--workers", 2, *LONG))
    assert result.exit_code == 0, result.output
    study = Study(out / "study.journal")
    records = study.records()
    assert 6 <= len(finished(records)) <= 7  # two workers may start the last trial at once
    (lost,) = (r for r in records if r.state == "lost")
    (heir,) = (r for r in records if r.job.start == lost.trial)
    assert heir.state == "complete" and heir.values == lost.values
    workers = {worker for _, worker, _ in trials_of(study)}
    assert {worker.partition(" ")[0] for worker in workers} == {"0", "1"}
    assert not any(r.state in ("running", "waiting") for r in records)
    assert (out / "g.json").exists()
    listed = lines(out / "trials.jsonl")
    assert [t["state"] for t in listed].count("failed") == 1


@pytest.mark.slow
def test_a_study_continues_after_its_launcher_is_killed_or_interrupted(tmp_path: Path) -> None:
    """Then the user interrupts it, and goes on again: nothing is lost or done twice."""
    out = tmp_path / "out"
    begin = [*tune(out, "random", "--trials", 6), *LONG]
    command = [sys.executable, str(ROOT / "run.py"), *map(str, begin)]
    launcher = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    study = opened(out / "study.journal")
    until(lambda: any(s == "complete" for s, _, _ in trials_of(study)))
    stop_amid_training(study, launcher.pid)
    launcher.kill()
    launcher.wait()
    workers = {int(w.rpartition(" ")[2]) for _, w, _ in trials_of(study)}
    assert len(workers) == 1
    until(lambda: not any(map(is_alive, workers)), 15)
    before = finished(study.records())
    assert 0 < len(before) < 6 and not (out / "g.json").exists()

    def interrupt() -> None:
        """Send SIGINT like a terminal: to the worker, which ignores it, then to the launcher."""
        new = until(lambda: {int(w.rpartition(" ")[2]) for _, w, _ in trials_of(study)} - workers)
        (pid,) = new
        first = amid_training(study, out, pid)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGCONT)
        until(lambda: study.records()[-1].trial > first.trial)
        assert {r.trial: r.state for r in study.records()}[first.trial] == "complete"
        amid_training(study, out, pid)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(pid, signal.SIGCONT)

    resume = [*begin, "--resume", "--trials", 200]
    with at_most(300), meanwhile(interrupt):
        stopped = call(*resume)
    assert stopped.exit_code == 130, stopped.output
    assert "--resume" in stopped.stderr and "Traceback" not in stopped.output
    records = study.records()
    assert [r.state for r in records[-2:]] == ["stopped", "waiting"]
    assert finished(records)[: len(before)] == before
    count = len(finished(records)) + 1

    again = [*begin, "--resume", "--trials", count]
    with pytest.MonkeyPatch.context() as patch, at_most(300):
        work_within(patch)
        result = call(*again)
    assert result.exit_code == 0, result.output
    last = study.records()
    done = finished(last)
    assert [r for r in done if r.trial < len(records)][: len(before)] == before
    assert len(done) == count
    assert len({json.dumps(r.values) for r in done}) == count
    assert not any(r.state in ("running", "waiting") for r in last)
    unfinished = {r.trial for r in last if r.state in ("lost", "stopped")}
    assert unfinished and unfinished == {r.job.start for r in last if r.job.start is not None}
    best = max(done, key=lambda r: r.accuracy or 0)
    assert Genotype.load(out / "g.json").parameters == best.parameters


# --- Correlate and report ---------------------------------------------------------------------


def correlate(out: Path, *more: object) -> list[object]:
    return ["correlate", *SMALL, "--epochs", 3, "--lowest", 0.3, "--configurations", 3,
            "--out", out, *more]  # fmt: skip


@pytest.mark.parametrize("fidelity", ["epochs", "subset", "resolution"])
def test_correlate_compares_a_fidelity_with_the_full_training(
    tmp_path: Path, fidelity: str
) -> None:
    more = ["--fidelity", fidelity, *(["--image-size", 16] if fidelity == "resolution" else [])]
    out = tmp_path / "out"
    result = call(*correlate(out, *more))
    assert result.exit_code == 0, result.output
    rows = lines(out / "correlation.jsonl")
    assert [len(r["accuracies"]) for r in rows] == [2] * 3 == [len(r["seconds"]) for r in rows]
    assert all(0 <= a <= 1 for r in rows for a in r["accuracies"])
    assert all(r["parameters"] <= 20_000 for r in rows)
    assert f"| {fidelity} | Kendall" in result.output and png(out / "correlation.png")
    (found,) = json.loads((out / "correlation.json").read_text())["found"]
    assert found["fidelity"] == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("correlate") / "out"
    result = call(*correlate(out), "--resume")
    assert result.exit_code == 0 and "starting anew" in result.output, result.output
    return out


def test_correlate_is_resumed_with_more_configurations(compared: Path) -> None:
    rows = lines(compared / "correlation.jsonl")
    assert "--resume" in refuse(*correlate(compared))
    again = call("correlate", "--resume", "--out", compared, "--configurations", 4)
    assert again.exit_code == 0, again.output
    assert lines(compared / "correlation.jsonl")[:3] == rows
    assert len(lines(compared / "correlation.jsonl")) == 4
    assert "4 configurations" in again.output
    assert "starting anew" not in again.output
    other = refuse("correlate", "--resume", "--out", compared, "--epochs", 4)
    assert "epochs must be 3, got 4" in other


@pytest.mark.parametrize("step", [2, 7])
def test_an_interrupted_correlation_continues_to_the_same_numbers(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The numbers are the same at every fidelity, and --resume needs no other option."""
    out = tmp_path / "out"
    original, made = TrainTask.step, 0

    def stopping(task: TrainTask, fraction: float) -> int:
        nonlocal made
        taken = original(task, fraction)
        made += 1
        if made == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(TrainTask, "step", stopping)
        stopped = call(*correlate(out))
    assert stopped.exit_code == 143 and "--resume" in stopped.stderr
    rows = lines(out / "correlation.jsonl") if (out / "correlation.jsonl").exists() else []
    again = call("correlate", "--resume", "--out", out)
    assert again.exit_code == 0, again.output
    found, expected = (lines(f / "correlation.jsonl")[:3] for f in (out, compared))
    assert found[: len(rows)] == rows
    assert [r["accuracies"] for r in found] == [r["accuracies"] for r in expected]
    assert [r["configuration"] for r in found] == [r["configuration"] for r in expected]


def test_report_compares_two_studies(
    within: None, studies: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    result = call("report", studies("random"), studies("pbt"), "--out", out)
    assert result.exit_code == 0, result.output
    page = (out / "index.html").read_text()
    assert "random" in page and "pbt" in page and page.count("data:image/png") >= 2
    assert png(out / "best_so_far.png") and png(out / "scatter.png")
    table = (out / "table.md").read_text()
    assert table in result.output and "| random | 1 | 2 /" in table
    assert call("report", studies("random"), "--out", out).exit_code == 0  # the report is replaced
    assert "pbt" not in (out / "table.md").read_text()


# --- Bad input --------------------------------------------------------------------------------


BAD = [
    (["--method", "guess"], "'guess' is not one of 'random', 'tpe'"),
    ([], "--method"),
    (["--method", "pbt", "--fidelity", "subset"], "--fidelity must be epochs for pbt"),
    (["--method", "pba", "--fidelity", "resolution"], "--fidelity must be epochs for pba"),
    (["--method", "random", "--genotype", "g.json"], "--genotype is only for pba"),
    (["--method", "random", "--subset", 60], "must be at least 64 (two batches)"),
    (["--method", "random", "--subset", 5], "5"),
    (["--method", "random", "--warm-start", "nowhere"], "nowhere"),
    (["--method", "tpe", "--warm-start", "empty"], "there is no empty/g.json"),
    (["--method", "pba", "--genotype", "nowhere.json"], "nowhere.json"),
    (["--method", "random", "--storage", "nonsense://x"], "--storage nonsense://x"),
    (["--method", "random", "--storage", "torn"], "--storage torn"),
    (["--method", "random", "--trials", 0], "--trials"),
    (["--method", "pbt", "--population", 1], "--population"),
    (["--method", "random", "--dataset", "imagenet"], "got 'imagenet'"),
    (["--method", "random", "--device", "abacus"], "abacus"),
    (["--method", "pba", "--max-params", 100], "raise --max-params"),
    (["--method", "random", "--out", "file/out"], "file/out"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_of_tune_gives_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    Path("torn").write_text("torn\n" * 9)
    before = sorted(tmp_path.rglob("*"))
    assert said in refuse("tune", *SMALL, "--trials", 1, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreachable_storage_gives_a_one_line_error(
    within: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All results are there when the storage is back."""
    out, command = tmp_path / "out", tune(tmp_path / "out", "random", "--trials", 2)

    def gone(*_: object) -> None:
        raise StorageInternalError("the server\nhas gone")

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "do", lambda self, trial: gone())
        line = refuse(*command)
    assert "the server has gone" in line and "--resume" in line
    monkeypatch.setattr("darts_lite.hpo.storage.STALE", 0.0)  # because this process is still alive
    assert call(*command, "--resume").exit_code == 0
    assert len(finished(Study(out / "study.journal").records())) == 2


def test_tune_does_not_overwrite_a_study_or_a_genotype(
    within: None, studies: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither a study nor the result of a search is overwritten."""
    result = studies("random") / "g.json"
    (tmp_path / "g.json").write_bytes(result.read_bytes())
    assert "g.json" in refuse(*tune(tmp_path, "random", "--trials", 1))
    assert [p.name for p in tmp_path.iterdir()] == ["g.json"]
    assert "study.json" in refuse(*tune(studies("random"), "random", "--trials", 1))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report", "empty"], "empty must contain study.json (from `tune`) or g.json"),
        (["report", "nowhere"], "nowhere"),
        (["report"], "DIR"),
        (["correlate", *SMALL, "--configurations", 2], "--configurations"),
        (["correlate", *SMALL, "--max-params", 50], "raise --max-params"),
        (["correlate", *SMALL, "--lowest", 0], "--lowest"),
    ],
)  # fmt: skip
def test_bad_input_of_report_and_correlate_gives_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert said in refuse(*command)
    assert not (tmp_path / "report").exists()
    assert not (tmp_path / "correlation" / "correlation.jsonl").exists()
