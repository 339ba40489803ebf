"""Recipe of a training as typed data; a genotype stores it with the architecture.

Imports no torch; `training.build` makes the objects of a recipe.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from darts_lite.architecture.space import STRICT
from darts_lite.schedules import Schedule

LossName = Literal["cross_entropy", "focal", "soft_f1", "bce"]
ScheduleName = Literal[
    "cosine", "one-cycle", "step", "linear", "polynomial", "constant", "wsd", "plateau"
]
ClassWeights = Literal["none", "balanced", "effective"]
Sampling = Literal["uniform", "balanced"]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum.

    Arguments:
        momentum: momentum, from 0 to below 1.
        nesterov: whether to use Nesterov momentum.
    """

    __pydantic_config__ = STRICT
    name: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    nesterov: bool = True


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Arguments:
        beta1: decay of the average of the gradient, from 0 to below 1.
        beta2: decay of the average of the squared gradient, from 0 to below 1.
    """

    __pydantic_config__ = STRICT
    name: Literal["adamw"] = "adamw"
    beta1: Share = 0.9
    beta2: Share = 0.999


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, loss, schedule, batch size and augmentation of a training.

    Arguments:
        optimizer: the update rule of the weights.
        loss: name of the loss per example.
        loss_settings: own settings of the loss by name, such as gamma of the focal loss.
        label_smoothing: share of a label that is spread over all classes, from 0 to below 1.
        class_weights: weights of the classes in the loss, from the counts of training images.
        sampling: whether training images or classes are drawn uniformly.
        schedule: name of the learning-rate schedule over the fraction of the budget.
        warm_up: fraction of the budget in which the learning rate rises; None for the usual one.
        batch_size: images per step.
        augment: the augmentation, as for `--augment`.
        schedules: learned values by name (lr, weight_decay, magnitude.rotate, ...), each as pairs
            (fraction of the budget, value) with linear interpolation.

    >>> Recipe(optimizer=AdamW(beta1=0.8)).optimizer.beta2
    0.999
    """

    __pydantic_config__ = STRICT
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")] = field(default_factory=Sgd)
    loss: LossName = "cross_entropy"
    loss_settings: dict[str, float] = field(default_factory=dict)
    label_smoothing: Share = 0.1
    class_weights: ClassWeights = "none"
    sampling: Sampling = "uniform"
    schedule: ScheduleName = "cosine"
    warm_up: Share | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    augment: str = "learned"
    schedules: dict[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, knots in self.schedules.items():
            if not knots or any(a[0] > b[0] for a, b in itertools.pairwise(knots)):
                raise ValueError(
                    f"the schedule of {name!r} must ascend in the budget fraction, got {knots}"
                )

    @property
    def last(self) -> dict[str, float]:
        """The last value of every learned schedule, by name."""
        return {name: knots[-1][1] for name, knots in self.schedules.items()}
