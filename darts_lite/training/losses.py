"""Losses per example by name, for labels, soft labels and mixed labels.

A loss is a function `(logits [B, K], targets, **settings) -> losses [B]`; a training takes the
mean. `targets` are the targets that `darts_lite.augment` returns: labels, or `MixedLabels` after
CutMix or mixup.

**To add a loss**, write one function here and add it to `LOSSES`. Compute the cost `[B, K]` of
every class, as if the class were the label, and call `expected_cost` with the targets. Every kind
of target is then supported, and the tests of `LOSSES` cover the loss. A setting with a range may be
a tensor, so that hypergradients can learn it; do not clamp it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import MixedLabels, Targets
from darts_lite.errors import UserError


def cross_entropy(
    logits: Tensor, targets: Targets, label_smoothing: float | Tensor = 0.0
) -> Tensor:
    """Return the cross entropy of each example, with smoothed labels.

    The loss is (1 - s) cost(target) + s (mean cost of all classes), with the cost -log p of a
    class. It is linear in the targets: mixed labels have the loss of the soft label that is their
    weighted mean.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1]; a scalar tensor if it is learned.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> mixed = MixedLabels(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 0.0]))
    >>> cross_entropy(torch.tensor([[0.0, 100.0], [0.0, 100.0]]), mixed)
    tensor([ 25., 100.])
    """
    learned = isinstance(label_smoothing, Tensor)
    if not learned and not 0 <= label_smoothing <= 1:
        raise UserError(
            f"loss: label_smoothing must be in [0, 1], got {label_smoothing}; 0.1 is usual"
        )
    _check(logits, targets)
    if isinstance(targets, Tensor) and not isinstance(label_smoothing, Tensor):  # one fused kernel
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    costs = -logits.log_softmax(1)
    loss = expected_cost(costs, targets)
    if not learned and label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss + label_smoothing * costs.mean(1)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}
"""The losses by their name in a recipe."""


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
    _check(costs, targets)
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


def _check(logits: Tensor, targets: Targets) -> None:
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
