"""Recipes: from and to settings, and that a training does what its recipe says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.hypergradient.optimizers import SGD, Adam
from darts_lite.nas.random_networks import uniform_random
from darts_lite.schedules import cosine
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import USUAL
from darts_lite.training.task import DEFAULTS, TrainTask

CPU = torch.device("cpu")
RATE, DECAY = 0.01, 0.1
below_one = st.floats(0, 1, exclude_max=True)
RECIPES = st.builds(
    Recipe,
    optimizer=st.builds(SGD, momentum=below_one, nesterov=st.booleans())
    | st.builds(Adam, betas=st.tuples(below_one, below_one)),
    label_smoothing=below_one,
)


@given(RECIPES)
def test_settings_are_read_as_they_were_written(recipe: Recipe) -> None:
    """Through JSON, and among the other settings of a genotype."""
    settings = json.loads(json.dumps(recipe.settings()))
    assert Recipe.read({"dataset": "digits", "subset": None, **settings}) == recipe


def test_what_is_not_named_is_as_usual() -> None:
    usual = Recipe(optimizer=SGD(momentum=0.9, nesterov=True), label_smoothing=0.1)
    assert Recipe.read({}) == Recipe.read({"optimizer": "sgd"}) == Recipe() == USUAL == usual
    adam = Recipe.read({"optimizer": "adamw", "momentum": "of no interest"})
    assert adam == Recipe(optimizer=Adam(betas=(0.9, 0.999), decoupled=True), label_smoothing=0.1)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 7.0, math.nan, math.inf, "0.5", None, True])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("momentum", "sgd"),
        ("beta1", "adamw"),
        ("beta2", "adamw"),
        ("label_smoothing", "sgd"),
        ("label_smoothing", "adamw"),
    ],
)
def test_bad_numbers_are_one_clear_line(name: str, optimizer: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^settings\.{name} is .*; search again$") as error:
        Recipe.read({"optimizer": optimizer, name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rmsprop", "SGD", "", None, True, 1])
def test_an_optimizer_nobody_knows_is_one_clear_line(name: Any) -> None:
    with pytest.raises(UserError, match=r"^settings\.optimizer is .* neither sgd nor adamw;"):
        Recipe.read({"optimizer": name})


@pytest.mark.parametrize("value", ["no", "false", 0.3, None])
def test_nesterov_is_a_truth_value(value: Any) -> None:
    with pytest.raises(UserError, match=r"settings\.nesterov"):
        Recipe.read({"nesterov": value})


# --- in a training ----------------------------------------------------------------------------


def genotype(digits: tuple[Dataset, Splits], recipe: Recipe | None) -> Genotype:
    space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(1))
    cost = network_cost(space, (1, 8, 8), 10)
    own = {} if recipe is None else recipe.settings()
    return Genotype(
        space=space,
        image=(1, 8, 8),
        classes=digits[0].classes,
        parameters=cost.parameters,
        macs=cost.macs,
        hyperparameters={"lr": ((0.0, RATE),), "weight_decay": ((0.0, DECAY),)},
        settings={"augment": "none", **own},
    )


def trained(task: TrainTask, steps: int = 4) -> tuple[torch.Tensor, ...]:
    for i in range(steps):
        task.step(0.1 + i / 40)
    return task.inner.params


TRIED = {
    "plain sgd": Recipe(optimizer=SGD(momentum=0.5), label_smoothing=0.0),
    "nesterov": Recipe(optimizer=SGD(momentum=0.8, nesterov=True), label_smoothing=0.2),
    "adamw": Recipe(optimizer=Adam(betas=(0.8, 0.95)), label_smoothing=0.0),
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
    if isinstance(recipe.optimizer, Adam):
        groups[1]["weight_decay"] = 0.0
        optimizer = torch.optim.AdamW(groups, lr=RATE, betas=recipe.optimizer.betas)
    else:
        momentum, nesterov = float(recipe.optimizer.momentum), recipe.optimizer.nesterov
        optimizer = torch.optim.SGD(groups, lr=RATE, momentum=momentum, nesterov=nesterov)
    for i in range(4):
        for group in optimizer.param_groups:
            group["lr"] = RATE * cosine(0.1 + i / 40)
        x, y, _ = twin._batch()
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
            asked = recipe if recipe and hyperparameters == "learned" else USUAL
            assert task.joint.recipe == asked
            ends[hyperparameters, recipe is None] = trained(task)
            if hyperparameters == "default":
                assert task.schedules == DEFAULTS
    for one, two in zip(ends["default", True], ends["default", False]):
        assert torch.equal(one, two)
    assert not torch.allclose(ends["learned", True][0], ends["learned", False][0], atol=1e-3)
