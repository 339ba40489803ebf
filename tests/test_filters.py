"""Neighborhood operations: values against torchvision and PIL, derivatives in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment.operations import filters
from darts_lite.augment.operations.filters import RADIUS, gaussian_blur, sharpness

OPERATIONS = {"sharpness": sharpness, "gaussian_blur": gaussian_blur}
CHANNELS = (1, 3)
DTYPES = (torch.float32, torch.float64)
SIZES = [(32, 32), (8, 8), (5, 9), (9, 4), (3, 3), (2, 2), (2, 7), (1, 5), (1, 1)]


def random(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator, dtype=torch.float64)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pil_sharpness(images: Tensor, factor: float) -> Tensor:
    done = []
    for image in images:
        pixels = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
        picture = ImageEnhance.Sharpness(picture).enhance(factor)
        done.append(torch.from_numpy(np.array(picture)).view(*image.shape[1:], -1).movedim(2, 0))
    return torch.stack(done)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_zero_is_the_identity_to_the_last_bit(name, channels, size, dtype):
    images = random(4, channels, *size).to(dtype)
    images[0] = images[0].round()
    out = OPERATIONS[name](images, images.new_zeros(4))
    assert torch.equal(out, images) and out.dtype == dtype
    changed = OPERATIONS[name](images, images.new_full((4,), 0.5))
    still = size == (1, 1) or (name == "sharpness" and min(size) < 3)
    assert torch.equal(changed, images) == still


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(32, 32), (3, 3), (9, 4), (2, 7)])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.9])
def test_sharpness_equals_torchvision(factor, size, channels, dtype, tolerance):
    images = random(3, channels, *size).to(dtype)
    expected = tv.adjust_sharpness(images, factor)
    out = sharpness(images, images.new_full((3,), factor - 1))
    assert torch.allclose(out, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.9])
def test_sharpness_of_8_bit_images_equals_pil_up_to_rounding(factor, channels):
    """PIL rounds the smooth image, half a level, and rounds the result down, a whole level."""
    images = (255 * random(3, channels, 16, 16)).round().to(torch.uint8)
    ours = 255 * sharpness(images.double() / 255, f64(*3 * [factor - 1]))
    slack = 0.5 * abs(factor - 1) + 1e-9
    for theirs in (tv.adjust_sharpness(images, factor), pil_sharpness(images, factor)):
        rest = ours - theirs
        assert rest.min() >= -slack and rest.max() <= slack + (factor > 0)
        assert rest.abs().mean() < 0.7


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 6e-7), (torch.float64, 1e-14)])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (9, 4), (4, 5)])
def test_blur_equals_torchvision(size, channels, dtype, tolerance):
    deviations = (0.03, 0.3, 0.7, 1.0, 2.0, 10.0)
    images = random(len(deviations), channels, *size).to(dtype)
    out = gaussian_blur(images, images.new_tensor(deviations))
    for image, deviation, blurred in zip(images, deviations, out, strict=True):
        expected = tv.gaussian_blur(image, [2 * RADIUS + 1] * 2, [deviation] * 2)
        assert torch.allclose(blurred, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(3, 3), (2, 2), (1, 4), (2, 1), (1, 1)])
def test_blur_of_a_small_image_reflects_it_repeatedly(size):
    """The slow twin: the image is reflected again and again, then filtered without a border."""
    images, deviation = random(1, 3, *size), 1.3
    big = images
    for axis in (2, 3):
        turn = list(range(images.shape[axis])) + list(range(images.shape[axis] - 2, 0, -1))
        wide = [turn[i % len(turn)] for i in range(-RADIUS, images.shape[axis] + RADIUS)]
        big = big.index_select(axis, torch.tensor(wide))
    weights = (-torch.arange(-RADIUS, RADIUS + 1).double().square() / (2 * deviation**2)).exp()
    kernel = weights.outer(weights) / weights.sum() ** 2
    expected = F.conv2d(big, kernel.expand(3, 1, -1, -1), groups=3)
    assert torch.allclose(gaussian_blur(images, f64(deviation)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("deviation, effective", [(1.0, 1.00), (2.0, 1.64), (3.0, 1.84)])
def test_effective_deviation_of_the_blur(deviation, effective):
    """The figures in the docstring; a blur is as wide along both axes."""
    image = f64(*11 * [0.0]).repeat(1, 1, 11, 1)
    image[..., 5, 5] = 1
    blurred = gaussian_blur(image, f64(deviation))[0, 0]
    for axis in (0, 1):
        variance = (blurred.sum(axis) * (torch.arange(11) - 5) ** 2).sum()
        assert variance.sqrt().item() == pytest.approx(effective, abs=5e-3)


# --- what holds for both --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, magnitude", [("gaussian_blur", 1.5), ("sharpness", -1.0)])
def test_constant_images_stay_constant_and_in_range(name, magnitude, dtype):
    images = torch.tensor([0.0, 0.3, 1.0], dtype=dtype).view(3, 1, 1, 1).expand(3, 3, 9, 8)
    out = OPERATIONS[name](images, images.new_full((3,), magnitude))
    assert torch.allclose(out, images, rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, magnitude", [("gaussian_blur", 0.7), ("sharpness", 3.0)])
def test_nothing_leaves_the_range(name, magnitude, dtype, learned):
    """Black and white in patches: sharpening would leave it, and so would rounding."""
    images = F.interpolate(random(4, 3, 8, 8).round(), (32, 32)).to(dtype)
    value = images.new_full((4,), magnitude).requires_grad_(learned)
    out = OPERATIONS[name](images, value)
    assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_and_their_magnitudes_are_independent(name):
    images, magnitude = random(2, 3, 8, 9), f64(0.9, 0.6)
    other, less = images.clone(), magnitude.clone()
    other[1], less[1] = images[1].square(), 0.3
    a, b = (OPERATIONS[name](*both) for both in ((images, magnitude), (other, less)))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize("name", OPERATIONS)
def test_memory_format_does_not_matter(name):
    images, magnitude = random(4, 3, 9, 8), random(4, seed=1)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(OPERATIONS[name](last, magnitude), OPERATIONS[name](images, magnitude))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch(name):
    assert OPERATIONS[name](torch.empty(0, 3, 4, 5), torch.empty(0)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_waits_for_the_device(name):
    """Tensors of the meta device have no values, so reading one would fail."""
    images = torch.empty(4, 3, 8, 8, device="meta", requires_grad=True)
    magnitude = torch.empty(4, device="meta", requires_grad=True)
    out = OPERATIONS[name](images, magnitude)
    slopes = torch.autograd.grad(out.sum(), (images, magnitude))
    assert [slope.shape for slope in slopes] == [images.shape, magnitude.shape]


def test_autocast_does_not_touch_the_blur():
    images, magnitude = random(2, 3, 8, 8).float(), torch.tensor([0.7, 1.5])
    with torch.autocast("cpu", torch.bfloat16):
        out = gaussian_blur(images, magnitude)
    assert torch.equal(out, gaussian_blur(images, magnitude))


def test_tensors_cached_in_inference_mode_work_outside():
    filters.blur_basis.cache_clear()
    images = random(1, 1, 6, 6)
    with torch.inference_mode():
        expected = gaussian_blur(images, f64(0.7))
    value = f64(0.7).requires_grad_()
    out = gaussian_blur(images, value)
    assert torch.equal(out, expected) and torch.autograd.grad(out.max(), value)[0] < 0


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(4, 5), (4, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_are_exact(name, size, channels):
    images = (0.3 + 0.4 * random(2, channels, *size)).requires_grad_()  # no clamp
    signed = name == "sharpness"
    magnitude = f64(0.6, -0.4 if signed else 1.3).requires_grad_()
    assert torch.autograd.gradcheck(OPERATIONS[name], (images, magnitude))
    assert torch.autograd.gradgradcheck(OPERATIONS[name], (images, magnitude))


@pytest.mark.parametrize("size", [(2, 5), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_magnitude_has_a_derivative_even_if_there_is_nothing_to_do(name, size):
    magnitude = f64(0.6).requires_grad_()
    out = OPERATIONS[name](random(1, 3, *size), magnitude)
    (slope,) = torch.autograd.grad(out.square().sum(), magnitude)
    assert (slope == 0) == (name == "sharpness" or size == (1, 1))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
@pytest.mark.parametrize("name", OPERATIONS)
def test_forward_mode_equals_backward_mode(name):
    images, magnitude = random(2, 3, 6, 5), f64(0.6, 1.3)
    directions = (random(2, 3, 6, 5, seed=1) - 0.5, f64(1.0, -0.7))
    weight = random(2, 3, 6, 5, seed=2)
    _, forward = torch.func.jvp(OPERATIONS[name], (images, magnitude), directions)
    _, pull = torch.func.vjp(OPERATIONS[name], images, magnitude)
    backward = sum((a * b).sum() for a, b in zip(pull(weight), directions, strict=True))
    assert torch.allclose((forward * weight).sum(), backward, rtol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deviation", [0.0, 1e-30, 1e-3, 0.0249, 0.026, 0.08])
def test_nothing_is_nan_where_the_blur_vanishes(deviation, dtype):
    images = random(1, 3, 5, 5).to(dtype).requires_grad_()
    magnitude = images.new_full((1,), deviation).requires_grad_()
    out = gaussian_blur(images, magnitude)
    slopes = torch.autograd.grad(out.square().sum(), (images, magnitude), create_graph=True)
    seconds = torch.autograd.grad(sum(s.sum() for s in slopes), (images, magnitude))
    assert torch.allclose(out, images, rtol=0, atol=1e-15)
    for value in (*slopes, *seconds):
        assert value.isfinite().all()
    assert slopes[1].abs() < 1e-25 and seconds[1].abs() < 1e-20  # zero at zero


def test_the_blur_is_smooth_from_zero_on():
    """No kink where the deviation is held from below: values and slopes are zero there."""
    image = f64(0, 0, 0, 1, 0, 0, 0).view(1, 1, 1, 7).expand(200, -1, -1, -1)
    deviation = torch.linspace(0, 0.6, 200, dtype=torch.float64).requires_grad_()
    neighbor = gaussian_blur(image, deviation)[:, 0, 0, 2]
    (slope,) = torch.autograd.grad(neighbor.sum(), deviation)
    assert (neighbor.diff() >= 0).all() and (slope.diff()[:100] >= 0).all()
    trapezoids = (slope[1:] + slope[:-1]) / 2 * (0.6 / 199)
    assert torch.allclose(trapezoids.cumsum(0), neighbor[1:], rtol=0, atol=1e-4)


def test_the_derivative_of_the_clamp():
    """Zero where a value would leave the range, kept where the pixel is black or white anyway."""
    image = torch.ones(1, 1, 3, 9, dtype=torch.float64)
    image[..., 4:] = 0
    image[..., 1, 1], image[..., 1, 7] = 0.2, 0.8  # sharpened, these leave it, and so does the edge
    image.requires_grad_()
    out = sharpness(image, f64(1))[0, 0]
    assert torch.equal(out.round(), out)  # all is black and white
    expected = torch.zeros(3, 9, dtype=torch.float64)
    expected[1, 0] = expected[1, 8] = 1  # the border
    expected[:, 4:7] = -1 / 13  # black in black
    expected[1, 5] = 21 / 13
    (slope,) = torch.autograd.grad(out[1].sum(), image)
    assert torch.allclose(slope[0, 0], expected, rtol=0, atol=1e-12)
    _, forward = torch.func.jvp(
        lambda x: sharpness(x, f64(1)), (image,), (image.new_ones(image.shape),)
    )
    assert forward[0, 0, 1].sum().item() == pytest.approx(expected.sum().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_clamp_of_the_blur_has_no_derivative(dtype):
    """It is for rounding only: at white, a gradient must not depend on it."""
    white = torch.ones(1, 3, 8, 8, dtype=dtype, requires_grad=True)
    for deviation in torch.linspace(0.3, 3, 20, dtype=dtype):
        (slope,) = torch.autograd.grad(gaussian_blur(white, deviation.view(1)).sum(), white)
        assert slope.sum().item() == pytest.approx(192, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gpu_computes_what_the_cpu_computes(name):
    found = []
    for device in ("cpu", "cuda"):
        images = random(3, 3, 9, 8).to(device).requires_grad_()
        magnitude = f64(0.3, 0.9, 1.4).to(device).requires_grad_()
        out = OPERATIONS[name](images, magnitude)
        slopes = torch.autograd.grad((out**2).sum(), (images, magnitude))
        found.append([value.detach().cpu() for value in (out, *slopes)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
