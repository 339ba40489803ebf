"""How good a network is: calibrated accuracy, and the full account of a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.weights import Weights
from darts_lite.data import Images, evaluation_batches
from darts_lite.reporting import pictures


class Evaluation(NamedTuple):
    """What a network does on a split."""

    accuracy: float
    macro_f1: float
    confusion: Any  # [K, K] counts, rows true, columns predicted


def sample(images: Images, count: int) -> Images:
    """At most `count` images, evenly spread (a folder's images come sorted by class)."""
    if images.count <= count:
        return images
    index = torch.linspace(0, images.count - 1, count, device=images.labels.device)
    return images.select(index.long())


@torch.no_grad()
def accuracy(
    network: Network,
    images: Images,
    statistics: Iterable[tuple[Tensor, Tensor]],
    weights: Weights | None = None,
) -> float:
    """Accuracy with BatchNorm statistics re-estimated on `statistics`."""
    calibrate(network, statistics, weights)
    network.eval()
    correct = [
        (network(x, weights).argmax(1) == y).float().sum()
        for x, y in evaluation_batches(images, 256)
    ]
    return float(torch.stack(correct).sum()) / images.count


@torch.no_grad()
def evaluate(network: Network, images: Images) -> Evaluation:
    """Accuracy, macro F1 and confusion matrix of a network in evaluation mode."""
    from sklearn.metrics import confusion_matrix, f1_score  # a second of start-up

    predicted = torch.cat([network(x).argmax(1) for x, _ in evaluation_batches(images, 256)]).cpu()
    labels = images.labels.cpu()
    classes = range(network.classifier.out_features)
    return Evaluation(
        float((predicted == labels).float().mean()),
        float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        confusion_matrix(labels, predicted, labels=classes),
    )


def picture_of(evaluation: Evaluation, classes: tuple[str, ...], split: str) -> pictures.Image:
    """The confusion matrix as a picture."""
    title = f"{split}: accuracy {evaluation.accuracy:.2%}, macro F1 {evaluation.macro_f1:.2%}"
    return pictures.confusion_matrix(evaluation.confusion, classes, title)
