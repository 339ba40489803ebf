"""Views of test-time augmentation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darts_lite.errors import UserError
from darts_lite.training.tta import probabilities, views

IMAGES = torch.rand(3, 2, 28, 14, generator=torch.Generator().manual_seed(0))


def sum_of_a_corner(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0, 0, 0], x[:, 1, -1, -1]], 1)


@pytest.mark.parametrize(
    ("kind", "flips", "count"),
    [("none", True, 1), ("flip", True, 2), ("crops", False, 5), ("crops", True, 10)],
)
def test_probabilities_are_the_mean_over_the_views(kind, flips, count):
    seen = list(views(IMAGES, kind, flips))
    assert len(seen) == count and torch.equal(seen[0], IMAGES)
    assert all(view.shape == IMAGES.shape for view in seen)
    expected = sum(sum_of_a_corner(view).softmax(1) for view in seen) / count
    torch.testing.assert_close(probabilities(sum_of_a_corner, IMAGES, kind, flips), expected)


def test_crops_are_shifts_with_black_borders():
    """A fourteenth of the shorter side is one pixel here."""
    shifts = list(views(IMAGES, "crops", False))[1:]
    assert torch.equal(shifts[0][:, :, 1:, 1:], IMAGES[:, :, :-1, :-1])
    assert torch.equal(shifts[3][:, :, :-1, :-1], IMAGES[:, :, 1:, 1:])
    assert shifts[0][:, :, 0].abs().sum() == shifts[0][:, :, :, 0].abs().sum() == 0


def test_a_flip_of_data_that_have_no_mirror_images_is_refused():
    with pytest.raises(UserError, match="--tta flip needs data"):
        list(views(IMAGES, "flip", False))
