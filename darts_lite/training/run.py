"""The context of a run: folder, options, data, device, budget, resuming, recorder, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from darts_lite.data import Dataset, Splits, load, split
from darts_lite.errors import UserError
from darts_lite.files import read_json, write_json
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget
from darts_lite.training.options import MAY_CHANGE, DataOptions

SMALL = 16  # pixels; below, the defaults are those of a small problem
Say = Callable[[str], None]


class RunOptions(Protocol):
    """The options that every run has."""

    @property
    def device(self) -> str: ...

    @property
    def checkpoint_seconds(self) -> float: ...


Options = TypeVar("Options", bound=RunOptions)
Settings = TypeVar("Settings")


@dataclass
class Run(Generic[Options]):
    """One run of a command on disk: `open` it, `load` its data, `train` its task.

    Attributes:
        kind: name of the command, and of the kind of its checkpoint.
        folder: folder of the checkpoint, config.json, events and pictures.
        options: what the user said; of a resumed run, what its checkpoint remembers.
        say: prints a line for the user.
        saved: content of the checkpoint that the run goes on from, None for a new run.
    """

    kind: str
    folder: Path
    options: Options
    say: Say
    saved: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        kind: str,
        folder: Path,
        options: Options,
        resume: Collection[str] | None,
        say: Say,
        results: tuple[Path, ...] = (),
    ) -> Run[Options]:
        """Begin a run in a folder that holds none, or go on with the one that is there.

        Arguments:
            resume: names of the options that the user gave beside --resume; None begins anew.
            results: files of a finished run, which must not be there when one begins.
        Raises: `UserError` if a run is there, or if there is none to resume, or if an option was
            given that the run was not made with.
        """
        path = folder / "checkpoint.pt"
        if resume is None:
            require_free((*results, path), kind)
            return cls(kind, folder, options, say)
        if not path.exists():
            raise UserError(f"there is no {path} to resume; start without --resume")
        content = checkpoint.load(path, kind)
        stored = stored_options(type(options), content["config"], path)
        given = {n: v for n, v in asdict(options).items() if n in resume}  # type: ignore[call-overload]
        return cls(kind, folder, merged(path, stored, given, MAY_CHANGE), say, content)

    def load(self, data: DataOptions, seed: int) -> None:
        """Read the data, split them, and put the splits on the device."""
        self.device = device_named(self.options.device)
        self.dataset, splits = read_data(data, seed, self.say)
        if self.saved is not None:
            require_same_data(self.saved, self.dataset, self.folder / "checkpoint.pt")
        self.splits = on(self.device, splits)

    def prepare(self, task: loop.Task, budget: Budget) -> None:
        """Make the folder, write config.json, and put the checkpoint into task and budget."""
        path = self.folder / "checkpoint.pt"
        make_folder(self.folder)
        if self.saved is not None:
            # another number of threads sums in another order, and the bytes would differ
            torch.set_num_threads(self.saved["config"]["threads"])
        config = {
            "options": asdict(self.options),  # type: ignore[call-overload]
            "data": dict(self.dataset.fingerprint),
            "threads": torch.get_num_threads(),
        }
        write_json(self.folder / "config.json", config)
        self.store = loop.Store(path, self.kind, config, self.options.checkpoint_seconds)
        self.budget = budget
        self.start = loop.restore(task, self.saved, path, budget)

    def recorder(self) -> Recorder:
        """Return the recorder of the run, which drops what lies after the checkpoint."""
        return Recorder(self.folder, self.start.step if self.saved else None)

    def train(self, task: loop.Task, recorder: Recorder) -> int:
        """Drive the task until the budget is spent; return the number of steps."""
        return loop.run(task, self.budget, recorder, self.store, start=self.start, name=self.kind)


# --- pieces ------------------------------------------------------------------------------------


def read_data(options: DataOptions, seed: int, say: Say) -> tuple[Dataset, Splits]:
    """Return the data set and its splits; say which it is if the user named none."""
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
    """Return the splits on a device."""
    return Splits(*(part.to(device) for part in splits))


def is_small(dataset: Dataset) -> bool:
    """Whether the images are so small that a run is over in minutes."""
    return min(dataset.image_size) < SMALL


def device_named(name: str) -> torch.device:
    """Return the device, for "auto" a GPU if there is one; raise `UserError` if it is not here."""
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
    """Return a budget in hours from `started` on, or in steps; raise `UserError` if it is both."""
    if hours is not None and steps is not None:
        raise UserError("give a budget in hours or in steps, not both")
    if steps is not None:
        torch.backends.cudnn.deterministic = True  # a budget in steps promises the same result
    budget = Budget(None if hours is None else 3600 * hours, steps)
    if started is not None:
        budget.started = started
    return budget


def require_free(paths: Collection[Path], command: str) -> None:
    """Raise `UserError` if one of the files of a run is there already."""
    present = [path for path in paths if path.exists()]
    if present:
        raise UserError(
            f"{present[0].parent} already holds a run ({', '.join(p.name for p in present)}); "
            f"continue it with `{command} --resume` or choose another --out"
        )


def make_folder(folder: Path) -> None:
    """Make a folder; raise `UserError` if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from None


def require_same_data(content: dict[str, Any], dataset: Dataset, path: Path) -> None:
    """Raise `UserError` if a checkpoint was made with other data."""
    if content["config"]["data"] != dict(dataset.fingerprint):
        raise UserError(
            f"{path} was made with other data than {dataset.name} holds now; restore them or "
            "choose another --out"
        )


# --- options that a run remembers --------------------------------------------------------------


def stored_options(cls: type[Settings], config: Any, path: Path) -> Settings:
    """Return the options in the configuration of a checkpoint or of a JSON file."""
    known = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    found = config.get("options") if isinstance(config, dict) else None
    if not isinstance(found, dict) or set(found) != known or not {"data", "threads"} <= set(config):
        raise UserError(f"{path} was made by another version of darts_lite; start anew")
    lists = {name: tuple(v) for name, v in found.items() if isinstance(v, list)}  # of JSON
    return cls(**{**found, **lists})


def merged(path: Path, stored: Settings, given: dict[str, Any], free: Collection[str]) -> Settings:
    """Return the stored options with those in `free` replaced by the given ones.

    Raises: `UserError` if another option was given than the run was made with.
    """
    before = asdict(stored)  # type: ignore[call-overload]
    checkpoint.check_config(path, before, {**before, **given}, set(free))
    return replace(stored, **{n: v for n, v in given.items() if n in free})  # type: ignore[type-var]


def remembered(
    path: Path, options: Settings, resume: Collection[str], free: Collection[str]
) -> tuple[dict[str, Any], Settings]:
    """Return the JSON that a run goes on from, and its options with those in `free` replaced.

    Raises: `UserError` if there is none, or another option was given than it was made with.
    """
    if not path.exists():
        raise UserError(f"there is no {path} to resume; start without --resume")
    content = read_json(path)
    given = {n: v for n, v in asdict(options).items() if n in resume}  # type: ignore[call-overload]
    return content, merged(path, stored_options(type(options), content, path), given, free)
