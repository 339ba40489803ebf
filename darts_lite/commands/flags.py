"""Make command-line flags, and their help texts, from the dataclasses of options."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import click

from darts_lite.training.option import flag_of, names_of

Command = Callable[..., Any]


def options_of(cls: type[Any], required: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Return a decorator that gives a command one flag per field of an options dataclass.

    Arguments:
        cls: the dataclass; its fields are made by `training.option.option`.
        required: names of the fields that a new run needs; the command checks them, because a
            resumed run has them already.
    """
    hints = get_type_hints(cls)

    def decorate(command: Command) -> Command:
        for each in reversed(fields(cls)):
            command = _flag(each, hints[each.name], each.name in required)(command)
        return command

    return decorate


def _flag(each: Field[Any], hint: Any, required: bool) -> Callable[[Command], Command]:
    about, name = each.metadata, each.name
    flag = flag_of(each)
    common: dict[str, Any] = {"help": _help(each, required)}
    if hint is bool or hint == bool | None:
        both = flag if each.default is False else f"{flag}/--no-{flag[2:]}"
        return click.option(both, name, default=each.default, is_flag=True, help=common["help"])
    if get_origin(hint) is tuple:
        return click.option(
            flag, name, multiple=True, default=each.default, metavar="PATH", **common
        )
    default = None if required else each.default
    if about["alone"] is not None:
        common |= {"is_flag": False, "flag_value": about["alone"]}
    return click.option(flag, name, type=_type(hint, about), default=default, **common)


def _type(hint: Any, about: Any) -> click.ParamType:
    """Return the click type of a type hint with its limits.

    `X | None` counts as X, and `int | str` as text, which the dataclass checks.
    """
    if names := names_of(hint):
        return click.Choice(list(names))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        hint = str if str in parts else parts[0]
    if hint in (int, float):
        limits = {
            "min": about["low"],
            "max": about["high"],
            "min_open": about["above"],
            "max_open": about["below"],
        }
        if hint is int:
            return click.IntRange(**limits) if about["low"] is not None else click.INT
        return click.FloatRange(**limits) if about["low"] is not None else click.FLOAT
    return click.STRING


def _help(each: Field[Any], required: bool) -> str:
    default = default_text(each)
    text = each.metadata["help"]
    if required:
        return f"{text}  [required]"
    return text if default is None else f"{text}  [default: {default}]"


def default_text(each: Field[Any]) -> str | None:
    """Return the text of a default for help and documentation; None for no text."""
    if each.metadata["shown"]:
        return str(each.metadata["shown"])
    if isinstance(each.default, bool):
        return flag_of(each) if each.default else None
    return None if each.default is None or each.default == () else str(each.default)
