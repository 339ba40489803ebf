"""The exponential moving average of the weights, against its sum and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from darts_lite.training.averaging import WeightAverage


def test_after_its_beginning_the_average_is_that_of_torch() -> None:
    """Ten thousand steps in, the decay has its value and no trace of the start is left."""
    decay = 0.9
    model = nn.Linear(3, 2).double()
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average = WeightAverage(tuple(p.detach() for p in model.parameters()), decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        torchs.update_parameters(model)
        average.update(tuple(p.detach() for p in model.parameters()))
    for one, two in zip(average.params, torchs.module.parameters()):
        torch.testing.assert_close(one, two.detach(), rtol=1e-12, atol=1e-12)


def test_the_decay_begins_at_a_tenth() -> None:
    average = WeightAverage((torch.zeros(1, dtype=torch.float64),), 0.999)
    expected = 0.0
    for n in range(5):
        average.update((torch.ones(1, dtype=torch.float64),))
        decay = (1 + n) / (10 + n)
        expected = decay * expected + 1 - decay
        assert float(average.params[0]) == pytest.approx(expected)


def test_the_weights_of_the_training_are_not_changed_and_the_state_is_restored() -> None:
    weights = (torch.ones(3),)
    average = WeightAverage(weights, 0.5)
    average.update((torch.zeros(3),))
    assert torch.equal(weights[0], torch.ones(3))
    again = WeightAverage(weights, 0.5)
    again.load_state_dict(average.state_dict())
    for each in (average, again):
        each.update((torch.full((3,), 7.0),))
    assert torch.equal(average.params[0], again.params[0])
