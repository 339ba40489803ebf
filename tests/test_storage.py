"""A study in storage: shared state of the workers, and recovery of the jobs of dead workers.

The tests use journal files and SQLite. SQLite represents every database. If DARTS_LITE_DATABASE has
a URL, such as postgresql+psycopg://me@/postgres?host=/tmp, the tests use this database too, and
delete its study.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import pytest
from studies import Toy, at_most, optuna_study

from darts_lite.errors import UserError
from darts_lite.hpo import storage as module
from darts_lite.hpo.liveness import covered, worker_name
from darts_lite.hpo.methods.sampled import Sampled, rungs
from darts_lite.hpo.records import Job, Measurement, Record
from darts_lite.hpo.storage import NAME, STALE, Study, Trial

DATABASE = os.environ.get("DARTS_LITE_DATABASE")
if DATABASE:  # its driver warns about connections that are open when a study is deleted
    pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ONCE, KEYED = Job(fidelities=(1.0,)), Job(fidelities=(1.0,), key="k")
RANDOM, TPE, BOHB = Sampled("random"), Sampled("tpe"), Sampled("tpe", rungs(1 / 9))
ME = worker_name(0)

Opened = Callable[[], Study]


def journal(tmp_path: Path) -> Opened:
    Study(tmp_path / "study.journal").create({"seed": 3}, pareto=False)
    return lambda: Study(tmp_path / "study.journal")


def sqlite(tmp_path: Path) -> Opened:
    (tmp_path / "study.db").write_bytes(new_sqlite())
    return lambda: Study(f"sqlite:///{tmp_path}/study.db")


@lru_cache
def new_sqlite() -> bytes:
    """Return the file of a new study once, because creating its tables takes a second."""
    with TemporaryDirectory() as folder:
        Study(f"sqlite:///{folder}/study.db").create({"seed": 3}, pareto=False)
        return Path(folder, "study.db").read_bytes()


def database(tmp_path: Path) -> Opened:
    if any(s.study_name == NAME for s in optuna.get_all_study_summaries(DATABASE)):
        optuna.delete_study(study_name=NAME, storage=DATABASE)
    Study(str(DATABASE)).create({"seed": 3}, pareto=False)
    return lambda: Study(str(DATABASE))


LOCKING = [journal, *([database] if DATABASE else [])]  # SQLite cannot lock a row


@pytest.fixture(params=[sqlite, *LOCKING])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Return a function that opens one study again, as each worker does."""
    return request.param(tmp_path)


@pytest.fixture(autouse=True)
def _unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not flush the journal to the disk, for speed."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    found = Study(tmp_path / "study.journal")
    found.create({}, pareto=False)
    return found


def begun(study: Study, worker: str = ME, method: Any = RANDOM) -> Trial:
    found = study.begin(method, worker, 0)
    assert found is not None
    return found


def states(study: Study) -> list[str]:
    return [record.state for record in study.records()]


def put_up_twice(study: Study, job: Job) -> None:
    """Put a job into the queue twice, like two workers at the same time."""
    for _ in range(2):
        optuna_study(study).enqueue_trial(dict(job.values or {}), {"job": job.to_json()})


def infeasible(study: Study, excess: float = 1.0) -> Trial:
    trial = begun(study)
    trial.note(excess=excess)
    trial.end("infeasible")
    return trial


# --- Stored state -----------------------------------------------------------------------------


def test_another_process_reads_everything_that_was_written(opened: Opened) -> None:
    one, other = opened(), opened()
    assert one.exists() and other.settings == {"seed": 3}
    job = Job(
        fidelities=(0.1, 1.0),
        values={"kind": "b", "width": 4, "x": 0.25},
        key="a key",
        start=7,
        done=(Measurement(1.5, 0.1, 0.5),),
        notes={"rung": 2},
    )
    one.enqueue([job])
    assert other.records() == [
        Record(trial=0, state="waiting", job=job, values=job.values, measurements=job.done)
    ]
    trial = begun(other)
    assert trial.job == job
    found = trial.configure(Toy())
    assert found.values == job.values
    trial.note(parameters=900, macs=5000, excess=-0.1, seconds=2.5)
    expected = Record(
        trial=0,
        state="running",
        job=job,
        values=dict(job.values or {}),
        learned={"lr": 0.25},
        parameters=900,
        macs=5000,
        excess=-0.1,
        seconds=2.5,
        measurements=job.done,
    )
    assert one.records() == other.records() == [expected]
    trial.measured(Measurement(9.0, 1.0, 0.75))
    trial.end("complete")
    (record,) = one.records()
    assert record.measurements == ((1.5, 0.1, 0.5), (9.0, 1.0, 0.75))
    assert (record.state, record.accuracy, record.elapsed) == ("complete", 0.75, 9.0)
    assert opened().records() == one.records() == [trial.record]
    one.change({"seed": 4})
    assert opened().settings == {"seed": 4}


@pytest.mark.parametrize(
    ("outcome", "done", "counts", "waiting"),
    [
        ("complete", True, True, 0),
        ("paused", True, True, 0),
        ("diverged", True, True, 0),
        ("pruned", False, True, 0),
        ("infeasible", False, False, 0),
        ("stopped", False, False, 1),
    ],
)
@pytest.mark.parametrize("pareto", [False, True])
def test_records_of_every_outcome(
    tmp_path: Path, outcome: str, done: bool, counts: bool, waiting: int, pareto: bool
) -> None:
    study = Study(tmp_path / "study.journal")
    study.create({}, pareto=pareto)
    trial = begun(study)
    trial.configure(Toy())
    trial.note(parameters=10)
    trial.end(outcome)
    record, *more = study.records()
    assert (record.state, record.done, record.counts) == (outcome, done, counts)
    assert [r.state for r in more] == ["waiting"] * waiting
    assert begun(study).number == 1  # the study continues


# --- Job queue --------------------------------------------------------------------------------


def test_waiting_jobs_come_first_and_go_to_one_worker_each(opened: Opened) -> None:
    jobs = [Job(fidelities=(1.0,), key=key) for key in "abc"]
    opened().enqueue(jobs)
    trials = [begun(opened(), worker) for worker in ("0 here 1", "1 here 2", "0 there 1")]
    assert [t.job for t in trials] == jobs
    new = begun(opened())
    assert new.job == ONCE and new.number == 3


@pytest.mark.parametrize("opened", LOCKING, indirect=True)
def test_concurrent_workers_get_different_jobs(opened: Opened) -> None:
    opened().enqueue(Job(fidelities=(1.0,), key=str(i)) for i in range(6))
    start, found = threading.Barrier(3), []

    def work(index: int) -> None:
        study = opened()
        start.wait()
        found.extend(begun(study, f"{index} here {index}") for _ in range(3))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(t.number for t in found) == list(range(9))
    assert sorted(t.job.key for t in found) == ["", "", "", *"012345"]


def test_the_earlier_of_two_jobs_with_one_key_counts(opened: Opened) -> None:
    study = opened()
    put_up_twice(study, KEYED)
    first, second = begun(study), begun(opened())
    assert first.job == KEYED and second.job == ONCE and second.number == 2
    assert states(study) == ["running", "running"]
    study.enqueue([KEYED])
    assert len(study.records()) == 2
    first.end("infeasible")  # the job is not done
    study.enqueue([KEYED])
    assert begun(study).job == KEYED


def test_a_job_without_a_key_can_be_enqueued_again(study: Study) -> None:
    study.enqueue([ONCE, ONCE])
    study.enqueue([ONCE])
    assert states(study) == ["waiting"] * 3


def test_method_without_new_configurations_waits_for_jobs(study: Study) -> None:
    class Follows:
        sampler, prunes = "random", False

        def first(self, records: object) -> None:
            return None

        def follow(self, records: list[Record]) -> list[Job]:
            return [Job(fidelities=(1.0,), key=k) for k in "ab"]

    taken = [study.begin(Follows(), ME, 0) for _ in range(3)]
    assert [t and t.job.key for t in taken] == ["a", "b", None]
    assert len(study.records()) == 2


# --- Worker liveness --------------------------------------------------------------------------


def half_done(study: Study, worker: str, key: str = "") -> Trial:
    """Return a trial that is measured at the first of three fidelities."""
    study.enqueue([Job(fidelities=rungs(1 / 9), key=key, notes={"rung": 1})])
    trial = begun(study, worker, BOHB)
    trial.configure(Toy())
    trial.measured(Measurement(5.0, 1 / 9, 0.5))
    trial.is_worse()
    return trial


def dies(open_again: Opened, at: str) -> int:
    """Kill a process while it trains, or while it writes to the journal."""

    def work(sender: Any) -> None:
        study = open_again()
        if at == "write":
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
            study.tick("a session", 0.0)
        half_done(study, worker_name(1))
        sender.send(os.getpid())
        signal.pause()

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender,))
    process.start()
    if at == "work":
        assert receiver.recv() == process.pid
        assert open_again().take_over() == 0  # while the worker is alive
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert process.pid is not None
    return process.pid


def test_the_rest_of_a_killed_workers_job_is_enqueued_once(opened: Opened) -> None:
    dies(opened, "work")
    one, other = opened(), opened()
    assert one.take_over() == 1
    assert other.take_over() == one.take_over() == 0
    lost, waiting = one.records()
    assert lost.state == "lost" and not lost.counts
    assert waiting.state == "waiting"
    assert waiting.job == Job(
        fidelities=(1 / 3, 1.0),
        values=lost.values,
        key="trial 0",
        start=0,
        done=(Measurement(5.0, 1 / 9, 0.5),),
        notes={"rung": 1},
    )
    heir = begun(other)
    assert heir.job == waiting.job and heir.record.fidelity == 1 / 9
    assert heir.configure(Toy()).values == lost.values != {}


@pytest.mark.parametrize("opened", LOCKING, indirect=True)
def test_two_workers_that_notice_a_death_at_once_take_over_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two begins to take over before the other has."""
    half_done(opened(), "0 elsewhere 1")
    studies, start, counts = [opened(), opened()], threading.Barrier(2), []
    claim = Study._claim

    def together(self: Study, number: int) -> bool:
        start.wait()
        return claim(self, number)

    monkeypatch.setattr(Study, "_claim", together)

    def work(study: Study) -> None:
        counts.append(study.take_over(["0 elsewhere 1"]))

    threads = [threading.Thread(target=work, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 1]
    again = opened()
    assert begun(again).job.key == "trial 0"
    assert begun(again).job == ONCE
    assert states(again) == ["lost", "running", "running"]


@pytest.mark.parametrize(
    ("worker", "quiet", "named", "taken"),
    [
        (ME, 0, False, False),
        ("1 elsewhere 1", 0, False, False),
        ("1 elsewhere 1", STALE - 5, False, False),
        ("1 elsewhere 1", STALE + 5, False, True),
        ("1 elsewhere 1", 0, True, True),
        (ME, STALE + 5, False, True),  # another process with this process ID
    ],
    ids=["me", "other", "other-quiet", "other-stale", "other-named", "me-stale"],
)
@pytest.mark.parametrize("beats", [False, True])
def test_which_workers_count_as_dead(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    worker: str,
    quiet: float,
    named: bool,
    taken: bool,
    beats: bool,
) -> None:
    trial, now = begun(study, worker), time.time()
    if beats:  # an hour after its start
        now += 3600
        trial._trial.set_user_attr("alive", now)
    monkeypatch.setattr(time, "time", lambda: now + quiet)
    assert study.take_over([worker] if named else []) == taken
    assert states(study) == (["lost", "waiting"] if taken else ["running"])


def test_worker_in_another_time_zone_is_alive(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there:
        there.setenv("TZ", "THERE+9")
        time.tzset()
        begun(opened(), "0 elsewhere 1")
    time.tzset()
    assert opened().take_over() == 0


def test_worker_heartbeats(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    trial = begun(study, "1 elsewhere 1")
    written, beat = threading.Event(), trial._trial.set_user_attr

    def heard(name: str, value: Any) -> None:
        beat(name, value)
        written.set()

    monkeypatch.setattr(trial._trial, "set_user_attr", heard)
    now = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: now)
    with trial.alive():
        assert written.wait(10)
        assert study.take_over() == 0
        monkeypatch.setattr(module, "HEARTBEAT", 1000)
    assert study.take_over() == 0
    now += STALE + 1
    assert study.take_over() == 1


def test_a_worker_that_took_over_can_die_too(study: Study) -> None:
    """Its job keeps its key, and goes on from where the heir was."""
    half_done(study, "a", key="a key")
    assert study.take_over(["a"]) == 1
    heir = begun(study, "b")
    heir.measured(Measurement(8.0, 1 / 3, 0.6))
    assert study.take_over(["b"]) == 1
    assert states(study) == ["lost", "lost", "waiting"]
    rest = study.records()[-1].job
    assert (rest.key, rest.start, rest.fidelities) == ("a key", 1, (1.0,))
    assert [m.accuracy for m in rest.done] == [0.5, 0.6]
    begun(study).end("complete")
    assert study.take_over(["a", "b"]) == 0
    assert states(study) == ["lost", "lost", "complete"]


def test_a_worker_that_dies_between_its_last_measurement_and_the_end(study: Study) -> None:
    """The last fidelity is measured again: there is a checkpoint of it."""
    trial = half_done(study, "a")
    for fidelity in (1 / 3, 1.0):
        trial.measured(Measurement(9.0, fidelity, 0.5))
    study.take_over(["a"])
    assert study.records()[-1].job.fidelities == (1.0,)


@pytest.mark.parametrize("opened", LOCKING, indirect=True)
@pytest.mark.parametrize("taken", [False, True], ids=["waiting", "taken up"])
@pytest.mark.parametrize(
    "outcome", ["complete", "pruned", "infeasible", "diverged", "stopped", "duplicate"]
)
def test_a_worker_that_returns_late_changes_nothing(
    opened: Opened, outcome: str, taken: bool
) -> None:
    study = opened()
    late = half_done(study, "a")
    study.take_over(["a"])
    heir = begun(study, "b") if taken else None
    before = study.records()
    late.note(seconds=100.0)
    late.measured(Measurement(50.0, 1 / 3, 1.0))
    late.is_worse()
    late.end(outcome)
    assert study.records() == opened().records() == before
    if heir is not None:
        heir.end("complete")
        assert states(study) == ["lost", "complete"]


@pytest.mark.filterwarnings("ignore:.*lock file")  # of Optuna 4
def test_a_lock_left_by_a_killed_writer_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are tested too, because they are common."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    path = Path("out/study.journal")
    study = Study(path)
    study.create({}, pareto=False)
    dies(lambda: Study(path), "write")
    assert os.path.lexists("out/study.journal.lock")
    monkeypatch.setattr(study._storage._backend._lock, "grace_period", 0.5)
    with at_most(20):
        study.tick("mine", 0.0)
        assert begun(study).number == 0


def test_a_stopped_trial_is_enqueued_again(opened: Opened) -> None:
    half_done(opened(), ME, key="a key").end("stopped")
    stopped, waiting = opened().records()
    assert stopped.state == "stopped" and stopped.fidelity == 1 / 9
    assert (waiting.job.key, waiting.job.start) == ("a key", 0)
    assert waiting.job.fidelities == (1 / 3, 1.0)
    trial = begun(opened())
    trial.end("stopped")  # before the second measurement
    rest = opened().records()[-1].job
    assert (rest.start, rest.done) == (1, stopped.measurements)


# --- The clock --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(3, 3)], 0),
        ([(0, 2), (5, 6)], 3),
        ([(5, 6), (0, 2)], 3),
        ([(0, 10), (2, 3), (4, 12)], 12),
        ([(0, 2), (2, 4)], 4),
        ([(0, 1), (0, 1)], 1),
    ],
)
def test_covered_length_of_intervals(spans: list[tuple[float, float]], length: float) -> None:
    assert covered(spans) == length


def test_the_clock_runs_while_any_session_works(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    study = opened()
    assert study.elapsed() == study.elapsed(now=500.0) == 0
    for session, started, at, elapsed in [
        ("a", 100.0, 110.0, 10),
        ("a", 100.0, 120.0, 20),
        ("b", 115.0, 130.0, 30),  # another machine, at the same time
        ("a", 100.0, 130.0, 30),
        ("c", 1000.0, 1010.0, 40),  # after a break
    ]:
        now[0] = at
        study.tick(session, started)
        assert opened().elapsed() == elapsed
    assert study.elapsed(now=1015.0) == 45
    assert study.elapsed(now=1005.0) == 40  # a clock that is behind


# --- Samplers ---------------------------------------------------------------------------------


def draws(study: Study, count: int, method: Any = RANDOM, worker: str = ME, seed: int = 0) -> list:
    """Draw configurations one by one; the accuracy grows with x."""
    found = []
    for _ in range(count):
        trial = study.begin(method, worker, seed)
        assert trial is not None
        values = trial.configure(Toy()).values
        trial.note(accuracy=values["x"])
        trial.end("complete")
        found.append(values)
    return found


@pytest.mark.parametrize("method", [RANDOM, TPE], ids=["random", "tpe"])
def test_draws_are_reproducible_across_sessions(tmp_path: Path, method: Any) -> None:
    """By the seed and the worker's index, not by its process; a study that is opened again goes on
    where it was."""

    def fresh(name: str) -> Callable[[], Study]:
        Study(tmp_path / name).create({}, pareto=False)
        return lambda: Study(tmp_path / name)

    one, two, other, third = (fresh(name) for name in "abcd")
    whole = draws(one(), 14, method)
    assert len({json.dumps(v) for v in whole}) == 14
    parts = [draws(two(), count, method, "0 elsewhere 9") for count in (1, 5, 8)]
    assert [values for part in parts for values in part] == whole
    for drawn in (draws(other(), 3, method, seed=1), draws(third(), 3, method, "1 here 1")):
        assert not [v for v in drawn if v in whole]


def test_tpe_learns_and_random_search_does_not(tmp_path: Path) -> None:
    """The first ten configurations are random."""
    means = {}
    for method in (RANDOM, TPE):
        study = Study(tmp_path / method.sampler)
        study.create({}, pareto=False)
        means[method.sampler] = sum(v["x"] for v in draws(study, 35, method)[15:]) / 20
    assert means["tpe"] > 0.75 > 0.65 > means["random"]


def test_tpe_receives_the_excess_of_too_large_configurations(study: Study) -> None:
    trials = [begun(study, method=TPE) for _ in range(3)]
    for trial, excess, outcome in zip(trials, (0.5, -0.2, 2.0), ("infeasible", "complete", "")):
        trial.configure(Toy())
        trial.note(excess=excess, accuracy=0.5)
        if outcome:
            trial.end(outcome)
    stored = [t.system_attrs.get("constraints") for t in optuna_study(study).trials]
    assert stored == [[0.5], [-0.2], None]
    states = [t.state.name for t in optuna_study(study).trials]
    assert states == ["PRUNED", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize("pareto", [False, True])
def test_imported_results_inform_the_sampler_but_are_no_trials(
    tmp_path: Path, pareto: bool
) -> None:
    study = Study(tmp_path / "study.journal")
    study.create({}, pareto=pareto)
    for i in range(24):
        values = {"kind": "a", "width": 4, "x": i / 24}
        record = Record(
            trial=i, state="complete", job=ONCE, values=values, parameters=9, accuracy=i / 24
        )
        study.import_record(record, Toy(), pareto)
    assert study.records() == [] and not study.take_over()
    trials = [begun(study, method=TPE) for _ in range(12)]
    drawn = [t.configure(Toy()).values["x"] for t in trials]
    assert sum(drawn) / 12 > 0.7  # no random configurations first
    assert [r.trial for r in study.records()] == list(range(24, 36))
    imported = optuna_study(study).trials[23]
    assert imported.values == ([23 / 24, 9.0] if pareto else [23 / 24])
    assert imported.params == {"kind": "a", "width": 4, "x": 23 / 24}


# --- Unreadable storage ------------------------------------------------------------------------


def failing(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("garbage", "garbage"),
        ("folder", "folder"),
        ("missing/study.journal", "missing/study.journal"),
        ("nonsense://host/name", "nonsense"),
        ("postgresql+nodriver://host/name", "nodriver"),
        ("sqlite:///missing/study.db", "unable to open"),
        ("sqlite:///garbage", "not a database"),
        ("sqlite://[", "sqlite://["),
    ],
)
def test_an_unreadable_storage_gives_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage").write_text("this is no journal\nnor a data base\n" * 100)
    Path("folder").mkdir()
    line = failing(lambda: Study(storage).settings)
    assert storage in line and said in line and "--storage" in line


@pytest.mark.parametrize("content", ["", '{"op_code": 77, "worker_id": "w"}\n', "[1]\n", "3\n"])
def test_a_file_that_is_no_journal_gives_a_one_line_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.journal").write_text(content)
    assert "study.journal" in failing(lambda: Study(tmp_path / "study.journal").settings)


def test_a_damaged_journal_gives_a_one_line_error(study: Study) -> None:
    begun(study)
    path = Path(study.where)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "damaged", *lines[2:]]) + "\n")
    assert "study.journal" in failing(lambda: Study(path).settings)


def test_a_storage_without_a_study_gives_a_one_line_error(opened: Opened, tmp_path: Path) -> None:
    study = Study(tmp_path / "empty.journal")
    assert not study.exists()
    assert "start a study without --resume" in failing(lambda: study.settings)


def test_a_study_of_another_program_gives_a_one_line_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="theirs")
    assert not Study(url).exists()
    assert "holds no study" in failing(lambda: Study(url).settings)
    optuna.create_study(storage=url, study_name=NAME)
    assert "no study of darts_lite" in failing(lambda: Study(url).settings)


def test_the_second_of_two_concurrent_creators_gets_an_error(opened: Opened) -> None:
    assert opened().exists()
    line = failing(lambda: opened().create({"seed": 9}, pareto=False))
    assert "--resume" in line
    assert opened().settings == {"seed": 3}
