"""Worker liveness: names, dead processes, and the time with at least one live session."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress


def covered(spans: Iterable[Sequence[float]]) -> float:
    """Return the length of a union of intervals.

    Arguments:
        spans: Intervals (start, end).

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for low, high in sorted((s[0], s[1]) for s in spans):
        total += max(0.0, high - max(low, end))
        end = max(end, high)
    return total


def worker_name(index: int) -> str:
    """Return the name of this worker: index, machine, process ID; unique among live workers."""
    return f"{index} {_machine()} {os.getpid()}"


def _machine() -> str:
    with suppress(OSError):  # containers with one host name have separate process IDs
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def is_dead(worker: str) -> bool:
    """Tell whether a worker is dead: it is of this machine and its process does not exist.

    Workers of other machines are never reported as dead.
    """
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
