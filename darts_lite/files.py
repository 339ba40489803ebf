"""Files that are whole or absent: atomic writes, full disks, JSON, JSON lines, faults of a JSON.

Imports no torch.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from darts_lite.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, quota, largest size of a file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside the block into a `UserError` that names the file.

    `torch.save` reports a failed write as a `RuntimeError` that follows the `OSError`.

    Arguments:
        path: the file that is written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        remedy = "free some space" if reason.errno in FULL else "choose another place"
        raise UserError(
            f"cannot write {path}: {reason.strerror or reason}; earlier files are kept: {remedy}, "
            "then repeat the command (a run with --resume)"
        ) from None


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Leave out the traceback that Python prints for a write that fails in a thread.

    TensorBoard writes in a thread, and its writer raises the error of the thread again.
    """
    hook = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            hook(args)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file under a temporary name; flush it to disk and rename it when all is written.

    If writing fails, the temporary file is removed and `path` stays as it was.

    Arguments:
        path: the final name; the temporary file lies beside it.
        mode: "w" for UTF-8 text, "wb" for bytes.
    Raises: `UserError` if the disk is full or not writable.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def locked(file: IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed or the process ends; return whether that was possible.

    Without `fcntl` (Windows), or on a file system without locks, nothing is locked.

    Arguments:
        file: the file.
        wait: whether to wait for another process that has the lock.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, atomically."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raise `UserError` if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no JSON; restore it or choose another file") from None


def json_line(values: Mapping[str, object]) -> str:
    """Return one line of a JSON-lines file, with its end."""
    return json.dumps(values, allow_nan=False) + "\n"


def write_lines(path: Path, lines: list[str]) -> None:
    """Write whole lines, atomically."""
    with replacing(path) as file:
        file.writelines(lines)


def append_line(path: Path, line: str) -> None:
    """Append one whole line to a file, which is created if it is missing."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, none if it is missing; drop a last one torn by a crash.

    Raises: `UserError` if a whole line is no UTF-8 text.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    try:
        return [line.decode() + "\n" for line in lines]  # a torn one may end amid a character
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; move it away") from None


def first_fault(error: ValidationError, whole: str = "the file") -> str:
    """Return where a JSON is wrong first, and what is wrong: `space.cells.0: ...`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
