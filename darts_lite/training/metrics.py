"""Metrics of a network: accuracy after calibration, and the full evaluation of a split."""

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
    """Result of a network on a split.

    Attributes:
        accuracy: fraction of correct predictions, 0 to 1.
        macro_f1: mean F1 score over classes, 0 to 1.
        confusion: [K, K] counts; rows are true classes, columns predicted classes.
    """

    accuracy: float
    macro_f1: float
    confusion: Any


def sample(images: Images, count: int) -> Images:
    """Return at most `count` images, evenly spread: images of a folder are sorted by class."""
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
    """Return the accuracy, 0 to 1, after calibration of the BatchNorm statistics.

    Arguments:
        network: network to calibrate and evaluate; it is in evaluation mode afterwards.
        images: images of the evaluation.
        statistics: batches (images, labels) for the calibration.
        weights: mixing weights of a supernet; None for a discrete network.
    """
    calibrate(network, statistics, weights)
    network.eval()
    correct = [
        (network(x, weights).argmax(1) == y).float().sum()
        for x, y in evaluation_batches(images, 256)
    ]
    return float(torch.stack(correct).sum()) / images.count


@torch.no_grad()
def evaluate(network: Network, images: Images) -> Evaluation:
    """Return accuracy, macro F1 and confusion matrix of a network in evaluation mode."""
    from sklearn.metrics import confusion_matrix, f1_score  # the import takes a second

    predicted = torch.cat([network(x).argmax(1) for x, _ in evaluation_batches(images, 256)]).cpu()
    labels = images.labels.cpu()
    classes = range(network.classifier.out_features)
    return Evaluation(
        float((predicted == labels).float().mean()),
        float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        confusion_matrix(labels, predicted, labels=classes),
    )


def picture_of(evaluation: Evaluation, classes: tuple[str, ...], split: str) -> pictures.Image:
    """Return a picture of the confusion matrix.

    Arguments:
        evaluation: result of `evaluate`.
        classes: class names.
        split: name of the split, for the title.
    """
    title = f"{split}: accuracy {evaluation.accuracy:.2%}, macro F1 {evaluation.macro_f1:.2%}"
    return pictures.confusion_matrix(evaluation.confusion, classes, title)
