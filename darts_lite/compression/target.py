"""The size that a compressed network may have: parameters, MACs or milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from darts_lite.architecture.cost import Cost
from darts_lite.compression.options import CompressOptions
from darts_lite.errors import UserError
from darts_lite.training.latency import latency_of, of_network

BATCH = 32  # images of a measurement of milliseconds
REPEATS = 3  # measurements; the fastest counts, because other jobs only slow down
BISECTIONS = 20
ENOUGH = 0.005  # share of the size at which a bisection ends
Made = TypeVar("Made")
FLAGS = {"params": "--target-params", "macs": "--target-macs", "ms": "--target-ms"}


@dataclass(frozen=True)
class Target:
    """A limit of the size.

    Arguments:
        kind: what is limited.
        limit: largest number of parameters or MACs, or milliseconds of a batch of 32 images.
    """

    kind: Literal["params", "macs", "ms"]
    limit: float

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return FLAGS[self.kind]

    def of(self, cost: tuple[float, float]) -> float:
        """Return the limited one of parameters and MACs."""
        assert self.kind != "ms"
        return cost[0] if self.kind == "params" else cost[1]

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        unit = {"params": "parameters", "macs": "MACs", "ms": "ms"}[self.kind]
        return f"{value:.3g} {unit}" if self.kind == "ms" else f"{value:.0f} {unit}"

    def impossible(self, smallest: float, way: str) -> UserError:
        """Return the error for a target that cannot be reached.

        Arguments:
            smallest: smallest possible value.
            way: name of the method, for the error.
        """
        return UserError(
            f"{self.flag} must be at least {self.shown(smallest)}, the smallest possible network "
            f"by {way}, got {self.limit:g}; raise it, or choose another --method"
        )


def target_of(options: CompressOptions) -> Target | None:
    """Return the target of the options; None if there is none.

    Raises: `UserError` if there are several.
    """
    given: list[Target] = []
    if len(options.targets) > 1:
        raise UserError(
            f"--target-params must be one number without --compare, got {options.target_params}; "
            "give one, or add --compare"
        )
    given += [Target("params", each) for each in options.targets]
    if options.target_macs is not None:
        given.append(Target("macs", options.target_macs))
    if options.target_ms is not None:
        given.append(Target("ms", options.target_ms))
    if len(given) > 1:
        raise UserError(
            f"there must be one target, got {' and '.join(each.flag for each in given)}; leave all "
            "but one out"
        )
    return given[0] if given else None


def require_below(target: Target, cost: Cost, where: Path) -> None:
    """Raise `UserError` if a target of parameters or MACs is not below the size of a network.

    Arguments:
        target: the target.
        cost: parameters and MACs of the network.
        where: folder of the network, for the error.
    """
    if target.kind != "ms" and target.limit >= target.of(cost):
        raise UserError(
            f"{target.flag} must be below {target.shown(target.of(cost))}, the size of {where}, "
            f"got {target.limit:g}; lower it"
        )


def times_of(network: nn.Module, image: tuple[int, int, int]) -> dict[str, float]:
    """Return the median milliseconds of a call by its number of images, on the network's device.

    Arguments:
        network: network in evaluation mode.
        image: channels, height and width of an image.
    """
    call = of_network(network, next(network.parameters()).device)
    found = latency_of(call, image)["batches"]
    return {str(each["batch"]): each["median_ms"] for each in found}


def milliseconds(network: nn.Module, image: tuple[int, int, int]) -> float:
    """Return the median milliseconds of a batch of 32 images on the device of a network.

    Arguments:
        network: network in evaluation mode.
        image: channels, height and width of an image.
    """
    return min(times_of(network, image)[str(BATCH)] for _ in range(REPEATS))


def largest_within(
    make: Callable[[float], Made],
    value_of: Callable[[Made], float],
    target: Target,
    sizes: tuple[float, float],
    way: str,
) -> Made:
    """Return the largest network within a target, by bisection over another measure of its size.

    Arguments:
        make: returns the network of a size.
        value_of: value of a network that the target limits.
        target: the target.
        sizes: smallest and largest size for `make`.
        way: name of the method, for the error.
    Raises: `UserError` if no network is within the target; it names the smallest value.
    """
    low, high = sizes
    smallest = make(low)
    if value_of(smallest) > target.limit:
        raise target.impossible(value_of(smallest), way)
    found = smallest
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        made = make(middle)
        if value_of(made) <= target.limit:
            found, low = made, middle
        else:
            high = middle
        if high - low < ENOUGH * sizes[1]:
            break
    return found


def between(now: float, target: Target, share: float) -> Target:
    """Return the target of one stage of several, in equal factors.

    Arguments:
        now: value of the target's kind before all stages.
        target: target of the last stage.
        share: share of the way of this stage, above 0 to 1.

    >>> between(1600, Target("params", 100), 0.5)
    Target(kind='params', limit=400.0)
    """
    return Target(target.kind, now * (target.limit / now) ** share)
