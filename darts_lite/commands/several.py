"""What commands of several trainings share: their file with settings and results, and the loop."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from darts_lite.architecture.genotype import Genotype
from darts_lite.commands.derive import derive
from darts_lite.files import write_json
from darts_lite.training.options import MAY_CHANGE, DeriveOptions
from darts_lite.training.run import Say, make_folder, remembered, require_free

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Several(Generic[Settings]):
    """A command of several trainings, opened on disk.

    Attributes:
        result: JSON file with its settings and, at the end, its results.
        options: options of the command; for a resumed one, those in the file.
        resume: names of the options that the user gave beside --resume; None for a new one.
        content: content of the file of a resumed command.
    """

    result: Path
    options: Settings
    resume: Collection[str] | None
    content: dict[str, Any]

    @classmethod
    def open(
        cls,
        command: str,
        result: Path,
        options: Settings,
        resume: Collection[str] | None,
        free: Collection[str] = (),
    ) -> Several[Settings]:
        """Start a command whose file does not exist, or resume that of the file.

        Arguments:
            command: the command, for errors.
            result: JSON file.
            options: options that the user gave.
            resume: names of the options that the user gave beside --resume; None for a new one.
            free: names of the options that may differ in a resumed command, beside the usual ones.
        Raises: `UserError` if there is a file, or none to resume, or another option differs.
        """
        if resume is None:
            require_free([result], command)
            return cls(result, options, None, {})
        own = {"genotype", *free}  # the genotype file may have moved
        content, options = remembered(result, options, resume, MAY_CHANGE | own)
        torch.set_num_threads(content["threads"])  # as in `Run.prepare`
        return cls(result, options, {*resume, "out"} - own, content)

    def write(self, genotype: Genotype, **results: Any) -> dict[str, Any]:
        """Write the settings, with results if there are any; return what was written."""
        settings = {
            "options": asdict(self.options),  # type: ignore[call-overload]
            "data": genotype.dataset,
            "threads": torch.get_num_threads(),
        }
        make_folder(self.result.parent)
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
