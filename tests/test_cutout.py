"""Cutout: areas and borders against overlaps of intervals, derivatives in float64."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment.operations.cutout import coverage, cutout

CHANNELS = (1, 3)
# (side, x, y): inside, within one pixel, clipped at a corner, over an edge, over everything
PLACES = (
    (0.47, 0.43, 0.57),
    (0.03, 0.31, 0.52),
    (0.55, 0.06, 0.91),
    (0.4, 0.52, 0.0),
    (3.1, 0.5, 0.6),
)


def pictures(batch: int, channels: int, height: int = 6, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64)


def places() -> tuple[Tensor, Tensor]:
    table = torch.tensor(PLACES, dtype=torch.float64)
    return table[:, 0], table[:, 1:]


def overlap(pixel: int, center: float, half: float) -> float:
    return max(0.0, min(pixel + 1, center + half) - max(pixel, center - half))


def twin(images: Tensor, side: Tensor, center: Tensor) -> Tensor:
    """The slow twin: pixel by pixel, in Python."""
    height, width = images.shape[-2:]
    out = images.clone()
    for image, s, (x, y) in zip(out, side.tolist(), center.tolist(), strict=True):
        half = s * min(height, width) / 2
        for row in range(height):
            for column in range(width):
                cover = overlap(row, y * height, half) * overlap(column, x * width, half)
                image[:, row, column] *= 1 - cover
    return out


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(6, 9), (9, 6), (8, 8), (1, 1), (1, 5)])
def test_cutout_equals_its_slow_twin(size, channels):
    images = pictures(len(PLACES), channels, *size)
    out = cutout(images, *places())
    assert torch.allclose(out, twin(images, *places()), rtol=0, atol=1e-12)
    assert min(size) == 1 or not out[-1].any()  # over everything


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_side_of_zero_is_the_identity_exactly(dtype):
    images = pictures(5, 3).to(dtype)
    center = places()[1].to(dtype)
    assert torch.equal(cutout(images, images.new_zeros(5), center), images)


@pytest.mark.parametrize("side", [0.0, 0.01, 0.3, 0.5])
def test_a_square_inside_takes_away_its_area(side):
    images = torch.ones(1, 1, 8, 12, dtype=torch.float64)
    out = cutout(images, images.new_tensor([side]), images.new_tensor([[0.43, 0.57]]))
    assert (images - out).sum().item() == pytest.approx((side * 8) ** 2, abs=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_whole_pixels_equal_torchvision(channels):
    images = pictures(2, channels, 8, 16).float()
    side, center = torch.full((2,), 0.5), torch.tensor([[6 / 16, 5 / 8]]).expand(2, 2)
    assert torch.equal(cutout(images, side, center), tv.erase(images, 3, 4, 4, 4, torch.zeros(())))


@pytest.mark.parametrize(
    "center, half", [(3.3, 1.4), (0.2, 0.9), (4.9, 2.0), (2.5, 0.1), (9.0, 2.0)]
)
def test_coverage_is_the_overlap_of_intervals(center, half):
    expected = torch.tensor([overlap(i, center, half) for i in range(5)], dtype=torch.float64)
    given = (torch.tensor([[v]], dtype=torch.float64) for v in (center, half))
    assert torch.allclose(coverage(*given, 5)[0], expected, rtol=0, atol=1e-12)


def test_images_are_independent():
    images, (side, center) = pictures(5, 3), places()
    changed = torch.cat((images[:1], 1 - images[1:]))
    a, b = (cutout(x, side, center) for x in (images, changed))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


# --- derivatives ----------------------------------------------------------------------------------


def test_derivatives_are_exact():
    side, center = (p[:3].clone().requires_grad_() for p in places())
    images = pictures(3, 1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(cutout, (images, side, center), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cutout, (images, side, center), fast_mode=True)


def test_the_area_grows_by_its_border():
    images, side = torch.ones(1, 1, 8, 12).double(), torch.tensor([0.3]).double().requires_grad_()
    kept = cutout(images, side, images.new_tensor([[0.43, 0.57]])).sum()
    (slope,) = torch.autograd.grad(kept, side)
    assert slope.item() == pytest.approx(-2 * 0.3 * 8**2)  # of side² · 8²


def test_channels_last_gives_the_same():
    images = pictures(5, 3)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(cutout(last, *places()), cutout(images, *places()))
