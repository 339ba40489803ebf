"""Runs on disk: the folders of a search and of a retraining, their resuming, their results.

out/g.json                 what the search found
out/search/, out/derive/   checkpoint.pt, config.json, events, metrics.jsonl, pictures/
out/derive/                also model.pt and metrics.json
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from darts_lite import checkpoint, loop, pictures
from darts_lite.budget import Budget
from darts_lite.data import Dataset, Splits, load, split
from darts_lite.errors import UserError
from darts_lite.evaluation import evaluate, picture_of
from darts_lite.network import network_cost
from darts_lite.record import Recorder
from darts_lite.search import SearchConfig, SearchTask, default_channels
from darts_lite.space import Genotype, write_json
from darts_lite.train import TrainConfig, TrainTask

SMALL = 16  # pixels; below, the defaults are those of a small problem
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a user may say of a search; None leaves the choice to the data and the machine."""

    out: str = "out"
    dataset: str | None = None
    data_dir: str = "data"
    download: bool = False
    image_size: int | None = None
    subset: int | None = None
    budget_hours: float | None = None
    steps: int | None = None
    space: str = "cells"
    cells: int = 7
    channels: int | None = None
    search_channels: int | None = None
    stem_stride: int = 1
    max_params: int | None = None
    batch_size: int = 64
    estimator: str = "one_step"
    protect: bool = True
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class DeriveOptions:
    """What a user may say of a retraining."""

    genotype: str = "out/g.json"
    out: str | None = None
    data_dir: str = "data"
    download: bool = False
    budget_hours: float | None = None
    epochs: int | None = None
    max_params: int | None = None
    hyperparameters: Literal["learned", "default"] = "learned"
    select: Literal["last", "best"] = "last"
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 60.0


FREE = {"out", "data_dir", "download", "device", "checkpoint_seconds"}  # may change on resuming
Options = TypeVar("Options", SearchOptions, DeriveOptions)


def search(
    options: SearchOptions, *, resume: Collection[str] | None = None, say: Say = print
) -> Genotype:
    """Runs a search and writes `g.json`.

    Arguments: `resume`, the names of the options that the user gave beside the wish to resume;
    all others come from the checkpoint. None starts anew.
    Raises: `UserError`; `darts_lite.errors.Interrupted`.
    """
    out = Path(options.out)
    folder = out / "search"
    content = None
    if resume is None:
        _require_free(out, ["g.json", "search/checkpoint.pt"], "search")
    else:
        content, options = _saved(folder, "search", options, resume)
    dataset, splits, device = _prepare(options, options, options.seed, say)
    config, budget = _search_config(options, dataset, splits, device)
    task = SearchTask(config, dataset, splits, device)
    _make(folder)
    say(
        f"searching {config.space} on {dataset.name}: {splits.train.count} training and "
        f"{splits.validation.count} validation images, at most {config.max_params} parameters, "
        f"{config.channels} channels ({config.search_channels} while searching), on {device}"
    )
    stored = asdict(options)
    store = loop.Store(folder / "checkpoint.pt", "search", stored, options.checkpoint_seconds)
    start = loop.restore(task, content, store.path, budget)
    write_json(folder / "config.json", {**stored, **asdict(config)})
    with Recorder(folder, start if content else None) as recorder:
        step = loop.run(task, budget, recorder, store, start=start, name="search")
        recorder.scalars(step, task.evaluate(step, recorder))
        genotype = task.genotype(_settings(options))
        recorder.picture(
            step, "learned", pictures.parameter_plot(genotype.hyperparameters, "learned schedules")
        )
    genotype.save(out / "g.json")
    say(
        f"{out / 'g.json'}: {genotype.parameters} parameters, {genotype.macs} MACs, "
        f"{step} steps, {budget.elapsed:.0f} s"
    )
    return genotype


def derive(
    options: DeriveOptions, *, resume: Collection[str] | None = None, say: Say = print
) -> dict[str, Any]:
    """Retrains a genotype, tests it once, and writes `metrics.json`; returns its content.

    Arguments and errors as of `search`.
    """
    path = Path(options.genotype)
    folder = Path(options.out) if options.out else path.parent / "derive"
    content = None
    if resume is None:
        _require_free(folder, ["checkpoint.pt", "metrics.json"], "derive")
    else:
        content, options = _saved(folder, "derive", options, resume)
        path = Path(options.genotype)
    genotype = load_genotype(path, options.max_params, say)
    searched = _searched(genotype, path)
    dataset, splits, device = _prepare(searched, options, genotype.seed, say)
    if dict(dataset.fingerprint) != genotype.dataset:
        raise UserError(
            f"the data set {dataset.name} in {options.data_dir} is not the one that {path} was "
            "searched on; give its --data-dir"
        )
    config = TrainConfig(
        batch_size=options.batch_size,
        hyperparameters=options.hyperparameters,
        select=options.select,
        seed=options.seed,
    )
    task = TrainTask(config, genotype, dataset, splits, device)
    budget = _derive_budget(options, dataset, task)
    _make(folder)
    say(
        f"training {genotype.parameters} parameters, {genotype.macs} MACs on {task.images.count} "
        f"images of {dataset.name} with {config.hyperparameters} hyperparameters, on {device}"
    )
    stored = asdict(options)
    store = loop.Store(folder / "checkpoint.pt", "derive", stored, options.checkpoint_seconds)
    start = loop.restore(task, content, store.path, budget)
    write_json(folder / "config.json", stored)
    with Recorder(folder, start if content else None) as recorder:
        recorder.picture(start, "genotype", pictures.draw_genotype(genotype.space, folder.name))
        step = loop.run(task, budget, recorder, store, start=start, name="derive")
        network = task.finish(step, recorder)
        validation = evaluate(network, splits.validation)
        test = evaluate(network, splits.test)
        recorder.picture(step, "confusion", picture_of(test, genotype.classes, "test"))
        temporary = folder / "model.pt.tmp"
        torch.save(network.state_dict(), temporary)
        os.replace(temporary, folder / "model.pt")
        metrics: dict[str, float] = {
            "parameters": genotype.parameters,
            "macs": genotype.macs,
            "validation_accuracy": validation.accuracy,
            "test_accuracy": test.accuracy,
            "test_macro_f1": test.macro_f1,
            "seconds": round(budget.elapsed, 1),
        }
        recorder.hparams(_hparams(options, genotype), metrics)
    result = {
        **metrics,
        "validation_held_out": config.select == "best",
        "steps": step,
        "epochs": round(step / max(1, task.images.count // config.batch_size), 2),
        "hyperparameters": config.hyperparameters,
        "seed": config.seed,
        "genotype": str(path),
    }
    write_json(folder / "metrics.json", result)
    trained_on = "" if config.select == "best" else " (trained on)"
    say(
        f"parameters {genotype.parameters}, MACs {genotype.macs}, validation accuracy "
        f"{validation.accuracy:.2%}{trained_on}, test accuracy {test.accuracy:.2%}, "
        f"test macro F1 {test.macro_f1:.2%}, {budget.elapsed:.0f} s"
    )
    return result


def load_genotype(path: Path, max_params: int | None, say: Say = print) -> Genotype:
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
    if genotype is not None and (max_params is None or genotype.parameters <= max_params):
        return genotype
    if not saved.exists():
        assert genotype is not None and max_params is not None
        raise UserError(
            f"{path} has {genotype.parameters} parameters, more than {max_params}, and no search "
            f"checkpoint lies beside it to derive a smaller one from; the smallest possible is "
            "this one: raise --max-params or search again"
        )
    say(f"deriving from {saved}" + ("" if genotype else f": {path} does not exist"))
    made = _discretised(saved, max_params, say)
    if genotype is None:
        made.save(path)
    return made


def _discretised(saved: Path, max_params: int | None, say: Say) -> Genotype:
    """The genotype of a search checkpoint as it stands."""
    content = checkpoint.load(saved, "search")
    options = _options(SearchOptions, content["config"], saved)
    dataset, splits, device = _prepare(options, replace(options, device="cpu"), options.seed, say)
    config, _ = _search_config(options, dataset, splits, device)
    if max_params is not None:
        config = replace(config, max_params=min(max_params, config.max_params))
    task = SearchTask(config, dataset, splits, device)
    loop.restore(task, content, saved, Budget(steps=1))
    return task.genotype(_settings(options))


def _searched(genotype: Genotype, path: Path) -> SearchOptions:
    """Which data a genotype was searched on."""
    wanted: dict[str, Any] = {"dataset": str, "image_size": int, "subset": int}
    for name, kind in wanted.items():
        if (
            not isinstance(genotype.settings.get(name), kind | None)
            or name not in genotype.settings
        ):
            raise UserError(
                f"{path}: settings.{name} is missing or of the wrong type; search again"
            )
    return SearchOptions(**{name: genotype.settings[name] for name in wanted})  # type: ignore[arg-type]


# --- pieces ------------------------------------------------------------------------------------


def _prepare(
    what: SearchOptions, where: SearchOptions | DeriveOptions, seed: int, say: Say
) -> tuple[Dataset, Splits, torch.device]:
    """The data that `what` names, found as `where` says, on the device."""
    device = _device(where.device)
    dataset = load(
        what.dataset, Path(where.data_dir), download=where.download, image_size=what.image_size
    )
    if what.dataset is None:
        say(f"no --dataset given: using {dataset.name}, the first that is on this machine")
    parts = split(dataset, subset=what.subset, seed=seed)
    return dataset, Splits(*(part.to(device) for part in parts)), device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(f"no device {name!r} here ({reason}); use --device cpu") from None
    return device


def _search_config(
    options: SearchOptions, dataset: Dataset, splits: Splits, device: torch.device
) -> tuple[SearchConfig, Budget]:
    """Fills in what the user left open."""
    small = min(dataset.image_size) < SMALL
    image = (dataset.channels, *dataset.image_size)
    cap = options.max_params or (60_000 if small else 150_000)
    channels = options.channels or default_channels(
        options.space, options.cells, image, len(dataset.classes), cap
    )
    narrow = min(channels, 8) if device.type == "cpu" else channels
    config = SearchConfig(
        space=options.space,
        cells=options.cells,
        channels=channels,
        search_channels=options.search_channels or narrow,
        stem_stride=options.stem_stride,
        max_params=cap,
        batch_size=options.batch_size,
        estimator=options.estimator,
        protect=options.protect,
        seed=options.seed,
    )
    return config, _budget(options.budget_hours, options.steps, 0.025 if small else 1.0)


def _budget(hours: float | None, steps: int | None, default_hours: float) -> Budget:
    if hours is not None and steps is not None:
        raise UserError("give a budget in hours or in steps, not both")
    if steps is not None:
        torch.backends.cudnn.deterministic = True  # a budget in steps promises the same result
        return Budget(steps=steps)
    return Budget(seconds=3600 * (default_hours if hours is None else hours))


def _derive_budget(options: DeriveOptions, dataset: Dataset, task: TrainTask) -> Budget:
    small = min(dataset.image_size) < SMALL
    steps = None
    if options.epochs is not None:
        steps = options.epochs * (task.images.count // options.batch_size)
    return _budget(options.budget_hours, steps, 0.035 if small else 1.0)


def _settings(options: SearchOptions) -> dict[str, Any]:
    kept = ("dataset", "image_size", "subset", "budget_hours", "steps")
    return {name: value for name, value in asdict(options).items() if name in kept}


def _hparams(options: DeriveOptions, genotype: Genotype) -> dict[str, Any]:
    learned = {f"final {n}": s[-1][1] for n, s in genotype.hyperparameters.items()}
    named = {n: v for n, v in asdict(options).items() if n not in FREE and v is not None}
    space = {"space": genotype.space.preset, "channels": genotype.space.channels}
    return {**named, **space, **learned}


def _require_free(folder: Path, names: list[str], command: str) -> None:
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise UserError(
            f"{folder} already holds a run ({', '.join(present)}); continue it with "
            f"`{command} --resume` or choose another --out"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from None


def _saved(
    folder: Path, kind: str, options: Options, given: Collection[str]
) -> tuple[dict[str, Any], Options]:
    """The checkpoint to resume, and its options with those that may change replaced."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"there is no {path} to resume; start without --resume")
    content = checkpoint.load(path, kind)
    stored = _options(type(options), content["config"], path)
    changed = {n: v for n, v in asdict(options).items() if n in given}
    checkpoint.check_config(path, asdict(stored), {**asdict(stored), **changed}, FREE)
    return content, replace(stored, **{n: v for n, v in changed.items() if n in FREE})


def _options(cls: type[Options], config: dict[str, Any], path: Path) -> Options:
    known = {field.name for field in fields(cls)}
    if set(config) != known:
        odd = ", ".join(sorted(set(config) ^ known))
        raise UserError(f"{path} was made by another version of darts_lite ({odd}); start anew")
    return cls(**config)
