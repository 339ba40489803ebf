"""Jobs as JSON, and properties of records."""

from __future__ import annotations

import json

import pytest
from records import AGAIN, FOR_GOOD, NINTH, THIRD, record

from darts_lite.hpo.records import Job, Measurement


@pytest.mark.parametrize(
    "job",
    [
        Job(fidelities=(1.0,)),
        Job(
            fidelities=(NINTH, THIRD, 1.0),
            values={"lr": 0.1, "n": 2, "kind": "sgd", "flag": False},
            key="3 to rung 1",
            start=3,
            done=(Measurement(1.5, NINTH, 0.25), Measurement(2.5, THIRD, 0.5)),
            notes={"rung": 1, "origin": 3},
        ),
    ],
)
def test_a_job_survives_json(job: Job) -> None:
    found = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert found == job
    assert all(isinstance(m, Measurement) for m in found.done)


@pytest.mark.parametrize("state", [*FOR_GOOD, *AGAIN])
def test_counts_and_done_of_every_state(state: str) -> None:
    found = record(0, state=state)
    assert found.counts is (state in FOR_GOOD)
    assert found.done is (state in ("complete", "paused", "diverged"))


def test_the_fidelity_of_a_record_is_that_of_its_last_measurement() -> None:
    measured = (Measurement(1.0, NINTH, 0.5), Measurement(2.0, THIRD, 0.4))
    assert record(0).fidelity == 0.0
    assert record(0, measurements=measured).fidelity == THIRD
