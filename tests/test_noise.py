"""Gaussian noise out of a bank: its distribution, its draws, its derivatives."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from darts_lite.augment.operations import noise
from darts_lite.augment.operations.noise import BANK, gaussian_noise

CHANNELS = (1, 3)
DTYPES = (torch.float32, torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=seeded(seed), dtype=torch.float64)


def starts(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(BANK, (batch,), generator=seeded(seed))


def epsilon(batch: int, *size: int, seed: int = 0) -> Tensor:
    """Return the noise itself, from small noise on gray images, so that nothing is clamped."""
    gray = torch.full((batch, *size), 0.5, dtype=torch.float64)
    small = gray.new_full((batch,), 1e-3)
    return (gaussian_noise(gray, small, starts(batch, seed)) - 0.5) / 1e-3


# --- the distribution -----------------------------------------------------------------------------


def test_the_bank_is_standard_normal():
    bank = noise.bank(1, torch.device("cpu"), torch.float64)
    assert bank.shape == (BANK,)
    assert bank.mean().abs() < 1e-12 and (bank.square().mean() - 1).abs() < 1e-12
    assert stats.kstest(bank.numpy(), "norm").pvalue > 0.01
    assert stats.kurtosistest(bank.numpy()).pvalue > 0.01


def test_pixels_of_an_image_are_uncorrelated_over_the_starts():
    """The figure in the docstring: over all starts, for any distance in the bank."""
    bank = noise.bank(1, torch.device("cpu"), torch.float64)
    spectrum = torch.fft.fft(bank)
    correlation = torch.fft.ifft(spectrum * spectrum.conj()).real / BANK
    assert correlation[0].item() == pytest.approx(1)
    assert correlation[1:].abs().max() < 0.01


@pytest.mark.parametrize("channels", CHANNELS)
def test_mean_and_variance(channels):
    values = epsilon(200, channels, 32, 32)
    count = values.numel()
    assert values.mean().abs() < 4 / count**0.5
    assert (values.var() - 1).abs() < 4 * (2 / count) ** 0.5
    assert (values.flatten(1).var(1) - 1).abs().max() < 0.2  # each image has its share


def test_different_images_are_uncorrelated():
    """At the same pixel: of 100 images, all pairs look like pairs of fresh noise."""
    values = epsilon(100, 3, 16, 16).flatten(1)
    correlation = torch.corrcoef(values)
    pairs = correlation[torch.ones(100, 100).triu(1).bool()]
    assert pairs.abs().max() < 5 / 768**0.5
    assert pairs.square().mean().item() == pytest.approx(1 / 768, rel=0.1)


def test_neighbors_are_uncorrelated():
    values = epsilon(200, 1, 32, 32)
    for axis in (2, 3):
        a, b = values.narrow(axis, 0, 31), values.narrow(axis, 1, 31)
        assert (a * b).mean().abs() < 4 / a.numel() ** 0.5


def test_windows_overlap_as_often_as_documented():
    """Sharing of numbers, for windows of 3 x 32 x 32: two in a hundred pairs."""
    begin, size = starts(2000), 3 * 32 * 32
    distance = (begin[:1000] - begin[1000:]).abs()
    shared = torch.minimum(distance, BANK - distance) < size
    assert 2 * size / BANK == pytest.approx(0.0234, abs=1e-4)
    assert shared.double().mean().item() == pytest.approx(2 * size / BANK, abs=0.015)


# --- the draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise_is_the_window_of_the_bank_and_wraps_around(dtype):
    bank = noise.bank(1, torch.device("cpu"), dtype)
    gray = torch.full((3, 2, 3, 5), 0.5, dtype=dtype)
    start = torch.tensor([0, 1234, BANK - 7])
    out = gaussian_noise(gray, gray.new_full((3,), 0.02), start)
    for image, begin in zip(out, start.tolist(), strict=True):
        window = torch.stack([bank[(begin + i) % BANK] for i in range(30)]).view(2, 3, 5)
        assert torch.allclose(image, 0.5 + 0.02 * window, rtol=0, atol=1e-7)


def test_an_image_larger_than_the_bank_repeats_itself():
    gray = torch.full((1, 3, 400, 300), 0.5)
    out = gaussian_noise(gray, torch.tensor([0.01]), torch.tensor([BANK - 1])).flatten()
    assert len(out) > BANK and torch.equal(out[BANK:], out[: len(out) - BANK])
    assert not torch.equal(out[BANK - 1 :], out[: len(out) - BANK + 1])


def test_the_same_start_gives_the_same_noise_without_other_randomness():
    images, magnitude, start = random(8, 3, 8, 8), random(8, seed=1) / 5, starts(8)
    ambient = torch.get_rng_state()
    once = gaussian_noise(images, magnitude, start)
    noise.bank.cache_clear()
    torch.manual_seed(99)
    again = gaussian_noise(images, magnitude, start)
    torch.set_rng_state(ambient)
    noise.bank.cache_clear()
    gaussian_noise(images, magnitude, start)
    assert torch.equal(once, again) and torch.equal(ambient, torch.get_rng_state())
    assert not torch.equal(once, gaussian_noise(images, magnitude, start + 1))
    single = gaussian_noise(images.float(), magnitude.float(), start)
    assert torch.allclose(single.double(), once, rtol=0, atol=2e-6)  # the same numbers, rounded


def test_tensors_cached_in_inference_mode_work_outside():
    noise.bank.cache_clear()
    images, magnitude = random(1, 1, 4, 4), torch.tensor([0.1], dtype=torch.float64)
    with torch.inference_mode():
        expected = gaussian_noise(images, magnitude, starts(1))
    out = gaussian_noise(images, magnitude.requires_grad_(), starts(1))
    assert torch.equal(out, expected)
    assert torch.autograd.grad(out.sum(), magnitude)[0] != 0


# --- values and derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(32, 32), (5, 3), (1, 1)])
def test_zero_is_the_identity_to_the_last_bit(size, channels, dtype):
    images = random(4, channels, *size).to(dtype)
    images[0] = images[0].round()
    out = gaussian_noise(images, images.new_zeros(4), starts(4))
    assert torch.equal(out, images) and out.dtype == dtype
    assert not torch.equal(gaussian_noise(images, images.new_ones(4), starts(4)), images)


@pytest.mark.parametrize("learned", [True, False])
def test_values_stay_in_range_and_the_derivative_is_that_of_the_clamp(learned):
    images = random(4, 3, 8, 8)
    images[:2] = images[:2].round()
    images.requires_grad_(learned)
    magnitude = images.new_full((4,), 0.4).requires_grad_(learned)
    out = gaussian_noise(images, magnitude, starts(4))
    assert out.min() == 0 and out.max() == 1
    eps = epsilon(4, 3, 8, 8)
    free = images.detach() + 0.4 * eps
    assert torch.allclose(out, free.clamp(0, 1), rtol=0, atol=1e-12)
    if learned:
        inside = ((free >= 0) & (free <= 1)).double()
        slopes = torch.autograd.grad(out.sum(), (images, magnitude))
        assert torch.equal(slopes[0], inside)
        assert torch.allclose(slopes[1], (eps * inside).sum((1, 2, 3)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_black_and_white_keep_their_derivative_at_zero(dtype):
    images = torch.tensor([0.0, 1.0], dtype=dtype).view(1, 1, 1, 2).requires_grad_()
    magnitude = images.new_zeros(1).requires_grad_()
    out = gaussian_noise(images, magnitude, torch.tensor([3]))
    slopes = torch.autograd.grad(out.sum(), (images, magnitude))
    assert torch.equal(slopes[0], torch.ones_like(images)) and slopes[1] != 0


@pytest.mark.parametrize("channels", CHANNELS)
def test_derivatives_are_exact(channels):
    images = (0.3 + 0.4 * random(2, channels, 3, 4)).requires_grad_()
    magnitude = torch.tensor([0.02, -0.05], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, m: Tensor) -> Tensor:
        return gaussian_noise(x, m, starts(2))

    assert torch.autograd.gradcheck(function, (images, magnitude))
    assert torch.autograd.gradgradcheck(function, (images, magnitude))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
def test_forward_mode_equals_backward_mode():
    images, magnitude = random(2, 3, 6, 5), torch.tensor([0.2, 0.3], dtype=torch.float64)
    directions = (random(2, 3, 6, 5, seed=1) - 0.5, torch.ones(2, dtype=torch.float64))
    weight = random(2, 3, 6, 5, seed=2)

    def function(x: Tensor, m: Tensor) -> Tensor:
        return gaussian_noise(x, m, starts(2))

    _, forward = torch.func.jvp(function, (images, magnitude), directions)
    _, pull = torch.func.vjp(function, images, magnitude)
    backward = sum((a * b).sum() for a, b in zip(pull(weight), directions, strict=True))
    assert torch.allclose((forward * weight).sum(), backward, rtol=1e-10)


def test_memory_format_does_not_matter():
    images, magnitude = random(4, 3, 9, 8), random(4, seed=1)
    last = images.contiguous(memory_format=torch.channels_last)
    expected = gaussian_noise(images, magnitude, starts(4))
    assert torch.equal(gaussian_noise(last, magnitude, starts(4)), expected)


def test_an_empty_batch():
    out = gaussian_noise(torch.empty(0, 3, 4, 5), torch.empty(0), torch.empty(0).long())
    assert out.shape == (0, 3, 4, 5)


def test_nothing_waits_for_the_device():
    """Tensors of the meta device have no values, so reading one would fail."""
    images = torch.empty(4, 3, 8, 8, device="meta", requires_grad=True)
    magnitude = torch.empty(4, device="meta", requires_grad=True)
    out = gaussian_noise(images, magnitude, torch.empty(4, dtype=torch.long, device="meta"))
    slopes = torch.autograd.grad(out.sum(), (images, magnitude))
    assert [slope.shape for slope in slopes] == [images.shape, magnitude.shape]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_computes_what_the_cpu_computes():
    found = []
    for device in ("cpu", "cuda"):
        images = random(3, 3, 9, 8).to(device).requires_grad_()
        magnitude = random(3, seed=1).to(device).requires_grad_()
        out = gaussian_noise(images, magnitude, starts(3).to(device))
        slopes = torch.autograd.grad((out**2).sum(), (images, magnitude))
        found.append([value.detach().cpu() for value in (out, *slopes)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
