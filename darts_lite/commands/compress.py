"""The command `compress`: make a trained network smaller, and fine-tune it with `derive`.

RUN -> out/smaller/             the files of `derive`: the fine-tuned network, an ordinary run
       out/smaller/compressed/  compress.json (settings, results), genotype.json with the changed
                                layers, model.pt (before fine-tuning), metrics.json
       out/smaller/stage1/, ... the same for earlier stages of a chain or of --rounds
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from darts_lite.commands.derive import derive
from darts_lite.commands.original import (
    Original,
    original_of,
    recipe_of,
    require_same_run,
    training_of,
)
from darts_lite.commands.several import Several
from darts_lite.compression.int8 import NAME, compare, quantize
from darts_lite.compression.layers import Small, Trained, plain_copy
from darts_lite.compression.methods import LAST, METHODS, methods_of
from darts_lite.compression.options import CompressOptions, require_one_budget
from darts_lite.compression.target import (
    Target,
    between,
    milliseconds,
    require_below,
    target_of,
    times_of,
)
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.export import onnx_file
from darts_lite.export.options import ExportOptions
from darts_lite.export.write import export
from darts_lite.files import read_json, replacing, write_json
from darts_lite.reporting.model_card import write_card
from darts_lite.training import checkpoint
from darts_lite.training.device import device_named
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import MAY_MOVE
from darts_lite.training.predictor import Predictor, load
from darts_lite.training.run import Say, make_folder, on, read_data
from darts_lite.training.source import data_of, require_data_of
from darts_lite.training.task import calibrated

SHARE = 0.1  # share of the original training time for fine-tuning
LEAST_HOURS = 0.003  # of the fine-tuning, if the original training was very short
COPIED = ("genotype.json", "model.pt", "metrics.json", "config.json", "checkpoint.pt", "seen.npz",
          "MODEL_CARD.md", "metrics.jsonl")  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One method with its target, and the fine-tuning after it.

    Arguments:
        method: name of the method.
        share: share of the way to the target after the stage, above 0 to 1.
        folder: folder of the fine-tuning.
        epochs: its epochs; None for hours.
        hours: its hours; None for epochs.
    """

    method: str
    share: float
    folder: Path
    epochs: int | None
    hours: float | None

    @property
    def compressed(self) -> Path:
        """Folder of the network before the fine-tuning."""
        return self.folder / "compressed"


def compress(
    run: Path,
    options: CompressOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Make the network of a training smaller and fine-tune it; return its `metrics.json`.

    Arguments:
        run: folder of the training, as for `predict`.
        options: options of the command.
        resume: names of the options that the user gave beside --resume; all other options come
            from `compressed/compress.json`. None starts a new run.
        started: start of the budget, on the clock of `time.monotonic`; the budget then holds the
            making of the smaller network too. None for a budget of the fine-tuning alone.
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    original = original_of(run)
    options = replace(options, method=options.method or "prune")
    out = Path(options.out) if options.out else original.folder.parent / "smaller"
    if out.resolve() == original.folder.resolve():
        raise UserError(f"--out must not be RUN itself, got {out}; choose another --out")
    result = out / "compressed" / "compress.json"
    taken = (out / "metrics.json", out / "checkpoint.pt", out / "compare.json")
    with Several.open("compress", result, options, resume, say, results=taken) as several:
        if several.content:
            require_same_run(several.content, original, result)
            if "metrics" in several.content:
                say(f"{out / 'metrics.json'} is finished")
                return several.content["metrics"]
        return _compressed(several, original, out, started, say)


def _compressed(
    several: Several[CompressOptions],
    original: Original,
    out: Path,
    started: float | None,
    say: Say,
) -> dict[str, Any]:
    """Run all stages; return the metrics of the last one."""
    options = several.options
    names = methods_of(str(options.method))
    target = _target(options, names, original)
    device = device_named(options.device)
    dataset, splits = read_data(data_of(original.genotype, options), original.genotype.seed, say)
    require_data_of(original.genotype, dataset, str(original.folder))
    splits = on(device, splits)
    if "int8" in names:
        onnx_file.require_packages()
    stages = _stages(options, names, original, out)
    if not stages:
        several.take()
        several.write(dataset.fingerprint, run=str(original.folder.absolute()))
        _copy(original.folder, out)
    for number, stage in enumerate(stages):
        begins = started if number == 0 or started is None else time.monotonic()
        previous = original.predictor if number == 0 else load(stages[number - 1].folder)
        if not (stage.compressed / "metrics.json").exists():
            assert target is not None
            aim = _aim(original, target, stage.share, device)
            small = _made(stage, number, previous, aim, options, splits, original)
            if number == 0:
                several.take()
                several.write(dataset.fingerprint, run=str(original.folder.absolute()))
            _write(stage, small, original, splits, say)
        start = stage.compressed if (stage.compressed / "model.pt").exists() else None
        training = training_of(
            original,
            options,
            stage.compressed / "genotype.json",
            stage.folder,
            epochs=stage.epochs,
            hours=stage.hours,
            start=start,
        )
        begun = (stage.folder / "checkpoint.pt").exists()
        taken = None if not begun else MAY_MOVE
        derive(training, resume=taken, started=begins, say=say, dataset=dataset)
    extra = {"int8": _quantized(out, splits, say)} if "int8" in names else {}
    return _finished(several, original, out, names, target, extra, dataset, say)


def _copy(run: Path, out: Path) -> None:
    """Copy the files of a training, whose network does not change."""
    for name in COPIED:
        if (run / name).exists():
            with replacing(out / name, "wb") as file:
                file.write((run / name).read_bytes())


def _quantized(out: Path, splits: Splits, say: Say) -> dict[str, Any]:
    """Write model.onnx and int8.onnx; return what was measured of both."""
    source, made = out / "model.onnx", out / NAME
    export(out, ExportOptions(), say=lambda text: None)
    quantize(source, splits.validation.pixels, made)
    found = compare(source, made, splits.test)
    say(found.lines())
    return {
        "file": made.name,
        "float32": found.before._asdict(),
        "int8": found.after._asdict(),
        "agreement": found.agreement,
        "warning": found.warning,
    }


def _target(options: CompressOptions, names: list[str], original: Original) -> Target | None:
    """Return the target.

    Raises: `UserError` if there is none, several, or it is not below the size of RUN.
    """
    target = target_of(options)
    smaller = [name for name in names if name not in LAST]
    if target is None:
        if smaller:
            raise UserError(
                f"--method {options.method} needs --target-params, --target-macs or --target-ms, "
                "got none; give one of them"
            )
        return None
    require_below(target, original.cost, original.folder)
    return target


def _aim(original: Original, target: Target, share: float, device: torch.device) -> Target:
    """Return the target of a stage."""
    if share >= 1:
        return target
    if target.kind == "ms":
        network = plain_copy(original.predictor.network).to(device)
        now = milliseconds(network, original.genotype.image)
        return target if now <= target.limit else between(now, target, share)
    return between(target.of(original.cost), target, share)


def _stages(
    options: CompressOptions, names: list[str], original: Original, out: Path
) -> list[Stage]:
    """Return the stages; each has the same part of the fine-tuning."""
    steps = [
        name
        for name in names
        if name not in LAST
        for _ in range(options.rounds if name == "prune" else 1)
    ]
    count = len(steps)
    require_one_budget(options)
    if options.epochs is not None and options.epochs < count:
        raise UserError(
            f"--epochs must be at least {count}, one for each stage, got {options.epochs}; raise it"
        )
    hours = options.budget_hours
    if hours is None and options.epochs is None:
        hours = max(LEAST_HOURS * count, SHARE * original.metrics.get("seconds", 0.0) / 3600)
    found = []
    for number, name in enumerate(steps, start=1):
        folder = out if number == count else out / f"stage{number}"
        epochs = options.epochs
        if epochs is not None:
            epochs = epochs * number // count - epochs * (number - 1) // count
        share = None if hours is None else hours / count
        found.append(Stage(name, number / count, folder, epochs, share))
    return found


def _made(
    stage: Stage,
    number: int,
    previous: Predictor,
    target: Target,
    options: CompressOptions,
    splits: Splits,
    original: Original,
) -> Small:
    """Return the smaller network of a stage, before its fine-tuning."""
    trained = Trained(
        previous.genotype,
        plain_copy(previous.network).to(splits.train.pixels.device),
        splits.train,
        splits.validation,
        torch.Generator().manual_seed(options.seed + 1000 * number),
    )
    small = METHODS[stage.method](trained, target, options)
    factor = 1.0 if small.network is None else options.rate
    recipe = recipe_of(original, factor)
    return Small(replace(small.genotype, recipe=recipe), small.network)


def _write(stage: Stage, small: Small, original: Original, splits: Splits, say: Say) -> None:
    """Write the network before its fine-tuning as a folder that `load` reads."""
    folder = stage.compressed
    make_folder(folder)
    small.genotype.save(folder / "genotype.json")
    account: dict[str, Any] = {
        "parameters": small.genotype.parameters,
        "macs": small.genotype.macs,
        "validation_held_out": original.held_out,
        "compressed_from": str(original.folder),
        "method": stage.method,
    }
    said = ""
    if small.network is not None:
        calibrated(small.network, splits.train if original.held_out else splits.learned)
        checkpoint.write(folder / "model.pt", small.network.state_dict())
        account["validation_accuracy"] = evaluate(small.network, splits.validation).accuracy
        account["test_accuracy"] = evaluate(small.network, splits.test).accuracy
        said = f", test accuracy {account['test_accuracy']:.2%} before fine-tuning"
    write_json(folder / "metrics.json", account)
    say(
        f"{stage.method}: {original.genotype.parameters} -> {small.genotype.parameters} "
        f"parameters, {original.genotype.macs} -> {small.genotype.macs} MACs{said}"
    )


def _finished(
    several: Several[CompressOptions],
    original: Original,
    out: Path,
    names: list[str],
    target: Target | None,
    extra: Mapping[str, Any],
    dataset: Dataset,
    say: Say,
) -> dict[str, Any]:
    """Measure before and after; add what was compressed to metrics.json, and return it."""
    options = several.options
    made = load(out)
    device = device_named(options.device)
    path = out / "compressed" / "metrics.json"
    untuned = read_json(path) if path.exists() else {}
    times = {
        name: times_of(plain_copy(predictor.network).to(device), predictor.genotype.image)
        for name, predictor in (("before", original.predictor), ("after", made))
    }
    metrics = read_json(out / "metrics.json")
    metrics["compressed_from"] = str(original.folder)
    metrics["compression"] = {
        "methods": names,
        "criterion": options.criterion if "prune" in names else None,
        "scope": options.scope if "prune" in names else None,
        "target": None if target is None else {target.flag: target.limit},
        "rate": 1.0 if "distill" in names and len(names) == 1 else options.rate,
        "teacher": options.teacher,
        "parameters": {"before": original.cost.parameters, "after": made.genotype.parameters},
        "macs": {"before": original.cost.macs, "after": made.genotype.macs},
        "test_accuracy": {
            "before": original.metrics.get("test_accuracy"),
            "before fine-tuning": untuned.get("test_accuracy"),
            "after": metrics["test_accuracy"],
        },
        "milliseconds": times,
        **extra,
    }
    write_json(out / "metrics.json", metrics)
    write_card(out)
    several.write(dataset.fingerprint, run=str(original.folder.absolute()), metrics=metrics)
    say(_table(metrics["compression"]))
    return metrics


def _table(about: Mapping[str, Any]) -> str:
    """Return what changed, as a Markdown table."""
    times, accuracy = about["milliseconds"], about["test_accuracy"]
    rows = [
        ("parameters", *(str(v) for v in about["parameters"].values())),
        ("MACs", *(str(v) for v in about["macs"].values())),
        *(
            (f"ms, batch {size}", f"{times['before'][size]:.2f}", f"{times['after'][size]:.2f}")
            for size in times["before"]
        ),
        ("test accuracy", *(_percent(accuracy[n]) for n in ("before", "after"))),
    ]
    lines = ["| | before | after |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2%}"
