"""The bilevel problem of a network: its two losses, built from network, batches and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import Draws, LearnedMagnitudes
from darts_lite.data import Dataset
from darts_lite.functional import DECAYED, FlatNetwork
from darts_lite.hypergradient.problem import Bilevel, Hyper, Loss, Params
from darts_lite.hyperparameters import (
    HyperParameters,
    HyperSpec,
    Identity,
    Interval,
    LogInterval,
    select,
)
from darts_lite.network import CostTable
from darts_lite.optimizers import SGD, Setting
from darts_lite.relaxation import Weights, beta_decay, logit_shapes, relax
from darts_lite.space import SearchSpace

OPTIMIZER = SGD(momentum=0.9, nesterov=True)
LABEL_SMOOTHING = 0.1
START = {"lr": 0.05, "weight_decay": 5e-4}  # deliberately plain; the search moves them
LEARNED = {"lr": LogInterval(1e-4, 10.0), "weight_decay": LogInterval(1e-6, 1e-2)}
TRAVEL = {"lr": 4.0, "weight_decay": 1.0}  # one step says little of a decay under BatchNorm
MAGNITUDE_START = 0.05


class Batch(NamedTuple):
    """Images [B, C, H, W] in [0, 1], labels [B], and the random choices of their augmentation."""

    images: Tensor
    labels: Tensor
    draws: Draws | None = None


@dataclass(frozen=True)
class Phase:
    """What depends on the fraction of the budget."""

    lr_factor: float  # of the schedule that the learned learning rate multiplies
    temperature: float = 1.0
    beta_decay: float = 0.0


def cosine(fraction: float, warmup: float = 0.03) -> float:
    """A linear warm-up, then half a cosine to zero.

    >>> cosine(0.03), round(cosine(1.0), 6)
    (1.0, 0.0)
    """
    if fraction < warmup:
        return (fraction + 0.1 * warmup) / (1.1 * warmup)
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def outer_variables(
    augment: LearnedMagnitudes,
    space: SearchSpace | None = None,
    start: Mapping[str, float] = START,
) -> HyperParameters:
    """Everything that is learned beside the weights, at its starting value.

    Arguments: `space`, whose architecture is learned too; `start`, by name; a magnitude that it
    does not name starts small, and every value starts inside its range.
    """
    specs = []
    if space is not None:
        specs += [
            HyperSpec(f"alpha.{name}", torch.zeros(shape), Identity(), "architecture", 6.0)
            for name, shape in logit_shapes(space).items()
        ]
    for name, range_ in LEARNED.items():
        value = min(max(start[name], 1.01 * range_.low), 0.99 * range_.high)
        specs.append(HyperSpec(name, torch.tensor(value), range_, "optimizer", TRAVEL[name]))
    for name in (f"magnitude.{n}" for n in augment.names):
        value = min(max(start.get(name, MAGNITUDE_START), 0.01), 0.99)
        specs.append(HyperSpec(name, torch.tensor(value), Interval(0.0, 1.0), "loss", 8.0))
    return HyperParameters(tuple(specs))


def default_augmentation(dataset: Dataset) -> LearnedMagnitudes:
    """Flips where the data allow, shifts by a fourteenth of the side, and what is learned."""
    return LearnedMagnitudes(
        dataset.channels, flips=dataset.flips, crop=max(1, min(dataset.image_size) // 14)
    )


@dataclass(frozen=True)
class Joint:
    """Binds batches to a network's bilevel problem.

    `constrain` gives meaning to the raw outer values: `alpha.*`, `lr`, `weight_decay` and
    `magnitude.*`. With `costs` the network is a supernet; above `target` parameters the expected
    ones are penalised: max(0, log(E[parameters] / target)).
    """

    network: FlatNetwork
    space: SearchSpace
    augment: LearnedMagnitudes
    constrain: Callable[[Hyper], Hyper]
    costs: CostTable | None = None
    target: float | None = None

    def bind(self, train: Sequence[Batch], validation: Batch | None, phase: Phase) -> Bilevel:
        """The pure functions of one window of `len(train)` steps."""

        def mix(values: Hyper) -> Weights | None:
            if self.costs is None:
                return None
            return relax(self.space, select(values, "alpha."), phase.temperature)

        def loss(params: Params, values: Hyper, weights: Weights | None, batch: Batch) -> Loss:
            images = batch.images
            if batch.draws is not None:
                magnitudes = select(values, "magnitude.")
                images = self.augment.apply(images, batch.draws, magnitudes or None)
            out = self.network(params, images, weights)
            smoothing = LABEL_SMOOTHING if batch.draws is not None else 0.0
            value = F.cross_entropy(out, batch.labels, label_smoothing=smoothing)
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

        return Bilevel(inner, outer, OPTIMIZER, settings)

    def regulariser(self, values: Hyper, weights: Weights, phase: Phase) -> Tensor:
        """Cost hinge and beta decay, functions of the architecture alone."""
        total = phase.beta_decay * beta_decay(select(values, "alpha."))
        if self.costs is not None and self.target is not None:
            expected, _ = self.costs.expected(weights)
            total = total + F.relu((expected / self.target).log())
        return total
