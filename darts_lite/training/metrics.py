"""Metrics of class probabilities, and the evaluation of a network on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.weights import Weights
from darts_lite.data import Images, evaluation_batches

BINS = 15  # equal bins of the calibration error
TOP = 5


class PerClass(NamedTuple):
    """Scores `[K]` of each class, 0 to 1; zero where a score is not defined.

    Attributes:
        precision: right predictions of the class, as a share of all predictions of it.
        recall: right predictions of the class, as a share of its images.
        f1: harmonic mean of precision and recall.
        support: images of the class.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    def macro(self, scores: Tensor) -> float:
        """Return the mean of scores `[K]` over the classes with images."""
        return float(scores[self.support > 0].mean())


def confusion_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return counts `[K, K]`; rows are true classes, columns predicted classes.

    Arguments:
        probabilities: `[N, K]`.
        labels: `[N]` long.
    """
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def per_class(confusion: Tensor) -> PerClass:
    """Return precision, recall and F1 of each class, from counts `[K, K]`.

    >>> per_class(torch.tensor([[2, 0], [1, 1]])).f1
    tensor([0.8000, 0.6667], dtype=torch.float64)
    """
    right, counts = confusion.diagonal().double(), confusion.double()
    support, predicted = counts.sum(1), counts.sum(0)
    precision = right / predicted.clamp(min=1)
    recall = right / support.clamp(min=1)
    f1 = 2 * right / (support + predicted).clamp(min=1)
    return PerClass(precision, recall, f1, support.long())


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels).double().mean())


def _macro(score: str) -> Callable[[Tensor, Tensor], float]:
    def metric(probabilities: Tensor, labels: Tensor) -> float:
        scores = per_class(confusion_of(probabilities, labels))
        return scores.macro(getattr(scores, score))

    return metric


def roc_auc(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of the area under the curve of one class against the rest.

    The area is the probability that an image of the class has a larger probability of it than
    another image, ties counting a half (Hanley and McNeil 1982). A class without images, or the
    only class with images, has no area; NaN if no class has one.

    Arguments:
        probabilities: `[N, K]`.
        labels: `[N]` long.
    """
    areas = []
    for k in labels.unique().tolist():
        scores, mine = probabilities[:, k], labels == k
        positives = int(mine.sum())
        negatives = len(labels) - positives
        if negatives:
            _, place, ties = scores.unique(return_inverse=True, return_counts=True)
            last = ties.cumsum(0).double()
            rank = (last - (ties - 1) / 2)[place]  # mean rank of equal scores, from 1
            above = rank[mine].sum() - positives * (positives + 1) / 2
            areas.append(float(above) / (positives * negatives))
    return sum(areas) / len(areas) if areas else float("nan")


def top5(probabilities: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class is among the five most probable; 1 for few classes."""
    best = probabilities.topk(min(TOP, probabilities.shape[1]), 1).indices
    return float((best == labels.unsqueeze(1)).any(1).double().mean())


class Calibration(NamedTuple):
    """Confidence against accuracy, in fifteen equal bins of confidence; sums over images, `[15]`.

    Attributes:
        images: number of images of the bin.
        confidence: sum of the probabilities of their predicted classes.
        right: number of right predictions.
    """

    images: Tensor
    confidence: Tensor
    right: Tensor


def calibration(probabilities: Tensor, labels: Tensor) -> Calibration:
    """Return the bins of confidence of class probabilities `[N, K]` with labels `[N]`."""
    confidence, guess = probabilities.double().max(1)
    right = (guess == labels).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15], (1/15, 2/15], ...
    empty = torch.zeros(BINS, dtype=torch.float64, device=labels.device)
    sums = (empty.index_add(0, bins, each) for each in (torch.ones_like(right), confidence, right))
    return Calibration(*sums)


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error over fifteen bins (Guo et al. 2017, eq. 3).

    It is the mean over images of |accuracy - confidence| of their bin of confidence; 0 is best.
    """
    _, confidence, right = calibration(probabilities, labels)
    return float((right - confidence).abs().sum()) / len(labels)


def log_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean of -log of the probability of the class, at least 1e-15; 0 is best."""
    own = probabilities.double().gather(1, labels.unsqueeze(1))
    return float(-own.clamp(min=1e-15).log().mean())


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Arguments:
        function: from probabilities `[N, K]` and labels `[N]` to the value.
        larger_is_better: its direction.
    """

    function: Callable[[Tensor, Tensor], float]
    larger_is_better: bool = True


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "balanced_accuracy": Metric(_macro("recall")),
    "macro_precision": Metric(_macro("precision")),
    "macro_recall": Metric(_macro("recall")),
    "macro_f1": Metric(_macro("f1")),
    "roc_auc": Metric(roc_auc),
    "top5": Metric(top5),
    "ece": Metric(calibration_error, larger_is_better=False),
    "log_loss": Metric(log_loss, larger_is_better=False),
}
"""The metrics by the name of `--select-by`. Macro means are over the classes that have images."""


class Evaluation(NamedTuple):
    """Result of a network on a split.

    Attributes:
        values: every metric of `METRICS` by name.
        classes: scores of each class.
        confusion: NumPy [K, K] counts; rows are true classes, columns predicted classes.
    """

    values: dict[str, float]
    classes: PerClass
    confusion: Any

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, 0 to 1."""
        return self.values["accuracy"]

    @property
    def macro_f1(self) -> float:
        """Mean F1 score over the classes with images, 0 to 1."""
        return self.values["macro_f1"]


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
    return measure(lambda x: network(x, weights), images, "accuracy")


@torch.no_grad()
def probabilities_of(
    network: Callable[[Tensor], Tensor],
    images: Images,
    view: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the class probabilities `[N, K]` of a network in evaluation mode.

    Arguments:
        network: maps images `[B, C, H, W]` to logits `[B, K]`.
        images: the images.
        view: maps images to probabilities `[B, K]` instead, as test-time augmentation does.
    """
    found = [
        network(x).softmax(1) if view is None else view(x)
        for x, _ in evaluation_batches(images, 256)
    ]
    return torch.cat(found)


def measure(network: Callable[[Tensor], Tensor], images: Images, metric: str) -> float:
    """Return one metric of a network in evaluation mode.

    Arguments:
        network: maps images `[B, C, H, W]` to logits `[B, K]`.
        images: images of the evaluation.
        metric: name in `METRICS`.
    """
    return METRICS[metric].function(probabilities_of(network, images), images.labels)


def evaluation(probabilities: Tensor, labels: Tensor) -> Evaluation:
    """Return all metrics of class probabilities `[N, K]` and labels `[N]`."""
    confusion = confusion_of(probabilities, labels)
    values = {name: metric.function(probabilities, labels) for name, metric in METRICS.items()}
    scores = PerClass(*(part.cpu() for part in per_class(confusion)))
    return Evaluation(values, scores, confusion.cpu().numpy())


def evaluate(
    network: Callable[[Tensor], Tensor],
    images: Images,
    view: Callable[[Tensor], Tensor] | None = None,
) -> Evaluation:
    """Return all metrics of a network in evaluation mode; arguments as `probabilities_of`."""
    return evaluation(probabilities_of(network, images, view), images.labels)
