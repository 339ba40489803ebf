"""Start from other weights, frozen blocks, and rates by depth."""

from __future__ import annotations

import pytest
import torch

from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.augment import Augmentation, Policy
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState, OneStep
from darts_lite.nas.random_networks import uniform_random
from darts_lite.training.distillation import Teacher
from darts_lite.training.problem import Batch, NetworkProblem
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


NAMES = ("layer_lr.1", "layer_lr.4", "label_smoothing", "gamma", "teacher_weight", "temperature")


@pytest.mark.parametrize("kind", ["kl", "decoupled"])
def test_hypergradients_of_the_toolbox_equal_central_differences(kind: str) -> None:
    """Of the real look-ahead in float64, on a smooth network with focal loss and teacher."""
    flat, teacher = FlatNetwork(network().double()), network(seed=7).double().eval()
    rates = rates_of(flat)
    generator = torch.Generator().manual_seed(3)
    augment = Augmentation(Policy(channels=1, flips=False, crop=1))

    def batch(plain: bool) -> Batch:
        x = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
        draws = None if plain else augment.sample(6, (8, 8), generator)
        return Batch(x, torch.randint(10, (6,), generator=generator), draws)

    problem = NetworkProblem(
        flat,
        augment,
        lambda values: values,
        Recipe(loss="focal"),
        class_weights=torch.linspace(0.5, 1.5, 10, dtype=torch.float64),
        teacher=Teacher(teacher, kind),  # type: ignore[arg-type]
        rates=BlockRates(rates, factors_by_depth(rates.count).double()),
    ).bind([batch(False)], batch(True))
    numbers = {"lr": 0.3, "weight_decay": 1e-3, "label_smoothing": 0.1, "gamma": 1.5}
    numbers |= {"teacher_weight": 0.4, "temperature": 3.0}
    numbers |= {f"layer_lr.{i}": 0.5 + 0.1 * i for i in range(rates.count)}
    raw = {n: torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()}
    inner = InnerState(flat.params, problem.optimizer.init(flat.params))
    kinds = {n: "optimizer" if n.startswith("layer_lr") else "loss" for n in NAMES}
    leaves = {n: v.requires_grad_() for n, v in raw.items()}
    found = OneStep("double_backward")(problem, inner, leaves, kinds).hypergradient

    def ahead(name: str, change: float) -> float:
        values = {n: v.detach() for n, v in raw.items()}
        values[name] = values[name] + change
        state, _ = problem.inner_step(inner, values)
        return float(problem.outer_loss(state.params, values)[0])

    for name in NAMES:
        slope = (ahead(name, 1e-5) - ahead(name, -1e-5)) / 2e-5
        assert float(found[name]) == pytest.approx(slope, rel=1e-5, abs=1e-10) and slope != 0, name


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
