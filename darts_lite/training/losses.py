"""Losses per example by name, for labels, soft labels and mixed labels.

A loss is a function `(logits [B, K], targets, **settings) -> losses [B]`; a training takes the
mean. `targets` are the targets that `darts_lite.augment` returns: labels, or `MixedLabels` after
CutMix or mixup.

**To add a loss**, write one function here with the decorator `loss`, and its name in
`architecture.recipe.LossName`. Compute the cost `[B, K]` of every class, as if the class were the
label, and call `_smoothed` with the targets. Every kind of target is then supported, and the tests
of `LOSSES` cover the loss. A setting may be a tensor, so that hypergradients can learn it; do not
clamp it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import MixedLabels, Targets
from darts_lite.errors import UserError


class Setting(NamedTuple):
    """An own setting of a loss.

    Attributes:
        default: value where none is given.
        low: smallest value.
        high: largest value.
    """

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class LossRecord:
    """A loss by name; calling it returns the losses `[B]`.

    Arguments:
        function: the loss, `(logits, targets, label_smoothing, class_weights, **settings)`.
        settings: its own settings by name, which can be learned.
        of_the_batch: whether the loss of an example depends on the other examples.
    """

    function: Callable[..., Tensor]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    of_the_batch: bool = False

    def __call__(self, logits: Tensor, targets: Targets, **settings: Any) -> Tensor:
        return self.function(logits, targets, **settings)


LOSSES: dict[str, LossRecord] = {}
"""The losses by their name in a recipe."""


def loss(
    name: str, settings: Mapping[str, Setting] | None = None, of_the_batch: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Return a decorator that adds a function to `LOSSES`; see `LossRecord`."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOSSES[name] = LossRecord(function, settings or {}, of_the_batch)
        return function

    return add


@loss("cross_entropy")
def cross_entropy(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of each example, with smoothed labels.

    The loss is (1 - s) cost(target) + s (mean cost of all classes), with the cost -w log p of a
    class of weight w. It is linear in the targets: mixed labels have the loss of the soft label
    that is their weighted mean.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1]; a scalar tensor if it is learned.
        class_weights: w, `[K]`; None for one.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> mixed = MixedLabels(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 0.0]))
    >>> cross_entropy(torch.tensor([[0.0, 100.0], [0.0, 100.0]]), mixed)
    tensor([ 25., 100.])
    """
    _check(logits, targets, label_smoothing)
    if isinstance(targets, Tensor) and not isinstance(label_smoothing, Tensor):  # one fused kernel
        weight = None if class_weights is None else class_weights.to(logits)
        return F.cross_entropy(
            logits, targets, weight, reduction="none", label_smoothing=label_smoothing
        )
    return _smoothed(-logits.log_softmax(1), targets, label_smoothing, class_weights)


@loss("focal", {"gamma": Setting(2.0, 0.0, 5.0)})
def focal(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
    gamma: float | Tensor = 2.0,
) -> Tensor:
    """Return the focal loss of each example, (1 - p)^gamma (-log p) (Lin et al. 2017, eq. 4).

    1 - p is computed as -expm1(log p), at least the smallest normal number, so that derivatives
    stay finite where p is one.

    Arguments: see `cross_entropy`; `gamma` is 0 or more, a scalar tensor if it is learned.

    >>> focal(torch.zeros(1, 2), torch.tensor([0]), gamma=2.0)  # (1/2)^2 log 2
    tensor([0.1733])
    """
    _check(logits, targets, label_smoothing)
    log_p = logits.log_softmax(1)
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    costs = -((gamma * missing.log()).exp()) * log_p
    return _smoothed(costs, targets, label_smoothing, class_weights)


@loss("bce")
def bce(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the binary cross entropy of each example, summed over the classes (Wightman 2021).

    Every class is a yes-or-no question to the sigmoid of its logit, as timm's
    `BinaryCrossEntropy(sum_classes=True)`; the smoothed target is (1 - s) y + s / K.

    Arguments: see `cross_entropy`; the weight of a class multiplies its part of the sum.

    >>> bce(torch.zeros(1, 2), torch.tensor([0]))  # 2 log 2
    tensor([1.3863])
    """
    _check(logits, targets, label_smoothing)
    positive, negative = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    costs, rest = positive - negative, negative
    if class_weights is not None:
        rest = rest * class_weights.to(logits)
    return rest.sum(1) + _smoothed(costs, targets, label_smoothing, class_weights)


@loss("soft_f1", of_the_batch=True)
def soft_f1(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the parts of 1 - macro F1 of the batch, with probabilities in place of counts.

    With p the softmax, y the shares of the targets and N_k the sum of p + y over the batch,

        F1_k = sum_i 2 p_ik y_ik / N_k,    part_i = 1 - B mean_k 2 p_ik y_ik / N_k,

    so that the mean of the parts is 1 - mean_k F1_k. The mean is over the classes with targets in
    the batch, weighted by `class_weights`: a class without targets has F1 zero whatever the
    network does, and its false positives already lower the F1 of their own classes. F1 is a
    statistic of the batch: small batches have noisy gradients.

    Arguments: see `cross_entropy`.

    >>> certain = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    >>> soft_f1(certain, torch.tensor([0, 1])).mean()
    tensor(0.)
    """
    _check(logits, targets, label_smoothing)
    p = logits.softmax(1)
    y = _shares(targets, logits)
    present = (y.detach().sum(0) > 0).to(p)
    if class_weights is not None:
        present = present * class_weights.to(p)
    y = y * (1 - label_smoothing) + label_smoothing / p.shape[1]
    share = present / present.sum().clamp(min=torch.finfo(p.dtype).tiny)
    return 1 - len(p) * (2 * p * y / (p + y).sum(0) * share).sum(1)


def _smoothed(
    costs: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor,
    class_weights: Tensor | None,
) -> Tensor:
    """Return the cost `[B]` of smoothed targets, from the costs `[B, K]` of the classes."""
    if class_weights is not None:
        costs = costs * class_weights.to(costs)
    each = expected_cost(costs, targets)
    if not isinstance(label_smoothing, Tensor) and label_smoothing == 0:
        return each
    return (1 - label_smoothing) * each + label_smoothing * costs.mean(1)


def _shares(targets: Targets, logits: Tensor) -> Tensor:
    """Return the targets as shares `[B, K]` of each class."""
    if isinstance(targets, MixedLabels):
        own, partner = _shares(targets.labels, logits), _shares(targets.partners, logits)
        return own + targets.share.to(own).unsqueeze(1) * (partner - own)
    if targets.is_floating_point():
        return targets.to(logits)
    return F.one_hot(targets, logits.shape[1]).to(logits)


def expected_cost(costs: Tensor, targets: Targets) -> Tensor:
    """Return the mean cost `[B]` of each example over its targets.

    Arguments:
        costs: `[B, K]`, the cost of each class if the class were the label.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.

    >>> costs = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> expected_cost(costs, torch.tensor([0, 1]))
    tensor([1., 3.])
    >>> expected_cost(costs, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    tensor([2., 3.])
    """
    _check(costs, targets, 0.0)
    labels = torch.stack(_labels(targets), 1)  # [B, 1 or 2] labels, or [B, 1 or 2, K] soft labels
    if labels.is_floating_point():
        each = (labels * costs.unsqueeze(1)).sum(2)
    else:
        each = costs.gather(1, labels)
    if not isinstance(targets, MixedLabels):
        return each[:, 0]
    own, partner = each.unbind(1)
    return own + targets.share * (partner - own)


def _labels(targets: Targets) -> tuple[Tensor, ...]:
    return targets[:2] if isinstance(targets, MixedLabels) else (targets,)


def _check(logits: Tensor, targets: Targets, label_smoothing: float | Tensor) -> None:
    if not isinstance(label_smoothing, Tensor) and not 0 <= label_smoothing <= 1:
        raise UserError(
            f"loss: label_smoothing must be in [0, 1], got {label_smoothing}; 0.1 is usual"
        )
    batch = logits.shape[:1]
    for labels in _labels(targets):
        hard = labels.dtype == torch.long and labels.shape == batch
        soft = labels.is_floating_point() and labels.shape == logits.shape
        if logits.dim() != 2 or not (hard or soft):
            raise UserError(
                f"loss: labels must be [B] long or [B, K] floating for logits [B, K], got "
                f"{tuple(labels.shape)}, {labels.dtype} for {tuple(logits.shape)}; "
                "give one label, or one share of each class, for each row of logits"
            )
    if isinstance(targets, MixedLabels) and targets.share.shape != batch:
        raise UserError(
            f"loss: the partner's share must be [B], got {tuple(targets.share.shape)} for "
            f"{len(logits)} rows of logits; give one number for each row"
        )
