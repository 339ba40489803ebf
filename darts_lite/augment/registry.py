"""Augmentations by name, as a person types them, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from darts_lite.augment.mixing import KINDS, Mixing
from darts_lite.augment.pipeline import Augmentation
from darts_lite.augment.policies.fixed import AutoAugment, RandAugment, TrivialAugment
from darts_lite.augment.policies.learned import Learned, Scheduled
from darts_lite.augment.policies.policy import Nothing, Policy
from darts_lite.errors import UserError

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (Nothing, Policy, Learned, RandAugment, TrivialAugment, AutoAugment, Scheduled)
}
TYPED = tuple(name for name in POLICIES if name != Scheduled.name)
FORMAT = "darts_lite.augmentation"
DATA = {
    "channels",
    "flips",
    "crop",
    "vertical_flips",
    "kinds",
    "operations",
}  # settings not to be typed


def augmentation(
    text: str, channels: int, flips: bool = True, crop: int = 0, vertical_flips: bool = False
) -> Augmentation:
    """Read an augmentation as a person types it.

    For example "learned", "randaugment:n=2,m=15", "trivialaugment+cutmix", "mixup:alpha=0.2", or
    the name of a JSON file.

    Arguments:
        text: the name of a policy, then perhaps cutmix or mixup, joined by "+", each perhaps with
            settings; or the name of a file that `to_json` was written to.
        channels: channels of the images, 1 or 3.
        flips: whether the policy may mirror images left-right.
        crop: the policy's largest random shift, in whole pixels.
        vertical_flips: whether the policy may mirror images upside down.
    Raises: UserError that names what is wrong.

    >>> augmentation("randaugment:m=15+cutmix", channels=3).policy.m
    15.0
    """
    policy: Policy | None = None
    mixing: Mixing | None = None
    kinds: list[str] = []
    settings: dict[str, str] = {}
    moves: dict[str, Any] = {"flips": flips, "crop": crop, "vertical_flips": vertical_flips}
    if text.endswith(".json"):
        return load(Path(text), channels)
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        own = _settings(part, rest)
        if name in KINDS:
            kinds.append(name)
            settings |= own
        elif name in TYPED and policy is None:
            data = {"channels": channels} | ({} if name == Nothing.name else moves)
            policy = _make(POLICIES[name], {**own, **data}, f"--augment {part}", strict=False)
        elif name in TYPED:
            raise UserError(
                f"--augment {text}: there must be one policy, got {name!r} as a second; give one"
            )
        else:
            known = ", ".join((*TYPED, *KINDS))
            raise UserError(
                f"--augment: an augmentation must be one of {known}, or a .json file, got "
                f"{part!r}; join a policy and mixing with +"
            )
    if kinds:
        if isinstance(policy, Learned):  # `Augmentation` refuses probabilities with mixing
            policy = replace(policy, probabilities=False)
        mixing = _make(Mixing, {**settings, "kinds": tuple(kinds)}, f"--augment {text}", False)
    return Augmentation(policy or Policy(channels=channels, **moves), mixing)


def _settings(part: str, text: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (p.strip() for p in pair.partition("="))
        if not equals or key in DATA:
            raise UserError(
                f"--augment {part}: a setting must be as in m=15, got {pair!r}; give NAME=VALUE"
            )
        found[key] = value
    return found


def _make(cls: type[Any], settings: dict[str, Any], where: str, strict: bool) -> Any:
    try:
        return TypeAdapter(cls).validate_python(settings, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ".".join(map(str, first["loc"])) or "it"
        known = ", ".join(f.name for f in fields(cls) if f.name not in DATA) or "none"
        raise UserError(f"{where}: {what}: {first['msg']}; settings: {known}") from None


def to_json(augment: Augmentation) -> dict[str, Any]:
    """Return what `load` reads, ready for `json.dumps`."""
    return {
        "format": FORMAT,
        "version": 1,
        "policy": augment.policy.name,
        "settings": asdict(augment.policy),
        "mixing": asdict(augment.mixing) if augment.mixing else None,
    }


def load(path: Path, channels: int | None = None) -> Augmentation:
    """Read an augmentation from a file.

    Arguments:
        path: of a file with the content of `to_json`.
        channels: the channels that the images have, to be checked.
    Raises: UserError with the first thing that is wrong.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{path} must be JSON, got {error}; give a file that darts_lite wrote"
        ) from None
    head = {"format": FORMAT, "version": 1}
    if not isinstance(content, dict) or any(content.get(k) != v for k, v in head.items()):
        raise UserError(
            f"{path} must have {json.dumps(head)[1:-1]}, got other content; give a file that "
            "holds an augmentation"
        )
    name = content.get("policy")
    if not isinstance(name, str) or name not in POLICIES:
        raise UserError(
            f"{path}: policy must be one of {', '.join(POLICIES)}, got {name!r}; correct the file"
        )
    unknown = set(content) - {*head, "policy", "settings", "mixing"}
    if unknown or not isinstance(content.get("settings"), dict):
        wrong = f"unknown keys {sorted(unknown)}" if unknown else "settings must be an object"
        raise UserError(f"{path}: {wrong}; correct the file")
    policy = _from_json(POLICIES[name], content["settings"], path)
    if channels is not None and policy.channels != channels:
        raise UserError(
            f"{path} must be for images of {channels} channels, got {policy.channels}; give "
            "another augmentation"
        )
    mixing = content.get("mixing")
    return Augmentation(policy, None if mixing is None else _from_json(Mixing, mixing, path))


def _from_json(cls: type[Any], settings: Any, path: Path) -> Any:
    # Lists become tuples in the strict mode of JSON, but not in the strict mode of Python.
    try:
        return TypeAdapter(cls).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise UserError(f"{path}: {where}: {first['msg']}") from None
