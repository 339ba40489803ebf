"""The command `check`: what a search would see of the data, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from darts_lite.data import Dataset, Splits, evaluation_batches, stratified
from darts_lite.data.surveys import description
from darts_lite.errors import UserError
from darts_lite.reporting import pictures
from darts_lite.training.options import CheckOptions
from darts_lite.training.run import Say, make_folder, read_data

SHEET = 96  # images of the contact sheet


def check(options: CheckOptions, *, say: Say = print) -> dict[str, Any]:
    """Read the data as a search would; print what was found, and draw a contact sheet.

    Arguments:
        options: options of the command.
        say: prints a line for the user.

    Returns:
        What `--json` prints: `classes`, `splits` (counts by class), `image` ([C, H, W]),
        `passed_over` (counts by reason), `problems` and `notes` (sentences).

    Raises: `UserError` if a search would refuse the data; with `as_json`, after the same JSON.
    """
    try:
        dataset, splits = read_data(options, options.seed, lambda text: None)
    except UserError as error:
        if options.as_json:
            say(json.dumps(_refused(str(error))))
        raise
    found = facts(dataset, splits)
    if options.as_json:
        say(json.dumps(found))
    else:
        for line in description(dataset, splits):
            say(line)
    if options.out is not None:
        _contact_sheet(dataset, splits, Path(options.out))
        if not options.as_json:
            say(f"{options.out}: {SHEET} images, sorted by class")
    return found


def _refused(reason: str) -> dict[str, Any]:
    """Return the facts about data that a search refuses."""
    nothing: dict[str, Any] = {"classes": [], "splits": {}, "image": None, "passed_over": {}}
    return {**nothing, "problems": [reason], "notes": []}


def facts(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """Return what is known about data, as JSON values."""
    counts = {
        part: dict(zip(dataset.classes, _counts(images.labels, len(dataset.classes))))
        for part, images in splits._asdict().items()
    }
    found = dataset.found
    return {
        "classes": list(dataset.classes),
        "splits": counts,
        "image": list(dataset.image),
        "passed_over": found.passed_over,
        "problems": found.problems,
        "notes": found.notes,
    }


def _counts(labels: torch.Tensor, classes: int) -> list[int]:
    return torch.bincount(labels.cpu(), minlength=classes).tolist()


def _contact_sheet(dataset: Dataset, splits: Splits, path: Path) -> None:
    """Draw images of the training split, sorted by class."""
    some = stratified(splits.train, min(1.0, SHEET / splits.train.count), seed=0)
    some = some.select(some.labels.argsort(stable=True)[:SHEET])
    images, _ = next(iter(evaluation_batches(some.to("cpu"), SHEET)))
    make_folder(path.parent)
    pictures.save(path, pictures.image_grid(images.numpy(), columns=12))
