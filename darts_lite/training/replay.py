"""Hyperparameters of a final training: learned by the search, by default, or learned online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.recipe import Recipe
from darts_lite.augment import Augmentation
from darts_lite.data import Dataset
from darts_lite.errors import UserError
from darts_lite.hypergradient import LearningRateFinder
from darts_lite.hypergradient.hyperparameters import HyperSpec, Kind
from darts_lite.hypergradient.problem import Hyper
from darts_lite.schedules import Schedule, interpolate
from darts_lite.training.build import loss_specs, names_in, recipe_with
from darts_lite.training.distillation import Teacher
from darts_lite.training.hyper_learner import HyperLearner, plan
from darts_lite.training.losses import LOSSES
from darts_lite.training.options import DeriveOptions, StepOptions
from darts_lite.training.problem import (
    AUGMENT,
    LOSS_VALUES,
    OPTIMIZERS,
    augmentation_for,
    outer_variables,
)

DEFAULTS: dict[str, Schedule] = {  # the hand-set recipe; its augmentation is flips and crops only
    name: ((0.0, value),) for name, value in OPTIMIZERS["sgd"].start.items()
}
OF_OPTIONS = ("label_smoothing", "teacher_weight", "temperature")  # also options of derive
ONLINE_EVERY = 4  # steps from one hypergradient to the next


class Replay:
    """Hyperparameters that follow schedules; takes the place of a `HyperLearner`.

    Arguments:
        schedules: schedules by name.
        device: device of the values.
    """

    steps = 0
    window = 1

    def __init__(self, schedules: Mapping[str, Schedule], device: torch.device):
        self._schedules, self._device = dict(schedules), device
        self.begin_step(0.0, 0.0)

    def begin_step(self, fraction: float, before: float) -> None:
        """Set the values of a fraction of the budget, with one copy to the device."""
        now = self.at(fraction)
        vector = torch.tensor(list(now.values())).to(self._device, non_blocking=True)
        self.raw: Hyper = dict(zip(now, vector.unbind()))

    def at(self, fraction: float) -> dict[str, float]:
        """Return the values at a fraction of the budget."""
        return {name: interpolate(s, fraction) for name, s in self._schedules.items()}

    def values(self) -> dict[str, Tensor]:
        """Return the current values by name."""
        return dict(self.raw)

    def constrain(self, raw: Hyper) -> Hyper:
        """Return the values themselves."""
        return raw

    def caveats(self) -> list[str]:
        """Return no problems: there is no estimator."""
        return []

    def find_rate(self, *_: object) -> None:
        """Do nothing: the learning rate has a schedule."""

    def looks(self, fraction: float) -> bool:
        """Return False, as no learning rate is looked for."""
        return False

    def due(self, fraction: float) -> dict[str, Kind]:
        """Return no variables: nothing is learned."""
        return {}

    def learn(self, *_: object) -> Any:
        raise AssertionError("a schedule learns nothing")

    def schedules(self) -> dict[str, Schedule]:
        """Return the schedules by name."""
        return self._schedules

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Chosen(NamedTuple):
    """Recipe, augmentation and hyperparameters of a final training."""

    recipe: Recipe
    augment: Augmentation
    hyper: HyperLearner | Replay


def hyperparameters(
    options: DeriveOptions,
    genotype: Genotype,
    dataset: Dataset,
    device: torch.device,
    teacher: Teacher | None = None,
    layers: Sequence[HyperSpec] = (),
) -> Chosen:
    """Return what `options.hyperparameters` asks for.

    - "learned": the schedules of the genotype.
    - "default": the hand-set recipe.
    - "online": start from the last values of the genotype and keep learning on validation images.

    Arguments:
        options: options of the training.
        genotype: genotype to train.
        dataset: data set of the genotype.
        device: device of the training.
        teacher: teacher, whose weight and temperature can be learned online.
        layers: factors of the learning rate by depth, which can be learned online.
    Raises: `UserError` if the genotype lacks a schedule, or an option is not valid.
    """
    augment = augmentation_for(dataset, options.augment or genotype.recipe.augment)
    learning = plan(options.estimator)  # raise the error of a bad --estimator in every case
    if options.learn and options.hyperparameters != "online":
        raise UserError(
            "--learn needs --hyperparameters online, because validation images must be held out, "
            f"got {options.hyperparameters}; add it, or give --learn to search"
        )
    if options.hyperparameters == "online":
        _require_plain_steps(options)
    if "layer_lr" in names_in(options.learn) and learning.annealed:
        raise UserError(
            "--learn layer_lr needs an estimator that learns the optimizer's values, got "
            f"{options.estimator}; add --estimator one_step or --estimator unrolled"
        )
    if options.hyperparameters == "default":
        # an augmentation by name is as published; "learned" needs values
        augment = augment.replayed({}) if options.augment else augment.plain
        return Chosen(recipe_with(Recipe(), options), augment, Replay(DEFAULTS, device))
    schedules, recipe = _learned(genotype, augment), recipe_with(genotype.recipe, options)
    given = {n for n in OF_OPTIONS if getattr(options, n) is not None}
    given |= set(LOSSES[recipe.loss].settings) if options.loss is not None else set()
    schedules = {n: s for n, s in schedules.items() if n not in given}  # the user's values win
    if options.hyperparameters == "learned":
        return Chosen(recipe, augment.replayed(schedules), Replay(schedules, device))
    start = {name: schedule[-1][1] for name, schedule in schedules.items()}
    further = _further(names_in(options.learn), recipe, start, teacher, layers)
    variables = outer_variables(augment, start, recipe.optimizer.name, last=further).to(device)
    online = HyperLearner(variables, learning, LearningRateFinder(), pause=ONLINE_EVERY)
    return Chosen(recipe, augment, online)


def _require_plain_steps(options: DeriveOptions) -> None:
    """Raise `UserError` if an option changes the steps that hypergradients differentiate."""
    usual = StepOptions()
    for name in ("accumulate", "clip", "sharpness", "precision"):
        value = getattr(options, name)
        if value != getattr(usual, name):
            raise UserError(
                f"--hyperparameters online must be without --{name}, because hypergradients are "
                f"those of plain steps, got {value}; leave one of them out"
            )


def _further(
    names: Sequence[str],
    recipe: Recipe,
    starts: Mapping[str, float],
    teacher: Teacher | None,
    layers: Sequence[HyperSpec],
) -> list[HyperSpec]:
    """Return the values of `--learn`: of the loss, the teacher and the rates by depth."""
    own = {} if teacher is None else {s.name: s for s in teacher.specs()}
    found = loss_specs(recipe, [n for n in names if n not in {*own, "layer_lr"}], starts)
    found += [own[n] for n in names if n in own]
    return [*found, *(layers if "layer_lr" in names else ())]


def _learned(genotype: Genotype, augment: Augmentation) -> dict[str, Schedule]:
    """Return the schedules of the genotype for its optimizer and an augmentation."""
    found = genotype.recipe.schedules
    missing = {"lr", "weight_decay"} - set(found)
    always = {"lr", "weight_decay", *LOSS_VALUES, *(n for n in found if n.startswith("layer_lr."))}
    unknown = {n for n in set(found) - always if n.partition(".")[0] not in AUGMENT}
    if missing or unknown:
        raise UserError(
            "the schedules of the genotype must have lr, weight_decay and known names, got "
            f"{sorted(missing)} missing and {sorted(unknown)} unknown; use --hyperparameters "
            "default or search again"
        )
    own = {*always, *augment.names}
    return {name: schedule for name, schedule in found.items() if name in own}
