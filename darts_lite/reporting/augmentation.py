"""What an augmentation does, as pictures and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from darts_lite.augment import OPERATIONS, Augmentation, operate
from darts_lite.augment.policies.policy import Strength, Values
from darts_lite.reporting import pictures
from darts_lite.schedules import Schedule, interpolate

COLUMNS = 9
DRAWS = 32  # random draws below the sheet
MOMENTS = 11  # columns of a heat map over time


def preview(
    augment: Augmentation, images: Tensor, values: Values | None = None, fraction: float = 0.0
) -> pictures.Image:
    """Each operation from end to end of its range, and below it random draws.

    Arguments: images `[B, C, H, W]` in [0, 1], of which the operations take one after the other and
    the draws the first; values, learned ones; fraction, of the training, for a schedule.
    """
    size = (images.shape[-2], images.shape[-1])
    values = {name: value.detach() for name, value in (values or {}).items()}
    shown = images[torch.arange(DRAWS) % len(images)]
    generator = torch.Generator().manual_seed(0)
    choices = augment.sample(DRAWS, size, generator, shown.device, values, fraction)
    draws = pictures.image_grid(augment.apply(shown, choices, values).images.cpu().numpy())
    strengths = augment.policy.strengths(size, values, fraction)
    if not strengths:
        return draws
    rows = [
        _range(name, image, strength.value)
        for (name, strength), image in zip(strengths.items(), images.repeat(20, 1, 1, 1))
    ]
    names = [f"{name}, {strength.rate:.2f}" for name, strength in strengths.items()]
    title = "operations (how often), from end to end of their range"
    columns = ["lowest", *[""] * (COLUMNS - 2), "highest"]
    sheet = pictures.labeled_grid(torch.stack(rows).cpu().numpy(), names, columns, title)
    return pictures.stack(sheet, draws)


def _range(name: str, image: Tensor, value: float) -> Tensor:
    """One operation `[COLUMNS, C, H, W]`, from -value to value, or from zero without a sign."""
    low = -value if OPERATIONS[name].signed else 0.0
    values = torch.linspace(low, value, COLUMNS, dtype=image.dtype, device=image.device)
    return operate(name, image.expand(COLUMNS, -1, -1, -1), values)


def table(strengths: Mapping[str, Strength]) -> str:
    """Readable lines: operation, how often, how strong.

    >>> print(table({"rotate": Strength(0.25, 0.5)}))
    operation       how often  up to
    rotate               0.50  ±0.250 radians
    """
    lines = ["operation       how often  up to"]
    for name, (value, rate) in strengths.items():
        operation = OPERATIONS[name]
        sign = "±" if operation.signed else " "
        lines.append(f"{name:15s} {rate:9.2f}  {sign}{value:.3f} {operation.unit}")
    return "\n".join(lines)


def over_time(schedules: Mapping[str, Schedule], what: str) -> pictures.Image | None:
    """A heat map of "magnitude" or "probability": rows are operations, columns moments."""
    own = {n.partition(".")[2]: s for n, s in schedules.items() if n.startswith(f"{what}.")}
    if not own:
        return None
    moments: Sequence[float] = np.linspace(0, 1, MOMENTS).tolist()
    values = [[interpolate(schedule, f) for f in moments] for schedule in own.values()]
    columns = [f"{f:.0%}" for f in moments]
    return pictures.heat_map(list(own), columns, values, f"learned: {what}, over the search")
