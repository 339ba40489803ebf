"""The operations by name, and one stage of them: what composes is done in one pass.

A stage does its operations in the order of `OPERATIONS`. Those of one *family* share a pass over
the pixels: all geometric ones are one warp, all colour ones one scaling of chroma and luma, all
point operations one table that is looked up. A family meets only the images that one of its
operations acts on; the others pass through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darts_lite.augment.operations import lookup
from darts_lite.augment.operations.color import COLOUR, gains, recolour
from darts_lite.augment.operations.cutout import cutout
from darts_lite.augment.operations.filters import gaussian_blur, sharpness
from darts_lite.augment.operations.geometry import GEOMETRIC, affine, warp
from darts_lite.augment.operations.noise import gaussian_noise
from darts_lite.errors import UserError

Family = Literal["geometric", "colour", "lookup", "sharpness", "blur", "noise", "cutout"]
Gradient = Literal["exact", "straight-through", "relaxed"]


class Operation(NamedTuple):
    """How an operation is done and what its value means; a value of zero is the identity."""

    family: Family
    unit: str
    signed: bool = True
    image: Gradient = "exact"  # the derivative in the image
    value: Gradient = "exact"  # the derivative in the value


OPERATIONS: dict[str, Operation] = {
    "translate_x": Operation("geometric", "fraction of the width"),
    "translate_y": Operation("geometric", "fraction of the height"),
    "rotate": Operation("geometric", "radians"),
    "shear_x": Operation("geometric", "tangent"),
    "shear_y": Operation("geometric", "tangent"),
    "scale": Operation("geometric", "logarithm of the factor"),
    "brightness": Operation("colour", "factor minus one"),
    "contrast": Operation("colour", "factor minus one"),
    "saturation": Operation("colour", "factor minus one"),
    "autocontrast": Operation("lookup", "share of the result", False),
    "equalize": Operation("lookup", "share of the result", False, "straight-through"),
    "solarize": Operation("lookup", "one minus the threshold", False, "exact", "relaxed"),
    "posterize": Operation("lookup", "eighths of the bits", False, "straight-through", "relaxed"),
    "invert": Operation("lookup", "share of the result", False),
    "sharpness": Operation("sharpness", "factor minus one"),
    "gaussian_blur": Operation("blur", "standard deviation in pixels", False),
    "gaussian_noise": Operation("noise", "standard deviation", False),
    "cutout": Operation("cutout", "fraction of the shorter side", False),
}
"""Every operation in the order in which a stage does it. "straight-through": the forward value is a
step function, the derivative in the image that of the identity; "relaxed": that in the value is of
a smooth version."""

NAMES = tuple(OPERATIONS)
FAMILIES: tuple[Family, ...] = tuple(dict.fromkeys(op.family for op in OPERATIONS.values()))
COLUMNS: dict[Family, slice] = {
    family: slice(
        min(i for i, op in enumerate(OPERATIONS.values()) if op.family == family),
        max(i for i, op in enumerate(OPERATIONS.values()) if op.family == family) + 1,
    )
    for family in FAMILIES
}
LOOKUPS = NAMES[COLUMNS["lookup"]]
assert NAMES[COLUMNS["geometric"]] == GEOMETRIC and NAMES[COLUMNS["colour"]] == COLOUR

WHOLE = 0.75  # above this share of a batch, all of it is passed through


class Places(NamedTuple):
    """Where things happen: cutout's centres `[B, 2]` and where noise begins, `[B]`."""

    centre: Tensor
    start: Tensor


@dataclass(frozen=True)
class Selection:
    """Which images of a batch the families, and among theirs the point operations, act on.

    `families`: indices `[k]` into the batch, None for all of it; a family that acts on none is not
    there. `lookups`: indices into those of the family "lookup". `counts`: if no image has two point
    operations, those of the family stand in the order of their operations, so many of each.
    `order` and `restore`: if no image has two operations at all, the permutation `[B]` that puts
    those without any first and then family after family, and its inverse. `enter`: the permutation
    of the images that come, if they do not come in the order of the batch (see `chained`).
    """

    families: Mapping[Family, Tensor | None]
    lookups: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    order: Tensor | None = None
    restore: Tensor | None = None
    enter: Tensor | None = None


def chained(selections: tuple[Selection, ...]) -> tuple[Selection, ...]:
    """Stages in a row hand their images on in the order in which they have them.

    What comes out of the last is in the order of the batch again.
    """
    found = list(selections)
    for i in range(1, len(found)):
        before, order = found[i - 1].restore, found[i].order
        if before is not None and order is not None:
            found[i - 1] = replace(found[i - 1], restore=None)
            found[i] = replace(found[i], enter=before[order])
    return tuple(found)


def select(active: Tensor) -> Selection:
    """The images to touch, from `active` `[B, operations]`, bool, on the CPU."""
    table = active.numpy()
    if table.any() and (table.sum(1) <= 1).all():
        return _sorted(table)
    families: dict[Family, Tensor | None] = {}
    lookups: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for family, columns in COLUMNS.items():
        own = table[:, columns]
        used = own.any(1)
        count = int(used.sum())
        if not count:
            continue
        whole = count > WHOLE * len(table)
        rows = np.flatnonzero(used)
        if family == "lookup":
            if own.sum() == count:
                image, operation = own.nonzero()
                order = operation.argsort(kind="stable")
                rows, whole = image[order], False
                each = np.bincount(operation, minlength=len(LOOKUPS)).tolist()
                counts = {n: k for n, k in zip(LOOKUPS, each) if k}
            else:
                chosen = own if whole else own[used]
                places = {n: np.flatnonzero(chosen[:, i]) for i, n in enumerate(LOOKUPS)}
                lookups = {n: torch.from_numpy(p) for n, p in places.items() if len(p)}
        families[family] = None if whole else torch.from_numpy(rows)
    return Selection(families, lookups, counts)


def _sorted(table: npt.NDArray[np.bool_]) -> Selection:
    """A selection of one operation an image: one sorting of the batch does it all."""
    operation = np.where(table.any(1), table.argmax(1), -1)
    order = operation.argsort(kind="stable")
    restore = np.empty_like(order)
    restore[order] = np.arange(len(order))
    each = np.bincount(operation + 1, minlength=len(NAMES) + 1)
    sizes = [int(each[0]), *(int(each[1:][columns].sum()) for columns in COLUMNS.values())]
    parts = torch.from_numpy(order).split(sizes)[1:]
    families: dict[Family, Tensor | None] = {f: p for f, p in zip(FAMILIES, parts) if len(p)}
    counts = {n: int(k) for n, k in zip(LOOKUPS, each[1:][COLUMNS["lookup"]]) if k}
    return Selection(families, {}, counts, torch.from_numpy(order), torch.from_numpy(restore))


def stage(
    images: Tensor,
    values: Tensor,
    selection: Selection,
    places: Places,
    flip: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Does the operations of one stage: a pure function, differentiable in images and values.

    Nothing in it waits for the device. With flip and shift, which go before everything else, the
    family "geometric" must be selected for the whole batch.

    Arguments: images `[B, C, H, W]`; values `[B, operations]`, zero where one does not act; flip
    `[B]` and shift `[B, 2]` of `affine`. Returns: images `[B, C, H, W]`.
    """
    if selection.order is not None:
        families = selection.families
        ours = [len(rows) for rows in families.values() if rows is not None]
        sizes = [len(images) - sum(ours), *ours]
        enter = selection.order if selection.enter is None else selection.enter
        parts = images.index_select(0, enter).split(sizes)
        own_values = values.index_select(0, selection.order).split(sizes)
        done = [
            _family(family, mine, v, places, rows, selection)
            for (family, rows), mine, v in zip(families.items(), parts[1:], own_values[1:])
        ]
        return rows_of(torch.cat((parts[0], *done)), selection.restore)
    out, own = images, False  # own: the tensor is ours to write to
    for family, rows in selection.families.items():
        mine, v = rows_of(out, rows), rows_of(values, rows)
        new = _family(family, mine, v, places, rows, selection, flip, shift)
        if rows is None:
            out, own = new, False
        else:
            out = out.index_copy_(0, rows, new) if own else out.index_copy(0, rows, new)
            own = True
    return out


def _family(
    family: Family,
    images: Tensor,
    values: Tensor,
    places: Places,
    rows: Tensor | None,
    selection: Selection,
    flip: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The operations of one family, for the images `rows` of the batch that one of them acts on."""
    v = values[:, COLUMNS[family]]
    match family:
        case "geometric":
            size = (images.shape[-2], images.shape[-1])
            return warp(images, affine(v, size, flip, shift))
        case "colour":
            return recolour(images, gains(v))
        case "lookup":
            return lookup.lookup(images, _table(images, v, selection))
        case "sharpness":
            return sharpness(images, v[:, 0])
        case "blur":
            return gaussian_blur(images, v[:, 0])
        case "noise":
            return gaussian_noise(images, v[:, 0], rows_of(places.start, rows))
        case "cutout":
            return cutout(images, v[:, 0], rows_of(places.centre, rows))


def rows_of(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


def _table(images: Tensor, values: Tensor, selection: Selection) -> lookup.Table:
    """All point operations of a stage in one; statistics are of the images that enter it."""
    if selection.counts:
        each = list(selection.counts.values())
        size = (-1, images.shape[1], lookup.LEVELS)
        tables = [
            getattr(lookup, name)(some, v[:, LOOKUPS.index(name)])
            for name, some, v in zip(selection.counts, images.split(each), values.split(each))
        ]
        slopes, offsets = ([p.expand(size) for p in parts] for parts in zip(*tables))
        return lookup.Table(torch.cat(slopes), torch.cat(offsets))
    table = lookup.identity(images)
    for name, rows in selection.lookups.items():
        column = values[:, LOOKUPS.index(name)].index_select(0, rows)
        make = getattr(lookup, name)
        old = lookup.Table(*(part.index_select(0, rows) for part in table))
        new = lookup.compose(old, make(images.index_select(0, rows), column))
        table = lookup.Table(*(a.index_copy(0, rows, b) for a, b in zip(table, new)))
    return table


def operate(name: str, images: Tensor, value: Tensor, places: Places | None = None) -> Tensor:
    """One operation by name: a pure function of images `[B, C, H, W]` and values `[B]`.

    Arguments: `places`, for cutout and noise; the middle of the image and zero by default.
    Raises: UserError if there is no such operation, or for images that are none.

    >>> operate("brightness", torch.full((1, 1, 1, 1), 0.5), torch.tensor([0.5]))
    tensor([[[[0.7500]]]])
    """
    if name not in OPERATIONS:
        raise UserError(f"augment: no operation {name!r}; known: {', '.join(OPERATIONS)}")
    check_images(images)
    batch = len(images)
    column = torch.nn.functional.one_hot(torch.tensor(NAMES.index(name)), len(NAMES))
    values = value.to(images.dtype).unsqueeze(1) * column.to(images)
    if places is None:
        start = torch.zeros(batch, dtype=torch.long, device=images.device)
        places = Places(images.new_full((batch, 2), 0.5), start)
    family = OPERATIONS[name].family
    counts = {name: batch} if family == "lookup" else {}
    selection = Selection({family: None}, counts=counts)
    return stage(images, values, selection, places)


def check_images(images: Tensor, channels: int | None = None) -> None:
    """Raises: UserError unless the images are floating, `[B, C, H, W]`, of 1 or 3 channels."""
    wanted = "1 or 3" if channels is None else str(channels)
    right = (1, 3) if channels is None else (channels,)
    if images.dim() != 4 or images.shape[1] not in right or not images.is_floating_point():
        raise UserError(
            f"augment: images of shape {tuple(images.shape)} and {images.dtype}; needs floating "
            f"[B, C, H, W] in [0, 1] with {wanted} channels"
        )
