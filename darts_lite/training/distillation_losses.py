"""Losses of a student that learns from the logits of a teacher (knowledge distillation).

They compare the probabilities of student and teacher at a temperature T, softmax(logits / T), and
are multiplied by T², so that their gradients keep their size when T changes (Hinton et al. 2015,
section 2). They are differentiable in the logits of both, and in settings that are tensors. The
caller decides whether the teacher gets a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_lite.augment import MixedLabels, Targets
from darts_lite.errors import UserError
from darts_lite.training.losses import target_shares


def kl(student: Tensor, teacher: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Return T² KL(teacher || student) of each example (Hinton et al. 2015).

    Arguments:
        student: logits `[B, K]`.
        teacher: logits `[B, K]` of the same classes.
        temperature: T above 0; a scalar tensor if it is learned.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> kl(torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]])) / 16  # log odds of -1 and 1
    tensor([0.4621])
    """
    _check(student, teacher, temperature)
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))
    return temperature**2 * _divergence(log_p, log_q)


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Targets,
    temperature: float | Tensor = 4.0,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
) -> Tensor:
    """Return the decoupled distillation loss of each example (Zhao et al. 2022, eq. 7).

    The loss is T² (alpha TCKD + beta NCKD). With t the label,

    - TCKD is the divergence of the two probabilities (p_t, 1 - p_t),
    - NCKD is the divergence of the probabilities p_k / (1 - p_t) of the other classes.

    With alpha = 1 and beta = 1 - p_t of the teacher it equals `kl` (eq. 6).

    Arguments:
        student: logits `[B, K]`.
        teacher: logits `[B, K]` of the same classes; K is at least 2.
        labels: labels `[B]` long. Of soft or mixed labels, the label with the largest share counts,
            see `main_labels`.
        temperature: T above 0; a scalar tensor if it is learned.
        alpha: weight of TCKD, a number or `[B]`.
        beta: weight of NCKD, a number or `[B]`.
    Returns: losses `[B]`.
    Raises: UserError if the arguments do not fit together.

    >>> student, teacher = torch.tensor([[9.0, 0.0, 4.0]]), torch.tensor([[9.0, 4.0, 0.0]])
    >>> decoupled(student, teacher, torch.tensor([0]), beta=1.0) / 16  # TCKD is zero
    tensor([0.4621])
    """
    _check(student, teacher, temperature)
    labels = main_labels(labels, student)
    if labels.shape != student.shape[:1] or labels.dtype != torch.long:
        raise UserError(
            f"distillation: labels must be [B] long, got {tuple(labels.shape)}, {labels.dtype} for "
            f"{len(student)} rows of logits; give one label for each row"
        )
    is_label = torch.arange(student.shape[1], device=student.device) == labels.unsqueeze(1)
    (log_b, log_p), (log_c, log_q) = (
        _decoupled(logits / temperature, is_label) for logits in (teacher, student)
    )
    loss = alpha * _divergence(log_b, log_c) + beta * _divergence(log_p, log_q)
    return temperature**2 * loss


def main_labels(targets: Targets, logits: Tensor) -> Tensor:
    """Return the label `[B]` with the largest share in the target of each example.

    Arguments:
        targets: labels `[B]` long, soft labels `[B, K]` floating, or `MixedLabels` of either. Of
            two labels with equal shares, the image's own label counts.
        logits: `[B, K]`; gives K.

    >>> labels, partners = torch.tensor([0, 1]), torch.tensor([1, 0])
    >>> main_labels(MixedLabels(labels, partners, torch.tensor([0.4, 0.6])), torch.zeros(2, 2))
    tensor([0, 0])
    """
    if isinstance(targets, MixedLabels) and not targets.labels.is_floating_point():
        return torch.where(targets.share > 0.5, targets.partners, targets.labels)
    if isinstance(targets, MixedLabels) or targets.is_floating_point():
        return target_shares(targets, logits).argmax(1)
    return targets


def map_classes(teacher_logits: Tensor, index: Tensor) -> Tensor:
    """Return the teacher's logits `[B, K]` for the classes of the student.

    The softmax of the result is the teacher's probability of a class, given that it is one of these
    classes.

    Arguments:
        teacher_logits: `[B, M]`.
        index: `[K]` long; the teacher's class, 0 to M - 1, for each class of the student.
    Raises: UserError if the arguments do not fit together.

    >>> map_classes(torch.tensor([[10.0, 11.0, 12.0]]), torch.tensor([2, 0]))
    tensor([[12., 10.]])
    """
    if teacher_logits.dim() != 2 or index.dim() != 1 or index.dtype != torch.long:
        raise UserError(
            f"distillation: the index must be [K] long for logits [B, M], got "
            f"{tuple(index.shape)}, {index.dtype} for {tuple(teacher_logits.shape)}; give one "
            "class of the teacher for each class of the student"
        )
    return teacher_logits.index_select(1, index)


def _decoupled(logits: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
    """Return logarithms of (p_t, 1 - p_t) `[B, 2]`, and of p_k / (1 - p_t), zero at t, `[B, K]`.

    Logarithms of sums over the other classes, so that 1 - p_t has no cancellation.
    """
    log_p = logits.log_softmax(1)
    others = log_p.masked_fill(is_label, -torch.inf)
    log_rest = others.logsumexp(1)
    log_label = log_p.masked_fill(~is_label, 0.0).sum(1)
    within = (log_p - log_rest.unsqueeze(1)).masked_fill(is_label, 0.0)
    return torch.stack((log_label, log_rest), 1), within


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the sum of p (log p - log q) over the classes."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _check(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor) and not 0 < temperature < float("inf"):
        raise UserError(
            f"distillation: temperature must be finite and above 0, got {temperature}; 4 is usual"
        )
    if student.dim() != 2 or student.shape != teacher.shape:
        raise UserError(
            f"distillation: the logits of the teacher must be [B, K] as of the student, got "
            f"{tuple(teacher.shape)} for {tuple(student.shape)}; choose the teacher's classes with "
            "map_classes"
        )
