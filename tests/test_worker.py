"""Workers in this process, with real trainings on a hundred digits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import at_most, on, optuna_study, small, states

from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import Interrupted, UserError
from darts_lite.hpo import worker as module
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.liveness import worker_name
from darts_lite.hpo.methods.sampled import Sampled, rungs
from darts_lite.hpo.records import Job, Record
from darts_lite.hpo.storage import Study
from darts_lite.hpo.worker import Worker, orphans_stop
from darts_lite.training import checkpoint
from darts_lite.training.task import TrainTask

HUGE = 1e30  # a learning rate that makes every training diverge


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(module, "POLL", 0.01)


def results(worker: Worker) -> list[float | None]:
    """Return the accuracies of finished jobs."""
    return [r.accuracy for r in worker.study.records() if r.done]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[TrainTask]:
    """Record the task of every training step."""
    made: list[TrainTask] = []
    step = TrainTask.step

    def counting(task: TrainTask, fraction: float) -> int:
        made.append(task)
        return step(task, fraction)

    monkeypatch.setattr(TrainTask, "step", counting)
    return made


def at_step(
    monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]
) -> list[TrainTask]:
    """Run an action after a number of training steps."""
    made: list[TrainTask] = []
    step = TrainTask.step

    def acting(task: TrainTask, fraction: float) -> int:
        taken = step(task, fraction)
        made.append(task)
        if len(made) == number:
            action()
        return taken

    monkeypatch.setattr(TrainTask, "step", acting)
    return made


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def measuring(monkeypatch: pytest.MonkeyPatch, accuracy: Callable[..., float]) -> list[tuple]:
    """Replace the training by a function of genotype and fidelity; record its arguments."""
    asked: list[tuple] = []

    def measure(self: Bench, genotype: Genotype, fidelity: float, *_: object) -> float:
        asked.append((genotype, fidelity))
        return accuracy(genotype, fidelity)

    monkeypatch.setattr(Bench, "measure", measure)
    return asked


# --- Number of trials -------------------------------------------------------------------------


def test_a_worker_runs_the_requested_number_of_trials(tmp_path: Path) -> None:
    worker = small(tmp_path, trials=3)
    worker.study.tick("this", time.time() - 100)
    worker.run()
    records = worker.study.records()
    assert [r.state for r in records] == ["complete"] * 3
    for record in records:
        assert record.measurements == ((record.elapsed, 1.0, record.accuracy),)
        assert 0 < record.seconds < record.elapsed and record.elapsed > 100
        found = Genotype.load(worker.bench.place(record.trial) / "genotype.json")
        assert found == worker.study.genotype(record.trial)
        assert (found.parameters, found.macs) == (record.parameters, record.macs)
        assert found.recipe.batch_size == record.values["batch_size"]
    worker.run()
    assert len(worker.study.records()) == 3
    more = replace(worker, trials=5)
    more.run()
    assert states(more) == ["complete"] * 5


def test_a_worker_is_reproducible(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        worker = small(tmp_path / name, trials=2)
        worker.run()
        found.append([(r.values, r.accuracy) for r in worker.study.records()])
    assert found[0] == found[1]


def test_a_network_above_the_parameter_limit_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor counted."""
    asked = measuring(monkeypatch, lambda genotype, fidelity: 0.5)
    worker = small(tmp_path, "tpe", trials=12, max_params=3000)
    worker.run()
    records = worker.study.records()
    assert states(worker).count("complete") == 12 == len(asked)
    large = [r for r in records if r.state == "infeasible"]
    assert large and all(r.excess == (r.parameters or 0) / 3000 - 1 > 0 for r in large)
    assert not any(r.measurements or worker.bench.place(r.trial).exists() for r in large)
    assert all(genotype.parameters <= 3000 for genotype, _ in asked)


def test_a_space_without_a_small_enough_network_gives_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 4)
    worker = small(tmp_path, max_params=100, channels=4)
    with pytest.raises(UserError, match="raise --max-params") as caught:
        worker.run()
    assert "\n" not in str(caught.value)
    assert states(worker) == ["infeasible"] * 4


def test_too_large_networks_count_only_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, lambda genotype, fidelity: 0.5)
    worker = small(tmp_path, trials=8, max_params=3000)
    worker.run()
    runs = "".join("x" if s == "infeasible" else " " for s in states(worker)).split()
    longest = max(map(len, runs))
    assert len(runs) > 1 and sum(map(len, runs)) > longest
    monkeypatch.setattr(module, "PATIENCE", longest + 1)
    again = small(tmp_path / "again", trials=8, max_params=3000)
    again.run()
    assert states(again) == states(worker)


def test_a_diverging_configuration_is_recorded_and_the_study_continues(tmp_path: Path) -> None:
    plain = small(tmp_path / "plain", trials=1)
    plain.run()
    values = {**plain.study.records()[0].values, "optimizer": "sgd", "sgd.lr": HUGE,
              "sgd.weight_decay": 1e-4, "sgd.momentum": 0.9, "sgd.nesterov": True}  # fmt: skip
    worker = small(tmp_path / "study", trials=2, epochs=4)
    worker.study.enqueue([Job(fidelities=(1.0,), values=values, key="mad")])
    with pytest.warns(UserWarning, match="out of range"):
        worker.run()
    first, second = worker.study.records()
    assert (first.state, first.accuracy, first.measurements) == ("diverged", 0.0, ())
    assert first.job.key == "mad" and first.elapsed is not None
    assert second.state == "complete"


# --- Stopping and resuming --------------------------------------------------------------------


def test_a_later_session_finishes_a_trial_stopped_by_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy and the number of steps equal an uninterrupted trial."""
    plain = small(tmp_path / "plain", trials=1, epochs=5)
    with monkeypatch.context() as patch:
        made = at_step(patch, -1, lambda: None)
        plain.run()
    total = len(made)

    worker = small(tmp_path / "study", trials=1, epochs=5)
    deadline = time.monotonic() + 0.5
    with monkeypatch.context() as patch:
        made = at_step(patch, 3, lambda: time.sleep(max(0.0, deadline - time.monotonic())))
        on(worker, deadline=deadline).run()
    assert states(worker) == ["stopped", "waiting"]
    assert results(worker) == []
    stopped = len(made)
    on(worker, deadline=time.monotonic() - 1).run()
    assert states(worker) == ["stopped", "waiting"]  # no trial starts after the deadline
    with monkeypatch.context() as patch:
        made = at_step(patch, -1, lambda: None)
        on(worker, deadline=time.monotonic() + 600).run()
    assert states(worker) == ["stopped", "complete"]
    assert results(worker) == results(plain)
    assert stopped + len(made) == total
    first, heir = worker.study.records()
    assert heir.job.start == 0 and heir.values == first.values


@pytest.mark.parametrize("method", ["random", "bohb", "asha"])
def test_an_interrupt_enqueues_the_job_again_and_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    plain = small(tmp_path / "plain", method, trials=3, epochs=9)
    plain.run()
    worker = small(tmp_path / "study", method, trials=3, epochs=9)
    with monkeypatch.context() as patch:
        at_step(patch, 2, terminate)
        with pytest.raises(Interrupted) as caught:
            worker.run()
    assert caught.value.signum == signal.SIGTERM
    assert states(worker) == ["stopped", "waiting"]
    assert torch.load(worker.bench.place(0) / "checkpoint.pt", weights_only=True)
    worker.run()
    assert results(worker)[0] == results(plain)[0]
    assert sum(r.done or r.state == "pruned" for r in worker.study.records()) == 3


def test_a_stopped_trial_gives_the_same_accuracies_at_the_next_fidelity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare a stopped and an uninterrupted trial on a third of the images."""
    job = Job(fidelities=(1 / 3, 1.0), key="both")
    found = []
    for name, stop in (("plain", False), ("study", True)):
        worker = small(tmp_path / name, trials=1, epochs=4, fidelity="subset")
        worker.study.enqueue([job])
        if stop:
            with monkeypatch.context() as patch:
                at_step(patch, 12, terminate)  # during the full training
                with pytest.raises(Interrupted):
                    worker.run()
            assert worker.study.records()[0].fidelity == 1 / 3
        worker.run()
        found.append([m[1:] for m in worker.study.records()[-1].measurements])
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize("trials", [1, 2])
def test_the_last_trial_of_a_dead_worker_is_finished(tmp_path: Path, trials: int) -> None:
    worker = small(tmp_path, trials=trials)
    replace(worker, trials=trials - 1).run()
    trial = worker.study.begin(worker.method, "1 elsewhere 1", 0)
    assert trial is not None
    trial.configure(worker.space)
    trial._trial.set_user_attr("alive", time.time() - 3600)
    worker.run()
    assert states(worker) == ["complete"] * (trials - 1) + ["lost", "complete"]


@pytest.mark.parametrize("dies", [False, True])
def test_an_idle_worker_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Running trials count; if their workers die, another worker does them."""
    measuring(monkeypatch, lambda genotype, fidelity: 0.5)
    worker = small(tmp_path, trials=2)
    other = worker.study.begin(worker.method, "1 elsewhere 1", 0)
    assert other is not None
    other.configure(worker.space)
    waited: list[list[str]] = []

    def sleep(seconds: float) -> None:
        waited.append(states(worker))
        if dies:
            other._trial.set_user_attr("alive", time.time() - 3600)
        else:
            other.end("complete")

    monkeypatch.setattr(module.time, "sleep", sleep)
    worker.run()
    assert waited == [["running", "complete"]]
    assert states(worker) == (["lost", "complete", "complete"] if dies else ["complete"] * 2)


def test_a_lost_trial_that_is_too_large_is_not_repeated_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 50)
    measuring(monkeypatch, lambda genotype, fidelity: 0.5)
    worker = small(tmp_path, trials=1, max_params=3000)
    number = 0
    while True:  # until a configuration is too large
        trial = worker.study.begin(worker.method, "1 elsewhere 1", number)
        assert trial is not None
        genotype = worker.bench.genotype(trial.configure(worker.space))
        if genotype.parameters > 3000:
            break
        trial.end("infeasible")
        number += 1
    worker.study.take_over(["1 elsewhere 1"])
    worker.run()
    assert states(worker)[number] == "lost"
    assert states(worker)[number + 1 :].count("complete") == 1
    assert worker.study.records()[number + 1].state == "infeasible"


def test_a_lost_trial_without_a_checkpoint_continues_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[TrainTask]
) -> None:
    """A worker that dies before its first checkpoint leaves no weights."""
    found = {}
    for name in ("plain", "study"):
        worker = small(tmp_path / name, "pbt", population=2, trials=4, epochs=2)
        replace(worker, trials=2).run()
        if name == "study":
            trial = worker.study.begin(worker.method, "1 elsewhere 1", 0)
            assert trial is not None and trial.job.start is not None
            trial.configure(worker.space)
            worker.bench.place(trial.number).mkdir()
            worker.study.take_over(["1 elsewhere 1"])
        steps.clear()
        worker.run()
        finished = [r for r in worker.study.records() if r.done]
        found[name] = (
            len(steps),
            {r.job.key: r.accuracy for r in finished},
            {r.job.key: r.values for r in finished},
        )
    assert found["study"] == found["plain"]


def dies_at(worker_of: Callable[[], Worker], step: int) -> None:
    """Run a worker in a process, and kill the process while it trains."""

    def work() -> None:
        original, count = TrainTask.step, 0

        def killing(task: TrainTask, fraction: float) -> int:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(task, fraction)

        TrainTask.step = killing  # type: ignore[method-assign]
        torch.set_num_threads(1)
        worker_of().run()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("seconds", [0.0, 50.0], ids=["checkpoints", "first checkpoint"])
def test_a_killed_worker_loses_no_results(tmp_path: Path, seconds: float) -> None:
    """The same accuracies as if nothing had happened, from the last checkpoint."""
    plain = small(tmp_path / "plain", trials=2)
    plain.run()

    def worker() -> Worker:
        return small(tmp_path / "study", trials=2, checkpoint_seconds=seconds)

    one_training = checkpoint.load(plain.bench.place(0) / "checkpoint.pt", "trial")
    dies_at(worker, one_training["state"]["step"] + 2)
    assert states(worker()) == ["complete", "running"]
    worker().run()
    assert states(worker()) == ["complete", "lost", "complete"]
    assert results(worker()) == results(plain)
    saved = checkpoint.load(worker().bench.place(1) / "checkpoint.pt", "trial")
    assert saved["state"]["step"] == (1 if seconds == 0 else 0)


def test_a_trial_of_another_machine_is_finished_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small(tmp_path / "plain", trials=1, epochs=4)
    plain.run()
    worker = small(tmp_path / "study", trials=1, epochs=4)
    with monkeypatch.context() as patch:
        at_step(patch, 2, terminate)
        with pytest.raises(Interrupted):
            worker.run()
    there = on(worker, folder=tmp_path / "there")
    there.run()
    assert results(there) == results(plain)
    assert (tmp_path / "there/trials/1/genotype.json").exists()


def test_an_orphaned_worker_stops() -> None:
    received: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with at_most(20), orphans_stop(parent=-1):
            while not received:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, old)


# --- Hyperband --------------------------------------------------------------------------------


def by_size(genotype: Genotype, fidelity: float) -> float:
    """Return an accuracy that grows with size and fidelity."""
    return min(0.9, genotype.parameters / 20_000) * fidelity**0.1


def test_hyperband_prunes_and_reports_every_fidelity_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measuring(monkeypatch, by_size)
    worker = small(tmp_path, "bohb", trials=30)
    worker.run()
    records = [r for r in worker.study.records() if r.state != "infeasible"]
    pruned = [r for r in records if r.state == "pruned"]
    full = [r for r in records if r.state == "complete"]
    assert len(pruned) + len(full) == 30 and len(pruned) > 7 and len(full) > 5
    reached = [[m.fidelity for m in r.measurements] for r in records]
    known = list(rungs(1 / 9))
    assert all(fidelities == known[: len(fidelities)] for fidelities in reached)
    assert all(len(f) == 3 for f, r in zip(reached, records) if r in full)
    assert {len(f) for f, r in zip(reached, records) if r in pruned} == {1, 2}
    assert len(asked) == sum(map(len, reached))
    stored = {t.number: t.intermediate_values for t in optuna_study(worker.study).trials}
    for r in records:
        assert stored[r.trial] == dict(zip((1, 3, 9), (m.accuracy for m in r.measurements[:2])))
    best = max(records, key=lambda r: r.measurements[0].accuracy)
    assert best.state == "complete"
    mean = [sum(r.measurements[0].accuracy for r in rs) / len(rs) for rs in (full, pruned)]
    assert mean[0] > mean[1]


def test_hyperband_receives_the_measurements_of_a_continued_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, lambda genotype, fidelity: 0.5 + fidelity / 4)
    worker = small(tmp_path, "bohb", trials=1)
    trial = worker.study.begin(worker.method, "1 elsewhere 1", 0)
    assert trial is not None
    calls = 0

    def stopping(genotype: Genotype, fidelity: float) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Interrupted(signal.SIGTERM, tmp_path)
        return 0.5

    with monkeypatch.context() as patch:
        measuring(patch, stopping)
        with pytest.raises(Interrupted):
            worker.do(trial)
    worker.run()
    stopped, heir = optuna_study(worker.study).trials
    assert stopped.intermediate_values == {1: 0.5}
    assert heir.intermediate_values == {1: 0.5, 3: 0.5 + 1 / 12}
    assert [m.accuracy for m in worker.study.records()[1].measurements] == [0.5, 0.5 + 1 / 12, 0.75]


def test_methods_without_pruning_prune_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, by_size)
    worker = small(tmp_path, "tpe", trials=15)
    worker.run()
    assert set(states(worker)) <= {"complete", "infeasible"}


# --- Several workers ---------------------------------------------------------------------------


def finished(records: list[Record]) -> list[str]:
    return sorted(r.job.key for r in records if r.done)


def test_two_workers_share_a_population(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They work by turns; both queue every job, and some members are too large."""
    measuring(monkeypatch, by_size)
    one = small(tmp_path, "pbt", population=3, trials=6, max_params=4000)
    two = small(tmp_path, "pbt", population=3, trials=6, max_params=4000)
    enqueue = Study.enqueue

    def twice(study: Study, jobs: Iterable[Job]) -> None:
        """Do what two workers do after they have read the same records."""
        known = {r.job.key for r in study.records()}
        new = [job for job in jobs if job.key not in known]
        for job in [*new, *new]:
            optuna_study(study).enqueue_trial(dict(job.values or {}), {"job": job.to_json()})
        enqueue(study, jobs)

    monkeypatch.setattr(Study, "enqueue", twice)
    for turn in range(40):
        worker = (one, two)[turn % 2]
        if worker._enough():
            break
        trial = worker.study.begin(worker.method, worker_name(turn % 2), 0)
        assert trial is not None, f"nothing to do in turn {turn}"
        worker.do(trial)
    assert "infeasible" in states(one)
    keys = [f"population 0, member {m}, generation {g}" for m in range(3) for g in (1, 2)]
    assert finished(one.study.records()) == sorted(keys)


def test_a_method_without_further_jobs_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(Sampled):
        def first(self, records: object) -> None:
            return None

        def follow(self, records: object) -> list[Job]:
            return [Job(fidelities=(1.0,), key=k) for k in "ab"]

    measuring(monkeypatch, lambda genotype, fidelity: 0.5)
    worker = replace(small(tmp_path), method=Two("random"), trials=None)
    with at_most(60):
        worker.run()
    assert finished(worker.study.records()) == ["a", "b"]
