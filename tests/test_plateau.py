"""The plateau of a metric, against ReduceLROnPlateau."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from darts_lite.training.plateau import Plateau


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("patience", [0, 2])
def test_it_is_that_of_torch_step_by_step(larger: bool, patience: int) -> None:
    for seed in range(5):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        torchs = ReduceLROnPlateau(
            optimizer, "max" if larger else "min", 0.1, patience, threshold=1e-2, eps=0.0
        )
        own = Plateau(0.1, patience, 1e-2, larger)
        values = 0.5 + 0.1 * torch.rand(40, generator=torch.Generator().manual_seed(seed))
        for i, value in enumerate(values.tolist()):
            value = math.nan if i == 7 else value
            torchs.step(value)
            own.update(value)
            assert own.value == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_state_is_restored() -> None:
    one, two = Plateau(patience=1), Plateau(patience=1)
    for value in (0.3, 0.2, 0.1):
        one.update(value)
    two.load_state_dict(one.state_dict())
    for each in (one, two):
        each.update(0.1)
        each.update(0.1)
    assert one == two and one.value == pytest.approx(0.01)
