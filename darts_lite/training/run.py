"""A run of a command: folder, options, data, device, budget, resuming, recorder, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from darts_lite.data import Dataset, Splits, changed, load, split
from darts_lite.data.images import is_own
from darts_lite.data.surveys import description
from darts_lite.errors import UserError
from darts_lite.files import write_json
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget
from darts_lite.training.device import device_named
from darts_lite.training.lock import Lock
from darts_lite.training.options import MAY_MOVE, DataOptions
from darts_lite.training.progress import Progress
from darts_lite.training.source import reading_of

USUAL_HOURS = 1.0  # of a search, for the size of images
SMALL = 16  # pixels per side; smaller images have the defaults of a small problem
Say = Callable[[str], None]


class RunOptions(Protocol):
    """Options that every run has."""

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
        kind: name of the command; also the kind of its checkpoint.
        folder: folder of the checkpoint, config.json, events and pictures.
        options: options of the run; for a resumed run, the options in its checkpoint.
        say: prints a line for the user.
        results: files of a finished run.
        saved: content of the checkpoint of a resumed run; None for a new run.
        progress: progress bar.
        lock: lock of the folder.
    """

    kind: str
    folder: Path
    options: Options
    say: Say
    results: tuple[Path, ...]
    saved: dict[str, Any] | None
    progress: Progress
    lock: Lock

    @classmethod
    @contextmanager
    def open(
        cls,
        kind: str,
        folder: Path,
        options: Options,
        resume: Collection[str] | None,
        say: Say,
        results: tuple[Path, ...] = (),
        progress: Progress | None = None,
    ) -> Iterator[Run[Options]]:
        """Start a run in a folder without a run, or resume the run in the folder.

        A run that was killed before its first checkpoint starts anew. In the context, the folder is
        locked and the progress bar is open.

        Arguments:
            kind: name of the command.
            folder: folder of the run.
            options: options that the user gave.
            resume: names of the options that the user gave beside --resume; None starts a new run.
            say: prints a line for the user.
            results: files of a finished run; a new run needs a folder without them.
            progress: progress bar of a command of several runs; None for one of its own.
        Raises: `UserError` if the folder of a new run holds a run, or another process runs there,
            or an option differs from the option of the resumed run.
        """
        path = folder / "checkpoint.pt"
        bar = Progress(kind) if progress is None else nullcontext(progress)
        with Lock(folder) as lock, bar as shown:
            said, saved = shown.above(say), None
            if goes_on(path, resume, kind, said, results):
                saved = checkpoint.load(path, kind)
                options = resumed(options, saved["config"], resume or (), path)
            yield cls(kind, folder, options, said, results, saved, shown, lock)

    def load(self, data: DataOptions, seed: int, dataset: Dataset | None = None) -> None:
        """Read the data, split them, and move the splits to the device.

        Arguments:
            data: options of the data.
            seed: random seed of the splits.
            dataset: data set of the options; None to read it.
        Raises: `UserError` if the data differ from the data of the resumed run.
        """
        self.progress.doing("reading the data")
        self.device = device_named(self.options.device)
        if dataset is None:
            self.dataset, splits = read_data(data, seed, self.say)
        else:
            self.dataset, splits = dataset, split(dataset, subset=data.subset, seed=seed)
        if self.saved is not None:
            before = self.saved["config"]["data"]
            require_same_data(before, self.dataset, self.folder / "checkpoint.pt")
        self.splits = on(self.device, splits)

    def prepare(self, task: loop.Task, budget: Budget) -> None:
        """Create and lock the folder, write config.json, and load the checkpoint.

        Arguments:
            task: new task, which takes the state of the checkpoint.
            budget: budget of the run, which takes the spent time.
        """
        path = self.folder / "checkpoint.pt"
        make_folder(self.folder)
        self.lock.take()
        if self.saved is None:  # another process may have begun since `open`
            require_free((*self.results, path), self.kind)
        else:
            # another number of threads adds in another order, so results would not be bit-identical
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
        """Return the recorder of the run; it drops records after the checkpoint."""
        return Recorder(self.folder, self.start.step if self.saved else None)

    def train(self, task: loop.Task, recorder: Recorder) -> int:
        """Run the task until the budget is spent; return the number of steps."""
        return loop.run(
            task, self.budget, recorder, self.store, start=self.start, progress=self.progress
        )


# --- pieces ------------------------------------------------------------------------------------


def read_data(options: DataOptions, seed: int, say: Say) -> tuple[Dataset, Splits]:
    """Return the data set and its splits; print what was found in a user's own images.

    Arguments:
        options: options of the data.
        seed: random seed of the splits.
        say: prints a line for the user.
    """
    dataset = load(
        options.dataset,
        Path(options.data_dir),
        download=options.download,
        image_size=options.image_size,
        how=reading_of(options),
        seconds=3600 * (getattr(options, "budget_hours", None) or USUAL_HOURS),
    )
    if options.dataset is None:
        say(f"no --dataset given: using {dataset.name}, the first data set on this machine")
    splits = split(dataset, subset=options.subset, seed=seed)
    for line in description(dataset, splits) if is_own(dataset.name) else ():
        say(line)
    return dataset, splits


def on(device: torch.device, splits: Splits) -> Splits:
    """Return the splits on a device."""
    return Splits(*(part.to(device) for part in splits))


def is_small(dataset: Dataset) -> bool:
    """Tell whether the images are so small that a run takes minutes only."""
    return min(dataset.image_size) < SMALL


def budget_of(hours: float | None, steps: int | None, started: float | None) -> Budget:
    """Return a budget in hours or in steps.

    Arguments:
        hours: wall-clock hours; None for a budget in steps.
        steps: number of steps; None for a budget in hours.
        started: start of the budget, on the clock of `time.monotonic`; None for now.
    Raises: `UserError` if both hours and steps are given.
    """
    if hours is not None and steps is not None:
        raise UserError(
            f"the budget must be in hours or in steps, not both, got {hours:g} hours and {steps} "
            "steps; give one of them"
        )
    if steps is not None:
        torch.backends.cudnn.deterministic = True  # a budget in steps is exactly reproducible
    budget = Budget(None if hours is None else 3600 * hours, steps)
    if started is not None:
        budget.started = started
    return budget


def require_free(paths: Collection[Path], command: str) -> None:
    """Raise `UserError` if a file of a run already exists.

    Arguments:
        paths: files of the run.
        command: command to resume the run, for the error.
    """
    present = [path for path in paths if path.exists()]
    if present:
        raise UserError(
            f"{present[0].parent} must not hold a run, got {', '.join(p.name for p in present)}; "
            f"continue the run with `{command} --resume` or choose another --out"
        )


def goes_on(
    path: Path, resume: Collection[str] | None, command: str, say: Say, results: Collection[Path]
) -> bool:
    """Tell whether a run goes on from its file; without one, --resume starts the run anew.

    Arguments:
        path: file of the run that --resume reads.
        resume: names of the options that the user gave beside --resume; None starts a new run.
        command: command to resume the run, for errors.
        say: prints a line for the user.
        results: files of a finished run.
    Raises: `UserError` if a new run would write over a run or its results.
    """
    if resume is None:
        require_free((*results, path), command)
        return False
    if path.exists():
        return True
    for result in results:
        if result.exists():
            raise UserError(
                f"{path} must exist, because {result} does, got no such file; choose another --out"
            )
    say(f"there is no {path} to resume: starting anew")
    return False


def make_folder(folder: Path) -> None:
    """Create a folder; raise `UserError` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from None


def require_same_data(data: Mapping[str, Any], dataset: Dataset, path: Path | str) -> None:
    """Raise `UserError` if a run was made with other data; equal bytes are equal data.

    Arguments:
        data: fingerprint of the data of the run.
        dataset: data set of the resumed run.
        path: file of the run, for the error.
    """
    difference = changed(data, dataset.fingerprint)
    if difference is not None:
        raise UserError(
            f"the data of {dataset.name} must be the data of {path}, got {difference}; restore the "
            "data, say where they lie by --dataset, or choose another --out"
        )


# --- options of a resumed run ------------------------------------------------------------------


def stored_options(cls: type[Settings], config: Any, path: Path) -> Settings:
    """Return the options in the configuration of a checkpoint or of a JSON file.

    Arguments:
        cls: class of the options.
        config: the configuration.
        path: file of the configuration, for the error.
    Raises: `UserError` if the configuration is of another version of darts_lite.
    """
    known = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    found = config.get("options") if isinstance(config, dict) else None
    if not isinstance(found, dict) or set(found) != known or not {"data", "threads"} <= set(config):
        raise UserError(
            f"{path} must be of this version of darts_lite, got other options; start a new run"
        )
    # JSON has lists instead of tuples
    lists = {name: tuple(v) for name, v in found.items() if isinstance(v, list)}
    return cls(**{**found, **lists})


def resumed(
    options: Settings,
    config: Any,
    resume: Collection[str],
    path: Path,
    free: Collection[str] = MAY_MOVE,
) -> Settings:
    """Return the stored options of a run, with the given values of the options in `free`.

    Arguments:
        options: options that the user gave.
        config: configuration of the run, with its options.
        resume: names of the options that the user gave beside --resume.
        path: file of the configuration, for the error.
        free: names of the options that may differ from the run.
    Raises: `UserError` if a given option that is not in `free` differs from the stored option.
    """
    stored = stored_options(type(options), config, path)
    given = {n: v for n, v in asdict(options).items() if n in resume}  # type: ignore[call-overload]
    before = asdict(stored)  # type: ignore[call-overload]
    checkpoint.check_config(path, before, {**before, **given}, set(free))
    return replace(stored, **{n: v for n, v in given.items() if n in free})  # type: ignore[type-var]
