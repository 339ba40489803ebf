"""The command `derive`: train a genotype and test it once.

out/derive/  checkpoint.pt, config.json, events, metrics.jsonl, pictures/, genotype.json, model.pt,
             metrics.json, MODEL_CARD.md, learned.json (with --hyperparameters online)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.structure import TimmModel
from darts_lite.commands.pretrained import genotype_of, is_timm
from darts_lite.commands.teachers import labels_of, start_of, teacher_of, that_saw
from darts_lite.data import Dataset
from darts_lite.data.splits import fold_of
from darts_lite.files import read_json, write_json
from darts_lite.nas.loading import load_genotype
from darts_lite.reporting import pictures
from darts_lite.reporting.model_card import model_card, write_card
from darts_lite.training import checkpoint
from darts_lite.training.budget import Budget
from darts_lite.training.diagnosis import diagnosis, pictures_of
from darts_lite.training.joint_task import CHARTS
from darts_lite.training.latency import latency_of, of_network
from darts_lite.training.metrics import (
    Evaluation,
    calibration,
    evaluate,
    evaluation,
    probabilities_of,
)
from darts_lite.training.options import MAY_CHANGE, DeriveOptions
from darts_lite.training.progress import Progress, warn
from darts_lite.training.run import Run, Say, budget_of, is_small
from darts_lite.training.seen import seen_of
from darts_lite.training.self_training import PseudoLabels
from darts_lite.training.source import data_of, require_data_of
from darts_lite.training.task import TrainTask
from darts_lite.training.tta import probabilities as tta_probabilities
from darts_lite.training.tta import require_views


def derive(
    options: DeriveOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a genotype, test it once, and write `metrics.json`; return its content.

    The trained genotype is written as `genotype.json`.

    Arguments:
        options: options of the training.
        resume: names of the options that the user gave beside --resume; all other options come
            from the checkpoint. None starts a new run.
        started: start of the budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
        dataset: data set of the search; None to read it.
        progress: progress bar of a command of several runs; None for one of its own.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    folder = folder_of(options)
    result = folder / "metrics.json"
    with Run.open("derive", folder, options, resume, say, (result,), progress) as run:
        if run.saved and result.exists():
            run.say(f"{result} is finished")
            return read_json(result)
        return _derived(run, started, dataset)


def _derived(
    run: Run[DeriveOptions], started: float | None, dataset: Dataset | None
) -> dict[str, Any]:
    """Train and test the network of a run; write its files and return the metrics."""
    options, folder, say = run.options, run.folder, run.say
    kept = folder / "genotype.json"
    if run.saved:
        genotype = load_genotype(kept, None, options.data_dir, say)
    else:
        genotype = genotype_of(options, say)
    run.load(data_of(genotype, options), genotype.seed, dataset)
    require_data_of(genotype, run.dataset, options.genotype)
    require_views(options.tta, run.dataset.flips)
    if options.folds is not None:
        run.splits = fold_of(run.splits, options.fold or 0, options.folds, genotype.seed)
    task = _task(run, genotype)
    run.options = options = _with_budget(options, run.dataset)
    steps = None if options.epochs is None else options.epochs * _epoch(task)
    run.prepare(task, budget_of(options.budget_hours, steps, started))
    genotype.save(kept)
    say(
        f"training {genotype.parameters} parameters, {genotype.macs} MACs on {task.images.count} "
        f"images of {run.dataset.name} with {options.hyperparameters} hyperparameters, on "
        f"{run.device}"
    )
    for text in task.hyper.caveats():
        warn(text)
    saw = that_saw(options, genotype) if task.held_out else []
    for other in saw:
        warn(
            f"{other} was trained on validation images of this run, so validation figures come out "
            "too high; test figures are not concerned"
        )
    account = _trained(run, task, task.held_out and not saw)
    write_json(folder / "metrics.json", account)
    write_card(folder)
    trained_on = "" if task.held_out else " (trained on)"
    tta = account.get("test_accuracy_tta")
    say(
        f"parameters {genotype.parameters}, MACs {genotype.macs}, validation accuracy "
        f"{account['validation_accuracy']:.2%}{trained_on}, test accuracy "
        f"{account['test_accuracy']:.2%}, test macro F1 {account['test_macro_f1']:.2%}, "
        + ("" if tta is None else f"with --tta {options.tta} {tta:.2%}, ")
        + f"{run.budget.elapsed:.0f} s"
    )
    return account


def _task(run: Run[DeriveOptions], genotype: Genotype) -> TrainTask:
    """Return the training, with its teacher, pseudo-labels and starting weights."""
    options, dataset, device = run.options, run.dataset, run.device
    teacher = teacher_of(options, Path(options.genotype), dataset, run.splits, device)
    labels = None
    if options.unlabelled is not None:
        labels = labels_of(options, teacher, genotype, dataset, device)
        run.say(_labelled(labels))
        if options.teacher_weight is None:
            teacher = None
    start = None if run.saved else start_of(options, genotype, device)
    return TrainTask(options, genotype, dataset, run.splits, device, teacher, start, labels)


def _trained(run: Run[DeriveOptions], task: TrainTask, held_out: bool) -> dict[str, Any]:
    """Train and test the network; return the content of metrics.json.

    Arguments:
        run: the run.
        task: its training.
        held_out: whether the validation images had no part in it.
    """
    genotype, options = task.genotype, run.options
    size: dict[str, float] = {"parameters": genotype.parameters, "macs": genotype.macs}
    with run.recorder() as recorder:
        if isinstance(genotype.structure, TimmModel):
            recorder.text(run.start.step, "genotype", f"timm model `{genotype.structure.name}`")
        else:
            recorder.picture(run.start.step, "genotype", pictures.draw_genotype(genotype.space))
        recorder.scalars(run.start.step, size)
        recorder.charts(CHARTS)
        step = run.train(task, recorder)
        run.progress.doing("recalibrating BatchNorm")
        network = task.finish(step, recorder)
        if task.online:
            learned = task.hyper.schedules()
            recorder.picture(step, "learned", pictures.parameter_plot(learned, "learned schedules"))
            recipe = replace(task.plain.recipe, schedules=learned)
            replace(genotype, recipe=recipe).save(run.folder / "learned.json")
        run.progress.doing("testing and drawing pictures")
        checkpoint.write(run.folder / "model.pt", network.state_dict())
        for number, each in enumerate(task.kept(), start=1):
            checkpoint.write(run.folder / f"best{number}.pt", each.state_dict())
        validation, images = (split.to(run.device) for split in run.splits[1:])
        probabilities = probabilities_of(network, images)
        test = evaluation(probabilities, images.labels)
        bins, classes = calibration(probabilities, images.labels), genotype.classes
        for name, picture in pictures_of(test, bins, probabilities, images, classes).items():
            recorder.picture(step, name, picture)
        metrics = size | _metrics(evaluate(network, validation), test, run.budget)
        if options.tta != "none":
            flips = run.dataset.flips
            view = partial(tta_probabilities, network, kind=options.tta, flips=flips)
            metrics["test_accuracy_tta"] = evaluate(network, run.splits.test, view).accuracy
        recorder.hparams(_shown(options), _best_first(metrics))
        recorder.text(step, "settings", _settings(options, genotype))
        start = None if is_timm(options.start) else options.start
        seen_of(run.splits, probabilities, None if start is None else Path(start)).save(run.folder)
        run.progress.doing("measuring the latency")
        latency = latency_of(of_network(network, run.device), genotype.image)
        account = {
            **metrics,
            **diagnosis(test, bins, classes),
            "latency": {"device": str(run.device), **latency},
            "model_bytes": (run.folder / "model.pt").stat().st_size,
            "pseudo_labels": _counted(task),
            "passed_over": run.dataset.found.passed_over,
            "steps": step,
            "epochs": round(step / _epoch(task), 2),
            "hyperparameters": options.hyperparameters,
            "seed": options.seed,
            "genotype": options.genotype,
            "validation_held_out": held_out,
        }
        recorder.text(step, "model card", model_card(genotype, account))
    return account


def _counted(task: TrainTask) -> dict[str, Any] | None:
    """Return number and quality of the pseudo-labels; None without them."""
    if task.pseudo is None:
        return None
    counts = dict(zip(task.genotype.classes, task.pseudo.counts.tolist()))
    return {"count": len(task.pseudo.pixels), "right": task.pseudo.right, "by_class": counts}


def _labelled(labels: PseudoLabels) -> str:
    """Return a line about the pseudo-labels."""
    right = "" if labels.right is None else f", {labels.right:.1%} of the labels are right"
    least, most = int(labels.counts.min()), int(labels.counts.max())
    return f"the teacher labelled {len(labels.pixels)} images, {least} to {most} of a class{right}"


def _epoch(task: TrainTask) -> int:
    """Return the steps of one epoch."""
    return max(1, task.images.count // (task.batch_size * task.plain_step.accumulate))


def folder_of(options: DeriveOptions) -> Path:
    """Return the folder of the run."""
    return Path(options.out) if options.out else Path(options.genotype).parent / "derive"


def _with_budget(options: DeriveOptions, dataset: Dataset) -> DeriveOptions:
    """Return the options with the default budget, if the user gave none."""
    if options.budget_hours is None and options.epochs is None:
        return replace(options, budget_hours=0.035 if is_small(dataset) else 1.0)
    return options


def _metrics(validation: Evaluation, test: Evaluation, budget: Budget) -> dict[str, float]:
    return {
        "validation_accuracy": validation.accuracy,
        **{f"test_{n}": v for n, v in test.values.items() if math.isfinite(v)},
        "seconds": round(budget.elapsed, 1),
    }


def _shown(options: DeriveOptions) -> dict[str, Any]:
    """Return the settings of TensorBoard's table: so few that the metrics are in sight."""
    hours, epochs = options.budget_hours, options.epochs
    return {
        "budget": f"{epochs} epochs" if hours is None else f"{hours:g} h",
        "hyperparameters": options.hyperparameters,
        "augment": options.augment or "of the search",
        "seed": options.seed,
    }


def _best_first(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics in the order of the columns of TensorBoard's table."""
    first = ("test_accuracy", "parameters", "test_macro_f1", "macs", "validation_accuracy")
    return {name: metrics[name] for name in (*first, *metrics)}


def _settings(options: DeriveOptions, genotype: Genotype) -> str:
    """Return all settings, and the last learned values, as a Markdown table."""
    learned = {f"final {n}": f"{v:.4g}" for n, v in genotype.recipe.last.items()}
    named = {n: v for n, v in asdict(options).items() if n not in MAY_CHANGE and v is not None}
    space: dict[str, Any]
    if isinstance(genotype.structure, TimmModel):
        space = {"network": f"timm model {genotype.structure.name}"}
    else:
        space = {"space": genotype.space.preset, "channels": genotype.space.channels}
    rows = [f"| {name} | {value} |" for name, value in (named | space | learned).items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
