"""The record of an operation and of a family. Imports nothing of darts_lite.

An operation is said once, in the module of its family: its function, and its record in the `FAMILY`
of that module. A family is what shares one pass over the pixels; `fused.FAMILIES` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Gradient = Literal["exact", "straight-through", "relaxed"]

OFTEN, SELDOM = 0.9, 0.1
"""Probabilities where learning begins: of cutout, and of all others.

Operations that act often from the beginning, however weak, cost accuracy: a warp by a part of a
pixel blurs, and test images are sharp (docs/results.md).
"""


class Operation(NamedTuple):
    """The record of an operation: the meaning of its value, and its derivatives.

    A value of zero is the identity.

    unit: of the value. reach: the value at a learned magnitude of one. signed: whether values below
    zero mean something. image, value: the derivative in the image and in the value.
    "straight-through" is the derivative of the identity where the true one is that of a step
    function; "relaxed" is the derivative of a smooth version. start, rate: the magnitude in [0, 1]
    and the probability where learning begins. shared: the name of a magnitude and probability that
    several operations share. color: whether the operation needs three channels.
    """

    unit: str
    reach: float
    signed: bool = True
    image: Gradient = "exact"
    value: Gradient = "exact"
    start: float = 0.05
    rate: float = SELDOM
    shared: str | None = None
    color: bool = False


@dataclass(frozen=True)
class Context:
    """Everything beside images and values that a family may need.

    center: `[B, 2]`, (x, y) of cutout's squares as fractions of width and height; start: `[B]`,
    where the noise begins in its bank; both of the whole batch. rows: `[b]`, the places in the
    batch of the images at hand, None for all. flip `[b]` and shift `[b, 2]`: done before a warp.
    points, counts: which of the images which point operation acts on, see `fused.Selection`.
    """

    center: Tensor
    start: Tensor
    rows: Tensor | None = None
    flip: Tensor | None = None
    shift: Tensor | None = None
    points: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class Family(NamedTuple):
    """Operations that share one pass over the pixels.

    operations: the records by name, in the order in which they are done. apply: from images
    `[b, C, H, W]`, values `[b, operations]` and a context to images `[b, C, H, W]`.
    """

    name: str
    operations: Mapping[str, Operation]
    apply: Callable[[Tensor, Tensor, Context], Tensor]


def rows_of(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Return the rows of a tensor, all of them for None."""
    return tensor if rows is None else tensor.index_select(0, rows)
