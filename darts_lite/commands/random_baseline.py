"""Random baseline of `derive`: train random networks of the size of a genotype, by the same recipe.

out/derive/random0/, random1/, ...   trainings, each with the files of `derive`
out/derive/random.json               their settings and results
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.commands.derive import folder_of
from darts_lite.commands.pretrained import is_timm
from darts_lite.commands.several import Several, train_each
from darts_lite.errors import UserError
from darts_lite.nas.loading import load_genotype
from darts_lite.nas.random_networks import random_genotypes
from darts_lite.reporting.model_card import write_card
from darts_lite.training.options import MAY_MOVE, DeriveOptions
from darts_lite.training.run import Say, make_folder

SHOWN = ("parameters", "macs", "epochs", "test_accuracy")  # metrics of a training in the table


def derive_random(
    options: DeriveOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train random genotypes of the size of a genotype; return the content of `random.json`.

    The trainings are sub-folders of the folder that the training of the genotype would have. Each
    training has the whole budget. The budget of the first training starts at `started`, the budget
    of every other training starts with the training. A resumed command keeps finished trainings,
    and `options.random` may differ.

    Arguments:
        options: options of the trainings; `options.random` is the number of networks.
        resume: names of the options that the user gave beside --resume; all other options come
            from `random.json`. None starts a new run.
        started: start of the first budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    assert options.random is not None
    out = folder_of(options)
    command = f"derive --random {options.random}"
    with Several.open(command, out / "random.json", options, resume, say, {"random"}) as run:
        return _each(run, started, say)


def _each(run: Several[DeriveOptions], started: float | None, say: Say) -> dict[str, Any]:
    out, count = run.result.parent, run.options.random
    assert count is not None
    options = replace(run.options, out=str(out))
    like = load_genotype(Path(options.genotype), options.max_params, options.data_dir, say)
    if like.structure is not None or is_timm(options.start):
        raise UserError(
            "--random draws networks of the space of the genotype, got a network that is not of a "
            "space; give the genotype of a search, without --from timm:..."
        )
    drawn = random_genotypes(like, count, options.max_params)
    run.take()
    folders = [out / f"random{i}" for i in range(count)]
    for folder, each in zip(folders, drawn):
        _keep(each, folder / "genotype.json", options.genotype)
    run = replace(run, options=options)
    run.write(like.dataset)
    own = {
        f: replace(options, out=str(f), genotype=str(f / "genotype.json"), random=None)
        for f in folders
    }
    trained = train_each(own, resume=run.resume, started=started, say=say)
    searched = _searched(like, options)
    account = run.write(like.dataset, **_compared(trained, searched))
    if searched is not None:
        write_card(searched[0], account)
    say(_table(account))
    say(_verdict(account, options))
    return account


def _keep(drawn: Genotype, path: Path, like: str) -> None:
    """Write a random genotype; raise `UserError` if the file holds another genotype."""
    if not path.exists():
        make_folder(path.parent)
        drawn.save(path)
    elif Genotype.load(path) != drawn:
        raise UserError(
            f"{path} must be the random genotype for {like}, got another genotype; choose another "
            "--out"
        )


def _searched(like: Genotype, options: DeriveOptions) -> tuple[Path, dict[str, Any]] | None:
    """Return folder and metrics of a finished training of the genotype by the same recipe, if any.

    Arguments:
        like: the genotype.
        options: options of the random trainings.
    """
    out = Path(str(options.out))
    recipe = _recipe(out / "random0")
    beside = sorted(path.parent for path in Path(options.genotype).parent.glob("*/metrics.json"))
    for folder in (out, *beside):
        metrics, kept = folder / "metrics.json", folder / "genotype.json"
        if metrics.exists() and _recipe(folder) == recipe and Genotype.load(kept) == like:
            return folder, json.loads(metrics.read_text())
    return None


def _recipe(folder: Path) -> dict[str, Any] | None:
    """Return all settings that the result of a training depends on, without the genotype."""
    try:
        options = json.loads((folder / "config.json").read_text())["options"]
        free = MAY_MOVE | {"genotype", "max_params", "random"}
        return {name: value for name, value in options.items() if name not in free}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not a folder of a training


def _compared(
    trained: dict[Path, dict[str, Any]], searched: tuple[Path, dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the metrics of all trainings, and the comparison with the searched genotype."""

    def row(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
        return {"folder": str(folder), **{name: metrics[name] for name in SHOWN}}

    rows = [row(folder, metrics) for folder, metrics in trained.items()]
    found = [metrics["test_accuracy"] for metrics in trained.values()]
    mean = statistics.fmean(found)
    own = None
    if searched is not None:
        accuracy = searched[1]["test_accuracy"]
        beats = sum(accuracy > other for other in found)
        own = {**row(*searched), "above_mean": accuracy - mean, "beats": beats}
    return {
        "random": rows,
        "mean": mean,
        "standard_deviation": statistics.stdev(found) if len(found) > 1 else None,
        "searched": own,
    }


def _table(account: dict[str, Any]) -> str:
    """Return the trainings as a Markdown table."""
    rows, own, spread = account["random"], account["searched"], account["standard_deviation"]
    lines = ["| network | parameters | MACs | epochs | test accuracy |", "|---|---|---|---|---|"]
    for row in [*rows, own] if own else rows:
        name = "searched" if row is own else Path(row["folder"]).name
        lines.append(
            f"| {name} | {row['parameters']} | {row['macs']} | {row['epochs']} "
            f"| {row['test_accuracy']:.2%} |"
        )
    deviation = "" if spread is None else f", standard deviation {spread:.2%}"
    lines.append(f"| mean of {len(rows)} random | | | | {account['mean']:.2%}{deviation} |")
    return "\n".join(lines)


def _verdict(account: dict[str, Any], options: DeriveOptions) -> str:
    own, count = account["searched"], len(account["random"])
    if own is None:
        return (
            f"{options.genotype} itself is not compared, because it has no training with these "
            "settings; run the same command without --random, in this --out or another --out "
            "beside the genotype, then run this command again with --resume"
        )
    return (
        f"{own['folder']}: {100 * own['above_mean']:+.2f} points from the mean of the random "
        f"networks, better than {own['beats']} of {count}"
    )
