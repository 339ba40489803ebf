"""Who is alive, and for how long somebody was."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress


def covered(spans: Iterable[Sequence[float]]) -> float:
    """The length of a union of intervals.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for low, high in sorted((s[0], s[1]) for s in spans):
        total += max(0.0, high - max(low, end))
        end = max(end, high)
    return total


def worker_name(index: int) -> str:
    """Of this process: its index, machine and number, unlike that of any other that is alive."""
    return f"{index} {_machine()} {os.getpid()}"


def _machine() -> str:
    with suppress(OSError):  # containers of one name count their processes apart
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def is_dead(worker: str) -> bool:
    """Whether a worker of this machine has no process any more; others are never known to."""
    _, _, rest = worker.partition(" ")
    machine, _, pid = rest.rpartition(" ")
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
