"""The command `fit`: search a network, train, export and report on it, under one clock.

out/          the files of `search`
out/derive/   the files of `derive`, and model.onnx, or model.pt2 without the extra export
out/report/   index.html and its pictures
out/fit.json  settings and, at the end, results
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from darts_lite.commands.derive import derive
from darts_lite.commands.search import search
from darts_lite.commands.several import Several
from darts_lite.data import Dataset
from darts_lite.errors import UserError
from darts_lite.export import onnx_file
from darts_lite.export.options import ExportOptions
from darts_lite.export.write import export
from darts_lite.files import whole_lines
from darts_lite.nas.options import FitOptions, SearchOptions
from darts_lite.reporting.comparison import write_report
from darts_lite.training.options import MAY_CHANGE, DeriveOptions, MachineOptions
from darts_lite.training.progress import Progress
from darts_lite.training.run import Say, is_small, read_data

FIXED = 10.0  # seconds that a search or a training needs to start and to end
SEARCH = 0.2  # share of the search in the rest of the budget
CLOSING = 12.0  # seconds kept for report and export


def search_seconds(total: float) -> float:
    """Return the seconds of the search in a budget of `total` seconds; the rest is the training's.

    Both need `FIXED` seconds to start (imports, data) and to end (evaluation, pictures, files). Of
    what is left, the search gets the share `SEARCH`. It never gets more than half of the budget.

    >>> search_seconds(3600), search_seconds(216)
    (726.0, 49.2)
    """
    return min(total / 2, FIXED + SEARCH * (total - 2 * FIXED))


def fit(
    options: FitOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Search a network, train it, and write the report; return the content of `fit.json`.

    Arguments:
        options: options of the command.
        resume: names of the options that the user gave beside --resume; all other options come
            from `fit.json`. None starts a new run.
        started: start of the budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    out = Path(options.out)
    taken = (out / "search" / "checkpoint.pt", out / "g.json")
    opened = Several.open("fit", out / "fit.json", options, resume, say, results=taken)
    with opened as run, Progress("fit") as progress:
        if "metrics" in run.content:
            say(f"{run.result} is finished")
            return run.content
        say = progress.above(say)
        progress.doing("reading the data")
        dataset, _ = read_data(run.options, run.options.seed, say)
        run = replace(run, options=_with_budget(run.options, dataset))
        run.take()
        run.write(dataset.fingerprint)
        return _fitted(run, dataset, started, progress, say)


def _with_budget(options: FitOptions, dataset: Dataset) -> FitOptions:
    """Return the options with data set and budget, which may follow from the data.

    Raises: `UserError` if the budget is too small.
    """
    hours = options.budget_hours or (0.06 if is_small(dataset) else 2.0)
    if 3600 * hours < 2 * FIXED:
        raise UserError(
            f"--budget-hours must be at least {2 * FIXED / 3600:.4f}, got {hours:g}: search and "
            f"training need {FIXED:.0f} s each to start and to end"
        )
    return replace(options, dataset=dataset.name, budget_hours=hours)


def _fitted(
    run: Several[FitOptions],
    dataset: Dataset,
    started: float | None,
    progress: Progress,
    say: Say,
) -> dict[str, Any]:
    """Search, train, export and report; return the content of `fit.json`."""
    options, out = run.options, run.result.parent
    assert options.budget_hours is not None
    total = 3600 * options.budget_hours
    part = search_seconds(total)
    say(
        f"{total:.0f} s: {part:.0f} s for the search and {total - part:.0f} s for the final "
        f"training ({FIXED:.0f} s each to start and to end, then {SEARCH:.0%} of the rest for the "
        "search, at most half in all)"
    )
    common: dict[str, Any] = {"say": say, "dataset": dataset, "progress": progress}

    progress.part("fit: search", 0.0, part / total)
    genotype, checkpoint = out / "g.json", out / "search" / "checkpoint.pt"
    searched = genotype.exists()
    try:
        search(_search_options(options, part), resume=_begun(checkpoint), started=started, **common)
    except UserError:
        if not checkpoint.exists():  # bad input: there is no run to resume
            run.result.unlink()
        raise

    progress.part("fit: derive", part / total, 1.0)
    spent = seconds_of(out / "search" / "metrics.jsonl")
    training = _derive_options(options, out, max(FIXED, total - spent - CLOSING))
    metrics = derive(
        training,
        resume=_begun(out / "derive" / "checkpoint.pt"),
        started=started if searched else time.monotonic(),
        **common,
    )

    progress.doing("exporting the network")
    with_onnx = all(map(find_spec, onnx_file.PACKAGES))
    form: Literal["onnx", "torch"] = "onnx" if with_onnx else "torch"
    export(out / "derive", ExportOptions(format=form), say=say)
    progress.doing("writing the report")
    write_report([out], out / "report", say=lambda text: None)
    account = run.write(dataset.fingerprint, search_seconds=spent, metrics=metrics)
    say(
        f"next: `python run.py predict {training.out} IMAGES...` classifies your own images, "
        f"`tensorboard --logdir {out}` and {out / 'report' / 'index.html'} show what happened"
    )
    return account


def _search_options(options: FitOptions, seconds: float) -> SearchOptions:
    """Return the options of the search: the common ones, and its part of the budget."""
    names = {each.name for each in fields(SearchOptions)}
    common = {name: value for name, value in vars(options).items() if name in names}
    return SearchOptions(**{**common, "budget_hours": seconds / 3600})


def _derive_options(options: FitOptions, out: Path, seconds: float) -> DeriveOptions:
    """Return the options of the final training; it takes all else from the genotype."""
    names = {each.name for each in fields(MachineOptions)} | {"data_dir", "download"}
    return DeriveOptions(
        genotype=str(out / "g.json"),
        out=str(out / "derive"),
        budget_hours=seconds / 3600,
        **{name: value for name, value in vars(options).items() if name in names},
    )


def _begun(checkpoint: Path) -> Collection[str] | None:
    """Return the options that a begun part takes from `fit`; None for a part that begins now."""
    return MAY_CHANGE if checkpoint.exists() else None


def seconds_of(path: Path) -> float:
    """Return the seconds that a finished search took.

    Arguments:
        path: its metrics.jsonl.
    """
    return max(json.loads(line).get("seconds", 0.0) for line in whole_lines(path))
