"""Checkpoints: written atomically, loaded without executing code, tied to their configuration."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_lite.errors import UserError
from darts_lite.files import replacing

VERSION = 1


def save(path: Path, kind: str, config: Mapping[str, object], state: Mapping[str, Any]) -> None:
    """Writes the state of a run of a `kind` with its configuration."""
    write(path, {"version": VERSION, "kind": kind, "config": dict(config), "state": state})


def write(path: Path, content: Any) -> None:
    """Write under a temporary name, flush to disk, then rename: there is always a whole file."""
    with replacing(path, "wb") as file:
        torch.save(content, file)


def read(path: Path) -> Any:
    """Return the content of a file of tensors, on the CPU; raise `UserError` if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(f"{path} is no readable checkpoint ({reason}); start without it") from None


def load(path: Path, kind: str) -> dict[str, Any]:
    """The `config` and `state` of a checkpoint, on the CPU; `UserError` if it is another kind."""
    content = read(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path} is no checkpoint of `{kind}`; choose another --out")
    if not {"version", "config", "state"} <= set(content):
        raise UserError(f"{path} is no whole checkpoint; choose another --out")
    if content["version"] != VERSION:
        raise UserError(
            f"{path} has checkpoint version {content['version']}, this darts_lite reads {VERSION}"
        )
    return content


def move(tree: Any, device: torch.device) -> Any:
    """The same tuples, lists and dictionaries with every tensor on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: move(value, device) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(move(value, device) for value in tree)
    return tree


def require_like(template: Any, found: Any, where: str) -> None:
    """Raises `ValueError` unless both have the same names, lengths and tensor shapes."""
    if isinstance(template, Tensor):
        if not isinstance(found, Tensor) or found.shape != template.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{where} has shape {shape}, not {tuple(template.shape)}")
    elif isinstance(template, dict):
        if not isinstance(found, dict) or set(found) != set(template):
            raise ValueError(f"{where} names other values")
        for name, value in template.items():
            require_like(value, found[name], f"{where}.{name}")
    elif isinstance(template, tuple | list):
        if not isinstance(found, tuple | list) or len(found) != len(template):
            raise ValueError(f"{where} has another length")
        for i, value in enumerate(template):
            require_like(value, found[i], f"{where}[{i}]")


def is_finite(tree: Any) -> bool:
    """Whether every floating tensor in nested tuples, lists and dictionaries is finite."""
    if isinstance(tree, Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(is_finite, tree.values()))
    return all(map(is_finite, tree)) if isinstance(tree, tuple | list) else True


def check_config(
    path: Path, saved: Mapping[str, object], given: Mapping[str, object], free: set[str]
) -> None:
    """Raises if a run is resumed with settings other than its own, but for those in `free`."""
    for name in sorted({*saved, *given} - free):
        if saved.get(name) != given.get(name):
            raise UserError(
                f"{path} was made with {name}={saved.get(name)!r}, not {given.get(name)!r}; "
                "resume with the same settings or choose another --out"
            )
