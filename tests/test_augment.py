"""Augmentation: operations × invariants, values against torchvision, derivatives in float64."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment import OPERATIONS, Draws, LearnedMagnitudes
from darts_lite.augment import operations as ops
from darts_lite.augment.policy import Colour, Cutout, Geometric
from darts_lite.errors import UserError

CHANNELS = (1, 3)
CENTRE = (0.43, 0.57)  # of the cutout: its border falls inside of pixels


def smooth(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random images in about [0.2, 0.8], float64."""
    noise = torch.randn(batch, channels, 4, 4, generator=seeded(seed), dtype=torch.float64)
    return 0.5 + 0.3 * F.interpolate(noise, (height, width), mode="bicubic").tanh()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(name: str, images: Tensor, value: Tensor) -> Tensor:
    """One operation of the table on its own."""
    match OPERATIONS[name]:
        case Geometric(matrix=matrix):
            height, width = images.shape[-2:]
            return ops.warp(images, matrix(value, (height, width)))
        case Colour(gains=gains):
            return ops.recolour(images, gains(value))
        case Cutout():
            return ops.cutout(images, value, images.new_tensor([CENTRE]).expand(len(images), 2))


def generic(name: str, batch: int = 2) -> Tensor:
    """Magnitudes of no special value, both signs where there are two."""
    op = OPERATIONS[name]
    values = op.range * torch.tensor([0.613, 0.377], dtype=torch.float64)[:batch]
    return values * torch.tensor([1.0, -1.0 if op.signed else 1.0], dtype=torch.float64)[:batch]


def case(channels: int, **knobs: float) -> tuple[LearnedMagnitudes, Tensor, Draws, Tensor]:
    """A policy, smooth images, fixed draws and generic magnitudes."""
    policy = LearnedMagnitudes(channels, crop=1, **knobs)  # type: ignore[arg-type]
    images = smooth(3, channels, 9, 8)
    draws = policy.sample(3, (9, 8), seeded(1))
    draws = draws._replace(factors=draws.factors.double(), centre=draws.centre.double())
    magnitudes = torch.linspace(0.35, 0.6, len(policy.names), dtype=torch.float64)
    return policy, images, draws, magnitudes


def central(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function."""
    steps = torch.eye(len(at), dtype=at.dtype) * step
    return torch.stack([(function(at + s) - function(at - s)) / (2 * step) for s in steps])


# --- operations × invariants ----------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (9, 14)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_zero_is_the_identity(name, size, dtype, tolerance, channels):
    images = torch.rand(4, channels, *size, generator=seeded(), dtype=dtype)
    assert torch.allclose(run(name, images, images.new_zeros(4)), images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_are_exact(name, channels):
    images = smooth(2, channels, 6, 5).requires_grad_()
    value = generic(name).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, m: run(name, x, m), (images, value))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_second_derivatives_are_exact(name, channels):
    images = smooth(2, channels, 4, 5).requires_grad_()
    value = generic(name).requires_grad_()
    try:
        assert torch.autograd.gradgradcheck(lambda x, m: run(name, x, m), (images, value))
    except RuntimeError as error:
        if "grid_sampler_2d_backward is not implemented" not in str(error):
            raise
        pytest.skip("this torch has no second derivative of grid_sample")


@pytest.mark.parametrize("name", ["translate_x", "rotate", "scale"])
def test_second_derivatives_of_the_matrices(name):
    matrix = OPERATIONS[name].matrix
    value = generic(name).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda m: matrix(m, (6, 5)), (value,))


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_are_independent(name):
    images, value = smooth(2, 3, 8, 8), generic(name)
    changed = torch.stack((images[0], 1 - images[1]))
    assert torch.equal(run(name, images, value)[0], run(name, changed, value)[0])
    assert not torch.equal(run(name, images, value)[1], run(name, changed, value)[1])


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_does_something_and_stays_in_range(name, channels):
    images = torch.rand(2, channels, 8, 8, generator=seeded(), dtype=torch.float64)
    out = run(name, images, generic(name))
    assert out.min() >= 0 and out.max() <= 1
    identity = name == "saturation" and channels == 1
    assert torch.allclose(out, images) == identity


def test_clamp_has_its_true_derivative():
    images = torch.tensor([[[[0.4, 0.9]]]])
    value = torch.tensor([0.5], requires_grad=True)
    out = ops.recolour(images, ops.brightness(value))
    assert torch.allclose(out.detach(), torch.tensor([[[[0.6, 1.0]]]]))
    (gradient,) = torch.autograd.grad(out.sum(), value)
    assert gradient.item() == pytest.approx(0.4)  # of the first pixel only


# --- against torchvision --------------------------------------------------------------------------

AFFINE = {
    "translate_x": lambda m, h, w: {"translate": [m * w, 0.0]},
    "translate_y": lambda m, h, w: {"translate": [0.0, m * h]},
    "rotate": lambda m, h, w: {"angle": math.degrees(m)},
    "shear_x": lambda m, h, w: {"shear": [math.degrees(math.atan(m)), 0.0]},
    "shear_y": lambda m, h, w: {"shear": [0.0, math.degrees(math.atan(m))]},
    "scale": lambda m, h, w: {"scale": math.exp(m)},
}


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", AFFINE)
def test_geometry_equals_torchvision(name, sign, size):
    value = sign * OPERATIONS[name].range * 0.37
    if name.startswith("translate"):  # torchvision moves by whole pixels
        value = sign * 2 / size[1 if name == "translate_x" else 0]
    images = smooth(2, 3, *size).float()
    knobs = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    knobs |= AFFINE[name](value, *size)
    expected = tv.affine(images, **knobs, interpolation=tv.InterpolationMode.BILINEAR)
    out = run(name, images, torch.full((2,), value))
    assert torch.allclose(out, expected, rtol=0, atol=2e-5)  # float32 coordinates


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("value", [-0.7, 0.4, 0.8])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_equals_torchvision(name, value, channels):
    images = torch.rand(2, channels, 8, 8, generator=seeded())
    expected = getattr(tv, f"adjust_{name}")(images, 1 + value)
    out = run(name, images, torch.full((2,), value))
    assert torch.allclose(out, expected, rtol=0, atol=1.01e-4)  # its 0.2989 is our 0.299


def test_flip_equals_torchvision():
    images = torch.rand(2, 3, 5, 6, generator=seeded())
    out = ops.flip_and_shift(images, torch.tensor([True, False]), torch.zeros(2, 2).long())
    assert torch.equal(out[0], tv.horizontal_flip(images[0]))
    assert torch.equal(out[1], images[1])


# --- composition ----------------------------------------------------------------------------------


def test_compose_is_the_product_and_reads_from_left_to_right():
    size, batch = (9, 14), 2
    matrices = [OPERATIONS[name].matrix(generic(name, batch), size) for name in AFFINE]
    product = torch.linalg.multi_dot([m[0] for m in matrices])
    assert torch.allclose(ops.compose(*matrices)[0], product, rtol=0, atol=1e-12)

    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    images[..., 4, 4] = 1
    right = ops.translate_x(images.new_tensor([0.25]), (8, 8))
    turn = ops.rotate(images.new_tensor([math.pi / 2]), (8, 8))
    two_steps = ops.warp(ops.warp(images, right), turn)  # two passes are exact on the pixel grid
    assert torch.allclose(ops.warp(images, ops.compose(right, turn)), two_steps, atol=1e-12)
    assert not torch.allclose(ops.warp(images, ops.compose(turn, right)), two_steps, atol=0.5)


def test_one_warp_is_close_to_two():
    images = smooth(1, 1, 64, 64)
    a = ops.rotate(images.new_tensor([0.2]), (64, 64))
    b = ops.shear_x(images.new_tensor([-0.15]), (64, 64))
    inside = (..., slice(16, 48), slice(16, 48))
    once, twice = ops.warp(images, ops.compose(a, b)), ops.warp(ops.warp(images, a), b)
    assert torch.allclose(once[inside], twice[inside], rtol=0, atol=5e-3)  # two interpolations


def test_colour_gains_compose_in_any_order():
    images = smooth(2, 3, 6, 6)
    values = images.new_tensor([0.1, -0.2])
    one_by_one = ops.recolour(ops.recolour(images, ops.contrast(values)), ops.saturation(values))
    gains = ops.saturation(values) * ops.contrast(values)
    assert torch.allclose(ops.recolour(images, gains), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_flip_and_shift_is_exact_and_equals_the_warp(channels):
    images = torch.rand(40, channels, 7, 9, generator=seeded())
    flip = torch.rand(40, generator=seeded(1)) < 0.5
    shift = torch.randint(-3, 4, (40, 2), generator=seeded(2))
    out = ops.flip_and_shift(images, flip, shift)
    for image, mirror, (x, y), moved in zip(images, flip, shift.tolist(), out, strict=True):
        image = image.flip(-1) if mirror else image
        padded = F.pad(image, (3, 3, 3, 3))
        assert torch.equal(moved, padded[:, 3 - y : 10 - y, 3 - x : 12 - x])
    matrix = ops.flip_and_shift_matrix(flip, shift, images.dtype)
    assert torch.equal(ops.warp(images, matrix), out)


@pytest.mark.parametrize("side", [0.0, 0.01, 0.3, 0.5])
def test_cutout_takes_away_its_area(side):
    images = torch.ones(1, 1, 8, 12, dtype=torch.float64)
    gone = (images - run("cutout", images, images.new_tensor([side]))).sum().item()
    assert gone == pytest.approx((side * 8) ** 2, abs=1e-12)


# --- the policy -----------------------------------------------------------------------------------


def test_names():
    names = ("translate", "rotate", "shear", "scale", "brightness", "contrast")
    assert LearnedMagnitudes(1).names == (*names, "cutout")
    assert LearnedMagnitudes(3).names == (*names, "saturation", "cutout")
    draws = LearnedMagnitudes(1).sample(2, (8, 8), seeded())
    assert draws.factors.shape == (2, 9)  # translate and shear have two axes each


def test_sampling_is_reproducible_and_apply_consumes_no_randomness():
    policy = LearnedMagnitudes(3, crop=2)
    generator = seeded(5)
    state = generator.get_state()
    first, second = (policy.sample(8, (8, 8), generator) for _ in range(2))
    assert not torch.equal(first.factors, second.factors)
    generator.set_state(state)
    for a, b in zip(first, policy.sample(8, (8, 8), generator), strict=True):
        assert torch.equal(a, b)

    images, magnitudes = torch.rand(8, 3, 8, 8), torch.full((8,), 0.5)
    own, ambient, kept = generator.get_state(), torch.get_rng_state(), images.clone()
    once, again = (policy.apply(images, first, magnitudes) for _ in range(2))
    assert torch.equal(once, again) and torch.equal(images, kept)
    assert torch.equal(own, generator.get_state())
    assert torch.equal(ambient, torch.get_rng_state())


def test_the_distribution_of_the_draws():
    policy = LearnedMagnitudes(3, crop=2, probability=0.25)
    draws = policy.sample(20_000, (8, 8), seeded())
    factors = draws.factors
    assert ((factors != 0).double().mean(0) - 0.25).abs().max() < 0.02
    assert factors[:, -1].min() == 0 and factors[:, :-1].amin(0).max() < -0.99
    assert factors.max() < 1 and factors.amax(0).min() > 0.99
    assert (draws.flip.double().mean() - 0.5).abs() < 0.02
    counts = torch.bincount((draws.shift + 2).flatten(), minlength=5)
    assert counts.shape == (5,) and (counts / 40_000 - 0.2).abs().max() < 0.02
    assert draws.centre.min() >= 0 and draws.centre.max() <= 1


def test_plain_policy_draws_no_flip_and_no_shift():
    policy = LearnedMagnitudes(1, flips=False)
    draws = policy.sample(64, (8, 8), seeded())
    assert not draws.flip.any() and not draws.shift.any()
    images = torch.rand(64, 1, 8, 8)
    assert policy.apply(images, draws) is images


@pytest.mark.parametrize("channels", CHANNELS)
def test_zero_magnitudes_are_plain_flips_and_crops(channels):
    policy = LearnedMagnitudes(channels, crop=2)
    images = torch.rand(16, channels, 28, 28, generator=seeded())
    draws = policy.sample(16, (28, 28), seeded(1))
    none = policy.apply(images, draws)
    zero = policy.apply(images, draws, torch.zeros(len(policy.names)))
    assert torch.allclose(none, zero, rtol=0, atol=1e-6)
    assert torch.equal(none == 0, zero == 0)  # and nothing leaks in at the border


@pytest.mark.parametrize("channels", CHANNELS)
def test_names_and_positions_say_the_same(channels):
    policy, images, draws, magnitudes = case(channels)
    named = dict(zip(policy.names, magnitudes, strict=True))
    out = policy.apply(images, draws, magnitudes)
    assert torch.equal(out, policy.apply(images, draws, named))


@pytest.mark.parametrize("channels", CHANNELS)
def test_policy_equals_its_operations_one_by_one(channels):
    """The slow twin: each image alone, one operation after another, by the table."""
    policy, images, draws, magnitudes = case(channels, probability=0.9)
    named = dict(zip(policy.names, magnitudes, strict=True))
    for i, image in enumerate(images.split(1)):
        matrix = ops.flip_and_shift_matrix(draws.flip[[i]], draws.shift[[i]], torch.float64)
        gains = image.new_ones(1, 3)
        for factor, op in zip(draws.factors[i], policy.operations.values(), strict=True):
            value = (factor * named[op.magnitude] * op.range).view(1)
            if isinstance(op, Geometric):
                matrix = matrix @ op.matrix(value, (9, 8))
            elif isinstance(op, Colour):
                gains = gains * op.gains(value)
        image = ops.recolour(ops.warp(image, matrix), gains)
        image = ops.cutout(image, value, draws.centre[[i]])
        out = policy.apply(images, draws, magnitudes)[[i]]
        assert torch.allclose(out, image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_policy_derivative_equals_central_differences(channels):
    policy, images, draws, magnitudes = case(channels, probability=0.9)
    weight = smooth(3, channels, 9, 8, seed=7)

    def loss(m: Tensor) -> Tensor:
        return (policy.apply(images, draws, m) * weight).sum()

    magnitudes.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(magnitudes), magnitudes)
    assert (gradient != 0).all()
    with torch.no_grad():
        expected = central(loss, magnitudes)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
@pytest.mark.parametrize("channels", CHANNELS)
def test_forward_mode_equals_backward_mode(channels):
    policy, images, draws, magnitudes = case(channels, probability=0.9)

    def function(m: Tensor) -> Tensor:
        return policy.apply(images, draws, m)

    tangent = torch.linspace(-1, 1, len(magnitudes), dtype=torch.float64)
    _, forward = torch.func.jvp(function, (magnitudes,), (tangent,))
    backward = torch.func.jacrev(function)(magnitudes) @ tangent
    assert torch.allclose(forward, backward, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_policy_derivative_in_the_images(channels):
    policy, images, draws, magnitudes = case(channels)
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy.apply(x, draws, magnitudes), (images,))


@pytest.mark.parametrize("channels", CHANNELS)
def test_mixed_second_derivative_of_a_training_loss(channels):
    """∂²L/∂m∂w · v, the term of the hypergradient, through the whole policy."""
    policy, images, draws, magnitudes = case(channels, probability=0.9)
    w = torch.randn(channels * 72, 3, generator=seeded(3), dtype=torch.float64).requires_grad_()
    v = torch.randn(w.shape, generator=seeded(4), dtype=torch.float64)
    labels = torch.arange(3)

    def slope(m: Tensor) -> Tensor:
        logits = policy.apply(images, draws, m).flatten(1).tanh() @ w
        (g,) = torch.autograd.grad(F.cross_entropy(logits, labels), w, create_graph=True)
        return (g * v).sum()

    magnitudes.requires_grad_()
    (mixed,) = torch.autograd.grad(slope(magnitudes), magnitudes)
    expected = central(lambda m: slope(m).detach(), magnitudes.detach())
    assert torch.allclose(mixed, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_dada_gradient_is_another_one(channels):
    """∂image/∂m = 1 (DADA, Li et al. 2020, eq. 11) is not our derivative, nor close to it."""
    policy, images, draws, magnitudes = case(channels, probability=0.9)
    weight = smooth(3, channels, 9, 8, seed=7) - 0.5
    magnitudes.requires_grad_()
    out = policy.apply(images, draws, magnitudes)
    slope, true = torch.autograd.grad((out * weight).sum(), (out, magnitudes))
    dada = slope.sum().expand_as(true)  # each magnitude is added to every pixel
    assert F.cosine_similarity(true, dada, dim=0).abs() < 0.9
    assert ((true - dada).abs() > 0.1 * true.abs()).all()


def test_policy_keeps_images_independent():
    policy, images, draws, magnitudes = case(3)
    changed = torch.cat((images[:1], 1 - images[1:]))
    a, b = (policy.apply(x, draws, magnitudes) for x in (images, changed))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize("learned", [True, False])
def test_memory_format_is_kept(learned):
    policy = LearnedMagnitudes(3, crop=1)
    draws = policy.sample(4, (8, 8), seeded())
    magnitudes = torch.full((8,), 0.5) if learned else None
    plain = torch.rand(4, 3, 8, 8, generator=seeded())
    last = plain.contiguous(memory_format=torch.channels_last)
    a, b = (policy.apply(x, draws, magnitudes) for x in (plain, last))
    assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("learned", [True, False])
def test_apply_never_looks_at_a_value(learned):
    """Tensors of the meta device have none, so nothing in it can wait for the device."""
    policy = LearnedMagnitudes(3, crop=1)
    draws = policy.sample(4, (9, 8), seeded(), device="meta")
    magnitudes = torch.full((8,), 0.5, device="meta") if learned else None
    out = policy.apply(torch.empty(4, 3, 9, 8, device="meta"), draws, magnitudes)
    assert out.shape == (4, 3, 9, 8)


def test_autocast_leaves_the_coordinates_alone():
    policy = LearnedMagnitudes(3, crop=1)
    draws = policy.sample(4, (8, 8), seeded())
    images, magnitudes = torch.rand(4, 3, 8, 8, generator=seeded()), torch.full((8,), 0.5)
    plain = policy.apply(images, draws, magnitudes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy.apply(images, draws, magnitudes), plain)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"channels": 0}, "channels is 0"),
        ({"channels": 1, "crop": -1}, "crop is -1"),
        ({"channels": 1, "probability": 0.0}, "probability is 0.0"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        LearnedMagnitudes(**knobs)


def test_wrong_images_are_refused():
    policy = LearnedMagnitudes(3, crop=8)
    with pytest.raises(UserError, match="crop 8 needs images larger than 8x8"):
        policy.sample(1, (8, 8), seeded())
    draws = policy.sample(1, (9, 9), seeded())
    with pytest.raises(UserError, match=r"needs \[B, 3, H, W\]"):
        policy.apply(torch.rand(1, 1, 9, 9), draws)
