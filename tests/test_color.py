"""Color: one scaling against the operations one by one, as one writes them down."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment.operations.color import COLOR, GRAY, gains, recolor

CHANNELS = (1, 3)
VALUES = ((0.35, 0.61, 0.52), (-0.43, -0.21, -0.77))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int = 2, channels: int = 3, height: int = 7, width: int = 6) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(), dtype=torch.float64)


def generic() -> Tensor:
    """Values `[2, 3]` of no special value, all operations at once."""
    return torch.tensor(VALUES, dtype=torch.float64)


def alone(name: str, value: float, batch: int = 2) -> Tensor:
    return torch.tensor([[value * (n == name) for n in COLOR]] * batch, dtype=torch.float64)


def gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(GRAY).view(3, 1, 1)).sum(1, keepdim=True)


def single(name: str, images: Tensor, value: Tensor) -> Tensor:
    """The slow twin: one operation by its definition, not clamped."""
    factor = 1 + value.view(-1, 1, 1, 1)
    if name == "brightness":
        return factor * images
    pale = gray(images)
    if name == "contrast":
        pale = pale.mean((1, 2, 3), keepdim=True)
    return pale + factor * (images - pale)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_the_identity_exactly(dtype, channels):
    images = pictures(4, channels).to(dtype)
    assert torch.equal(recolor(images, gains(images.new_zeros(4, 3))), images)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("order", permutations(COLOR), ids="-".join)
def test_one_scaling_is_all_operations_in_any_order_clamped_once(order, channels):
    images = pictures(2, channels)
    expected = images
    for name in order:
        expected = single(name, expected, generic()[:, list(COLOR).index(name)])
    low, high = expected.aminmax()
    assert low < 0 and high > 1  # there is something to clamp
    out = recolor(images, gains(generic()))
    assert torch.allclose(out, expected.clamp(0, 1), rtol=0, atol=1e-12)


def test_a_clamp_after_each_operation_would_be_something_else():
    images = torch.tensor([[[[0.2, 0.8]]]], dtype=torch.float64)
    values = torch.tensor([[1.0, -0.5, 0.0]], dtype=torch.float64)  # brighter, then paler
    out = recolor(images, gains(values))
    assert torch.allclose(out, images.new_tensor([0.7, 1.0]))  # 0.4, 1.6 about 1.0: 0.7, 1.3
    steps = recolor(
        recolor(images, gains(alone("brightness", 1.0, 1))), gains(alone("contrast", -0.5, 1))
    )
    assert not torch.allclose(out, steps)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("value", [-1.0, -0.7, 0.4, 0.8])
@pytest.mark.parametrize("name", COLOR)
def test_color_equals_torchvision(name, value, channels):
    images = pictures(2, channels).float()
    expected = getattr(tv, f"adjust_{name}")(images, 1 + value)
    out = recolor(images, gains(alone(name, value).float()))
    assert torch.allclose(out, expected, rtol=0, atol=1.01e-4)  # its 0.2989 is our 0.299
    same = name == "saturation" and channels == 1
    assert torch.allclose(images, expected, atol=0.05) == same


def test_gray_stays_gray_and_has_no_saturation():
    assert sum(GRAY) == pytest.approx(1, abs=1e-15)
    flat = pictures(2, 1)
    out = recolor(flat.expand(-1, 3, -1, -1), gains(generic()))
    assert torch.allclose(out, recolor(flat, gains(generic())).expand_as(out), rtol=0, atol=1e-12)
    more = gains(generic() + alone("saturation", 0.3))
    assert torch.equal(recolor(flat, more), recolor(flat, gains(generic())))


def test_saturation_of_minus_one_is_gray():
    images = pictures()
    out = recolor(images, gains(alone("saturation", -1.0)))
    assert torch.allclose(out, gray(images).expand_as(out), rtol=0, atol=1e-12)


def test_images_are_independent():
    images = pictures()
    changed = torch.stack((images[0], 1 - images[1]))
    a, b = (recolor(x, gains(generic())) for x in (images, changed))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
def test_derivatives_are_exact(channels):
    """Through the mean of the image, and with pixels on both sides of both clamps."""
    images, values = pictures(2, channels, 3, 3).requires_grad_(), generic().requires_grad_()

    def run(images: Tensor, values: Tensor) -> Tensor:
        return recolor(images, gains(values))

    out = run(images, values)
    assert (out == 0).any() and (out == 1).any() and ((out > 0) & (out < 1)).any()
    assert torch.autograd.gradcheck(run, (images, values), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (images, values), fast_mode=True)


def test_clamp_has_its_true_derivative():
    images = torch.tensor([[[[0.4, 0.9]]]])
    values = torch.tensor([[0.5, 0.0, 0.0]], requires_grad=True)
    out = recolor(images, gains(values))
    assert torch.allclose(out.detach(), torch.tensor([[[[0.6, 1.0]]]]))
    (gradient,) = torch.autograd.grad(out.sum(), values)
    assert gradient[0, 0].item() == pytest.approx(0.4)  # of the first pixel only


def test_the_derivative_runs_through_the_mean():
    """At a contrast of -1 all pixels are the mean, and only the mean has a derivative."""
    images = F.pad(pictures(1, 1, 2, 2), (1, 1)).requires_grad_()
    out = recolor(images, gains(alone("contrast", -1.0, 1)))
    (slope,) = torch.autograd.grad(out[0, 0, 0, 0], images)
    assert torch.allclose(slope, torch.full_like(slope, 1 / 8), rtol=0, atol=1e-12)


def test_channels_last_gives_the_same():
    images = pictures()
    last = images.contiguous(memory_format=torch.channels_last)
    out = recolor(last, gains(generic()))
    assert torch.allclose(out, recolor(images, gains(generic())), rtol=0, atol=1e-15)
