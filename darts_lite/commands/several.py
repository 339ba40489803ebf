"""What commands of several trainings share: their file with settings and results, and the loop."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from darts_lite.commands.derive import derive
from darts_lite.files import read_json, write_json
from darts_lite.training.lock import Lock
from darts_lite.training.options import MAY_MOVE, DeriveOptions
from darts_lite.training.run import Say, goes_on, make_folder, require_free, resumed

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Several(Generic[Settings]):
    """A command of several trainings, opened on disk.

    Attributes:
        command: the command, for errors.
        result: JSON file with its settings and, at the end, its results.
        options: options of the command; for a resumed one, those in the file.
        resume: names of the options that the user gave beside --resume; None for a new one.
        content: content of the file of a resumed command.
        lock: lock of the folder of the file.
    """

    command: str
    result: Path
    options: Settings
    resume: Collection[str] | None
    content: dict[str, Any]
    lock: Lock

    @classmethod
    @contextmanager
    def open(
        cls,
        command: str,
        result: Path,
        options: Settings,
        resume: Collection[str] | None,
        say: Say,
        free: Collection[str] = (),
        results: tuple[Path, ...] = (),
    ) -> Iterator[Several[Settings]]:
        """Start a command whose file does not exist, or resume that of the file.

        A command that was killed before it wrote its file starts anew. In the context, the folder
        is locked.

        Arguments:
            command: the command, for errors.
            result: JSON file.
            options: options that the user gave.
            resume: names of the options that the user gave beside --resume; None for a new one.
            say: prints a line for the user.
            free: names of the options that may differ in a resumed command, beside the usual ones.
            results: further files that a new command must not find.
        Raises: `UserError` if there is a file, or another process runs in its folder, or another
            option differs.
        """
        own = {"genotype", *free}  # the genotype file may have moved
        with Lock(result.parent) as lock:
            if goes_on(result, resume, command, say, results):
                content = read_json(result)
                given = {*(resume or ())}
                options = resumed(options, content, given, result, MAY_MOVE | own)
                torch.set_num_threads(content["threads"])  # as in `Run.prepare`
                yield cls(command, result, options, {*given, "out"} - own, content, lock)
            else:
                yield cls(command, result, options, None, {}, lock)

    def take(self) -> None:
        """Create and lock the folder of a new command."""
        make_folder(self.result.parent)
        self.lock.take()
        if not self.content:  # another process may have begun since `open`
            require_free([self.result], self.command)

    def write(self, data: Mapping[str, Any], **results: Any) -> dict[str, Any]:
        """Write the settings, with results if there are any; return what was written.

        Arguments:
            data: fingerprint of the data set.
            results: results by name.
        """
        settings = {
            "options": asdict(self.options),  # type: ignore[call-overload]
            "data": dict(data),
            "threads": torch.get_num_threads(),
        }
        written = {**self.content, **settings, **results}
        write_json(self.result, written)
        return written


def train_each(
    options: dict[Path, DeriveOptions],
    *,
    resume: Collection[str] | None,
    started: float | None,
    say: Say,
) -> dict[Path, dict[str, Any]]:
    """Train once in every folder, and return the metrics; finished trainings are kept.

    Every training has the whole budget. The budget of the first one starts at `started`.

    Arguments:
        options: options of each training by its folder.
        resume: names of the options that the user gave beside --resume; None for new trainings.
        started: start of the first budget, on the clock of `time.monotonic`; None for now.
        say: prints a line for the user.
    """
    trained: dict[Path, dict[str, Any]] = {}
    for folder, own in options.items():
        say(f"{folder}, {len(trained) + 1} of {len(options)}")
        finished = (folder / "metrics.json").exists()
        begun = finished or (folder / "checkpoint.pt").exists()
        trained[folder] = derive(own, resume=resume if begun else None, started=started, say=say)
        if not finished:
            started = time.monotonic()
    return trained
