"""Losses per example by name, for labels, soft labels and mixed labels.

A loss is a function `(logits [B, K], targets, label_smoothing=0.0, class_weights=None, **settings)
-> losses [B]`; a training takes the mean. `targets` are the targets that `darts_lite.augment`
returns: labels, or `MixedLabels` after CutMix or mixup.

**To add a loss**, write one function here and add its record to `LOSSES`, with the range of every
setting of its own. Compute the cost `[B, K]` of every class, as if the class were the label, and
call `expected_cost` with the targets; or compute with the shares `[B, K]` of `target_shares`. Every
kind of target is then supported, and the tests of `LOSSES` cover the loss. A setting with a range
may be a tensor, so that hypergradients can learn it; do not clamp it.
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

# --- losses ---------------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of each example, with smoothed labels.

    The loss is (1 - s) cost(target) + s (mean cost of all classes), with the cost -w_k log p_k of
    class k. It is linear in the targets: mixed labels have the loss of the soft label that is their
    weighted mean.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1]; a scalar tensor if it is learned.
        class_weights: w `[K]`, as in `torch.nn.functional.cross_entropy`; None for ones.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> mixed = MixedLabels(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 0.0]))
    >>> cross_entropy(torch.tensor([[0.0, 100.0], [0.0, 100.0]]), mixed)
    tensor([ 25., 100.])
    """
    _check(logits, targets, label_smoothing, class_weights)
    constant = None if isinstance(label_smoothing, Tensor) else label_smoothing
    if isinstance(targets, Tensor) and class_weights is None and constant is not None:
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=constant)  # fused
    costs = _weighted(-logits.log_softmax(1), class_weights)
    return expected_cost(costs, targets, label_smoothing)


def focal(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
    gamma: float | Tensor = 2.0,
) -> Tensor:
    """Return the focal loss of each example (Lin et al. 2017, eq. 4 and 5).

    The cost of class k is -w_k (1 - p_k)^gamma log p_k: examples that are classified well count
    less. With gamma zero it is the cross entropy. The power is the exponential of gamma
    log(1 - p_k), and `log_complement` gives this logarithm without cancellation. All derivatives
    are finite for every gamma, also where p_k rounds to one; nothing is clamped.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1]; a scalar tensor if it is learned.
        class_weights: w `[K]`, alpha of the paper; None for ones.
        gamma: at least 0; a scalar tensor if it is learned.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    >>> focal(p.log(), torch.tensor([0, 0])) / cross_entropy(p.log(), torch.tensor([0, 0]))
    tensor([0.2500, 0.0100])
    """
    if not isinstance(gamma, Tensor) and not 0 <= gamma < float("inf"):
        raise UserError(f"loss: gamma must be finite and at least 0, got {gamma}; 2 is usual")
    _check(logits, targets, label_smoothing, class_weights)
    log_p = logits.log_softmax(1)
    costs = -(gamma * log_complement(log_p)).exp() * log_p
    return expected_cost(_weighted(costs, class_weights), targets, label_smoothing)


def bce(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the binary cross entropy of each example, summed over the classes.

    The loss is the sum over k of -w_k t_k log q_k - (1 - t_k) log(1 - q_k), with the sigmoid q_k of
    logit k and the smoothed target t = (1 - s) y + s / K. It is the loss of Wightman et al. 2021
    ("ResNet strikes back", section 2) in the form that is summed over the classes.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either. Soft
            labels need not have the sum one.
        label_smoothing: s in [0, 1]; a scalar tensor if it is learned.
        class_weights: w `[K]`, as `pos_weight` of `binary_cross_entropy_with_logits`; None for
            ones. A weight of both terms would not move the best prediction of a class.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> bce(torch.zeros(1, 2), torch.tensor([0])) / torch.tensor(2.0).log()
    tensor([2.])
    """
    _check(logits, targets, label_smoothing, class_weights)
    shares = _smoothed(target_shares(targets, logits), label_smoothing)
    costs = shares * _weighted(F.softplus(-logits), class_weights)
    return (costs + (1 - shares) * F.softplus(logits)).sum(1)


def soft_f1(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return losses whose mean is one minus the macro F1 score of the batch, with soft counts.

    The score of class k is F_k = 2 TP_k / (2 TP_k + FP_k + FN_k), with TP_k = sum of y_ik p_ik
    over the examples i of the batch, FP_k = sum of (1 - y_ik) p_ik and FN_k = sum of
    y_ik (1 - p_ik), so that the denominator is the sum of y_ik + p_ik. The mean of F_k has the
    weights w_k, over the classes with targets in the batch. Example i has the share
    1 - B mean of 2 y_ik p_ik / (2 TP_k + FP_k + FN_k) of the loss.

    This is a batch statistic: the loss of one example depends on the whole batch, as with
    BatchNorm, and may be negative. The batch should have several examples of each class.

    Classes without targets in the batch are left out of the mean: their score is zero whatever is
    predicted, and gives no gradient. A probability that such a class gets is missing from the
    scores of the other classes. Smoothing does not change which classes are left out.

    Arguments:
        logits: `[B, K]`.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1], of y; a scalar tensor if it is learned.
        class_weights: w `[K]`, weights of the classes in the mean; None for ones.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> p = torch.tensor([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0]])
    >>> 1 - soft_f1(p.log(), torch.tensor([0, 1])).mean()  # mean of 1.6 / 2.2 and 1.2 / 1.8
    tensor(0.6970)
    """
    _check(logits, targets, label_smoothing, class_weights)
    p, shares = logits.softmax(1), target_shares(targets, logits)
    present = shares.sum(0) > 0
    shares = _smoothed(shares, label_smoothing)
    weights = _weighted(present.to(p.dtype), class_weights)
    weights = weights / weights.sum().clamp(min=torch.finfo(p.dtype).tiny)  # if all are zero
    sizes = (shares + p).sum(0).masked_fill(~present, 1.0)  # not 0 / 0 in a class without both
    return 1 - len(logits) * (2 * shares * p / sizes * weights).sum(1)


# --- the losses by name ---------------------------------------------------------------------------


class LossSetting(NamedTuple):
    """A setting of one loss, which a training may learn.

    Attributes:
        default: value where it is not learned.
        low: lower end of the open interval of learned values.
        high: upper end of the open interval of learned values.
    """

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class LossRecord:
    """A loss, called as its function, and what a training must know of it.

    Attributes:
        function: from logits, targets and settings to the losses `[B]`.
        settings: settings that no other loss has, by the name of the argument.
        batch_statistic: whether the loss of one example depends on the other examples.

    >>> LOSSES["focal"].settings["gamma"]
    LossSetting(default=2.0, low=0.0, high=5.0)
    >>> LOSSES["focal"](torch.tensor([[0.0, 0.0]]), torch.tensor([0]), gamma=1.0)
    tensor([0.3466])
    """

    function: Callable[..., Tensor]
    settings: Mapping[str, LossSetting] = field(default_factory=dict)
    batch_statistic: bool = False

    def __call__(self, logits: Tensor, targets: Targets, *args: Any, **settings: Any) -> Tensor:
        return self.function(logits, targets, *args, **settings)


LOSSES: dict[str, LossRecord] = {
    "cross_entropy": LossRecord(cross_entropy),
    "focal": LossRecord(focal, {"gamma": LossSetting(2.0, 0.0, 5.0)}),
    "bce": LossRecord(bce),
    "soft_f1": LossRecord(soft_f1, batch_statistic=True),
}
"""The losses by their name in a recipe."""


# --- helpers of losses ----------------------------------------------------------------------------


def expected_cost(costs: Tensor, targets: Targets, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """Return the mean cost `[B]` of each example over its targets.

    Arguments:
        costs: `[B, K]`, the cost of each class if the class were the label.
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        label_smoothing: s in [0, 1], the weight of the mean cost of all classes; may be a tensor.

    >>> costs = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> expected_cost(costs, torch.tensor([0, 1]))
    tensor([1., 3.])
    >>> expected_cost(costs, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    tensor([2., 3.])
    >>> expected_cost(costs, torch.tensor([0, 1]), 0.5)
    tensor([1.5000, 2.5000])
    """
    _check(costs, targets)
    labels = torch.stack(_labels(targets), 1)  # [B, 1 or 2] labels, or [B, 1 or 2, K] soft labels
    if labels.is_floating_point():
        each = (labels * costs.unsqueeze(1)).sum(2)
    else:
        each = costs.gather(1, labels)
    own, partner = each[:, 0], each[:, -1]
    if isinstance(targets, MixedLabels):
        own = own + targets.share * (partner - own)
    if not isinstance(label_smoothing, Tensor) and label_smoothing == 0:
        return own
    return (1 - label_smoothing) * own + label_smoothing * costs.mean(1)


def target_shares(targets: Targets, logits: Tensor) -> Tensor:
    """Return the share `[B, K]` of each class in the target of each example.

    Arguments:
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either.
        logits: `[B, K]`; gives K, and the dtype for labels.

    >>> mixed = MixedLabels(torch.tensor([1]), torch.tensor([0]), torch.tensor([0.25]))
    >>> target_shares(mixed, torch.zeros(1, 3))
    tensor([[0.2500, 0.7500, 0.0000]])
    """
    if isinstance(targets, MixedLabels):
        own, partner = (target_shares(part, logits) for part in targets[:2])
        return own + targets.share.unsqueeze(1) * (partner - own)
    if targets.is_floating_point():
        return targets
    return F.one_hot(targets, logits.shape[1]).to(logits.dtype)


def log_complement(log_p: Tensor) -> Tensor:
    """Return log(1 - p) `[B, K]`, finite also where p rounds to one.

    For the largest p it is the logarithm of the sum of the others, without cancellation; no other p
    is above one half.

    Arguments:
        log_p: finite logarithms `[B, K]` of probabilities with the sum one; K is at least 2.

    >>> log_complement(torch.tensor([[50.0, 0.0, 0.0]]).log_softmax(1))[:, 0]  # log 2 - 50
    tensor([-49.3069])
    """
    top = torch.arange(log_p.shape[1], device=log_p.device) == log_p.argmax(1, keepdim=True)
    rest = log_p.masked_fill(top, -torch.inf).logsumexp(1, keepdim=True)
    others = torch.log1p(-log_p.exp().masked_fill(top, 0.0))
    return torch.where(top, rest, others)


def _smoothed(shares: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """Return (1 - s) y + s / K."""
    return (1 - label_smoothing) * shares + label_smoothing / shares.shape[1]


def _weighted(costs: Tensor, class_weights: Tensor | None) -> Tensor:
    return costs if class_weights is None else costs * class_weights.to(costs.dtype)


def _labels(targets: Targets) -> tuple[Tensor, ...]:
    return targets[:2] if isinstance(targets, MixedLabels) else (targets,)


def _check(
    logits: Tensor,
    targets: Targets,
    label_smoothing: float | Tensor = 0.0,
    class_weights: Tensor | None = None,
) -> None:
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
    if class_weights is not None and class_weights.shape != logits.shape[1:]:
        raise UserError(
            f"loss: class_weights must be [K], got {tuple(class_weights.shape)} for "
            f"{logits.shape[1]} classes; give one weight for each class"
        )
