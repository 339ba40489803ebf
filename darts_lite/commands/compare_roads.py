"""The command `compress --compare`: several roads to the same number of parameters, one clock each.

Every road is a run of an existing command, in a folder of its own:

RUN -> out/roads/50000/search/           search with this parameter limit, then derive
       out/roads/50000/prune/            compress --method prune
       out/roads/50000/tucker/           compress --method tucker
       out/roads/50000/distill-random/   derive of a random network, with RUN as teacher
       out/roads/50000/distill-searched/ compress --method distill: RUN's genotype, narrower
       out/roads/compare.json            settings and, at the end, results
       out/roads/pictures/compare.png    accuracy against parameters, MACs and milliseconds
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from darts_lite.commands import fit
from darts_lite.commands.original import Original, original_of, require_same_run
from darts_lite.commands.roads import ROADS, Job
from darts_lite.commands.several import Several
from darts_lite.compression.layers import plain_copy
from darts_lite.compression.options import CompressOptions, require_one_budget
from darts_lite.compression.target import REPEATS, Target, require_below, times_of
from darts_lite.data import Splits
from darts_lite.errors import Diverged, UserError
from darts_lite.files import read_json
from darts_lite.reporting import pictures
from darts_lite.reporting.comparison.roads import NAME, draw_roads, roads_of, roads_table
from darts_lite.training.device import device_named
from darts_lite.training.metrics import evaluate
from darts_lite.training.predictor import Predictor, load
from darts_lite.training.run import Say, make_folder, read_data
from darts_lite.training.source import data_of, require_data_of

Row = dict[str, Any]


def compare_roads(
    run: Path,
    options: CompressOptions,
    *,
    resume: Collection[str] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train every road to every target, compare them, and return the content of `compare.json`.

    Every road has the whole budget. A road that is impossible is named in one line and left out.

    Arguments:
        run: folder of the training, as for `predict`.
        options: options of the command.
        resume: names of the options that the user gave beside --resume; all other options come
            from `compare.json`. None starts a new comparison. Finished roads are kept.
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    original = original_of(run)
    out = Path(options.out) if options.out else original.folder.parent / "roads"
    result = out / NAME
    taken = tuple(out / n for n in ("metrics.json", "checkpoint.pt", "compressed/compress.json"))
    opened = Several.open("compress --compare", result, options, resume, say, results=taken)
    with opened as several:
        if several.content:
            require_same_run(several.content, original, result)
            if "results" in several.content:
                say(f"{result} is finished")
                return several.content
        several = replace(several, options=_checked(several.options, original))
        return _compared(several, original, out, say)


def _checked(options: CompressOptions, original: Original) -> CompressOptions:
    """Return the options with a budget.

    Raises: `UserError` if they are not those of a comparison.
    """
    if options.method is not None:
        raise UserError(
            f"--compare must be without --method, because it compares methods, got "
            f"{options.method}; leave one of them out"
        )
    if options.target_macs is not None or options.target_ms is not None:
        raise UserError(
            "--compare must have a target in parameters, because a search has its limit in them, "
            "got --target-macs or --target-ms; give --target-params"
        )
    if not options.targets:
        raise UserError("--compare needs --target-params, got none; give one number or several")
    if not options.teacher:
        raise UserError(
            "--compare must be without --no-teacher, because two roads distill from RUN; leave one "
            "of them out"
        )
    for target in options.targets:
        require_below(Target("params", target), original.cost, original.folder)
    require_one_budget(options)
    hours, least = options.budget_hours, 2 * fit.FIXED / 3600
    if hours is None and options.epochs is None:
        hours = max(2 * least, original.metrics.get("seconds", 0.0) / 3600)
    if hours is not None and hours < least:
        raise UserError(
            f"--budget-hours must be at least {least:.4f} for each road, got {hours:g}: search and "
            f"training need {fit.FIXED:.0f} s each to start and to end"
        )
    return replace(options, budget_hours=hours)


def _compared(
    several: Several[CompressOptions], original: Original, out: Path, say: Say
) -> dict[str, Any]:
    """Train every road to every target; return the content of `compare.json`."""
    options = several.options
    device, data = device_named(options.device), data_of(original.genotype, options)
    dataset, splits = read_data(data, original.genotype.seed, say)
    require_data_of(original.genotype, dataset, str(original.folder))
    several.take()
    run = str(original.folder.absolute())
    several.write(dataset.fingerprint, run=run)
    jobs = [
        Job(original, options, data, dataset, splits, name, target, out / _place(target, name), say)
        for target in options.targets
        for name in ROADS
    ]
    rows, left_out = _taken(jobs)
    if not rows:
        several.result.unlink()  # bad input: there is nothing to resume
        raise UserError(
            f"no road leads to --target-params {options.target_params}, the last because: "
            f"{left_out[-1]['reason']}"
        )
    say("measuring the milliseconds")
    networks = [original.predictor, *(load(out / row["folder"]) for row in rows)]
    whole, *times = in_turns(networks, device)
    found = {
        "run": run,
        "original": {
            **original.cost._asdict(),
            "test_accuracy": _accuracy(original, splits, device),
            "milliseconds": whole,
        },
        "results": [{**row, "milliseconds": own} for row, own in zip(rows, times)],
        "left_out": left_out,
    }
    roads = roads_of({**found, "data": dict(dataset.fingerprint)}, several.result)
    make_folder(out / "pictures")
    pictures.save(out / "pictures" / "compare.png", draw_roads(roads))
    account = several.write(dataset.fingerprint, **found)
    say(roads_table(roads))
    say(f"next: `python run.py report {out}` makes a page of it")
    return account


def _place(target: int, road: str) -> str:
    """Return the folder of a road, from that of the comparison."""
    return f"{target}/{road.replace(' ', '-')}"


def _taken(jobs: Sequence[Job]) -> tuple[list[Row], list[Row]]:
    """Take every road; return the results, without milliseconds, and what is left out."""
    rows: list[Row] = []
    left_out: list[Row] = []
    for number, job in enumerate(jobs, start=1):
        options = job.options
        budget = f"{options.epochs} epochs"
        if options.budget_hours is not None:
            budget = f"{3600 * options.budget_hours:.0f} s"
        named = f"{job.road} to {job.target} parameters"
        job.say(f"{number} of {len(jobs)}: {named}, {budget}, {job.folder}")
        about = {"target": job.target, "road": job.road}
        try:
            seconds = ROADS[job.road](job)
        except UserError as error:
            if not isinstance(error, Diverged) and any(job.folder.rglob("checkpoint.pt")):
                raise  # the road has begun, so it is possible
            left_out.append({**about, "reason": str(error)})
            job.say(f"{named} is left out: {error}")
        else:
            place = _place(job.target, job.road)
            rows.append({**about, "folder": place, **_size(job.folder), "seconds": seconds})
    return rows, left_out


def _size(folder: Path) -> Row:
    """Return size and accuracy of the network of a finished road."""
    path = folder / "metrics.json"
    metrics = read_json(path if path.exists() else folder / "derive" / "metrics.json")
    return {name: metrics[name] for name in ("parameters", "macs", "test_accuracy")}


def _accuracy(original: Original, splits: Splits, device: torch.device) -> float:
    """Return the test accuracy of the original, from its metrics or measured."""
    known = original.metrics.get("test_accuracy")
    if known is not None:
        return float(known)
    network = plain_copy(original.predictor.network).to(device)
    return evaluate(network, splits.test.to(device)).accuracy


def in_turns(networks: list[Predictor], device: torch.device) -> list[dict[str, float]]:
    """Return the milliseconds of every network by batch size, measured in turns.

    The fastest of several turns counts, because other jobs only slow a network down.

    Arguments:
        networks: trained networks.
        device: device of the measurement.
    """
    plain = [(plain_copy(each.network).to(device), each.genotype.image) for each in networks]
    turns = [[times_of(*each) for each in plain] for _ in range(REPEATS)]
    return [{size: min(t[size] for t in own) for size in own[0]} for own in zip(*turns)]
