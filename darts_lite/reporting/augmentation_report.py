"""The effect of an augmentation, as pictures and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from darts_lite.augment import OPERATIONS, Augmentation, operate
from darts_lite.augment.policies.policy import Strength, Values
from darts_lite.reporting import pictures
from darts_lite.schedules import Schedule, interpolate

COLUMNS = 9  # images per operation, from the lowest to the highest value
DRAWS = 32  # randomly augmented images below the operations
MOMENTS = 11  # columns of a heat map over time


def draw_augmentation(
    augment: Augmentation, images: Tensor, values: Values | None = None, fraction: float = 0.0
) -> pictures.Image:
    """Draw each operation from one end of its range to the other; below, randomly augmented images.

    Arguments:
        augment: the augmentation to show.
        images: [B, C, H, W] in [0, 1]. Each operation shows the next image of the batch; the
            random part shows the first 32 images.
        values: learned values by name, where the policy has some.
        fraction: of the training, for a policy that follows a schedule.
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
        _apply_range(name, image, strength.value)
        for (name, strength), image in zip(strengths.items(), images.repeat(20, 1, 1, 1))
    ]
    names = [f"{name}, {strength.rate:.2f}" for name, strength in strengths.items()]
    title = "operations (how often), from the lowest to the highest value"
    columns = ["lowest", *[""] * (COLUMNS - 2), "highest"]
    sheet = pictures.labeled_grid(torch.stack(rows).cpu().numpy(), names, columns, title)
    return pictures.stack(sheet, draws)


def _apply_range(name: str, image: Tensor, value: float) -> Tensor:
    """Apply one operation at values from -value (unsigned: 0) to value: [COLUMNS, C, H, W]."""
    low = -value if OPERATIONS[name].signed else 0.0
    values = torch.linspace(low, value, COLUMNS, dtype=image.dtype, device=image.device)
    return operate(name, image.expand(COLUMNS, -1, -1, -1), values)


def strength_table(strengths: Mapping[str, Strength]) -> str:
    """Return lines of text: operation, how often it is applied per image, largest strength.

    Arguments:
        strengths: strength and rate of each operation, by its name.

    >>> print(strength_table({"rotate": Strength(0.25, 0.5)}))
    operation       how often  up to
    rotate               0.50  ±0.250 radians
    """
    lines = ["operation       how often  up to"]
    for name, (value, rate) in strengths.items():
        operation = OPERATIONS[name]
        sign = "±" if operation.signed else " "
        lines.append(f"{name:15s} {rate:9.2f}  {sign}{value:.3f} {operation.unit}")
    return "\n".join(lines)


def draw_schedules(schedules: Mapping[str, Schedule], what: str) -> pictures.Image | None:
    """Draw schedules as a heat map: rows are operations, columns are fractions of the search.

    Arguments:
        schedules: of all hyperparameters, by names such as "magnitude.rotate".
        what: "magnitude" or "probability"; if no schedule begins so, the result is None.
    """
    own = {n.partition(".")[2]: s for n, s in schedules.items() if n.startswith(f"{what}.")}
    if not own:
        return None
    moments: Sequence[float] = np.linspace(0, 1, MOMENTS).tolist()
    values = [[interpolate(schedule, f) for f in moments] for schedule in own.values()]
    columns = [f"{f:.0%}" for f in moments]
    return pictures.heat_map(list(own), columns, values, f"learned: {what}, over the search")
