"""The bilevel problem of a network: its two losses, built from network, batches and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.architecture.flat_network import DECAYED, FlatNetwork
from darts_lite.architecture.network import CostTable
from darts_lite.architecture.relaxation import Weights, beta_decay, logit_shapes, relax
from darts_lite.architecture.space import SearchSpace
from darts_lite.augment import Augmentation, Choices, Learned, augmentation
from darts_lite.augment.operations.lookup import LEVELS
from darts_lite.data import Dataset
from darts_lite.hypergradient.hyperparameters import (
    Bijection,
    HyperParameters,
    HyperSpec,
    Identity,
    Interval,
    LogInterval,
    select,
)
from darts_lite.hypergradient.optimizers import Adam, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, Loss, Params
from darts_lite.training.losses import cross_entropy
from darts_lite.training.recipe import Recipe

USUAL = Recipe()


@dataclass(frozen=True)
class Usual:
    """What is usual with an optimiser: its recipe, and where its schedules start and may go."""

    recipe: Recipe
    start: dict[str, float]  # deliberately plain; the search moves them
    ranges: dict[str, LogInterval]


OPTIMIZERS = {
    "sgd": Usual(
        USUAL,
        {"lr": 0.05, "weight_decay": 5e-4},
        {"lr": LogInterval(1e-4, 10.0), "weight_decay": LogInterval(1e-6, 1e-2)},
    ),
    "adamw": Usual(
        Recipe(optimizer=Adam()),
        {"lr": 3e-3, "weight_decay": 0.05},
        {"lr": LogInterval(1e-5, 1.0), "weight_decay": LogInterval(1e-4, 0.5)},
    ),
}
TRAVEL = {"lr": 4.0, "weight_decay": 1.0}  # one step says little of a decay under BatchNorm


AUGMENT: dict[str, tuple[Bijection, float]] = {  # range and travel, by what a name begins with
    "magnitude": (Interval(0.0, 1.0), 8.0),
    "probability": (Interval(0.02, 0.98), 4.0),  # at 0 or 1 nothing more would be learned of it
    "mixing": (Interval(0.0, 1.0), 4.0),
}


class Batch(NamedTuple):
    """Images [B, C, H, W] in [0, 1], labels [B], and the random choices of their augmentation."""

    images: Tensor
    labels: Tensor
    choices: Choices | None = None


@dataclass(frozen=True)
class Phase:
    """What depends on the fraction of the budget."""

    lr_factor: float  # of the schedule that the learned learning rate multiplies
    temperature: float = 1.0
    beta_decay: float = 0.0


def outer_variables(
    augment: Augmentation,
    space: SearchSpace | None = None,
    start: Mapping[str, float] | None = None,
    alpha: Mapping[str, Tensor] | None = None,
    optimizer: str = "sgd",
) -> HyperParameters:
    """Everything that is learned beside the weights, at its starting value.

    Arguments: `space`, whose architecture is learned too; `start`, by name; what it does not name
    starts as is usual with `optimizer` or where the augmentation says, and every value starts
    inside its range; `alpha`, logits by name of `logit_shapes`; those that it does not name start
    at zero.
    """
    usual = OPTIMIZERS[optimizer]
    start = {**usual.start, **(start or {})}
    specs = []
    if space is not None:
        for name, shape in logit_shapes(space).items():
            logits = (alpha or {}).get(name, torch.zeros(shape))
            specs.append(HyperSpec(f"alpha.{name}", logits, Identity(), "architecture", 6.0))
    for name, range_ in usual.ranges.items():
        value = min(max(start[name], 1.01 * range_.low), 0.99 * range_.high)
        specs.append(HyperSpec(name, torch.tensor(value), range_, "optimizer", TRAVEL[name]))
    for name, begin in augment.starts.items():
        bijection, travel = AUGMENT[name.partition(".")[0]]
        value = min(max(start.get(name, begin), 0.03), 0.97)
        specs.append(HyperSpec(name, torch.tensor(value), bijection, "loss", travel))
    return HyperParameters(tuple(specs))


def augmentation_for(dataset: Dataset, text: str) -> Augmentation:
    """The named one, with flips where the data allow and shifts by a fourteenth of the side."""
    height, width = dataset.image_size
    crop = max(1, min(height, width) // 14)
    found = augmentation(text, dataset.channels, dataset.flips, crop)
    if type(found.policy) is Learned and height * width < LEVELS:  # then it changes nothing
        rest = tuple(n for n in found.policy.operations if n != "equalize")
        return replace(found, policy=replace(found.policy, operations=rest))
    return found


@dataclass(frozen=True)
class Joint:
    """Binds batches to a network's bilevel problem.

    `constrain` gives meaning to the raw outer values: `alpha.*`, `lr`, `weight_decay` and the names
    of `augment`. With `costs` the network is a supernet; above `target` parameters the expected
    ones are penalised: max(0, log(E[parameters] / target)).
    """

    network: FlatNetwork
    space: SearchSpace
    augment: Augmentation
    constrain: Callable[[Hyper], Hyper]
    costs: CostTable | None = None
    target: float | None = None
    recipe: Recipe = USUAL

    def bind(self, train: Sequence[Batch], validation: Batch | None, phase: Phase) -> Bilevel:
        """The pure functions of one window of `len(train)` steps."""

        def mix(values: Hyper) -> Weights | None:
            if self.costs is None:
                return None
            return relax(self.space, select(values, "alpha."), phase.temperature)

        def loss(params: Params, values: Hyper, weights: Weights | None, batch: Batch) -> Loss:
            if batch.choices is None:
                out = self.network(params, batch.images, weights)
                value = F.cross_entropy(out, batch.labels)
            else:
                own = {n: values[n] for n in self.augment.names if n in values}
                value, out = self.augment.loss(
                    lambda images: self.network(params, images, weights),
                    partial(cross_entropy, label_smoothing=self.recipe.label_smoothing),
                    batch.images,
                    batch.labels,
                    batch.choices,
                    own,
                )
            correct = (out.detach().argmax(1) == batch.labels).float().mean()
            return value, torch.stack([value.detach(), correct])

        def inner(params: Params, raw: Hyper, t: int) -> Loss:
            values = self.constrain(raw)
            return loss(params, values, mix(values), train[t])

        def outer(params: Params, raw: Hyper) -> Loss:
            assert validation is not None
            values = self.constrain(raw)
            weights = mix(values)
            value, report = loss(params, values, weights, validation)
            if weights is not None:
                value = value + self.regulariser(values, weights, phase)
            return value, report

        def settings(raw: Hyper) -> dict[str, Setting]:
            values = self.constrain(raw)
            decay = tuple(values["weight_decay"] if on else 0.0 for on in DECAYED)
            return {"lr": values["lr"] * phase.lr_factor, "weight_decay": decay}

        return Bilevel(inner, outer, self.recipe.optimizer, settings)

    def regulariser(self, values: Hyper, weights: Weights, phase: Phase) -> Tensor:
        """Cost hinge and beta decay, functions of the architecture alone."""
        total = phase.beta_decay * beta_decay(select(values, "alpha."))
        if self.costs is not None and self.target is not None:
            expected, _ = self.costs.expected(weights)
            total = total + F.relu((expected / self.target).log())
        return total
