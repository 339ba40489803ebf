"""Pseudo-labels: a training uses the labels of a teacher (Lee 2013; Xie et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.data import Images
from darts_lite.data.images import floats
from darts_lite.data.unlabelled import Unlabelled
from darts_lite.errors import UserError


class PseudoLabels(NamedTuple):
    """Images with the labels of a teacher.

    Attributes:
        pixels: uint8 [M, C, H, W], the images that were kept.
        labels: floating [M, K], the teacher's probabilities, or one for its class and zero else.
        right: share of the kept labels that are right, 0 to 1; None without truth.
        counts: int64 [K], kept images of each class.
    """

    pixels: Tensor
    labels: Tensor
    right: float | None
    counts: Tensor


@torch.no_grad()
def pseudo_labels(
    logits: Callable[[Tensor], Tensor],
    unlabelled: Unlabelled,
    *,
    threshold: float = 0.8,
    balance: bool = True,
    soft: bool = True,
    batch_size: int = 256,
) -> PseudoLabels:
    """Label images with a teacher, and keep those of which it is sure.

    Arguments:
        logits: teacher; maps images `[B, C, H, W]` in [0, 1] to logits `[B, K]`.
        unlabelled: the images, on the device of the teacher.
        threshold: smallest probability of the teacher's class, 0 to 1.
        balance: whether to keep at most twice as many images of a class as the median class has;
            the surest ones stay (Xie et al. 2020 balance the classes by number too).
        soft: whether the labels are the teacher's probabilities; else its class.
        batch_size: images per pass of the teacher.
    Raises: `UserError` if no image is kept.
    """
    parts = unlabelled.pixels.split(batch_size)
    probabilities = torch.cat([logits(floats(part)).softmax(1) for part in parts])
    sure, guess = probabilities.max(1)
    classes = probabilities.shape[1]
    kept = sure >= threshold
    if balance:
        counts = guess[kept].bincount(minlength=classes)
        most = max(1, 2 * int(counts[counts > 0].median())) if counts.any() else 1
        kept &= _rank(sure.where(kept, torch.zeros_like(sure)), guess) < most
    index = kept.nonzero()[:, 0]
    if len(index) == 0:
        raise UserError(
            f"--confidence must keep some of the {len(sure)} unlabelled images, got none at "
            f"{threshold:g}; the teacher's largest probability is {float(sure.max()):.2f}"
        )
    chosen = guess[index]
    labels = probabilities[index] if soft else F.one_hot(chosen, classes).to(probabilities)
    right = None
    if unlabelled.truth is not None:
        right = float((chosen == unlabelled.truth[index]).float().mean())
    return PseudoLabels(unlabelled.pixels[index], labels, right, chosen.bincount(minlength=classes))


def _rank(score: Tensor, group: Tensor) -> Tensor:
    """Return the rank `[N]` of each score within its group, 0 for the largest."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = group.bincount()
    starts = (sizes.cumsum(0) - sizes)[group[order]]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts
    return rank


def joined(labelled: Images, pseudo: PseudoLabels) -> Images:
    """Return labelled and pseudo-labelled images together, with soft labels [N, K]."""
    classes = pseudo.labels.shape[1]
    sharp = F.one_hot(labelled.labels, classes).to(pseudo.labels)
    return Images(torch.cat([labelled.pixels, pseudo.pixels]), torch.cat([sharp, pseudo.labels]))
