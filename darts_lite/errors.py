"""The exceptions that a person is meant to read. Imports nothing of darts_lite."""

from __future__ import annotations

import signal
from pathlib import Path


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do about it.

    The command line prints it and exits with status 2; the library lets it pass.
    """


class Diverged(UserError):
    """A loss or a weight stopped being finite."""


class Interrupted(Exception):
    """A run was asked to stop; its checkpoint is on disk."""

    def __init__(self, signum: int, path: Path):
        super().__init__(f"stopped by {signal.Signals(signum).name}; {path} holds the run")
        self.signum = signum
