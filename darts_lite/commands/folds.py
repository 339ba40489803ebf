"""Several trainings of one genotype: the folds of a cross-validation, or several seeds.

out/derive/fold0/, fold1/, ... or seed0/, seed1/, ...   trainings, each with the files of `derive`
out/derive/folds.json or repeats.json                   settings and results
out/derive/out_of_fold.csv                              prediction of every image by the fold that
                                                        did not train on it
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_lite.commands.derive import folder_of
from darts_lite.commands.pretrained import genotype_of
from darts_lite.commands.several import Several, train_each
from darts_lite.data import Splits
from darts_lite.data.splits import fold_of
from darts_lite.errors import UserError
from darts_lite.files import replacing
from darts_lite.training.device import device_named
from darts_lite.training.metrics import probabilities_of
from darts_lite.training.options import DeriveOptions
from darts_lite.training.predictor import load
from darts_lite.training.run import Say, on, read_data
from darts_lite.training.source import data_of


def derive_folds(
    options: DeriveOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train the folds of a cross-validation or several seeds; return the content of their file.

    Arguments:
        options: options of the trainings, with `folds` or `repeats`.
        resume: names of the options that the user gave beside --resume; all other options come
            from the file. None starts a new run.
        started: start of the first budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    if options.folds and options.repeats:
        raise UserError("--folds and --repeats must not be given together; give one of them")
    out = folder_of(options)
    name = "folds" if options.folds else "repeats"
    command = f"derive --{name} {options.folds or options.repeats}"
    with Several.open(command, out / f"{name}.json", options, resume, say) as run:
        return _each(run, started, say)


def _each(run: Several[DeriveOptions], started: float | None, say: Say) -> dict[str, Any]:
    options, out = run.options, run.result.parent
    each = replace(options, repeats=None)
    if options.folds:
        own = {out / f"fold{i}": replace(each, fold=i) for i in range(options.folds)}
    else:
        seeds = range(options.seed, options.seed + (options.repeats or 0))
        own = {out / f"seed{s}": replace(each, seed=s) for s in seeds}
    genotype = genotype_of(options, say)
    run.take()
    run.write(genotype.dataset)
    placed = {folder: replace(o, out=str(folder)) for folder, o in own.items()}
    trained = train_each(placed, resume=run.resume, started=started, say=say)
    results: dict[str, Any] = {
        "folders": [str(folder) for folder in trained],
        "validation_accuracy": summary([m["validation_accuracy"] for m in trained.values()]),
        "test_accuracy": summary([m["test_accuracy"] for m in trained.values()]),
    }
    if options.folds:
        dataset, splits = read_data(data_of(genotype, options), genotype.seed, say)
        cut = [fold_of(splits, i, options.folds, genotype.seed) for i in range(options.folds)]
        device = device_named(options.device)
        results |= _out_of_fold(list(trained), cut, dataset.classes, out, device)
    account = run.write(genotype.dataset, **results)
    say(_said(account))
    return account


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return values, mean, standard deviation and the half width of the 95 % interval of the mean.

    The interval is Student's t interval. Folds share training images, so their interval is too
    narrow (Bengio and Grandvalet 2004).

    >>> summary([0.5, 1.0])["mean"]
    0.75
    """
    from scipy.stats import t  # the import takes half a second

    count, deviation = len(values), statistics.stdev(values)
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return {
        "values": list(values),
        "mean": statistics.fmean(values),
        "standard_deviation": deviation,
        "interval": half,
    }


def _out_of_fold(
    folders: Sequence[Path],
    cut: Sequence[Splits],
    classes: Sequence[str],
    out: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Write the out-of-fold predictions; return their accuracy and that of the ensemble."""
    rows: list[list[Any]] = []
    correct, members = 0, []
    for number, (folder, splits) in enumerate(zip(folders, cut)):
        network = load(folder, device).network
        _, validation, test = on(device, splits)
        held = probabilities_of(network, validation).cpu()
        members.append(probabilities_of(network, test).cpu())
        labels, found = validation.labels.cpu(), held.argmax(1)
        correct += int((labels == found).sum())
        for label, guess, probabilities in zip(labels.tolist(), found.tolist(), held.tolist()):
            shown = [f"{p:.6f}" for p in probabilities]
            rows.append([number, classes[label], classes[guess], *shown])
    with replacing(out / "out_of_fold.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fold", "class", "predicted", *(f"p({name})" for name in classes)])
        writer.writerows(rows)
    mean: Tensor = torch.stack(members).mean(0)
    ensemble = (mean.argmax(1) == cut[0].test.labels.cpu()).float().mean()
    return {
        "out_of_fold_accuracy": correct / len(rows),
        "ensemble_test_accuracy": float(ensemble),
    }


def _said(account: dict[str, Any]) -> str:
    test, validation = account["test_accuracy"], account["validation_accuracy"]
    text = (
        f"{len(test['values'])} trainings: test accuracy {test['mean']:.2%} ± "
        f"{test['interval']:.2%}, validation accuracy {validation['mean']:.2%} ± "
        f"{validation['interval']:.2%} (95 % intervals of the mean)"
    )
    if "ensemble_test_accuracy" in account:
        text += (
            f", out of fold {account['out_of_fold_accuracy']:.2%}, test accuracy of the ensemble "
            f"{account['ensemble_test_accuracy']:.2%}"
        )
    return text
