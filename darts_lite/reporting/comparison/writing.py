"""A report on disk: two pictures, table.md, index.html, and the same for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from darts_lite.errors import UserError
from darts_lite.reporting import pictures
from darts_lite.reporting.comparison.compare import band, by_method, pareto_front
from darts_lite.reporting.comparison.page import page
from darts_lite.reporting.comparison.study import Study, read
from darts_lite.reporting.comparison.tables import table
from darts_lite.reporting.recorder import Recorder

RUN = ("study.json", "g.json", "checkpoint.pt")  # a folder with one of these is not for a report


def write(folders: Sequence[Path], out: Path, say: Callable[[str], object] = print) -> None:
    """Compares the studies in `folders`; a report that is in `out` already is replaced.

    Raises: `UserError`.
    """
    studies = [read(folder) for folder in dict.fromkeys(folders)]
    _require_same_data(studies)
    if any((out / name).exists() for name in RUN):
        raise UserError(f"{out} is the folder of a run; choose another --out for the report")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "index.html").exists():
        for events in out.glob("events.out.tfevents.*"):
            events.unlink()  # TensorBoard would show the old table beside the new one
    data = studies[0].settings.dataset.get("name", "studies")
    text = table(studies)
    images = {"best_so_far": _best_so_far(studies, data), "scatter": _scatter(studies, data)}
    with Recorder(out) as recorder:
        for name, image in images.items():
            pictures.save(out / f"{name}.png", image)
            recorder.picture(0, f"report/{name}", image)
        recorder.text(0, "report/table", text)
    (out / "table.md").write_text(text, encoding="utf-8")
    files = [out / f"{name}.png" for name in images]
    (out / "index.html").write_text(page(studies, f"Report on {data}", files), encoding="utf-8")
    say(text)
    trials = sum(len(study.trials) for study in studies)
    say(f"{out / 'index.html'}: studies {len(studies)}, trials {trials}")


def _best_so_far(studies: Sequence[Study], data: str) -> pictures.Image:
    curves = {}
    for name, own in by_method(studies).items():
        seeds = "1 seed" if len(own) == 1 else f"{len(own)} seeds"
        if steps := band(own):
            curves[f"{name}, {seeds}"] = steps
    return pictures.best_so_far_plot(curves, f"{data}: the best trial so far")


def _scatter(studies: Sequence[Study], data: str) -> pictures.Image:
    groups = by_method(studies).items()
    trials = [p for name, own in groups for study in own for p in _points(name, study)]
    finals = [
        pictures.Point(name, study.final.parameters, study.final.test_accuracy)
        for name, own in groups
        for study in own
        if study.final is not None
    ]
    best = pareto_front(trial for study in studies for trial in study.trials)
    front = [trial.point for trial in best if trial.point]
    caps = sorted({cap for study in studies if (cap := study.settings.max_params)})
    return pictures.trial_scatter(
        trials, finals, front, caps, f"{data}: size and accuracy of trials"
    )


def _points(name: str, study: Study) -> list[pictures.Point]:
    """The trials of a study that have a size and an accuracy, in the order in which they ended."""
    ended = sorted(
        (math.inf if trial.elapsed is None else trial.elapsed, trial.fidelity, trial.point)
        for trial in study.trials
        if trial.point
    )
    last = max(1, len(ended) - 1)
    return [
        pictures.Point(name, *point, fidelity, rank / last)
        for rank, (_, fidelity, point) in enumerate(ended)
    ]


def _require_same_data(studies: Sequence[Study]) -> None:
    for study in studies[1:]:
        first, other = studies[0].settings.dataset, study.settings.dataset
        if first.get("sha256") != other.get("sha256"):
            named = [f"{data.get('name')} {str(data.get('sha256'))[:8]}" for data in (first, other)]
            raise UserError(
                f"{studies[0].folder} is on {named[0]} and {study.folder} on {named[1]}: "
                "accuracies on different data do not compare; report them apart"
            )
