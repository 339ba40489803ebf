"""The operations by name, and one stage of them: what composes is done in one pass.

A stage does its operations in the order of `OPERATIONS`. The operations of one *family* share a
pass over the pixels: all geometric operations are one warp, all color operations one scaling of
chroma and luma, all point operations one table that is looked up. A family meets only the images
that one of its operations acts on; the other images pass through.

**To add an operation** to a family, write it in the module of the family, together with its record.
A family of its own is a module with a `FAMILY` and a row in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darts_lite.augment.operations import color, cutout, filters, geometry, lookup, noise
from darts_lite.augment.operations.record import Context, Family, Operation, rows_of
from darts_lite.errors import UserError

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        geometry.FAMILY,
        color.FAMILY,
        lookup.FAMILY,
        filters.SHARPNESS,
        filters.BLUR,
        noise.FAMILY,
        cutout.FAMILY,
    )
}
"""Every family, in the order in which a stage does them."""

OPERATIONS: dict[str, Operation] = {
    name: operation for family in FAMILIES.values() for name, operation in family.operations.items()
}
"""Every operation, in the order in which a stage does them."""

NAMES = tuple(OPERATIONS)
LOOKUPS = tuple(lookup.FAMILY.operations)
FAMILY_OF = {name: family.name for family in FAMILIES.values() for name in family.operations}


def _columns() -> dict[str, slice]:
    found, begin = {}, 0
    for name, family in FAMILIES.items():
        found[name] = slice(begin, begin + len(family.operations))
        begin += len(family.operations)
    return found


COLUMNS = _columns()
"""The columns of each family in a table `[B, operations]`."""

WHOLE = 0.75
"""Above this share of a batch, the whole batch is passed through a family."""


class Places(NamedTuple):
    """Where things happen in each image.

    center: `[B, 2]` of the cutout, (x, y) as fractions of width and height. start: `[B]` whole
    numbers, where the noise begins in its bank.
    """

    center: Tensor
    start: Tensor


@dataclass(frozen=True)
class Selection:
    """Which images of a batch each family, and each point operation, acts on.

    families: indices `[k]` into the batch by family, None for the whole batch; a family that acts
    on no image is left out. lookups: by point operation, indices into the images of the family
    "lookup". counts: if no image has two point operations, the images of the family "lookup" stand
    in the order of their operations, so many of each. order, restore: if no image has two
    operations at all, the permutation `[B]` that puts images without an operation first and then
    family after family, and its inverse. enter: the permutation of the incoming images, if they do
    not come in the order of the batch (see `chained`).
    """

    families: Mapping[str, Tensor | None]
    lookups: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    order: Tensor | None = None
    restore: Tensor | None = None
    enter: Tensor | None = None


def chained(selections: tuple[Selection, ...]) -> tuple[Selection, ...]:
    """Let each stage hand its images on in the order in which it has them.

    The last stage restores the order of the batch.
    """
    found = list(selections)
    for i in range(1, len(found)):
        before, order = found[i - 1].restore, found[i].order
        if before is not None and order is not None:
            found[i - 1] = replace(found[i - 1], restore=None)
            found[i] = replace(found[i], enter=before[order])
    return tuple(found)


def select(active: Tensor) -> Selection:
    """Return which images to touch, from `active` `[B, operations]`, bool, on the CPU."""
    table = active.numpy()
    if table.any() and (table.sum(1) <= 1).all():
        return _sorted(table)
    families: dict[str, Tensor | None] = {}
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
        if family == lookup.FAMILY.name:
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
    """Return a selection for one operation per image: one sorting of the batch does it all."""
    operation = np.where(table.any(1), table.argmax(1), -1)
    order = operation.argsort(kind="stable")
    restore = np.empty_like(order)
    restore[order] = np.arange(len(order))
    each = np.bincount(operation + 1, minlength=len(NAMES) + 1)
    sizes = [int(each[0]), *(int(each[1:][columns].sum()) for columns in COLUMNS.values())]
    parts = torch.from_numpy(order).split(sizes)[1:]
    families: dict[str, Tensor | None] = {f: p for f, p in zip(FAMILIES, parts) if len(p)}
    counts = {n: int(k) for n, k in zip(LOOKUPS, each[1:][COLUMNS[lookup.FAMILY.name]]) if k}
    return Selection(families, {}, counts, torch.from_numpy(order), torch.from_numpy(restore))


def stage(
    images: Tensor,
    values: Tensor,
    selection: Selection,
    places: Places,
    flip: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Do the operations of one stage: a pure function, differentiable in images and values.

    Nothing in it waits for the device. Flip and shift go before everything else; with them, the
    family "geometric" must be selected for the whole batch.

    Arguments:
        images: `[B, C, H, W]`.
        values: `[B, operations]`, zero where an operation does not act.
        selection: of `select`, for the same values.
        places: centers and beginnings, for the whole batch.
        flip: `[B]` bool, mirror left-right.
        shift: `[B, 2]`, then move by pixels (right, down).
    Returns: images `[B, C, H, W]`.
    """
    context = Context(*places, points=selection.lookups, counts=selection.counts)
    if selection.order is not None:
        families = selection.families
        ours = [len(rows) for rows in families.values() if rows is not None]
        sizes = [len(images) - sum(ours), *ours]
        enter = selection.order if selection.enter is None else selection.enter
        parts = images.index_select(0, enter).split(sizes)
        own_values = values.index_select(0, selection.order).split(sizes)
        done = [
            _do(family, mine, v, replace(context, rows=rows))
            for (family, rows), mine, v in zip(families.items(), parts[1:], own_values[1:])
        ]
        return rows_of(torch.cat((parts[0], *done)), selection.restore)
    out, own = images, False  # own: the tensor is ours to write to
    for family, rows in selection.families.items():
        mine, v = rows_of(out, rows), rows_of(values, rows)
        new = _do(family, mine, v, replace(context, rows=rows, flip=flip, shift=shift))
        if rows is None:
            out, own = new, False
        else:
            out = out.index_copy_(0, rows, new) if own else out.index_copy(0, rows, new)
            own = True
    return out


def _do(family: str, images: Tensor, values: Tensor, context: Context) -> Tensor:
    """Do the operations of one family on the images that one of them acts on."""
    return FAMILIES[family].apply(images, values[:, COLUMNS[family]], context)


def operate(name: str, images: Tensor, value: Tensor, places: Places | None = None) -> Tensor:
    """Do one operation by name: a pure function, differentiable in images and values.

    Arguments:
        name: of `OPERATIONS`, whose record says what a value means.
        images: `[B, C, H, W]` floating, in [0, 1], of 1 or 3 channels.
        value: `[B]`, in the unit of the operation; zero is the identity.
        places: for cutout and noise; by default the middle of the image, and zero.
    Returns: images `[B, C, H, W]` of the same dtype, computed in float32 or wider.
    Raises: UserError if there is no such operation, or if the images have another shape or dtype.

    >>> operate("brightness", torch.full((1, 1, 1, 1), 0.5), torch.tensor([0.5]))
    tensor([[[[0.7500]]]])
    """
    check_name(name)
    check_images(images)
    batch = len(images)
    column = torch.nn.functional.one_hot(torch.tensor(NAMES.index(name)), len(NAMES))
    dtype, images = images.dtype, widened(images)
    values = value.to(images.dtype).unsqueeze(1) * column.to(images)
    if places is None:
        start = torch.zeros(batch, dtype=torch.long, device=images.device)
        places = Places(images.new_full((batch, 2), 0.5), start)
    family = FAMILY_OF[name]
    counts = {name: batch} if family == lookup.FAMILY.name else {}
    selection = Selection({family: None}, counts=counts)
    return stage(images, values, selection, places).to(dtype)


def widened(images: Tensor) -> Tensor:
    """Return the images in float32 or wider, because coordinates and tables need it."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def check_name(name: str) -> None:
    """Raise UserError unless there is an operation of this name."""
    if name not in OPERATIONS:
        raise UserError(
            f"augment: operation must be one of {', '.join(OPERATIONS)}, got {name!r}; "
            "give one of these names"
        )


def check_images(images: Tensor, channels: int | None = None) -> None:
    """Raise UserError unless the images are floating, `[B, C, H, W]`, with 1 or 3 channels.

    Arguments:
        images: the images.
        channels: the number of channels they must have, 1 or 3 by default.
    """
    wanted = "1 or 3" if channels is None else str(channels)
    right = (1, 3) if channels is None else (channels,)
    if images.dim() != 4 or images.shape[1] not in right or not images.is_floating_point():
        raise UserError(
            f"augment: images must be floating [B, C, H, W] in [0, 1] with {wanted} channels, got "
            f"shape {tuple(images.shape)} and {images.dtype}; divide bytes by 255"
        )
