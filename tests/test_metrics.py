"""Metrics against scikit-learn on random inputs, with ties and absent classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor

from darts_lite.data import Images
from darts_lite.training.metrics import METRICS, evaluate, evaluation, roc_auc

N, CLASSES = 200, 7


def drawn(seed: int, absent: int | None = None, ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % CLASSES
    logits = torch.randn(N, CLASSES, generator=generator, dtype=torch.float64)
    logits += 1.5 * torch.nn.functional.one_hot(labels, CLASSES)
    probabilities = logits.softmax(1)
    if ties:  # few different values, each row still sums to one
        logits = logits.round()
        probabilities = logits.softmax(1)
    return probabilities, labels


def expected(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    p, y = probabilities.numpy(), labels.numpy()
    guess, present = probabilities.argmax(1).numpy(), np.unique(labels)
    scores = {"labels": present, "average": "macro", "zero_division": 0}
    areas = [reference.roc_auc_score(y == k, p[:, k]) for k in present]
    return {
        "accuracy": reference.accuracy_score(y, guess),
        "balanced_accuracy": reference.recall_score(y, guess, **scores),
        "macro_precision": reference.precision_score(y, guess, **scores),
        "macro_recall": reference.recall_score(y, guess, **scores),
        "macro_f1": reference.f1_score(y, guess, **scores),
        "roc_auc": float(np.mean(areas)),
        "top5": reference.top_k_accuracy_score(y, p, k=5, labels=range(CLASSES)),
        "ece": calibration_error(p, y),
        "log_loss": reference.log_loss(y, p, labels=range(CLASSES)),
    }


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """The definition, bin by bin (Guo et al. 2017, equation 3)."""
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    return total


@pytest.mark.parametrize("absent", [None, 0, 6])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_scikit_learn(seed: int, absent: int | None) -> None:
    given = drawn(seed, absent)
    reference_values = expected(*given)
    found = evaluation(*given).values
    assert found.keys() == reference_values.keys() == METRICS.keys()
    for name, value in reference_values.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_the_area_counts_ties_a_half() -> None:
    probabilities, labels = drawn(0, ties=True)
    value = expected(probabilities, labels)["roc_auc"]
    assert roc_auc(probabilities, labels) == pytest.approx(value, abs=1e-12)
    same = torch.full((4, 2), 0.5)
    assert roc_auc(same, torch.tensor([0, 1, 1, 0])) == 0.5


def test_one_class_alone_has_no_area_and_no_metric_fails() -> None:
    values = evaluation(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long)).values
    assert math.isnan(values.pop("roc_auc"))
    assert all(math.isfinite(v) for v in values.values())


def test_scores_of_each_class_equal_scikit_learn() -> None:
    probabilities, labels = drawn(1, absent=3)
    found = evaluation(probabilities, labels)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(CLASSES), zero_division=0
    )
    for own, other in zip(found.classes, (precision, recall, f1, support)):
        np.testing.assert_allclose(own.numpy(), other, atol=1e-12)
    counted = reference.confusion_matrix(labels, probabilities.argmax(1), labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion, counted)


def test_a_network_is_evaluated_in_batches_and_through_a_view() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (600, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.randint(3, (600,), generator=generator))

    def network(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]

    whole = pixels.float().flatten(1)[:, :3].div(255).softmax(1)
    assert evaluate(network, images).values == evaluation(whole, images.labels).values
    turned = evaluate(network, images, lambda x: network(x.flip(3)).softmax(1))
    assert turned.values != evaluate(network, images).values
