"""What every run needs before it begins: its data, device, budget, folder and checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from darts_lite.architecture.space import write_json
from darts_lite.commands.options import DataOptions, DeriveOptions, SearchOptions
from darts_lite.data import Dataset, Splits, load, split
from darts_lite.errors import UserError
from darts_lite.training import loop
from darts_lite.training.budget import Budget

Say = Callable[[str], None]


def data(options: DataOptions, seed: int, say: Say) -> tuple[Dataset, Splits]:
    """The data set and its splits; says which it took where the user named none."""
    dataset = load(
        options.dataset,
        Path(options.data_dir),
        download=options.download,
        image_size=options.image_size,
    )
    if options.dataset is None:
        say(f"no --dataset given: using {dataset.name}, the first that is on this machine")
    return dataset, split(dataset, subset=options.subset, seed=seed)


def on(device: torch.device, splits: Splits) -> Splits:
    """The splits on a device."""
    return Splits(*(part.to(device) for part in splits))


def device_named(name: str) -> torch.device:
    """The device, "auto" being a GPU where there is one; raises `UserError` if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(f"no device {name!r} here ({reason}); use --device cpu") from None
    return device


def budget_of(hours: float | None, steps: int | None, started: float | None) -> Budget:
    """A budget in hours from `started` on, or in steps; raises `UserError` if it is both."""
    if hours is not None and steps is not None:
        raise UserError("give a budget in hours or in steps, not both")
    if steps is not None:
        torch.backends.cudnn.deterministic = True  # a budget in steps promises the same result
    budget = Budget(None if hours is None else 3600 * hours, steps)
    if started is not None:
        budget.started = started
    return budget


def require_free(folder: Path, names: list[str], command: str) -> None:
    """Raises `UserError` if a run is there already."""
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise UserError(
            f"{folder} already holds a run ({', '.join(present)}); continue it with "
            f"`{command} --resume` or choose another --out"
        )


def make_folder(folder: Path) -> None:
    """Makes a folder; raises `UserError` if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from None


def store(
    folder: Path,
    kind: str,
    options: SearchOptions | DeriveOptions,
    dataset: Dataset,
    content: dict[str, Any] | None,
) -> loop.Store:
    """Where the run keeps its checkpoint; writes its settings for people."""
    path = folder / "checkpoint.pt"
    if content is not None:
        require_same_data(content, dataset, path)
        # another number of threads sums in another order, and the bytes would differ
        torch.set_num_threads(content["config"]["threads"])
    config = {
        "options": asdict(options),
        "data": dict(dataset.fingerprint),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "config.json", config)
    return loop.Store(path, kind, config, options.checkpoint_seconds)


def require_same_data(content: dict[str, Any], dataset: Dataset, path: Path) -> None:
    """Raises `UserError` if a checkpoint was made with other data."""
    if content["config"]["data"] != dict(dataset.fingerprint):
        raise UserError(
            f"{path} was made with other data than {dataset.name} holds now; restore them or "
            "choose another --out"
        )
