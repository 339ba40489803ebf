"""The command `refresh`: look at new data with an old model; keep it, or train a better one."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import ks_2samp

from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.structure import TimmModel
from darts_lite.commands.derive import derive
from darts_lite.commands.search import search
from darts_lite.data import Dataset, Images, Splits
from darts_lite.data.layout import listed
from darts_lite.data.surveys import image_hashes
from darts_lite.errors import UserError
from darts_lite.files import read_json, write_json
from darts_lite.nas.options import SearchOptions
from darts_lite.training.options import (
    DataOptions,
    DeriveOptions,
    RefreshOptions,
    SourceOptions,
)
from darts_lite.training.predictor import Predictor, load
from darts_lite.training.run import Say, make_folder, read_data
from darts_lite.training.seen import FILE, Seen, brightness
from darts_lite.training.source import data_of, source_of

KEPT, REPLACED = 0, 10  # exit statuses
MUCH = 0.05  # share of new or relabelled images from which the weights are trained again
GROWN = 2.0  # factor of the number of images from which the architecture is searched again
DRIFT = 0.2  # Kolmogorov-Smirnov distance from which data or confidence have drifted
SURE = 1e-3  # largest p-value of a drift
WORSE = 2.0  # standard errors of the accuracy by which the old model may have fallen
HELD_OUT = 20  # images that neither model trained on, at least
SEARCH = 0.3  # share of the budget for a search

Plan = Literal["keep", "fine-tune", "search"]


class Difference(NamedTuple):
    """What is new in the data.

    Attributes:
        new, gone, relabelled: numbers of images.
        images: number of images now.
        before: number of images then.
        new_classes, gone_classes: names of classes.
        shares: share of the images by class, now.
        brightness, confidence: distance of their distributions from then, 0 to 1; zero if it may
            be chance.
        accuracy: of the old model on the held-out images; None without such images.
        fall: by how many standard errors it is below its accuracy then.
    """

    new: int
    gone: int
    relabelled: int
    images: int
    before: int
    new_classes: list[str]
    gone_classes: list[str]
    shares: dict[str, float]
    brightness: float = 0.0
    confidence: float = 0.0
    accuracy: float | None = None
    fall: float = 0.0


def refresh(
    run: Path, options: RefreshOptions, *, started: float | None = None, say: Say = print
) -> dict[str, Any]:
    """Compare data with those of a run, and replace its model if a new one is better.

    A new model is trained in RUN.new. It replaces RUN only if it is right more often on the test
    images of the new data that the old model did not train on; the old run is then kept as RUN.1,
    RUN.2, ....

    Arguments:
        run: folder of a derive run.
        options: options of the command.
        started: start of the budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
    Returns: the decision and its reasons, as in `RUN/refresh.json`; `status` is 0 or 10.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    began = time.monotonic() if started is None else started
    if not run.exists() and (_new(run) / "derive").exists():
        (_new(run) / "derive").rename(run)  # killed while it was promoted
    old, seen = load(run), _seen(run)
    genotype = old.genotype
    data = data_of(genotype, SourceOptions(dataset=options.dataset, data_dir=options.data_dir))
    dataset, splits = read_data(data, genotype.seed, say)
    if dataset.image != genotype.image:
        raise UserError(
            f"images must be {list(genotype.image)}, as those of {run}, got {list(dataset.image)}; "
            "start a new search"
        )
    held = _held_out(splits, seen)
    right = _right(old, held, dataset.classes)
    confidence = old.predict(held.pixels).probabilities.max(1).values.numpy()
    difference = compare(genotype, seen, dataset, splits)._replace(
        confidence=_drift(seen.confidence, confidence),
        accuracy=float(right.float().mean()) if held.count else None,
        fall=_fall(right, read_json(run / "metrics.json")["test_accuracy"], len(seen.confidence)),
    )
    plan, reason = decide(difference)
    say(f"{plan}: {reason}")
    account: dict[str, Any] = {
        "plan": plan,
        "reason": reason,
        "difference": difference._asdict(),
        "held_out": held.count,
        "status": KEPT,
    }
    if plan != "keep" and held.count < HELD_OUT:
        account["reason"] += f"; but only {held.count} images are held out, {HELD_OUT} are needed"
        say(account["reason"])
    elif plan != "keep":
        if plan == "search" and isinstance(genotype.structure, TimmModel):
            plan = account["plan"] = "fine-tune"
            account["reason"] += "; a timm model is trained again instead of a search"
        new = _trained(options, old, run, data, dataset, plan, began, say)
        account["new_accuracy"] = float(_right(new, held, dataset.classes).float().mean())
        assert difference.accuracy is not None
        better = account["new_accuracy"] > difference.accuracy
        say(
            f"on {held.count} images that neither trained on: {account['new_accuracy']:.2%}, old "
            f"{difference.accuracy:.2%}; {'replaced' if better else 'kept'}"
        )
        if better:
            account |= {"status": REPLACED, "old": str(_promote(run))}
    account["seconds"] = round(time.monotonic() - began, 1)
    write_json(run / "refresh.json", account)
    return account


def compare(genotype: Genotype, seen: Seen, dataset: Dataset, splits: Splits) -> Difference:
    """Return what is new in the data, without the opinion of the old model.

    Arguments:
        genotype: genotype of the old run.
        seen: what its training saw.
        dataset: the data now.
        splits: their splits.
    """
    names, whole = dataset.classes, [part.to("cpu") for part in splits]
    hashes = np.concatenate([image_hashes(part) for part in whole])
    labels = torch.cat([part.labels for part in whole]).numpy()
    light = np.concatenate([brightness(part) for part in whole])
    then = dict(zip(seen.hashes.tolist(), (genotype.classes[i] for i in seen.labels)))
    now = dict(zip(hashes.tolist(), (names[i] for i in labels)))
    return Difference(
        new=len(now.keys() - then.keys()),
        gone=len(then.keys() - now.keys()),
        relabelled=sum(then[key] != now[key] for key in now.keys() & then.keys()),
        images=len(labels),
        before=len(seen.labels),
        new_classes=sorted(set(names) - set(genotype.classes)),
        gone_classes=sorted(set(genotype.classes) - set(names)),
        shares={name: round(float((labels == i).mean()), 4) for i, name in enumerate(names)},
        brightness=_drift(seen.brightness, light),
    )


def decide(found: Difference) -> tuple[Plan, str]:
    """Return what to do, and the rule that says so.

    Arguments:
        found: what is new in the data.

    >>> decide(Difference(0, 0, 0, 9, 9, [], [], {}))
    ('keep', 'no image is new, gone or relabelled')
    """
    changed = found.new + found.gone + found.relabelled
    if not changed:
        return "keep", "no image is new, gone or relabelled"
    if found.new_classes or found.gone_classes:
        names = [f"new class {n}" for n in found.new_classes]
        names += [f"class {n} is gone" for n in found.gone_classes]
        return "search", f"{listed(names)}: the network needs another classifier"
    if found.images >= GROWN * found.before:
        return "search", f"{found.images} images, were {found.before}: at least {GROWN:g} times"
    share = (found.new + found.relabelled) / found.images
    if share >= MUCH:
        return "fine-tune", f"{share:.0%} of the images are new or relabelled, at least {MUCH:.0%}"
    for what, distance in (("brightness", found.brightness), ("confidence", found.confidence)):
        if distance >= DRIFT:
            return "fine-tune", f"the {what} has drifted by {distance:.2f}, at least {DRIFT}"
    if found.fall >= WORSE:
        return "fine-tune", f"the accuracy fell by {found.fall:.1f} standard errors"
    return "keep", f"{changed} images changed, less than {MUCH:.0%}, and nothing drifted"


def _drift(then: np.ndarray, now: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples; zero if it may be chance."""
    if not len(then) or not len(now):
        return 0.0
    found = ks_2samp(then, now)
    return float(found.statistic) if found.pvalue <= SURE else 0.0


def _fall(right: torch.Tensor, before: float, count: int) -> float:
    """Return by how many standard errors an accuracy is below an earlier one.

    Arguments:
        right: whether the model is right now, `[N]`.
        before: its accuracy then.
        count: number of images then.
    """
    if not len(right):
        return 0.0
    now = float(right.float().mean())
    variance = before * (1 - before) / count + now * (1 - now) / len(right)
    return (before - now) / max(variance, 1e-12) ** 0.5 if now < before else 0.0


def _seen(run: Path) -> Seen:
    if not (run / FILE).exists():
        raise UserError(
            f"{run} must be a run of derive with {FILE}, got none; train it again with this version"
        )
    return Seen.load(run)


def _held_out(splits: Splits, seen: Seen) -> Images:
    """Return the test images of which neither the old model nor a new one has learned a copy."""
    test = splits.test.to("cpu")
    new = [image_hashes(part.to("cpu")) for part in (splits.train, splits.validation)]
    known = np.isin(image_hashes(test), np.concatenate([seen.known, *new]))
    return test.select(torch.from_numpy(np.flatnonzero(~known)))


def _right(model: Predictor, images: Images, classes: Sequence[str]) -> torch.Tensor:
    """Return whether a model names the class of every image, `[N]`."""
    named = model.predict(images.pixels).classes
    return torch.tensor([n == classes[i] for n, i in zip(named, images.labels.tolist())])


def _trained(
    options: RefreshOptions,
    old: Predictor,
    run: Path,
    data: DataOptions,
    dataset: Dataset,
    plan: Plan,
    began: float,
    say: Say,
) -> Predictor:
    """Train a new model in RUN.new within what is left of the budget."""
    folder, genotype = _new(run), old.genotype
    if folder.exists():
        say(f"{folder} is of an unfinished refresh; starting anew")
        shutil.rmtree(folder)
    path, seconds = folder / "g.json", 3600 * options.budget_hours
    if plan == "search":
        known = {each.name for each in fields(SearchOptions)}
        again = {name: value for name, value in genotype.search.items() if name in known}
        again |= asdict(data) | {
            "warm_start": (str(run / "genotype.json"),),
            "budget_hours": SEARCH * seconds / 3600,
            "steps": None,
            "device": options.device,
            "out": str(folder),
        }
        search(SearchOptions(**again), started=began, say=say, dataset=dataset)  # type: ignore[arg-type]
    else:
        make_folder(folder)
        now = dict(dataset.fingerprint)
        source = source_of(data, dataset)
        changed = replace(genotype, source=source, dataset=now, classes=dataset.classes)  # type: ignore[arg-type]
        replace(changed, **cost_of(changed)._asdict()).save(path)
    training = DeriveOptions(
        genotype=str(path),
        out=str(folder / "derive"),
        start=str(run) if plan == "fine-tune" else None,
        budget_hours=max(1.0, began + seconds - time.monotonic()) / 3600,
        device=options.device,
        seed=genotype.seed,
    )
    derive(training, say=say, dataset=dataset)
    return load(folder / "derive")


def _new(run: Path) -> Path:
    """Return the folder in which a new model is trained."""
    return run.with_name(run.name + ".new")


def _promote(run: Path) -> Path:
    """Put the new run in the place of the old one; return where the old one is kept."""
    new = _new(run)
    number = next(i for i in itertools.count(1) if not run.with_name(f"{run.name}.{i}").exists())
    kept = run.with_name(f"{run.name}.{number}")
    run.rename(kept)
    (new / "derive").rename(run)
    shutil.rmtree(new)
    return kept
