"""The bilevel problem of a network without mixing weights: its inner and outer loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import DECAYED, FlatNetwork
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.augment import Augmentation, Choices, Learned, Targets, augmentation
from darts_lite.augment.operations.lookup import LEVELS
from darts_lite.data import Dataset
from darts_lite.hypergradient.hyperparameters import (
    Bijection,
    HyperParameters,
    HyperSpec,
    Interval,
    LogInterval,
)
from darts_lite.hypergradient.optimizers import SGD, Adam, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, Loss, Params
from darts_lite.schedules import lr_factor
from darts_lite.training.build import build_optimizer
from darts_lite.training.distillation import Teacher
from darts_lite.training.losses import LOSSES


@dataclass(frozen=True)
class Usual:
    """Hand-set values of an optimizer.

    Attributes:
        recipe: recipe with the optimizer.
        start: starting values of the learned hyperparameters; simple on purpose.
        ranges: ranges of the learned hyperparameters.
    """

    recipe: Recipe
    start: dict[str, float]
    ranges: dict[str, LogInterval]


OPTIMIZERS = {
    "sgd": Usual(
        Recipe(optimizer=Sgd()),
        {"lr": 0.1, "weight_decay": 5e-4},
        {"lr": LogInterval(1e-3, 0.25), "weight_decay": LogInterval(1e-6, 1e-2)},
    ),
    "adamw": Usual(
        Recipe(optimizer=AdamW()),
        {"lr": 3e-3, "weight_decay": 0.05},
        {"lr": LogInterval(1e-4, 0.02), "weight_decay": LogInterval(1e-4, 0.5)},
    ),
}
TRAVEL = {
    "lr": 4.0,
    "weight_decay": 1.0,
}  # under BatchNorm, one step tells little of a decay


AUGMENT: dict[str, tuple[Bijection, float]] = {  # range and travel by the first word of a name
    "magnitude": (Interval(0.0, 1.0), 8.0),
    "probability": (Interval(0.02, 0.98), 4.0),  # at 0 or 1 there is no gradient
    "mixing": (Interval(0.0, 1.0), 4.0),
}


LOSS_VALUES = frozenset(
    {"label_smoothing", "teacher_weight", "temperature"}
    | {name for loss in LOSSES.values() for name in loss.settings}
)
"""Names of the values of the loss that may be learned."""
VALIDATION = {"focal": "cross_entropy"}
"""Loss on validation images, if it is not the loss of the training; gamma would only scale it."""


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: `[B, C, H, W]` in [0, 1].
        labels: `[B]` long, or soft `[B, K]`.
        choices: random choices of the augmentation; None for images without augmentation.
    """

    images: Tensor
    labels: Tensor
    choices: Choices | None = None


def outer_variables(
    augment: Augmentation,
    start: Mapping[str, float] | None = None,
    optimizer: str = "sgd",
    every: Mapping[str, int] | None = None,
    first: Sequence[HyperSpec] = (),
    last: Sequence[HyperSpec] = (),
) -> HyperParameters:
    """Return the learned values of optimizer and augmentation at their starting values.

    Arguments:
        augment: the augmentation; its values are learned by the loss.
        start: starting values by name; other values start at the defaults of `optimizer` and
            `augment`. Every value is moved inside its range.
        optimizer: "sgd" or "adamw".
        every: steps between two hypergradients, by the first word of a name; 1 by default.
        first: further variables that come first, such as architecture logits.
        last: further variables that come last, such as values of the loss.
    """
    usual, every = OPTIMIZERS[optimizer], every or {}
    start = {**usual.start, **(start or {})}
    specs = list(first)
    for name, range_ in usual.ranges.items():
        value = min(max(start[name], 1.01 * range_.low), 0.99 * range_.high)
        specs.append(HyperSpec(name, torch.tensor(value), range_, "optimizer", TRAVEL[name]))
    for name, begin in augment.starts.items():
        family = name.partition(".")[0]
        bijection, travel = AUGMENT[family]
        value = min(max(start.get(name, begin), 0.03), 0.97)
        often = every.get(family, 1)
        specs.append(HyperSpec(name, torch.tensor(value), bijection, "loss", travel, often))
    return HyperParameters((*specs, *last))


def augmentation_for(dataset: Dataset, text: str) -> Augmentation:
    """Return a named augmentation for a data set.

    Images are flipped if the data set allows it, and shifted by a fourteenth of the shorter side.

    Arguments:
        dataset: the data set.
        text: name of the augmentation, as for `--augment`.
    Raises: `UserError` if the name is unknown.
    """
    height, width = dataset.image_size
    crop = max(1, min(height, width) // 14)
    vertical = dataset.reading.vertical_flips
    found = augmentation(text, dataset.channels, dataset.flips, crop, vertical)
    if type(found.policy) is Learned and height * width < LEVELS:  # "equalize" has no effect then
        rest = tuple(n for n in found.policy.operations if n != "equalize")
        return replace(found, policy=replace(found.policy, operations=rest))
    return found


@dataclass(frozen=True)
class NetworkProblem:
    """Bind batches to the bilevel problem of a network.

    Arguments:
        network: the network as a pure function of two vectors.
        augment: the augmentation of the training images.
        constrain: maps raw outer values to values: `lr`, `weight_decay`, and the names of
            `augment`.
        recipe: optimizer, loss and label smoothing.
        class_weights: `[K]` weights of the classes in the loss; None for equal weights.
        teacher: teacher of the training images; None for none.
        rates: maps values to the factor of the learning rate of every weight; None for one rate.
        bf16: whether the network computes its products in bfloat16 (autocast); losses are float32.
    """

    network: FlatNetwork
    augment: Augmentation
    constrain: Callable[[Hyper], Hyper]
    recipe: Recipe
    class_weights: Tensor | None = None
    teacher: Teacher | None = None
    rates: Callable[[Hyper], Params] | None = None
    bf16: bool = False

    @property
    def optimizer(self) -> SGD | Adam:
        """The functional optimizer of the recipe."""
        return build_optimizer(self.recipe)

    def lr_factor(self, fraction: float) -> float:
        """Return the factor of the learning rate at a fraction of the budget."""
        return lr_factor(self.recipe.schedule, fraction, self.recipe.warm_up)

    def bind(
        self, train: Sequence[Batch], validation: Batch | None, lr_factor: float = 1.0
    ) -> Bilevel:
        """Return the pure functions of one window of `len(train)` steps.

        Arguments:
            train: the training batch of each step.
            validation: the batch of the outer loss; None if the outer loss is not used.
            lr_factor: value of the learning-rate schedule; multiplies the learning rate.
        """

        def inner(params: Params, raw: Hyper, t: int) -> Loss:
            return self.loss(self.network, params, self.constrain(raw), train[t])

        def outer(params: Params, raw: Hyper) -> Loss:
            assert validation is not None
            return self.loss(self.network, params, self.constrain(raw), validation)

        return self.bilevel(inner, outer, lr_factor)

    def bilevel(
        self,
        inner: Callable[[Params, Hyper, int], Loss],
        outer: Callable[[Params, Hyper], Loss],
        lr_factor: float,
    ) -> Bilevel:
        """Return the bilevel problem of two losses with the optimizer of the recipe.

        Arguments:
            inner: training loss of (parameters, raw outer values, step of the window).
            outer: validation loss of (parameters, raw outer values).
            lr_factor: value of the learning-rate schedule; multiplies the learning rate.
        """

        def settings(raw: Hyper) -> dict[str, Setting]:
            values = self.constrain(raw)
            decay = tuple(values["weight_decay"] if on else 0.0 for on in DECAYED)
            lr: Setting = values["lr"] * lr_factor
            if self.rates is not None:
                lr = tuple(values["lr"] * lr_factor * each for each in self.rates(values))
            return {"lr": lr, "weight_decay": decay}

        return Bilevel(inner, outer, self.optimizer, settings)

    def loss(
        self,
        network: Callable[[Params, Tensor], Tensor],
        params: Params,
        values: Hyper,
        batch: Batch,
    ) -> Loss:
        """Return the mean loss of a batch, and its report `[2]`: loss and accuracy.

        Arguments:
            network: maps parameters and images to logits `[B, K]`.
            params: parameters of the network.
            values: constrained outer values by name.
            batch: the batch; it is augmented if it has choices, else it has no label smoothing.
        """
        if self.bf16:
            network = _in_bf16(network)
        if batch.choices is None:
            judge = LOSSES[VALIDATION.get(self.recipe.loss, self.recipe.loss)]
            out = network(params, batch.images)
            value = judge(out, batch.labels, class_weights=self.class_weights).mean()
        else:
            value, out = self._augmented(lambda x: network(params, x), values, batch)
        labels = batch.labels if batch.labels.dim() == 1 else batch.labels.argmax(1)
        correct = (out.detach().argmax(1) == labels).float().mean()
        return value, torch.stack([value.detach(), correct])

    def _augmented(
        self, model: Callable[[Tensor], Tensor], values: Hyper, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of an augmented batch, and the logits `[B, K]`."""
        recipe, teacher = self.recipe, self.teacher
        own = {n: s.default for n, s in LOSSES[recipe.loss].settings.items()}
        numbers = {"label_smoothing": recipe.label_smoothing, **own, **recipe.loss_settings}
        settings: dict[str, Any] = {n: values.get(n, number) for n, number in numbers.items()}
        settings["class_weights"] = self.class_weights
        criterion: Callable[[Tensor, Targets], Tensor] = partial(LOSSES[recipe.loss], **settings)
        if teacher is not None:
            model, criterion = teacher.beside(model), teacher.criterion(criterion, values)
        assert batch.choices is not None
        known = {n: values[n] for n in self.augment.names if n in values}
        value, out = self.augment.loss(
            model, criterion, batch.images, batch.labels, batch.choices, known
        )
        return value, out if teacher is None else out.chunk(2, 1)[0]


def _in_bf16(network: Callable[[Params, Tensor], Tensor]) -> Callable[[Params, Tensor], Tensor]:
    """Return the network with bfloat16 autocast; its logits are float32."""

    def logits(params: Params, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return network(params, images).float()

    return logits
