"""Distances between the outputs of a student and of a teacher, per example."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(student: Tensor, teacher: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Return T² KL(teacher || student) of the softmaxes at temperature T (Hinton et al. 2015).

    The factor T² keeps the size of the gradient when the temperature changes.

    Arguments:
        student: logits `[B, K]`.
        teacher: logits `[B, K]`.
        temperature: T above 0; a scalar tensor if it is learned.
    Returns: `[B]`.

    >>> kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.])
    """
    return temperature**2 * _divergence(student / temperature, teacher / temperature)


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Return the decoupled distance T² (alpha TCKD + beta NCKD) (Zhao et al. 2022, eq. 7).

    TCKD is the divergence of the probability of the label, as a yes-or-no question; NCKD is that
    of the other classes among themselves. With alpha = 1 and beta = 1 - the teacher's probability
    of the label it equals `kl` (eq. 6); a constant beta keeps what a sure teacher knows of the
    other classes.

    Arguments:
        student: logits `[B, K]`, K at least 2.
        teacher: logits `[B, K]`.
        labels: `[B]` long.
        temperature: T above 0; a scalar tensor if it is learned.
        alpha: weight of TCKD.
        beta: weight of NCKD.
    Returns: `[B]`.

    >>> same = torch.tensor([[1.0, 2.0, 3.0]])
    >>> decoupled(same, same, torch.tensor([0]))
    tensor([0.])
    """
    student, teacher = student / temperature, teacher / temperature
    targets = _divergence(_label_or_not(student, labels), _label_or_not(teacher, labels))
    others = _divergence(_without(student, labels), _without(teacher, labels))
    return temperature**2 * (alpha * targets + beta * others)


def map_classes(logits: Tensor, index: Tensor) -> Tensor:
    """Return the logits `[B, K]` of the chosen classes of a teacher.

    Arguments:
        logits: `[B, M]`.
        index: `[K]` long, the teacher's class of each class of the student.

    >>> map_classes(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0]))
    tensor([[3., 1.]])
    """
    return logits.index_select(1, index)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) `[B]` of the softmaxes of logits."""
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _label_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits `[B, 2]` of the label, and of all other classes together."""
    label = logits.gather(1, labels.unsqueeze(1))
    return torch.cat([label, _without(logits, labels).logsumexp(1, keepdim=True)], 1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits `[B, K - 1]` of the classes that are not the label."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= labels.unsqueeze(1)))
