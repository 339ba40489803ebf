"""Exceptions with a message for the user. Imports nothing of darts_lite."""

from __future__ import annotations

import signal
from pathlib import Path


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, where, and what to do.

    The command line prints the message and exits with status 2. The library does not catch it.
    """


class Diverged(UserError):
    """A loss or a weight is not finite any more."""


class Interrupted(Exception):
    """A signal stopped a run; its checkpoint is on disk.

    Arguments:
        signum: Number of the signal.
        path: Checkpoint or folder of the run.
    """

    def __init__(self, signum: int, path: Path):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the checkpoint is {path}")
        self.signum = signum
