"""Checkpoints: written atomically, loaded without running code, stored with their configuration."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_lite.errors import UserError
from darts_lite.files import replacing
from darts_lite.hypergradient import InnerState
from darts_lite.hypergradient.optimizers import OptimizerState

VERSION = 1
WEIGHTS = "write it with torch.save(model.state_dict(), file)"  # how to make a file of weights


def save(path: Path, kind: str, config: Mapping[str, object], state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run.

    Arguments:
        path: file to write.
        kind: kind of the run, such as "search"; `load` checks it.
        config: configuration of the run, as JSON values.
        state: nested dictionaries, lists and tuples of tensors and numbers.
    """
    write(path, {"version": VERSION, "kind": kind, "config": dict(config), "state": state})


def write(path: Path, content: Any) -> None:
    """Write a file of tensors atomically: write to a temporary file, flush it, then rename it."""
    with replacing(path, "wb") as file:
        torch.save(content, file)


def read(path: Path, remedy: str = "start without it") -> Any:
    """Return the content of a file of tensors, on the CPU.

    Arguments:
        path: file to read.
        remedy: what to do if it is damaged, for the error.
    Raises: `UserError` if the file cannot be read or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(f"{path} must be a readable checkpoint, got {reason!r}; {remedy}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dictionary in a file of weights, on the CPU.

    A file ending in .safetensors is read as such, any other as one of `torch.save`. Weights may lie
    in a checkpoint under the names that timm uses; averaged ones are preferred, as timm does.

    Arguments:
        path: file to read; no code in it is run.
    Raises: `UserError` if the file cannot be read or holds no state dictionary.
    """
    content = _safetensors(path) if path.suffix == ".safetensors" else read(path, WEIGHTS)
    for name in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    values = content.values() if isinstance(content, dict) else ()
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise UserError(
            f"{path} must hold a state dictionary of tensors, got {type(content).__name__}; "
            f"{WEIGHTS}"
        )
    # names that torch.compile and DistributedDataParallel put before those of the model
    prefixes = ("_orig_mod.", "module.", "_orig_mod.")
    for prefix in prefixes:
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path} needs safetensors, which is not installed; run pip install safetensors"
        ) from None
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(
            f"{path} must be a readable safetensors file, got {reason!r}; download it again"
        ) from None


def load(path: Path, kind: str) -> dict[str, Any]:
    """Return a checkpoint with its `config` and `state`, on the CPU.

    Arguments:
        path: file to read.
        kind: expected kind of the run, such as "search".
    Raises: `UserError` if the file is damaged, or of another kind or version.
    """
    content = read(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} must be a checkpoint of `{kind}`, got {found!r}; choose another --out"
        )
    missing = sorted({"version", "config", "state"} - set(content))
    if missing:
        raise UserError(
            f"{path} must be a complete checkpoint, got one without {', '.join(missing)}; choose "
            "another --out"
        )
    if content["version"] != VERSION:
        raise UserError(
            f"{path} must have checkpoint version {VERSION}, got version {content['version']}; "
            "choose another --out"
        )
    return content


def move(tree: Any, device: torch.device) -> Any:
    """Return the same nested tuples, lists and dictionaries with every tensor on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: move(value, device) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(move(value, device) for value in tree)
    return tree


def require_like(template: Any, found: Any, where: str) -> None:
    """Raise `ValueError` unless two trees have the same names, lengths and tensor shapes.

    Arguments:
        template: expected tree of tuples, lists, dictionaries and tensors.
        found: tree to check.
        where: name of the tree, for the error.
    """
    if isinstance(template, Tensor):
        if not isinstance(found, Tensor) or found.shape != template.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{where} must have shape {tuple(template.shape)}, got {shape}")
    elif isinstance(template, dict):
        if not isinstance(found, dict) or set(found) != set(template):
            raise ValueError(f"{where} must have the names of this run, got other names")
        for name, value in template.items():
            require_like(value, found[name], f"{where}.{name}")
    elif isinstance(template, tuple | list):
        if not isinstance(found, tuple | list) or len(found) != len(template):
            length = len(found) if isinstance(found, tuple | list) else type(found).__name__
            raise ValueError(f"{where} must have length {len(template)}, got {length}")
        for i, value in enumerate(template):
            require_like(value, found[i], f"{where}[{i}]")


def is_finite(tree: Any) -> bool:
    """Tell whether every floating tensor in nested tuples, lists and dictionaries is finite."""
    if isinstance(tree, Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(is_finite, tree.values()))
    return all(map(is_finite, tree)) if isinstance(tree, tuple | list) else True


def check_config(
    path: Path, saved: Mapping[str, object], given: Mapping[str, object], free: set[str]
) -> None:
    """Check that a resumed run has the settings of its checkpoint.

    Arguments:
        path: the checkpoint, for the error.
        saved: settings of the checkpoint.
        given: settings of the resumed run.
        free: names of the settings that may differ.
    Raises: `UserError` if another setting differs.
    """
    for name in sorted({*saved, *given} - free):
        if saved.get(name) != given.get(name):
            raise UserError(
                f"{path}: {name} must be {saved.get(name)!r}, got {given.get(name)!r}; "
                "resume with the same settings or choose another --out"
            )


def inner_state(inner: InnerState) -> dict[str, Any]:
    """Return weights, optimizer and tangents of a training as a checkpoint keeps them."""
    return {
        "params": inner.params,
        "optimizer": tuple(inner.optimizer),
        "carried": dict(inner.carried),
    }


def restored(like: InnerState, state: Mapping[str, Any]) -> InnerState:
    """Return the state in a checkpoint; raise `ValueError` if its shapes are not `like`."""
    for name, value in inner_state(like).items():
        if name != "carried":
            require_like(value, state[name], name)
    return InnerState(state["params"], OptimizerState(*state["optimizer"]), state["carried"])
