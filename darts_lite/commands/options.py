"""What a user may say of a run, how the rest is filled in, and how a run remembers it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from darts_lite.data import Dataset
from darts_lite.errors import UserError
from darts_lite.nas.task import SearchConfig, default_channels
from darts_lite.training import checkpoint
from darts_lite.training.hyper_learner import DEFAULT

SMALL = 16  # pixels; below, the defaults are those of a small problem
FREE = {"out", "data_dir", "download", "device", "checkpoint_seconds"}  # may change on resuming


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a user may say of the data."""

    dataset: str | None = None
    data_dir: str = "data"
    download: bool = False
    image_size: int | None = None
    subset: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(DataOptions):
    """What a user may say of architectures; None leaves the choice to the data."""

    max_params: int | None = None
    space: str = "cells"
    cells: int = 7
    channels: int | None = None
    stem_stride: int = 1


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SpaceOptions):
    """What a user may say of a search; None leaves the choice to the data and the machine."""

    out: str = "out"
    budget_hours: float | None = None
    steps: int | None = None
    search_channels: int | None = None
    batch_size: int = 64
    optimizer: str = "sgd"
    augment: str = "learned"
    estimator: str = DEFAULT
    protect: bool = True
    warm_start: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 50.0


@dataclass(frozen=True, kw_only=True)
class DeriveOptions:
    """What a user may say of a retraining; `data_dir` None means that of the search."""

    genotype: str = "out/g.json"
    out: str | None = None
    data_dir: str | None = None
    download: bool = False
    budget_hours: float | None = None
    epochs: int | None = None
    max_params: int | None = None
    hyperparameters: Literal["learned", "default", "online"] = "learned"
    augment: str | None = None
    estimator: str = DEFAULT
    select: Literal["last", "best", "held_out"] = "last"
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 50.0


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(DataOptions):
    """What a user may say of a picture of an augmentation."""

    augment: str = "learned"
    out: str = "augment.png"
    save: str | None = None
    fraction: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SpaceOptions):
    """What a user may say of a study; None leaves the choice to the data."""

    method: str
    out: str = "out"
    budget_hours: float | None = None
    trials: int | None = None
    epochs: int = 20
    fidelity: str = "epochs"
    lowest: float = 1 / 9
    pareto: bool = False
    population: int = 8
    genotype: str | None = None
    warm_start: tuple[str, ...] = ()
    workers: int = 1
    storage: str | None = None
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 50.0


Options = TypeVar("Options", SearchOptions, DeriveOptions, TuneOptions)


def resolved(
    options: SearchOptions, dataset: Dataset, device: torch.device
) -> tuple[SearchOptions, SearchConfig]:
    """Fills in what the user left open, so that a resumed run is the same run."""
    cap, channels = size(options, dataset)
    hours = options.budget_hours
    if hours is None and options.steps is None:
        hours = 0.025 if is_small(dataset) else 1.0
    options = replace(
        options,
        dataset=dataset.name,
        budget_hours=hours,
        max_params=cap,
        channels=channels,
        search_channels=options.search_channels or search_width(channels, device),
    )
    names = {field.name for field in fields(SearchConfig)}
    return options, SearchConfig(**{n: v for n, v in asdict(options).items() if n in names})


def with_budget(options: DeriveOptions, dataset: Dataset) -> DeriveOptions:
    """The default budget, where the user gave none."""
    if options.budget_hours is None and options.epochs is None:
        return replace(options, budget_hours=0.035 if is_small(dataset) else 1.0)
    return options


def size(options: SpaceOptions, dataset: Dataset) -> tuple[int, int]:
    """The cap on parameters and the usual width, chosen for the data where the user did not."""
    cap = options.max_params or (60_000 if is_small(dataset) else 150_000)
    image = (dataset.channels, *dataset.image_size)
    usual = options.channels or default_channels(
        options.space, options.cells, image, len(dataset.classes), cap
    )
    return cap, usual


def search_width(channels: int, device: torch.device) -> int:
    """Of the supernet: narrow where it would be slow."""
    return min(channels, 8) if device.type == "cpu" else channels


def is_small(dataset: Dataset) -> bool:
    """Whether its images are so small that everything is over in minutes."""
    return min(dataset.image_size) < SMALL


def saved_options(
    folder: Path, kind: str, options: Options, given: Collection[str]
) -> tuple[dict[str, Any], Options]:
    """The checkpoint to resume, and its options with those that may change replaced."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"there is no {path} to resume; start without --resume")
    content = checkpoint.load(path, kind)
    stored = read_options(type(options), content["config"], path)
    changed = {n: v for n, v in asdict(options).items() if n in given}
    checkpoint.check_config(path, asdict(stored), {**asdict(stored), **changed}, FREE)
    return content, replace(stored, **{n: v for n, v in changed.items() if n in FREE})


def remembered(
    path: Path, options: Options, given: Collection[str], free: Collection[str]
) -> tuple[dict[str, Any], Options]:
    """The JSON that a run goes on from, and its options with those in `free` replaced.

    Raises: `UserError` if there is none, or another option was `given` than it was made with.
    """
    if not path.exists():
        raise UserError(f"there is no {path} to resume; start without --resume")
    try:
        content = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is no JSON; choose another --out") from None
    stored = asdict(read_options(type(options), content, path))
    now = {**stored, **{name: v for name, v in asdict(options).items() if name in given}}
    checkpoint.check_config(path, stored, now, set(free))
    return content, type(options)(**now)


def read_options(cls: type[Options], config: Any, path: Path) -> Options:
    """The options in a checkpoint's configuration."""
    known = {field.name for field in fields(cls)}
    options = config.get("options") if isinstance(config, dict) else None
    if (
        not isinstance(options, dict)
        or set(options) != known
        or not {"data", "threads"} <= set(config)
    ):
        raise UserError(f"{path} was made by another version of darts_lite; start anew")
    lists = {name: tuple(v) for name, v in options.items() if isinstance(v, list)}  # of JSON
    return cls(**{**options, **lists})
