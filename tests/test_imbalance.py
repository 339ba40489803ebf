"""Class weights, long-tailed samples, and balanced sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from darts_lite.data import Batches, Images
from darts_lite.training.imbalance import class_weights, long_tailed

COUNTS = torch.tensor([100, 10, 40])


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.arange(3).repeat_interleave(COUNTS).numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(COUNTS, "balanced"), expected, rtol=1e-6)


def test_effective_weights_lie_between_none_and_balanced() -> None:
    beta = 1 - 1 / 150
    raw = [(1 - beta) / (1 - beta ** int(n)) for n in COUNTS]
    scale = 150 / sum(w * int(n) for w, n in zip(raw, COUNTS))
    found, balanced = (class_weights(COUNTS, kind) for kind in ("effective", "balanced"))
    torch.testing.assert_close(found, torch.tensor([scale * w for w in raw]))
    assert 1 < found[1] / found[0] < balanced[1] / balanced[0] == 10
    assert class_weights(COUNTS, "none") is None


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_a_class_without_images_has_weight_zero(kind: str) -> None:
    counts = torch.tensor([5, 0, 20])
    found = class_weights(counts, kind)  # type: ignore[arg-type]
    assert found[1] == 0 and found.isfinite().all()
    assert float((found * counts).sum()) == pytest.approx(25)


def test_a_long_tail_has_its_ratio() -> None:
    labels = torch.arange(5).repeat(1000)
    index = long_tailed(labels, 50.0, torch.Generator().manual_seed(0))
    counts = labels[index].bincount()
    assert counts[0] == 1000 and counts[-1] == 20
    assert (counts[:-1] / counts[1:] - 50**0.25).abs().max() < 0.15
    assert len(index.unique()) == len(index)


def images() -> Images:
    labels = torch.arange(3).repeat_interleave(COUNTS)
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Images(pixels.contiguous(), labels)


def batches(generator: torch.Generator) -> Batches:
    return Batches(images(), 30, generator, "balanced")


def test_balanced_batches_draw_every_class_equally_often() -> None:
    drawn = batches(torch.Generator().manual_seed(0))
    labels, pixels = [], []
    for _ in range(5):
        x, y = next(drawn)
        labels.append(y)
        pixels.append((255 * x[:, 0, 0, 0]).round().long())
    counts = torch.cat(labels).bincount()
    assert counts.tolist() == [50, 50, 50]
    whole = torch.cat(pixels)
    frequent = whole[whole < 100]
    assert len(frequent.unique()) == 50  # no image twice before all were drawn
    rare = whole[(whole >= 100) & (whole < 110)].bincount()[100:]
    assert rare.tolist() == [5] * 10


def test_balanced_batches_resume_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    one = batches(generator)
    for _ in range(3):
        next(one)
    again = torch.Generator()
    again.set_state(generator.get_state())
    two = batches(again)
    two.load_state_dict(one.state_dict())
    for _ in range(7):
        for a, b in zip(next(one), next(two)):
            assert torch.equal(a, b)
