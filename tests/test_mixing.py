"""Mixing: values against torchvision and a slow twin, derivatives in float64, distributions."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from darts_lite.augment.mixing import KINDS, TINY, MixDraws, MixedLabels, Mixing
from darts_lite.errors import UserError
from darts_lite.training.losses import cross_entropy

SIZES = [(8, 8), (5, 9), (9, 5), (1, 1), (1, 6)]
CHOICES = [("cutmix",), ("mixup",), KINDS]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(seed), dtype=torch.float64)


def draw(batch: int, kinds: tuple[str, ...] = KINDS, seed: int = 1, **knobs: float) -> MixDraws:
    return Mixing(kinds, **knobs).sample(batch, seeded(seed))


def mix_labels(labels: Tensor, draws: MixDraws, share: Tensor) -> MixedLabels:
    return MixedLabels(labels, labels[draws.partner], share)


def boxes(*rows: tuple[float, float, float], box: bool = True) -> MixDraws:
    """Return draws of (share, x, y) for each image; its partner is the image before."""
    table = torch.tensor(rows, dtype=torch.float64)
    partner = torch.arange(len(rows)).roll(1)
    return MixDraws(partner, table[:, 0], table[:, 1:], torch.full((len(rows),), box))


# Inside of the image, clipped at a corner, within one pixel, over everything, nothing, and unmixed.
GENERIC = boxes(
    (0.3, 0.48, 0.55), (0.6, 0.11, 0.93), (0.01, 0.31, 0.57), (0.9, 0.52, 0.49), (0.0, 0.4, 0.4)
)


def twin(images: Tensor, draws: MixDraws, strength: float) -> tuple[Tensor, Tensor]:
    """The slow twin: pixel by pixel, in Python, an overlap of intervals as one writes it down."""
    height, width = images.shape[-2:]
    out, share = images.clone(), []
    for i, (j, s, (x, y), box) in enumerate(zip(*(draw.tolist() for draw in draws), strict=True)):
        p, total = s * strength, 0.0
        for row in range(height):
            for column in range(width):
                weight = p
                if box:
                    weight = overlap(row, y * height, math.sqrt(p) * height)
                    weight *= overlap(column, x * width, math.sqrt(p) * width)
                out[i, :, row, column] = (1 - weight) * images[i, :, row, column]
                out[i, :, row, column] += weight * images[j, :, row, column]
                total += weight
        share.append(total / (height * width))
    return out, torch.tensor(share, dtype=torch.float64)


def overlap(pixel: int, center: float, length: float) -> float:
    return max(0.0, min(pixel + 1, center + length / 2) - max(pixel, center - length / 2))


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kinds", CHOICES)
def test_apply_equals_its_slow_twin(kinds, size, channels, strength):
    images, draws = pictures(6, channels, *size), draw(6, kinds, probability=0.8)
    out, share = Mixing(kinds).apply(images, draws, strength)
    expected, area = twin(images, draws, strength)
    assert out.dtype == share.dtype == torch.float64
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert torch.allclose(share, area, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_equals_torchvision(seed, monkeypatch):
    """With lambda = 3/4 the box has half the sides of the image: 6 of 12 and 4 of 8 pixels."""
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor(0.75))
    images, labels = torch.rand(3, 3, 8, 12, generator=seeded(seed)), torch.tensor([2, 0, 1])
    logits = torch.randn(3, 4, generator=seeded(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x, y = (torch.randint(side, (1,)).item() / side for side in (12, 8))
        torch.manual_seed(seed)
        expected, soft = v2.CutMix(num_classes=4)(images, labels)
    draws = boxes(*[(0.25, x, y)] * 3)
    out, share = Mixing().apply(images, draws)
    assert torch.equal(out, expected)  # pasted pixels are copies, the others are left alone
    assert not torch.equal(out, images)
    losses = cross_entropy(logits, mix_labels(labels, draws, share))
    expected_losses = F.cross_entropy(logits, soft, reduction="none")
    assert torch.allclose(losses, expected_losses, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8])
def test_mixup_equals_torchvision(weight, monkeypatch):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor(weight))
    images, labels = torch.rand(3, 3, 8, 12, generator=seeded()), torch.tensor([2, 0, 1])
    logits = torch.randn(3, 4, generator=seeded())
    expected, soft = v2.MixUp(num_classes=4)(images, labels)
    draws = boxes(*[(1 - weight, 0.5, 0.5)] * 3, box=False)
    out, share = Mixing(("mixup",)).apply(images, draws)
    assert torch.allclose(out, expected, rtol=0, atol=1e-6)
    losses = cross_entropy(logits, mix_labels(labels, draws, share))
    expected_losses = F.cross_entropy(logits, soft, reduction="none")
    assert torch.allclose(losses, expected_losses, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (11, 7), (1, 5)])
@pytest.mark.parametrize("kinds", CHOICES)
def test_the_label_share_is_the_covered_area(kinds, size):
    """One white image among black images: count what it adds to the others."""
    draws = draw(200, kinds)
    images = torch.zeros(200, 1, *size, dtype=torch.float64)
    for white in range(0, 200, 50):
        images[white] = 1
    out, share = Mixing(kinds).apply(images, draws, 0.83)
    own, other = images[:, 0, 0, 0], images[draws.partner, 0, 0, 0]
    expected = own * (1 - share) + other * share
    assert torch.allclose(out.mean((1, 2, 3)), expected, rtol=0, atol=1e-12)
    asked = draws.share.double() * 0.83
    assert (share <= asked + 1e-12).all()
    clipped = share < asked - 1e-6
    assert clipped.any() == ("cutmix" in kinds) and not clipped[~draws.box].any()
    inside = ((draws.center - 0.5).abs() + asked.sqrt().unsqueeze(1) / 2 < 0.5).all(1)
    assert inside.any() and not clipped[inside].any()


def test_the_area_in_whole_pixels_is_counted():
    """8 x 8 pixels. Boxes: 4 x 4; two sides clipped, 3 x 2; one side clipped, 4 x 2; everything."""
    draws = boxes((0.25, 0.5, 0.5), (0.25, 1 / 8, 1.0), (0.25, 0.5, 0.0), (1.0, 0.5, 0.5))
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    out, share = Mixing().apply(images, draws)
    pasted = (out == images[draws.partner]).sum((1, 2, 3)) / 3
    assert pasted.tolist() == [16, 6, 8, 64]
    assert ((out == images) | (out == images[draws.partner])).all()
    assert (share * 64).tolist() == [16, 6, 8, 64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, torch.tensor(0.0), torch.zeros(32)])
@pytest.mark.parametrize("kinds", CHOICES)
def test_strength_zero_is_the_identity(kinds, strength, dtype):
    images = torch.rand(32, 3, 9, 8, generator=seeded()).to(dtype)
    out, share = Mixing(kinds).apply(images, draw(32, kinds), strength)
    assert torch.equal(out, images) and out.dtype == dtype
    assert torch.equal(share, torch.zeros(32).to(share.dtype))
    assert share.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_unmixed_samples_are_left_alone_exactly():
    images, draws = torch.rand(64, 3, 8, 8, generator=seeded()), draw(64, probability=0.5)
    out, share = Mixing(KINDS).apply(images, draws, 0.9)
    left = (draws.share == 0) | (draws.partner == torch.arange(64))  # one may be its own partner
    assert 16 < left.sum() < 48
    assert torch.equal(out[left], images[left])
    assert (out != images).flatten(1).any(1)[~left].all()
    assert torch.equal(share == 0, draws.share == 0)


def test_a_batch_of_one_is_its_own_partner():
    images, draws = torch.rand(1, 3, 8, 8, generator=seeded()), draw(1)
    out, _ = Mixing(KINDS).apply(images, draws)
    assert draws.partner.tolist() == [0] and torch.equal(out, images)


def test_one_strength_for_each_sample():
    images, strength = pictures(5, 3, 8, 9), torch.linspace(0, 1, 5)
    out, share = Mixing().apply(images, GENERIC, strength)
    for i, t in enumerate(strength):
        alone, one = Mixing().apply(images, GENERIC, t)
        assert torch.equal(out[i], alone[i]) and torch.equal(share[i], one[i])


@pytest.mark.parametrize("kinds", CHOICES)
def test_memory_format_is_kept(kinds):
    plain, draws = torch.rand(8, 3, 7, 9, generator=seeded()), draw(8, kinds)
    last = plain.contiguous(memory_format=torch.channels_last)
    (a, share), (b, same) = (Mixing(kinds).apply(x, draws, 0.7) for x in (plain, last))
    assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(a, b) and torch.equal(share, same)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, form",
    [
        ([True, True, True, True, True], torch.contiguous_format),
        ([False, False, False, False, False], torch.contiguous_format),
        ([True, False, True, False, True], torch.channels_last),
    ],
    ids=["cutmix", "mixup", "both"],
)
def test_derivatives_are_exact(box, form):
    draws = GENERIC._replace(box=torch.tensor(box))
    images = pictures(5, 2, 2, 3).contiguous(memory_format=form).requires_grad_()
    strength = torch.tensor(0.613, dtype=torch.float64, requires_grad=True)
    each = torch.linspace(0.2, 0.9, 5, dtype=torch.float64, requires_grad=True)

    def mix(images: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        return Mixing(KINDS).apply(images, draws, strength)

    assert torch.autograd.gradcheck(mix, (images, strength), check_forward_ad=True)
    assert torch.autograd.gradcheck(mix, (images, each), fast_mode=True)
    assert torch.autograd.gradgradcheck(mix, (images, strength), fast_mode=True)


@pytest.mark.parametrize("box", [True, False])
def test_the_slope_of_the_share_equals_the_slope_of_the_area(box):
    """Inside the image it is the share that was drawn; clipped, it has a closed form."""
    draws = boxes((0.3, 0.48, 0.55), (0.36, 0.11, 0.52), box=box)
    strength = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
    _, share = Mixing().apply(pictures(2, 1, 8, 9), draws, strength)
    (slope,) = torch.autograd.grad(share.sum(), strength)
    # Clipped at x = 0: (0.11 + √p / 2) √p with √p = 0.6 √t.
    clipped = 0.11 * 0.6 / (2 * math.sqrt(0.7)) + 0.36 / 2
    assert slope.tolist() == pytest.approx([0.3, clipped if box else 0.36], abs=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize("box", [True, False])
def test_the_slope_at_strength_zero(box, dtype, tolerance):
    """√p has no slope there, but the weights do: H W s, as for a box within one pixel."""
    images = pictures(5, 1, 4, 6).to(dtype)
    draws = GENERIC._replace(box=torch.full((5,), box))
    out, share = torch.func.jvp(
        lambda t: Mixing(KINDS).apply(images, draws, t),
        (images.new_zeros(()),),
        (images.new_ones(()),),
    )[1]
    step = 100 * TINY  # above it, the box is drawn as everywhere
    doubles = images.double()
    ahead, area = Mixing(KINDS).apply(doubles, draws, step)
    assert (share - draws.share).abs().max() < tolerance
    assert ((area / step) - share).abs().max() < tolerance
    assert torch.allclose(out.double(), (ahead - doubles) / step, rtol=1e-2, atol=1e-2)
    i, (row, column) = 0, (2, 2) if box else (3, 5)  # the pixel of the first center, or any
    slope = 0.3 * (24 if box else 1) * (images[4] - images[0])[0, row, column]
    assert out[i, 0, row, column].item() == pytest.approx(slope.item(), abs=24 * tolerance)
    assert (out[i] != 0).sum() == (1 if box else 24)


def test_unmixed_and_pasted_samples_have_finite_slopes():
    draws = boxes((0.0, 0.5, 0.5), (1.0, 0.5, 0.5), (1e-30, 0.5, 0.5), (1e-12, 0.5, 0.5))
    images = torch.rand(4, 1, 8, 8, generator=seeded(), requires_grad=True)
    for value in (0.0, 1e-20, 0.5, 1.0):
        strength = torch.tensor(value, requires_grad=True)
        out, share = Mixing().apply(images, draws, strength)
        slopes = torch.autograd.grad((out**2).sum() + share.sum(), (images, strength))
        assert all(slope.isfinite().all() for slope in slopes)


def test_the_mixed_second_derivative_reaches_strength_through_a_loss():
    """∂²L/∂t∂w, which every hypergradient needs, against central differences in t."""
    images, labels, draws = pictures(5, 3, 4, 6), torch.tensor([0, 1, 2, 1, 0]), GENERIC
    weight = torch.randn(72, 3, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    direction = torch.randn(72, 3, generator=seeded(4), dtype=torch.float64)

    def slope(t: Tensor) -> Tensor:
        out, share = Mixing().apply(images, draws, t)
        targets = mix_labels(labels, draws, share)
        loss = cross_entropy(out.flatten(1) @ weight, targets, 0.1).mean()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return (gradient * direction).sum()

    at = torch.tensor(0.613, dtype=torch.float64, requires_grad=True)
    (mixed,) = torch.autograd.grad(slope(at), at)
    expected = (slope(at + 1e-6) - slope(at - 1e-6)) / 2e-6
    assert abs(expected) > 1e-4
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mixing_after_a_learned_augmentation():
    """The gradient of a magnitude goes through both images of a pair; here, one gamma per image."""
    images, weight, draws = pictures(5, 1, 6, 6), pictures(5, 1, 6, 6, seed=5), GENERIC

    def value(gamma: Tensor) -> Tensor:
        out, _ = Mixing().apply(images ** gamma.view(5, 1, 1, 1), draws, 0.8)
        return (out[0] * weight[0]).sum()  # image 0 has image 4 for a partner

    at = torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(at), at)
    steps = torch.eye(5, dtype=torch.float64) * 1e-6
    expected = torch.stack([(value(at + s) - value(at - s)) / 2e-6 for s in steps]).detach()
    assert (expected != 0).tolist() == [True, False, False, False, True]
    assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-8)


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_the_share_has_the_beta_distribution(alpha):
    """Below 1/2 and above, because float32 rounds the shares close to one at a small alpha."""
    share, beta = draw(8000, alpha=alpha).share.double(), stats.beta(alpha, alpha)
    low = share[share < 0.5].numpy()
    assert len(low) / 8000 == pytest.approx(0.5, abs=0.01)
    assert stats.kstest(low, lambda x: 2 * beta.cdf(x)).pvalue > 0.01
    high = share[(share > 0.5) & (share < 0.99)].numpy()
    ends = beta.cdf([0.5, 0.99])
    assert stats.kstest(high, lambda x: (beta.cdf(x) - ends[0]) / (ends[1] - ends[0])).pvalue > 0.01
    wrong = stats.beta(1.5 * alpha, 1.5 * alpha)
    assert stats.kstest(low, lambda x: 2 * wrong.cdf(x)).pvalue < 1e-6  # the test would see it


def test_the_distribution_of_the_other_draws():
    draws = draw(20_000, probability=0.25)
    assert torch.equal(draws.partner.sort().values, torch.arange(20_000))
    columns = (draws.share.double(), draws.box.double(), *draws.center.double().unbind(1))
    place = torch.arange(20_000, dtype=torch.float64)  # independent of all, of the partner too
    table = torch.stack(
        (place, *columns, place[draws.partner], *(c[draws.partner] for c in columns))
    )
    assert torch.corrcoef(table).fill_diagonal_(0).abs().max() < 0.03
    assert abs((draws.share > 0).double().mean() - 0.25) < 0.01
    assert abs(draws.box.double().mean() - 0.5) < 0.01
    assert abs(draws.box[draws.share > 0].double().mean() - 0.5) < 0.02
    for axis in (0, 1):
        assert stats.kstest(draws.center[:, axis].numpy(), "uniform").pvalue > 0.01
    assert draw(50, ("cutmix",)).box.all() and not draw(50, ("mixup",)).box.any()
    assert (draw(50, probability=0.0).share == 0).all() and (draw(50).share > 0).all()
    assert [d.dtype for d in draws] == [torch.long, torch.float, torch.float, torch.bool]


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_sampling_is_reproducible_and_apply_consumes_no_randomness(alpha):
    mixing, generator, ambient = Mixing(KINDS, alpha), seeded(5), torch.get_rng_state()
    state = generator.get_state()
    first, second = (mixing.sample(8, generator) for _ in range(2))
    assert not torch.equal(first.share, second.share)
    own = generator.get_state()
    images = torch.rand(8, 3, 8, 8, generator=seeded())
    kept = images.clone()
    (once, share), (again, same) = (mixing.apply(images, first, 0.5) for _ in range(2))
    assert torch.equal(once, again) and torch.equal(share, same) and torch.equal(images, kept)
    assert torch.equal(generator.get_state(), own)
    generator.set_state(state)
    for a, b in zip(first, mixing.sample(8, generator), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), ambient)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_mean_over_draws(strength):
    """Closed forms, for alpha = 1 and p uniform on [0, t].

    A side of length a is clipped to a - a²/4 in the mean over its center, so the mean share is the
    integral of (√p - p/4)² over p, divided by t; for mixup that of p.
    """
    batch, t = 20_000, torch.tensor(strength, dtype=torch.float64, requires_grad=True)
    closed = {
        "cutmix": lambda t: t / 2 - t**1.5 / 5 + t**2 / 48,
        "mixup": lambda t: t / 2,
    }
    images = torch.zeros(batch, 1, 3, 4, dtype=torch.float64)
    images[::2] = 1
    for kind, mean in closed.items():
        draws = draw(batch, (kind,), seed=3)
        draws = draws._replace(partner=torch.arange(batch) ^ 1)  # black and white in pairs
        out, share = Mixing((kind,)).apply(images, draws, t)
        (slope,) = torch.autograd.grad(share.mean(), t, retain_graph=True)
        (expected,) = torch.autograd.grad(mean(t), t)
        assert share.mean().item() == pytest.approx(mean(t).item(), abs=0.006)
        assert slope.item() == pytest.approx(expected.item(), abs=0.006)
        assert (out - images).abs().mean().item() == pytest.approx(share.mean().item(), abs=1e-12)


# --- cost -----------------------------------------------------------------------------------------


class Passes(TorchDispatchMode):
    """Names of the operations that write as many values as the batch of images has."""

    def __init__(self, values: int):
        super().__init__()
        self.values, self.found = values, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.values and not func.is_view:
            self.found.append(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("kinds", CHOICES)
def test_apply_takes_two_passes_over_the_pixels(kinds):
    images, draws = torch.rand(128, 3, 32, 32), draw(128, kinds)
    with Passes(images.numel()) as passes:
        Mixing(kinds).apply(images, draws, torch.tensor(0.5))
    assert passes.found == ["index_select", "lerp"]


@pytest.mark.parametrize("last", [False, True])
def test_nothing_waits_for_the_device(last):
    """Tensors of the meta device have no values, so reading one would fail."""
    form = torch.channels_last if last else torch.contiguous_format
    images = torch.empty(4, 3, 9, 8, device="meta").contiguous(memory_format=form)
    draws = Mixing(KINDS, alpha=0.5).sample(4, seeded(), device="meta")
    strength = torch.empty((), device="meta", requires_grad=True)
    out, share = Mixing(KINDS).apply(images, draws, strength)
    labels = torch.empty(4, dtype=torch.long, device="meta")
    loss = cross_entropy(out.mean((2, 3)), mix_labels(labels, draws, share), 0.1)
    (slope,) = torch.autograd.grad(loss.sum(), strength)
    assert out.shape == (4, 3, 9, 8) and share.shape == loss.shape == (4,) and slope.shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_computes_what_the_cpu_computes():
    images, strength = pictures(16, 3, 9, 8), torch.tensor(0.7, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        draws = Mixing(KINDS).sample(16, seeded(), device)
        x, t = images.to(device), strength.to(device).requires_grad_()
        out, share = Mixing(KINDS).apply(x, draws, t)
        (slope,) = torch.autograd.grad((out**2).sum() + share.sum(), t)
        found.append([value.detach().cpu() for value in (out, share, slope)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"kinds": ("cutout",)}, r"kinds must be one or both of .*, got \('cutout',\)"),
        ({"kinds": ()}, r"kinds must be .* got \(\)"),
        ({"kinds": "cutmix"}, "kinds must be .* got 'cutmix'"),
        ({"kinds": ("mixup", "mixup")}, "kinds must be"),
        ({"alpha": 0.0}, "alpha must be finite and above 0, got 0.0"),
        ({"alpha": -1}, "alpha must be .* got -1"),
        ({"alpha": math.nan}, "alpha must be .* got nan"),
        ({"alpha": math.inf}, "alpha must be .* got inf"),
        ({"probability": -0.1}, r"probability must be in \[0, 1\], got -0.1"),
        ({"probability": 1.1}, "probability must be .* got 1.1"),
        ({"strength": -0.1}, "strength must be .* got -0.1"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        Mixing(**knobs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "images, strength, message",
    [
        (
            torch.rand(4, 8, 8),
            1.0,
            r"floating \[B, C, H, W\], got shape \(4, 8, 8\) and torch.float32",
        ),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 1.0, "must be floating .* torch.uint8"),
        (torch.rand(5, 3, 8, 8), 1.0, "draws must be for 5 images, got 4"),
        (torch.rand(4, 3, 8, 8), 1.5, "strength must be .* got 1.5"),
        (torch.rand(4, 3, 8, 8), math.nan, "strength must be .* got nan"),
        (torch.rand(4, 3, 8, 8), torch.rand(3), r"strength must be \[\] or \[B\], got \(3,\)"),
        (torch.rand(4, 3, 8, 8), torch.rand(4, 1), r"strength must be .* got \(4, 1\)"),
    ],
)
def test_wrong_images_are_refused(images, strength, message):
    with pytest.raises(UserError, match=message) as error:
        Mixing().apply(images, draw(4), strength)
    assert "\n" not in str(error.value)
