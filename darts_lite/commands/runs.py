"""Runs on disk: the folders of a search and of a retraining, their resuming, their results.

out/g.json                 what the search found
out/augment.json           the augmentation that it learned, for --augment
out/search/, out/derive/   checkpoint.pt, config.json, events, metrics.jsonl, pictures/
out/derive/                also genotype.json, model.pt and metrics.json
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from darts_lite.architecture.network import network_cost
from darts_lite.architecture.space import Genotype, write_json
from darts_lite.augment import to_json
from darts_lite.commands import run as prepare
from darts_lite.commands.options import (
    FREE,
    AugmentOptions,
    DeriveOptions,
    SearchOptions,
    read_options,
    resolved,
    saved_options,
    with_budget,
)
from darts_lite.commands.run import Say
from darts_lite.data import evaluation_batches
from darts_lite.errors import UserError
from darts_lite.nas import warm_start as warm
from darts_lite.nas.task import SearchTask
from darts_lite.reporting import augmentation_report, pictures
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget
from darts_lite.training.metrics import evaluate, picture_of, sample
from darts_lite.training.problem import augmentation_for
from darts_lite.training.task import TrainConfig, TrainTask


def search(
    options: SearchOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> Genotype:
    """Runs a search and writes `g.json`.

    Arguments: `resume`, the names of the options that the user gave beside the wish to resume; all
    others come from the checkpoint, and None starts anew; `started`, when the budget began, on the
    clock of `time.monotonic` (default: now).
    Raises: `UserError`; `darts_lite.errors.Interrupted`.
    """
    out = Path(options.out)
    folder, result = out / "search", out / "g.json"
    content = None
    if resume is None:
        prepare.require_free(out, ["g.json", "search/checkpoint.pt"], "search")
    else:
        content, options = saved_options(folder, "search", options, resume)
        if result.exists() and (done := Genotype.load(result)).settings.get("finished"):
            say(f"{result} is finished")
            return done
    device = prepare.device_named(options.device)
    dataset, splits = prepare.data(options, options.seed, say)
    options, config = resolved(options, dataset, device)
    budget = prepare.budget_of(options.budget_hours, options.steps, started)
    begin = warm.COLD
    if content is None:  # what a resumed search began with is in its checkpoint
        said = asdict(options)
        begin = warm.read(options.warm_start, said, config.build_space(), dataset, say)
    task = SearchTask(config, dataset, prepare.on(device, splits), device, begin)
    prepare.make_folder(out)
    prepare.make_folder(folder)
    store = prepare.store(folder, "search", options, dataset, content)
    start = loop.restore(task, content, store.path, budget)
    say(
        f"searching {config.space} on {dataset.name}: {splits.train.count} training and "
        f"{splits.validation.count} validation images, at most {config.max_params} parameters, "
        f"{config.channels} channels ({config.search_channels} while searching), on {device}"
    )
    for text in task.plan.caveats(task.variables.kinds):
        loop.warn(text)
    with Recorder(folder, start.step if content else None) as recorder:
        step = loop.run(task, budget, recorder, store, start=start, name="search")
        recorder.scalars(step, {**task.evaluate(step, recorder), "seconds": budget.elapsed})
        genotype = task.genotype(_settings(options, finished=True))
        learned = genotype.hyperparameters
        recorder.picture(step, "learned", pictures.parameter_plot(learned, "learned schedules"))
        for what in ("magnitude", "probability"):
            picture = augmentation_report.draw_schedules(learned, what)
            if picture is not None:
                recorder.picture(step, f"learned/{what}", picture)
        for path in options.warm_start[:1]:
            comparison = warm.compare(path, folder, asdict(options), dataset)
            if comparison is not None:
                say(str(comparison))
                recorder.scalars(step, comparison.scalars)
    genotype.save(result)
    augment = task.augment.replayed(learned)
    write_json(out / "augment.json", to_json(augment))
    strengths = augment.policy.strengths(dataset.image_size, fraction=1.0)
    if strengths:
        say(augmentation_report.strength_table(strengths))
    say(
        f"{result}: {genotype.parameters} parameters, {genotype.macs} MACs, {step} steps, "
        f"{budget.elapsed:.0f} s"
    )
    return genotype


def derive(
    options: DeriveOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Retrains a genotype, tests it once, and writes `metrics.json`; returns its content.

    Arguments and errors as of `search`. What is trained is kept as `genotype.json`.
    """
    folder = Path(options.out) if options.out else Path(options.genotype).parent / "derive"
    result, kept = folder / "metrics.json", folder / "genotype.json"
    content = None
    if resume is None:
        prepare.require_free(folder, ["checkpoint.pt", "metrics.json"], "derive")
        genotype = load_genotype(Path(options.genotype), options.max_params, options.data_dir, say)
    else:
        content, options = saved_options(folder, "derive", options, resume)
        if result.exists():
            say(f"{result} is finished")
            return json.loads(result.read_text())
        genotype = load_genotype(kept, None, options.data_dir, say)
    device = prepare.device_named(options.device)
    dataset, splits = prepare.data(_searched(genotype, options), genotype.seed, say)
    if dict(dataset.fingerprint) != genotype.dataset:
        raise UserError(
            f"the data set {dataset.name} is not the one that {options.genotype} was searched on; "
            "give its --data-dir"
        )
    config = TrainConfig(
        batch_size=options.batch_size or _batch_size(genotype),
        hyperparameters=options.hyperparameters,
        augment=options.augment,
        estimator=options.estimator,
        select=options.select,
        seed=options.seed,
    )
    task = TrainTask(config, genotype, dataset, prepare.on(device, splits), device)
    options = with_budget(options, dataset)
    epoch = task.images.count // config.batch_size
    steps = None if options.epochs is None else options.epochs * epoch
    budget = prepare.budget_of(options.budget_hours, steps, started)
    prepare.make_folder(folder)
    genotype.save(kept)
    store = prepare.store(folder, "derive", options, dataset, content)
    start = loop.restore(task, content, store.path, budget)
    say(
        f"training {genotype.parameters} parameters, {genotype.macs} MACs on {task.images.count} "
        f"images of {dataset.name} with {config.hyperparameters} hyperparameters, on {device}"
    )
    if task.online is not None:
        for text in task.online.plan.caveats(task.online.variables.kinds):
            loop.warn(text)
    size = {"parameters": genotype.parameters, "macs": genotype.macs}
    with Recorder(folder, start.step if content else None) as recorder:
        recorder.picture(start.step, "genotype", pictures.draw_genotype(genotype.space))
        recorder.scalars(start.step, size)
        step = loop.run(task, budget, recorder, store, start=start, name="derive")
        network = task.finish(step, recorder)
        learned = task.learned()
        if config.hyperparameters == "online":
            recorder.picture(step, "learned", pictures.parameter_plot(learned, "learned schedules"))
            replace(genotype, hyperparameters=learned).save(folder / "learned.json")
        validation, test = (evaluate(network, s.to(device)) for s in splits[1:])
        recorder.picture(step, "confusion", picture_of(test, genotype.classes, "test"))
        metrics: dict[str, float] = {
            **size,
            "validation_accuracy": validation.accuracy,
            "test_accuracy": test.accuracy,
            "test_macro_f1": test.macro_f1,
            "seconds": round(budget.elapsed, 1),
        }
        recorder.hparams(_hparams(options, genotype), metrics)
    checkpoint.write(folder / "model.pt", network.state_dict())
    held_out = config.select != "last" or config.hyperparameters == "online"
    account = {
        **metrics,
        "validation_held_out": held_out,
        "steps": step,
        "epochs": round(step / epoch, 2),
        "hyperparameters": config.hyperparameters,
        "seed": config.seed,
        "genotype": options.genotype,
    }
    write_json(result, account)
    trained_on = "" if held_out else " (trained on)"
    say(
        f"parameters {genotype.parameters}, MACs {genotype.macs}, validation accuracy "
        f"{validation.accuracy:.2%}{trained_on}, test accuracy {test.accuracy:.2%}, "
        f"test macro F1 {test.macro_f1:.2%}, {budget.elapsed:.0f} s"
    )
    return account


def augment(options: AugmentOptions, *, say: Say = print) -> None:
    """Draws what an augmentation does to images of a data set, and may save it as JSON."""
    dataset, splits = prepare.data(options, options.seed, say)
    chosen = augmentation_for(dataset, options.augment)
    images, _ = next(
        iter(
            evaluation_batches(
                sample(splits.train, augmentation_report.DRAWS), augmentation_report.DRAWS
            )
        )
    )
    out = Path(options.out)
    prepare.make_folder(out.parent)
    picture = augmentation_report.draw_augmentation(chosen, images, fraction=options.fraction)
    pictures.save(out, picture)
    strengths = chosen.policy.strengths(dataset.image_size, fraction=options.fraction)
    if strengths:
        say(augmentation_report.strength_table(strengths))
    say(f"{out}: {picture.shape[1]} x {picture.shape[0]} pixels")
    if options.save:
        prepare.make_folder(Path(options.save).parent)
        write_json(Path(options.save), to_json(chosen))
        say(f"{options.save}: for --augment")


def load_genotype(
    path: Path, max_params: int | None, data_dir: str | None = None, say: Say = print
) -> Genotype:
    """Reads a genotype, or makes it from the search checkpoint beside it, under a hard cap.

    A genotype above the cap is derived anew from that checkpoint and left on disk as it is.
    """
    saved = path.parent / "search" / "checkpoint.pt"
    genotype = Genotype.load(path) if path.exists() or not saved.exists() else None
    if genotype is not None:
        counted = network_cost(genotype.space, genotype.image, len(genotype.classes))
        if counted != (genotype.parameters, genotype.macs):
            raise UserError(
                f"{path}: parameters and macs are {genotype.parameters} and {genotype.macs}, but "
                f"its network has {counted.parameters} and {counted.macs}; search again"
            )
        if max_params is None or genotype.parameters <= max_params:
            return genotype
        if not saved.exists():
            raise UserError(
                f"{path} has {genotype.parameters} parameters, more than {max_params}, and without "
                f"{saved} it is the smallest possible network here: raise --max-params, bring "
                "that checkpoint, or search again"
            )
    say(f"deriving from {saved}" + ("" if genotype else f": {path} does not exist"))
    made = _discretised(saved, max_params, data_dir, say)
    if genotype is None:
        made.save(path)
    return made


def _discretised(saved: Path, max_params: int | None, data_dir: str | None, say: Say) -> Genotype:
    """The genotype of a search checkpoint as it stands."""
    content = checkpoint.load(saved, "search")
    options = read_options(SearchOptions, content["config"], saved)
    options = replace(options, data_dir=data_dir or options.data_dir)
    device = torch.device("cpu")
    dataset, splits = prepare.data(options, options.seed, say)
    prepare.require_same_data(content, dataset, saved)
    options, config = resolved(options, dataset, device)
    if max_params is not None:
        config = replace(config, max_params=min(max_params, config.max_params))
    task = SearchTask(config, dataset, splits, device)
    loop.restore(task, content, saved, Budget(steps=1))
    return task.genotype(_settings(options, finished=False))


# --- pieces ------------------------------------------------------------------------------------


def _searched(genotype: Genotype, options: DeriveOptions) -> SearchOptions:
    """Which data a genotype was searched on, and where to look for them."""
    wanted: dict[str, Any] = {"dataset": str, "image_size": int, "subset": int, "data_dir": str}
    for name, kind in wanted.items():
        if not isinstance(genotype.settings.get(name, 0.0), kind | None):
            raise UserError(
                f"{options.genotype}: settings.{name} is missing or of the wrong type; search again"
            )
    found: dict[str, Any] = {name: genotype.settings[name] for name in wanted}
    found["data_dir"] = options.data_dir or found["data_dir"]
    return SearchOptions(**found, download=options.download)


def _batch_size(genotype: Genotype) -> int:
    """That of the search; the usual one if the genotype does not say."""
    size = genotype.settings.get("batch_size", 64)
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise UserError(f"settings.batch_size is {size!r}, no number of images; give --batch-size")
    return size


def _settings(options: SearchOptions, finished: bool) -> dict[str, Any]:
    kept = ("dataset", "data_dir", "image_size", "subset", "budget_hours", "steps", "augment")
    found = {name: getattr(options, name) for name in kept}
    return {**found, "warm_start": ", ".join(options.warm_start) or None, "finished": finished}


def _hparams(options: DeriveOptions, genotype: Genotype) -> dict[str, Any]:
    learned = {f"final {n}": s[-1][1] for n, s in genotype.hyperparameters.items()}
    named = {n: v for n, v in asdict(options).items() if n not in FREE and v is not None}
    space = {"space": genotype.space.preset, "channels": genotype.space.channels}
    return {**named, **space, **learned}
