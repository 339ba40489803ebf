"""Lock of the folder of a run, so that only one process writes there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from darts_lite.errors import UserError
from darts_lite.files import locked, writing


class Lock:
    """Lock of a folder, in its file `.lock`.

    The operating system releases the lock when the process ends, however it ends. Without `fcntl`
    (Windows), or on a file system without locks, nothing is locked: two runs in one folder are then
    not noticed before the second finds the checkpoint of the first.

    The context releases the lock at its end, and takes it at once if the folder exists and is
    writable.

    Arguments:
        folder: folder to lock; `take` needs it to exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock, if this object does not have it yet.

        Raises: `UserError` if another run has it, or the folder is not writable.
        """
        if self._file is not None:
            return
        path = self.folder / ".lock"
        with writing(path):
            file = path.open("a", encoding="utf-8")
        if not locked(file, wait=False):
            file.close()
            raise UserError(
                f"{self.folder} must have one run at a time, got a second; wait for the first, or "
                "choose another --out"
            )
        self._file = file

    def __enter__(self) -> Lock:
        if self.folder.is_dir() and os.access(self.folder, os.W_OK):  # else nothing is written
            self.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
