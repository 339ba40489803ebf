"""Start from other weights, frozen blocks, and rates by depth."""

from __future__ import annotations

import pytest
import torch

from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import blocks
from darts_lite.errors import UserError
from darts_lite.nas.random_networks import uniform_random
from darts_lite.training.transfer import (
    BlockRates,
    factors_by_depth,
    frozen_depths,
    rates_of,
    take_over,
)

CELLS = 3


def network(classes: int = 10, seed: int = 0, channels: int = 4) -> Network:
    space = uniform_random(blocks(channels, CELLS), torch.Generator().manual_seed(1))
    return Network(space, (1, 8, 8), classes, torch.Generator().manual_seed(seed))


def test_the_rate_of_every_weight_is_that_of_its_block() -> None:
    flat = FlatNetwork(network())
    rates = rates_of(flat)
    assert rates.count == CELLS + 2
    named = flat.unflatten(rates(torch.arange(CELLS + 2.0)))
    for name, values in named.items():
        first, _, rest = name.partition(".")
        depth = {"cells": int(rest[0]) + 1 if rest[0].isdigit() else 0, "classifier": CELLS + 1}
        assert values.unique().tolist() == [depth.get(first, 0)]


def test_learned_factors_replace_the_constants_but_frozen_blocks_stay_frozen() -> None:
    flat = FlatNetwork(network())
    rates = rates_of(flat)
    factors = factors_by_depth(rates.count, decay=0.5)
    assert factors.tolist() == [0.0625, 0.125, 0.25, 0.5, 1]
    factors[:2] = 0
    values = {f"layer_lr.{i}": torch.tensor(2.0, requires_grad=True) for i in range(rates.count)}
    learned = BlockRates(rates, factors)(values)
    assert set(torch.cat(learned).detach().unique().tolist()) == {0.0, 2.0}
    found = torch.autograd.grad(torch.cat(learned).sum(), list(values.values()))
    counts = torch.cat(rates(torch.eye(rates.count)[3])).sum()
    assert found[0] == found[1] == 0 and found[3] == counts > 0
    assert torch.equal(torch.cat(BlockRates(rates, factors)({})), torch.cat(rates(factors)))


def test_weights_are_taken_over_with_the_classifier_if_it_fits() -> None:
    own, other, fewer = network(), network(seed=5), network(classes=3, seed=6)
    assert take_over(own, other, "out")
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters()))
    kept = own.classifier.weight.clone()
    assert not take_over(own, fewer, "out")
    assert torch.equal(own.classifier.weight, kept)
    assert torch.equal(own.stem.weight, fewer.stem.weight)
    with pytest.raises(UserError, match="architecture of the genotype"):
        take_over(own, network(channels=6), "out")


@pytest.mark.parametrize("text", ["5", "-1", "all", ""])
def test_a_bad_number_of_frozen_blocks_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--freeze must be features or a number from 0 to 4"):
        frozen_depths(text, 5)
