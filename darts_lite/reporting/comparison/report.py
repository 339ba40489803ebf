"""Report on disk: pictures, table.md, index.html, and the same content for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from darts_lite.errors import UserError
from darts_lite.files import write_lines
from darts_lite.reporting import pictures
from darts_lite.reporting.comparison.compare import (
    best_so_far,
    by_method,
    median_best_so_far,
    metric_of,
    pareto_front,
)
from darts_lite.reporting.comparison.html_page import html_page
from darts_lite.reporting.comparison.roads import (
    NAME,
    Roads,
    draw_roads,
    read_roads,
    roads_table,
    studies_of,
)
from darts_lite.reporting.comparison.study import Study, read_study
from darts_lite.reporting.comparison.tables import results_table
from darts_lite.reporting.recorder import Recorder

# a folder with one of these files holds a run
RUN = ("study.json", "g.json", "checkpoint.pt", NAME)


def write_report(folders: Sequence[Path], out: Path, say: Callable[[str], object] = print) -> None:
    """Compare studies and write the report; an earlier report in `out` is replaced.

    Arguments:
        folders: of the studies, or of comparisons of `compress --compare`; every road of such a
            comparison is then a study.
        out: folder of the report.
        say: receives the table and a last line with the path of the page.

    Raises: `UserError`, if a study cannot be read, if the data of the studies differ, or if `out`
    is the folder of a run.
    """
    studies, comparisons = _read(folders)
    _require_same_data(studies)
    metric = metric_of(studies)
    if any((out / name).exists() for name in RUN):
        raise UserError(f"--out must not be the folder of a run, got {out}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "index.html").exists():
        for events in out.glob("events.out.tfevents.*"):
            events.unlink()  # TensorBoard would show the old table beside the new one
    data = studies[0].settings.dataset.get("name", "studies")
    text = "\n".join([results_table(studies), *map(roads_table, comparisons)])
    images = {"scatter": _scatter(studies, data, metric)}
    for number, roads in enumerate(comparisons, start=1):
        name = "compare" if len(comparisons) == 1 else f"compare{number}"
        images = {name: draw_roads(roads)} | images
    if any(study.trials for study in studies):  # a search and its final training have none
        images = {"best_so_far": _best_so_far(studies, data, metric)} | images
    with Recorder(out) as recorder:
        for name, image in images.items():
            pictures.save(out / f"{name}.png", image)
            recorder.picture(0, f"report/{name}", image)
        recorder.text(0, "report/table", text)
    write_lines(out / "table.md", [text])
    files = [out / f"{name}.png" for name in images]
    write_lines(out / "index.html", [html_page(studies, f"Report on {data}", files, comparisons)])
    say(text)
    trials = sum(len(study.trials) for study in studies)
    say(f"{out / 'index.html'}: studies {len(studies)}, trials {trials}")


def _read(folders: Sequence[Path]) -> tuple[list[Study], list[Roads]]:
    """Return the studies in folders, and the comparisons of roads with their roads as studies."""
    studies: list[Study] = []
    comparisons: list[Roads] = []
    for folder in dict.fromkeys(folders):
        roads = read_roads(folder)
        if roads is None:
            studies.append(read_study(folder))
        else:
            studies += studies_of(folder, roads)
            comparisons.append(roads)
    return studies, comparisons


def _best_so_far(studies: Sequence[Study], data: str, metric: str) -> pictures.Image:
    curves = {}
    for name, own in by_method(studies).items():
        successful = sum(bool(best_so_far(study)) for study in own)
        count = str(len(own)) if successful == len(own) else f"{successful} of {len(own)}"
        seeds = "1 seed" if len(own) == 1 else f"{count} seeds"
        if steps := median_best_so_far(own):
            curves[f"{name}, {seeds}"] = steps
    return pictures.best_so_far_plot(curves, f"{data}: the best trial so far", metric)


def _scatter(studies: Sequence[Study], data: str, metric: str) -> pictures.Image:
    groups = by_method(studies).items()
    trials = [p for name, own in groups for study in own for p in _points(name, study)]
    finals = [
        pictures.Point(name, study.final.parameters, value)
        for name, own in groups
        for study in own
        if study.final is not None and (value := study.final.metrics.get(metric)) is not None
    ]
    best = pareto_front(trial for study in studies for trial in study.trials)
    front = [trial.point for trial in best if trial.point]
    limits = sorted({limit for study in studies if (limit := study.settings.max_params)})
    return pictures.trial_scatter(
        trials,
        finals,
        front,
        limits,
        f"{data}: size and {metric} of trials",
        metric,
    )


def _points(name: str, study: Study) -> list[pictures.Point]:
    """Return the trials of a study with a size and an accuracy, in the order of their ends."""
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
                f"all studies of a report must use the same data, got {named[0]} in "
                f"{studies[0].folder} and {named[1]} in {study.folder}; write one report per "
                "data set"
            )
