"""From options to a recipe, which is plain data, and from a recipe to the objects of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.errors import UserError
from darts_lite.hypergradient.hyperparameters import HyperSpec, Interval
from darts_lite.hypergradient.optimizers import SGD, Adam
from darts_lite.training.losses import LOSSES
from darts_lite.training.options import RecipeOptions

TRAVEL = 4.0  # distance that a raw value of the loss can move in one training
SMOOTHING = Interval(0.0, 0.5)  # range of learned label smoothing


def recipe_with(recipe: Recipe, options: RecipeOptions) -> Recipe:
    """Return a recipe with the options that the user gave.

    Arguments:
        recipe: recipe whose values hold where an option is None.
        options: options of loss and schedule.
    Raises: `UserError` if the loss is unknown or a setting of it is.

    >>> recipe_with(Recipe(), RecipeOptions(loss="focal:gamma=3")).loss_settings
    {'gamma': 3.0}
    """
    given: dict[str, Any] = {}
    for each in fields(RecipeOptions):
        value = getattr(options, each.name)
        if value is not None and each.name not in ("loss", "learn"):
            given[each.name] = value
    if options.loss is not None:
        name, settings = _loss(options.loss)
        given |= {"loss": name, "loss_settings": settings}
    return replace(recipe, **given)


def _loss(text: str) -> tuple[str, dict[str, float]]:
    """Return name and settings of a loss, such as "focal:gamma=2"."""
    name, _, rest = text.partition(":")
    if name not in LOSSES:
        raise UserError(
            f"--loss must be one of {', '.join(LOSSES)}, with its settings, got {text!r}; for "
            "example focal:gamma=2"
        )
    known, settings = LOSSES[name].settings, {}
    for part in filter(None, rest.split(",")):
        key, _, number = (p.strip() for p in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if key not in known or not known[key].low <= value <= known[key].high:
            allowed = (f"{n} from {k.low:g} to {k.high:g}" for n, k in known.items())
            raise UserError(
                f"--loss {text}: the settings of {name} are {', '.join(allowed) or 'none'}, got "
                f"{part!r}; leave it out for the default"
            )
        settings[key] = value
    return name, settings


def names_in(learn: str | None) -> list[str]:
    """Return the names in `--learn`, each once.

    >>> names_in("gamma, label_smoothing,gamma")
    ['gamma', 'label_smoothing']
    """
    names = (part.strip() for part in (learn or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def loss_specs(
    recipe: Recipe,
    learn: Sequence[str],
    starts: Mapping[str, float] | None = None,
    every: int = 1,
) -> list[HyperSpec]:
    """Return the values of the loss that are to be learned.

    Arguments:
        recipe: recipe with the loss.
        learn: names: label_smoothing, and the own settings of the loss.
        starts: starting values by name; other values start at those of the recipe.
        every: steps from one hypergradient to the next.
    Raises: `UserError` if the loss has no such value.

    >>> [spec.name for spec in loss_specs(Recipe(loss="focal"), ["label_smoothing", "gamma"])]
    ['label_smoothing', 'gamma']
    """
    ranges = {"label_smoothing": (recipe.label_smoothing, SMOOTHING)}
    for name, own in LOSSES[recipe.loss].settings.items():
        start = recipe.loss_settings.get(name, own.default)
        ranges[name] = (start, Interval(own.low, own.high))
    specs = []
    for name in learn:
        if name not in ranges:
            raise UserError(
                f"--learn must have values of the loss {recipe.loss}: {', '.join(ranges)}, got "
                f"{name!r}; choose another --loss or leave it out"
            )
        start, range_ = (starts or {}).get(name, ranges[name][0]), ranges[name][1]
        margin = 0.02 * (range_.high - range_.low)
        inside = min(max(start, range_.low + margin), range_.high - margin)
        specs.append(HyperSpec(name, torch.tensor(inside), range_, "loss", TRAVEL, every))
    return specs


def build_optimizer(recipe: Recipe) -> SGD | Adam:
    """Return the functional optimizer of a recipe.

    >>> build_optimizer(Recipe(optimizer=AdamW(beta1=0.8, beta2=0.99))).betas
    (0.8, 0.99)
    """
    match recipe.optimizer:
        case Sgd(momentum=momentum, nesterov=nesterov):
            return SGD(momentum=momentum, nesterov=nesterov)
        case AdamW(beta1=beta1, beta2=beta2):
            return Adam(betas=(beta1, beta2))
