"""Point operations: values against PIL and torchvision, derivatives in float64, composition."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment.operations import lookup as lk

OPERATIONS = {name: function for name, (_, function) in lk.POINT.items()}
CHANNELS = (1, 3)
DTYPES = (torch.float32, torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=seeded(seed), dtype=torch.float64)


def f64(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pictures(channels: int) -> Tensor:
    """8-bit images of unlike histograms: even, dark, bright, narrow, constant, black and white."""
    even, dark, bright, narrow = random(4, channels, 32, 32).unbind()
    images = [even, dark**4, bright**0.2, 0.4 + 0.1 * narrow, 0 * even + 77 / 255, even.round()]
    return (torch.stack(images) * 255).round().to(torch.uint8)


def run(name: str, images: Tensor, magnitude: float | Tensor) -> Tensor:
    """One operation on its own."""
    if not isinstance(magnitude, Tensor):
        magnitude = images.new_full((len(images),), magnitude)
    return lk.lookup(images, OPERATIONS[name](images, magnitude))


def eight_bits(images: Tensor) -> Tensor:
    """Levels of images that must be levels already, but for rounding."""
    levels = (255 * images).round()
    assert (255 * images - levels).abs().max() < 1e-4
    return levels.to(torch.uint8)


def pil(images: Tensor, operation: Callable[[Image.Image], Image.Image]) -> Tensor:
    """An operation of PIL on 8-bit images."""
    done = []
    for image in images:
        pixels = image.permute(1, 2, 0).numpy()
        picture = operation(Image.fromarray(pixels if len(image) == 3 else pixels[..., 0]))
        done.append(torch.from_numpy(np.array(picture)).view(*image.shape[1:], -1).movedim(2, 0))
    return torch.stack(done)


def sigmoid_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (1 - x.sigmoid())


def central(function: Callable[[float], Tensor], at: float, step: float = 1e-6) -> Tensor:
    return (function(at + step) - function(at - step)) / (2 * step)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_zero_is_the_identity_to_the_last_bit(name, channels, dtype):
    between = random(6, channels, 32, 32, seed=1)
    for images in (pictures(channels) / 255, between):
        images = images.to(dtype)
        assert torch.equal(run(name, images, 0.0), images)
        assert not torch.equal(run(name, images, 0.2), images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_invert_equals_torchvision_and_pil(channels, dtype):
    images = pictures(channels)
    out = eight_bits(run("invert", images.to(dtype) / 255, 1.0))
    assert torch.equal(out, tv.invert(images)) and torch.equal(out, pil(images, ImageOps.invert))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("threshold", [0, 1, 64, 100, 127, 128, 201, 254])
def test_solarize_equals_torchvision_and_pil(threshold, channels, dtype):
    images = pictures(channels)
    out = eight_bits(run("solarize", images.to(dtype) / 255, 1 - threshold / 255))
    assert torch.equal(out, tv.solarize(images, threshold))
    assert torch.equal(out, pil(images, lambda image: ImageOps.solarize(image, threshold)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_solarize_takes_a_threshold_that_is_a_level(dtype):
    """Whatever the rounding: 255 thresholds, each level."""
    threshold, level = torch.arange(255), torch.arange(256)
    images = (level.to(dtype) / 255).expand(255, 1, 1, -1)
    out = eight_bits(run("solarize", images, 1 - threshold.to(dtype) / 255)).view(255, 256)
    inverted = level >= threshold.unsqueeze(1)
    assert torch.equal(out, torch.where(inverted, 255 - level, level).to(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_equals_torchvision_and_pil(bits, channels, dtype):
    images = pictures(channels)
    expected = pil(images, lambda image: ImageOps.posterize(image, bits))
    assert torch.equal(tv.posterize(images, bits), expected)
    for off in (-0.055, 0.0, 0.055):  # in eighths: rounded to the same bits
        magnitude = (8 - bits) / 8 + off if 0 < bits < 8 else 0.0
        out = eight_bits(run("posterize", images.to(dtype) / 255, magnitude))
        assert torch.equal(out, expected)


def test_posterize_keeps_one_bit():
    """torchvision goes on to no bit, which is black; PIL refuses."""
    images = pictures(3)
    out = eight_bits(run("posterize", images / 255, 1.0))
    assert torch.equal(out, tv.posterize(images, 1)) and not tv.posterize(images, 0).any()


@pytest.mark.parametrize("channels", CHANNELS)
def test_autocontrast_equals_torchvision(channels):
    for images in (pictures(channels).double() / 255, random(4, channels, 9, 7)):
        out = run("autocontrast", images, 1.0)
        assert torch.allclose(out, tv.autocontrast(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_autocontrast_rounded_down_equals_pil(channels):
    images = pictures(channels)
    ours = 255 * run("autocontrast", images.double() / 255, 1.0)
    for theirs in (tv.autocontrast(images), pil(images, ImageOps.autocontrast)):
        rest = ours - theirs
        assert rest.min() > -1e-9 and rest.max() < 1 + 1e-9  # theirs rounds 200 - 1e-14 down, too
        assert torch.equal(rest[-2:], 0 * rest[-2:])


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 16), (16, 16), (64, 64), (9, 100)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_equalize_equals_torchvision_and_pil(channels, size):
    images = F.interpolate(pictures(channels).float(), size, mode="nearest").to(torch.uint8)
    out = eight_bits(run("equalize", images / 255, 1.0))
    assert torch.equal(out, tv.equalize(images)) and torch.equal(
        out, pil(images, ImageOps.equalize)
    )
    assert not torch.equal(out, images) or size == (16, 16)


def test_equalize_leaves_less_than_256_pixels_alone():
    images = random(4, 3, 15, 17)
    assert torch.equal(run("equalize", images, 1.0), images)
    every = torch.arange(256.0).view(1, 1, 16, 16) / 1024
    assert not torch.equal(run("equalize", every, 1.0), every)


@pytest.mark.parametrize("name", ["invert", "autocontrast", "equalize"])
def test_a_part_is_a_blend(name):
    images = pictures(3)
    x = images.double() / 255
    whole = tv.equalize(images).double() / 255 if name == "equalize" else getattr(tv, name)(x)
    share = f64([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
    expected = torch.lerp(x, whole, share.view(-1, 1, 1, 1))
    assert torch.allclose(run(name, x, share), expected, rtol=0, atol=1e-12)


def test_solarize_of_nearly_nothing_is_not_of_nothing():
    white = torch.ones(1, 1, 1, 1)
    assert run("solarize", white, 1e-4) == 0 and run("solarize", white, 0.0) == 1


# --- what holds for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [0.03, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_leaves_the_range_and_no_derivative_is_lost(name, magnitude, dtype):
    constant = torch.tensor([0, 1e-4, 0.3, 0.5, 1]).view(-1, 1, 1, 1)
    tiny = torch.cat((constant, random(3, 1, 1, 1)))
    images = [constant.expand(-1, 3, 16, 17), tiny, random(4, 3, 1, 9), random(4, 3, 20, 20)]
    for x in (*images, pictures(3) / 255):
        x = x.to(dtype).clone().requires_grad_()
        value = x.new_full((len(x),), magnitude).requires_grad_()
        out = run(name, x, value)
        assert out.shape == x.shape and out.dtype == dtype
        assert out.min() >= 0 and out.max() <= 1
        slopes = torch.autograd.grad(out.sum(), (x, value))
        assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_and_their_magnitudes_are_independent(name):
    images, magnitude = random(2, 3, 20, 20), f64([0.9, 0.6])
    other, less = images.clone(), magnitude.clone()
    other[1], less[1] = images[1].square(), 0.3
    a, b = run(name, images, magnitude), run(name, other, less)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_channels_are_independent(name):
    images = random(2, 3, 20, 20) ** torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) / 2
    one_by_one = [run(name, channel, 0.8) for channel in images.split(1, 1)]
    assert torch.equal(run(name, images, 0.8), torch.cat(one_by_one, 1))


@pytest.mark.parametrize("name", OPERATIONS)
def test_memory_format_does_not_matter(name):
    images = random(4, 3, 17, 19)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(name, last, 0.7), run(name, images, 0.7))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch(name):
    assert run(name, torch.empty(0, 3, 4, 4), 0.5).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_waits_for_the_device(name):
    """Tensors of the meta device have no values, so reading one would fail."""
    images = torch.empty(4, 3, 20, 20, device="meta", requires_grad=True)
    magnitude = torch.empty(4, device="meta", requires_grad=True)
    table = lk.compose(OPERATIONS[name](images, magnitude), lk.solarize(images, magnitude))
    out = lk.lookup(images, table)
    slopes = torch.autograd.grad(out.sum(), (images, magnitude))
    assert [slope.shape for slope in slopes] == [images.shape, magnitude.shape]


def test_nan_is_passed_on():
    images = torch.full((1, 1, 2, 2), math.nan)
    assert run("posterize", images, 0.5).isnan().all()


@pytest.mark.parametrize("noise", [1e-7, 1e-3])
def test_autocontrast_does_not_stretch_the_rounding_of_a_constant_image(noise):
    images = 0.3 + noise * random(1, 1, 8, 8)
    assert torch.equal(run("autocontrast", images, 1.0), images)
    assert run("autocontrast", 0.3 + 3e-3 * random(1, 1, 8, 8), 1.0).max() > 1 - 1e-9


# --- exact derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", ["invert", "autocontrast"])
def test_derivatives_are_exact(name, channels):
    images = random(2, channels, 3, 4).requires_grad_()
    magnitude = f64([0.3, 0.8]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, m: run(name, x, m), (images, magnitude))
    assert torch.autograd.gradgradcheck(lambda x, m: run(name, x, m), (images, magnitude))


@pytest.mark.parametrize("channels", CHANNELS)
def test_derivative_of_equalize_in_the_magnitude_is_exact(channels):
    images = 0.9 * random(2, channels, 17, 16) ** 3  # none is white, where there is a kink
    magnitude = f64([0.3, 0.8]).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: run("equalize", images, m), (magnitude,))
    (slope,) = torch.autograd.grad(run("equalize", images, magnitude).sum(), magnitude)
    assert (slope > 1).all()  # dark images get brighter


@pytest.mark.parametrize("channels", CHANNELS)
def test_derivative_of_solarize_in_the_image_is_exact(channels):
    images = ((random(2, channels, 5, 5) * 254).floor() + 0.2) / 255  # not between two levels
    magnitude = f64([0.3, 0.8])
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run("solarize", x, magnitude), (images,))
    (slope,) = torch.autograd.grad(run("solarize", images, magnitude).sum(), images)
    assert set(slope.unique().tolist()) == {-1.0, 1.0}


# --- invented derivatives, as documented ----------------------------------------------------------


@pytest.mark.parametrize("name", ["posterize", "equalize"])
@pytest.mark.parametrize("magnitude", [0.0, 0.3, 0.6, 1.0])
def test_straight_through_is_one_at_every_pixel(name, magnitude):
    levels = pictures(3).double() / 255
    for images in (levels, random(4, 3, 20, 20) ** 4):  # many of them become black
        images.requires_grad_()
        (slope,) = torch.autograd.grad(run(name, images, magnitude).sum(), images)
        assert torch.equal(slope, torch.ones_like(slope))


def test_the_clamp_was_needed_and_has_a_derivative_of_one():
    """A value in the lower half of a level that becomes black would become negative."""
    image = torch.full((1, 1, 1, 1), 2.7 / 255, dtype=torch.float64, requires_grad=True)
    table = lk.posterize(image, image.new_tensor([0.5]))
    assert (table.slope * image + table.offset[..., 3:4].unsqueeze(3)).item() < 0
    out = lk.lookup(image, table)
    assert out.item() == 0 and torch.autograd.grad(out, image)[0].item() == 1


@pytest.mark.parametrize("temperature", [0.1, 0.03])
@pytest.mark.parametrize("magnitude", [0.0, 0.2, 0.5, 1.0])
def test_derivative_of_solarize_in_the_magnitude(magnitude, temperature):
    levels = torch.arange(256, dtype=torch.float64) / 255
    images = levels.view(1, 1, 16, 16)
    soft = {} if temperature == 0.1 else {"temperature": temperature}

    def out(m: Tensor) -> Tensor:
        return lk.lookup(images, lk.solarize(images, m, **soft)).flatten()

    found = torch.func.jacrev(out)(f64([magnitude]))[:, 0]
    away = (levels - (1 - magnitude)) / temperature
    documented = (1 - 2 * levels) * sigmoid_slope(away) / temperature
    assert torch.allclose(found, documented, rtol=0, atol=1e-12)

    def relaxed(m: float) -> Tensor:
        step = ((levels - (1 - m)) / temperature).sigmoid()
        return levels + step * (1 - 2 * levels)

    assert torch.allclose(found, central(relaxed, magnitude), rtol=0, atol=1e-6)


def test_mixed_derivative_of_solarize():
    """The derivative in the image, 1 - 2 step, is differentiated through the relaxed step too."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    images = levels.view(1, 1, 16, 16).requires_grad_()
    magnitude = f64([0.4]).requires_grad_()
    v = random(1, 1, 16, 16, seed=3)
    out = run("solarize", images, magnitude)
    (slope,) = torch.autograd.grad(out.sum(), images, create_graph=True)
    (mixed,) = torch.autograd.grad((slope * v).sum(), magnitude)
    expected = -2 * (sigmoid_slope((levels - 0.6) / 0.1) / 0.1 * v.flatten()).sum()
    assert torch.allclose(mixed, expected.view(1), rtol=1e-12)


@pytest.mark.parametrize("magnitude", [0.0, 0.11, 0.5, 0.93])
def test_derivative_of_posterize_in_the_magnitude(magnitude):
    images = pictures(1)[:1].double() / 255
    value = f64([magnitude])
    found = torch.func.jacrev(lambda m: run("posterize", images, m))(value)
    documented = -4 * math.log(2) * 2 ** (8 * magnitude) / 255
    assert torch.allclose(found, torch.full_like(found, documented), rtol=1e-12, atol=0)

    def mean_loss(m: float) -> Tensor:
        return -0.5 * f64(8 * m).exp2() / 255

    expected = central(mean_loss, magnitude).item()
    assert documented == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gone", range(1, 8))
def test_the_mean_loss_of_posterize_is_what_it_says(gone):
    """Half a step, less half a level, since the levels are whole numbers."""
    images = torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16) / 255
    loss = (images - run("posterize", images, gone / 8)).mean().item()
    assert loss == pytest.approx((2**gone - 1) / 255 / 2, rel=1e-12)


# --- forward mode, composition --------------------------------------------------------------------


def chain(images: Tensor, magnitude: Tensor) -> Tensor:
    """Do all operations in one table, from statistics of the images that come in."""
    table = lk.identity(images)
    for operation in OPERATIONS.values():
        table = lk.compose(table, operation(images, magnitude))
    return lk.lookup(images, table)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
@pytest.mark.parametrize("name", [*OPERATIONS, "chain"])
def test_forward_mode_equals_backward_mode(name):
    function = chain if name == "chain" else lambda x, m: run(name, x, m)
    images, magnitude = random(2, 3, 17, 16), f64([0.3, 0.6])
    directions = (random(2, 3, 17, 16, seed=1) - 0.5, f64([1.0, -0.7]))
    weight = random(2, 3, 17, 16, seed=2)
    _, forward = torch.func.jvp(function, (images, magnitude), directions)
    _, pull = torch.func.vjp(function, images, magnitude)
    backward = sum((a * b).sum() for a, b in zip(pull(weight), directions, strict=True))
    assert torch.allclose((forward * weight).sum(), backward, rtol=1e-10)


@pytest.mark.parametrize("first, second", product(OPERATIONS, OPERATIONS))
def test_compose_is_one_after_the_other(first, second):
    """Values exactly, on 8-bit images, and the derivatives in images and both magnitudes."""
    images = (pictures(3).double() / 255).requires_grad_()
    a, b = (x.requires_grad_() for x in random(2, 6, seed=5))
    middle = run(first, images, a)
    two = OPERATIONS[second](middle.detach(), b)
    expected = lk.lookup(middle, two)
    out = lk.lookup(images, lk.compose(OPERATIONS[first](images, a), two))
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    weight = random(*out.shape, seed=6)
    for x in (images, a, b):
        found, slope = (torch.autograd.grad((o * weight).sum(), x, retain_graph=True)[0]
                        for o in (out, expected))  # fmt: skip
        assert torch.allclose(found, slope, rtol=1e-9, atol=1e-9)


def test_compose_reads_from_left_to_right():
    images = torch.tensor([0.1, 0.9]).view(1, 1, 1, 2)
    invert, half = lk.invert(images, torch.ones(1)), lk.solarize(images, torch.full((1,), 0.8))
    there = lk.lookup(images, lk.compose(invert, half))
    back = lk.lookup(images, lk.compose(half, invert))
    assert torch.allclose(there.flatten(), torch.tensor([0.1, 0.1]))
    assert torch.allclose(back.flatten(), torch.tensor([0.9, 0.9]))


@pytest.mark.parametrize("name", OPERATIONS)
def test_identity_is_neutral(name):
    images = pictures(3).double() / 255
    table, none = OPERATIONS[name](images, images.new_full((6,), 0.7)), lk.identity(images)
    assert torch.equal(lk.lookup(images, none), images)
    for both in (lk.compose(none, table), lk.compose(table, none)):
        assert torch.equal(lk.lookup(images, both), lk.lookup(images, table))
        assert both.slope.shape == both.offset.shape == none.slope.shape == (6, 3, 256)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_tables_have_the_shapes_they_say(name):
    images = random(2, 3, 17, 16)
    table = OPERATIONS[name](images, images.new_full((2,), 0.7))
    channels = 3 if name in ("autocontrast", "equalize") else 1
    for part in table:
        assert part.shape[:2] == (2, channels) and part.shape[2] in (1, 256)
        assert part.dtype == images.dtype


def test_all_at_once_stay_in_range():
    images = random(6, 3, 20, 20)
    for magnitude in (0.2, 0.9, 1.0):
        out = chain(images, images.new_full((6,), magnitude))
        assert out.min() >= 0 and out.max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*OPERATIONS, "chain"])
def test_the_gpu_computes_what_the_cpu_computes(name):
    found = []
    for device in ("cpu", "cuda"):
        images = (pictures(3).double() / 255).to(device).requires_grad_()
        magnitude = random(6, seed=5).to(device).requires_grad_()
        out = chain(images, magnitude) if name == "chain" else run(name, images, magnitude)
        slopes = torch.autograd.grad((out**2).sum(), (images, magnitude))
        found.append([value.detach().cpu() for value in (out, *slopes)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
