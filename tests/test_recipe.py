"""Recipes: JSON, faults, and that a training does what its recipe says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.data import Dataset, Splits
from darts_lite.files import first_fault
from darts_lite.hypergradient.optimizers import SGD, Adam
from darts_lite.nas.random_networks import uniform_random
from darts_lite.schedules import cosine
from darts_lite.training.build import build_optimizer
from darts_lite.training.options import DeriveOptions
from darts_lite.training.replay import DEFAULTS
from darts_lite.training.task import TrainTask

CPU = torch.device("cpu")
RATE, DECAY = 0.01, 0.1
below_one = st.floats(0, 1, exclude_max=True)
RECIPES = st.builds(
    Recipe,
    optimizer=st.builds(Sgd, momentum=below_one, nesterov=st.booleans())
    | st.builds(AdamW, beta1=below_one, beta2=below_one),
    label_smoothing=below_one,
    batch_size=st.integers(1, 512),
    augment=st.text(),
    schedules=st.dictionaries(st.text(), st.just(((0.0, 1.0), (1.0, 0.5)))),
)
ADAPTER = TypeAdapter(Recipe)


def read(**changes: Any) -> Recipe:
    return ADAPTER.validate_json(json.dumps(changes))


@given(RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert ADAPTER.validate_json(ADAPTER.dump_json(recipe)) == recipe


def test_missing_fields_have_the_default() -> None:
    assert read() == read(optimizer={"name": "sgd"}) == Recipe()
    assert build_optimizer(read()) == SGD(momentum=0.9, nesterov=True)
    assert build_optimizer(read(optimizer={"name": "adamw"})) == Adam(betas=(0.9, 0.999))
    assert Recipe().label_smoothing == 0.1


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 7.0, math.nan, math.inf, "0.5", None, True])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("momentum", "sgd"),
        ("beta1", "adamw"),
        ("beta2", "adamw"),
        ("label_smoothing", None),
    ],
)
def test_numbers_outside_their_range_are_refused(
    name: str, optimizer: str | None, value: Any
) -> None:
    """With the name of the field in the first fault."""
    changes = {name: value}
    if optimizer:
        changes = {"optimizer": {"name": optimizer, name: value}}
    with pytest.raises(ValidationError) as error:
        read(**changes)
    assert name in first_fault(error.value)


@pytest.mark.parametrize("name", ["rmsprop", "SGD", "", None, True, 1])
def test_an_unknown_optimizer_is_refused(name: Any) -> None:
    with pytest.raises(ValidationError) as error:
        read(optimizer={"name": name})
    assert first_fault(error.value).startswith("optimizer")


@pytest.mark.parametrize("value", ["no", "false", 0.3, None])
def test_nesterov_must_be_true_or_false(value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        read(optimizer={"name": "sgd", "nesterov": value})
    assert "nesterov" in first_fault(error.value)


@pytest.mark.parametrize("schedule", [(), ((1.0, 1.0), (0.0, 1.0))])
def test_schedules_must_ascend(schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule of 'lr' must ascend"):
        Recipe(schedules={"lr": schedule})


# --- in a training ----------------------------------------------------------------------------


def genotype(digits: tuple[Dataset, Splits], recipe: Recipe | None) -> Genotype:
    space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(1))
    cost = network_cost(space, (1, 8, 8), 10)
    schedules = {"lr": ((0.0, RATE),), "weight_decay": ((0.0, DECAY),)}
    return Genotype(
        space=space,
        image=(1, 8, 8),
        classes=digits[0].classes,
        parameters=cost.parameters,
        macs=cost.macs,
        recipe=replace(recipe or Recipe(), augment="none", schedules=schedules),
    )


def trained(task: TrainTask, steps: int = 4) -> tuple[torch.Tensor, ...]:
    for i in range(steps):
        task.step(0.1 + i / 40)
    return task.inner.params


TRIED = {
    "plain sgd": Recipe(optimizer=Sgd(momentum=0.5, nesterov=False), label_smoothing=0.0),
    "nesterov": Recipe(optimizer=Sgd(momentum=0.8), label_smoothing=0.2),
    "adamw": Recipe(optimizer=AdamW(beta1=0.8, beta2=0.95), label_smoothing=0.0),
}


@pytest.mark.parametrize("name", TRIED)
def test_a_training_takes_the_steps_of_torch(digits: tuple[Dataset, Splits], name: str) -> None:
    """Its twin draws the same batches; weight decay spares BatchNorm and biases."""
    recipe, config = TRIED[name], DeriveOptions(batch_size=32)
    task, twin = (TrainTask(config, genotype(digits, recipe), *digits, CPU) for _ in range(2))
    found = trained(task)
    weights, others = params = [p.clone().requires_grad_() for p in twin.inner.params]
    groups = [{"params": [weights], "weight_decay": DECAY}, {"params": [others]}]
    optimizer: torch.optim.Optimizer
    if isinstance(recipe.optimizer, AdamW):
        groups[1]["weight_decay"] = 0.0
        optimizer = torch.optim.AdamW(
            groups, lr=RATE, betas=(recipe.optimizer.beta1, recipe.optimizer.beta2)
        )
    else:
        momentum, nesterov = recipe.optimizer.momentum, recipe.optimizer.nesterov
        optimizer = torch.optim.SGD(groups, lr=RATE, momentum=momentum, nesterov=nesterov)
    for i in range(4):
        for group in optimizer.param_groups:
            group["lr"] = RATE * cosine(0.1 + i / 40)
        x, y, _ = twin.batch()
        logits = twin.network(tuple(params), x)
        optimizer.zero_grad()
        F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing).backward()
        optimizer.step()
    for mine, theirs, before in zip(found, params, twin.inner.params):
        assert (mine - before).abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_the_default_hyperparameters_are_the_usual_recipe(digits: tuple[Dataset, Splits]) -> None:
    """Whatever the genotype says; and what it says matters where they are learned."""
    ends = {}
    for hyperparameters in ("default", "learned"):
        config = DeriveOptions(batch_size=32, hyperparameters=hyperparameters)  # type: ignore[arg-type]
        for recipe in (None, TRIED["adamw"]):
            task = TrainTask(config, genotype(digits, recipe), *digits, CPU)
            asked = recipe if recipe and hyperparameters == "learned" else Recipe()
            assert task.plain.recipe.optimizer == asked.optimizer
            assert task.plain.recipe.label_smoothing == asked.label_smoothing
            ends[hyperparameters, recipe is None] = trained(task)
            if hyperparameters == "default":
                assert task.hyper.schedules() == DEFAULTS
    for one, two in zip(ends["default", True], ends["default", False]):
        assert torch.equal(one, two)
    assert not torch.allclose(ends["learned", True][0], ends["learned", False][0], atol=1e-3)
