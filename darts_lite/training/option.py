"""What an option is: a field of a dataclass with its default, its help and its limits. No torch.

Flags, `--help`, docs/commands.md, config.json and the options that `--resume` restores are derived
from the fields (`commands.flags`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from darts_lite.errors import UserError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
    below: bool = False,
    shown: str | None = None,
    flag: str | None = None,
    alone: float | None = None,
) -> Any:
    """Return a dataclass field that is an option.

    Arguments:
        default: the default; None leaves the choice to the data or the machine.
        help: help text, with the unit.
        low: smallest allowed number.
        high: largest allowed number.
        above: whether the number must be above `low`.
        below: whether the number must be below `high`.
        shown: text of the default in the help, if the value is not clear.
        flag: the flag, if it differs from the name of the field.
        alone: value of the flag without a number; None if it needs one.
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    words = {"help": help, "shown": shown, "flag": flag, "alone": alone}
    return field(default=default, metadata={**limits, **words})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options: a value outside of its type's names or its limits is a `UserError`."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            value, flag = getattr(self, each.name), flag_of(each)
            if value is None:
                continue
            names = names_of(hints[each.name])
            if names and value not in names:
                raise UserError(f"{flag} must be one of {', '.join(names)}, got {value!r}")
            if isinstance(value, int | float):
                if not math.isfinite(value):
                    raise UserError(f"{flag} must be a finite number, got {value!r}")
                if not within(value, each.metadata):
                    raise UserError(f"{flag} must be {limits(each.metadata)}, got {value!r}")


def flag_of(each: Field[Any]) -> str:
    """Return the flag of an option."""
    return each.metadata["flag"] or "--" + each.name.replace("_", "-")


def names_of(hint: Any) -> tuple[str, ...]:
    """Return the names that a type hint allows, `Literal[...]` or `Literal[...] | None`."""
    parts = [part for part in get_args(hint) if get_origin(part) is Literal] or [hint]
    return get_args(parts[0]) if get_origin(parts[0]) is Literal else ()


def within(value: float, about: Mapping[str, Any]) -> bool:
    """Tell whether a number lies within the limits of its option."""
    low, high = about["low"], about["high"]
    if low is not None and (value < low or (about["above"] and value == low)):
        return False
    return high is None or value < high or (value == high and not about["below"])


def limits(about: Mapping[str, Any]) -> str:
    """Return the limits of an option in words."""
    low, high = about["low"], about["high"]
    words = [] if low is None else [f"{'above' if about['above'] else 'at least'} {low:g}"]
    words += [] if high is None else [f"{'below' if about['below'] else 'at most'} {high:g}"]
    return " and ".join(words)
