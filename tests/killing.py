"""Commands that are killed: in a process of their own, or by a signal to this one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from darts_lite.training.task import TrainTask

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

KILLED = """
import os, signal, sys
{prelude}
import {module} as module
owner, count = module{owner}, 0
original = owner.{name}
def killing(*args, **kwargs):
    global count
    count += 1
    if count == {at}:
        if {after}: original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
owner.{name} = killing
from darts_lite.commands.cli import main
main(sys.argv[1:])
"""


def killed(
    module: str, owner: str, name: str, at: int, after: bool, *arguments: object, prelude: str = ""
) -> None:
    """Run a command that kills itself with signal 9 at the `at`-th call of a function.

    Arguments:
        module: module of the function.
        owner: "" for a function of the module, or "." and the name of its class.
        name: name of the function.
        at: number of the call, from 1.
        after: whether the call is made before the kill.
        arguments: words of the command line.
        prelude: lines of Python to run first.
    """
    code = KILLED.format(prelude=prelude, module=module, owner=owner, name=name, at=at, after=after)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """Send SIGTERM to this process at a step of a final training, counted from 1."""
    original, count = TrainTask.step, 0

    def step(task: TrainTask, fraction: float) -> int:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, fraction)

    with monkeypatch.context() as patch:
        patch.setattr(TrainTask, "step", step)
        yield
