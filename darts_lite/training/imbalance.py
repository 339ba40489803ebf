"""Imbalanced classes: weights of the classes in the loss, and long-tailed samples to study them."""

from __future__ import annotations

import torch
from torch import Tensor

from darts_lite.architecture.recipe import ClassWeights


def class_weights(counts: Tensor, kind: ClassWeights) -> Tensor | None:
    """Return a weight for every class; the mean weight of an image is one.

    Arguments:
        counts: int64 `[K]`, training images of each class.
        kind: "none"; "balanced", by the inverse of the count, as scikit-learn; or "effective", by
            the inverse of the effective number (1 - b^n) / (1 - b) of images with
            b = 1 - 1/N for N images in all (Cui et al. 2019, eq. 2).
    Returns: float32 `[K]`; zero for a class without images. None for "none".

    >>> class_weights(torch.tensor([30, 10]), "balanced")
    tensor([0.6667, 2.0000])
    """
    if kind == "none":
        return None
    numbers = counts.double()
    if kind == "effective":
        beta = 1 - 1 / numbers.sum()
        numbers = (1 - beta**numbers) / (1 - beta)
    weights = torch.where(counts > 0, 1 / numbers.clamp(min=1e-12), 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def long_tailed(labels: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Return the images of a long-tailed sample: class sizes fall exponentially (Cao et al. 2019).

    Arguments:
        labels: int64 `[N]`, of balanced classes.
        ratio: images of the first class for one image of the last, at least 1.
        generator: CPU generator of the sample.
    Returns: sorted int64 index.
    """
    labels = labels.cpu()
    counts = labels.bincount()
    classes = len(counts)
    chosen = []
    for k in range(classes):
        wanted = int(counts[k] * ratio ** (-k / max(1, classes - 1)))
        mine = (labels == k).nonzero()[:, 0]
        chosen.append(mine[torch.randperm(len(mine), generator=generator)[: max(1, wanted)]])
    return torch.cat(chosen).sort().values
