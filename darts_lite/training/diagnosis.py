"""What a person wants to know of a trained network: what it confuses, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from darts_lite.data.images import Images, floats
from darts_lite.reporting import pictures
from darts_lite.training.metrics import Calibration, Evaluation

PAIRS = 10  # most confused pairs
SHOWN = 24  # costliest errors in the gallery


def diagnosis(evaluation: Evaluation, bins: Calibration, classes: Sequence[str]) -> dict[str, Any]:
    """Return the scores of each class, the confusion matrix, confused pairs and calibration.

    Arguments:
        evaluation: result on the test images.
        bins: result of `calibration` on them.
        classes: class names.
    Returns: JSON values by their names in metrics.json.
    """
    columns = (part.tolist() for part in evaluation.classes)
    fields = ("class", *evaluation.classes._fields)
    counts = torch.as_tensor(evaluation.confusion)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return {
        "test_classes": [dict(zip(fields, row)) for row in zip(classes, *columns)],
        "test_confusion": {
            "counts": counts.tolist(),
            "shares": [[round(share, 4) for share in row] for row in shares.tolist()],
        },
        "test_confused": confused(counts, classes),
        "test_calibration": [
            {"images": int(n), "confidence": confidence / n, "accuracy": right / n}
            for n, confidence, right in zip(*(each.tolist() for each in bins))
            if n
        ],
    }


def confused(counts: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent errors, at most ten: true and predicted class, count and share.

    Arguments:
        counts: confusion matrix `[K, K]`; rows are true classes.
        classes: class names.

    >>> confused(torch.tensor([[3, 1], [0, 2]]), ["a", "b"])
    [{'true': 'a', 'predicted': 'b', 'count': 1, 'share': 0.25}]
    """
    wrong = counts - counts.diag().diag()
    order = wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    pairs = [divmod(index, len(classes)) for index in order]
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(counts[i, j]),
            "share": float(counts[i, j] / counts[i].sum()),
        }
        for i, j in pairs
        if wrong[i, j]
    ]


def costliest(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of the errors with the smallest probability of the true class, long [M].

    Arguments:
        probabilities: `[N, K]`.
        labels: `[N]` long.
    """
    wrong = (probabilities.argmax(1) != labels).nonzero()[:, 0]
    own = probabilities[wrong].gather(1, labels[wrong, None])[:, 0]
    return wrong[own.argsort(stable=True)[:SHOWN]]


def pictures_of(
    evaluation: Evaluation,
    bins: Calibration,
    probabilities: Tensor,
    images: Images,
    classes: Sequence[str],
) -> dict[str, pictures.Image]:
    """Return pictures by name: confusion matrix, calibration, costliest errors if there are any.

    Arguments:
        evaluation: result on the images.
        bins: result of `calibration` on them.
        probabilities: `[N, K]`.
        images: the N test images.
        classes: class names.
    """
    title = f"test: accuracy {evaluation.accuracy:.2%}, macro F1 {evaluation.macro_f1:.2%}"
    error = f"test: calibration error {evaluation.values['ece']:.2%}"
    count, confidence, right = (each.cpu().numpy() for each in bins)
    drawn = {
        "confusion": pictures.confusion_matrix(evaluation.confusion, classes, title),
        "calibration": pictures.calibration_plot(count, confidence, right, error),
    }
    index = costliest(probabilities, images.labels)
    if len(index):
        captions = [
            (
                f"{classes[label]} {row[label]:.0%}",
                f"not {classes[int(row.argmax())]} {row.max():.0%}",
            )
            for row, label in zip(probabilities[index].cpu(), images.labels[index].tolist())
        ]
        shown = floats(images.pixels[index]).cpu().numpy()
        title = "costliest errors on test images, with the probabilities of both classes"
        drawn["errors"] = pictures.captioned_grid(shown, captions, title)
    return drawn
