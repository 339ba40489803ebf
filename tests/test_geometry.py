"""Geometry: the matrices against products of single ones, the warp against a slow twin."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment.operations.geometry import GEOMETRIC, affine, flip_and_shift, warp

CHANNELS = (1, 3)
SIZES = [(16, 16), (9, 14)]  # grid_sample rounds differently where sides are not powers of two
SINGLE = {  # the pull-back matrix of each operation alone, as one writes it down
    "translate_x": lambda m, h, w: [[1, 0, -m * w], [0, 1, 0], [0, 0, 1]],
    "translate_y": lambda m, h, w: [[1, 0, 0], [0, 1, -m * h], [0, 0, 1]],
    "rotate": lambda m, h, w: [
        [math.cos(m), math.sin(m), 0],
        [-math.sin(m), math.cos(m), 0],
        [0, 0, 1],
    ],
    "shear_x": lambda m, h, w: [[1, m, 0], [0, 1, 0], [0, 0, 1]],
    "shear_y": lambda m, h, w: [[1, 0, 0], [m, 1, 0], [0, 0, 1]],
    "scale": lambda m, h, w: [[math.exp(-m), 0, 0], [0, math.exp(-m), 0], [0, 0, 1]],
}
VALUES = ((0.17, -0.09, 0.31, 0.23, -0.19, 0.27), (-0.07, 0.13, -0.47, -0.11, 0.29, -0.21))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(), dtype=torch.float64)


def smooth(batch: int, channels: int, height: int, width: int) -> Tensor:
    coarse = torch.randn(batch, channels, 4, 4, generator=seeded(), dtype=torch.float64)
    return 0.5 + 0.3 * F.interpolate(coarse, (height, width), mode="bicubic").tanh()


def generic() -> Tensor:
    """Values `[2, 6]` of no special value, all operations at once."""
    return torch.tensor(VALUES, dtype=torch.float64)


def alone(name: str, value: float, batch: int = 1) -> Tensor:
    """Values `[batch, 6]`, zero but for one operation."""
    return torch.tensor([[value * (n == name) for n in GEOMETRIC]] * batch, dtype=torch.float64)


def chain(values: Tensor, height: int, width: int) -> Tensor:
    """The slow twin of `affine`: the product `[B, 3, 3]` of the single matrices."""
    out = []
    for row in values.tolist():
        singles = [SINGLE[n](m, height, width) for n, m in zip(GEOMETRIC, row, strict=True)]
        matrices = [torch.tensor(single, dtype=torch.float64) for single in singles]
        out.append(torch.linalg.multi_dot(matrices))
    return torch.stack(out)


def mirrored(flip: Tensor, shift: Tensor) -> Tensor:
    """The pull-backs `[B, 3, 3]` of mirroring, then of moving by whole pixels."""
    out = []
    for mirror, (x, y) in zip(flip.tolist(), shift.tolist(), strict=True):
        first = torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0, 1.0]).double())
        then = torch.tensor([[1.0, 0.0, -x], [0.0, 1.0, -y], [0.0, 0.0, 1.0]]).double()
        out.append(first @ then)
    return torch.stack(out)


def tents(images: Tensor, matrix: Tensor) -> Tensor:
    """The slow twin of `warp`: sum what every input pixel adds to each output pixel."""
    height, width = images.shape[-2:]
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    out = torch.zeros_like(images)
    for i, row, column in product(range(len(images)), range(height), range(width)):
        place = matrix[i] @ torch.stack((x[column], y[row], torch.ones(()).double()))
        weights = torch.outer(
            *((1 - (p - q).abs()).clamp(min=0) for p, q in zip(place.flip(0), (y, x)))
        )
        out[i, :, row, column] = (images[i] * weights).sum((1, 2))
    return out


def moved(images: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """The slow twin of `flip_and_shift`: a window of the padded image."""
    height, width = images.shape[-2:]
    far = max(height, width, int(shift.abs().max()))
    out = []
    for image, mirror, (x, y) in zip(images, flip.tolist(), shift.tolist(), strict=True):
        padded = F.pad(image.flip(-1) if mirror else image, (far, far, far, far))
        out.append(padded[:, far - y : far - y + height, far - x : far - x + width])
    return torch.stack(out)


# --- the matrix -----------------------------------------------------------------------------------


def test_the_table_above_is_complete_and_in_order():
    assert tuple(SINGLE) == tuple(GEOMETRIC)


@pytest.mark.parametrize("size", SIZES)
def test_affine_is_the_product_of_the_single_matrices(size):
    expected = chain(generic(), *size)
    assert torch.allclose(affine(generic(), size), expected[:, :2], rtol=0, atol=1e-12)
    swapped = chain(generic()[:, [0, 1, 2, 4, 3, 5]], *size)  # the order matters
    assert not torch.allclose(swapped, expected, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_each_operation_alone(name, size):
    expected = torch.tensor(SINGLE[name](0.37, *size), dtype=torch.float64)[:2]
    assert torch.allclose(affine(alone(name, 0.37), size)[0], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("knobs", ["flip", "shift", "both"])
def test_flip_and_shift_go_before_everything_else(knobs):
    size = (9, 14)
    flip, shift = torch.tensor([True, False]), torch.tensor([[2, -3], [-1, 4]])
    none = (torch.zeros(2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.long))
    used = {"flip": (flip, none[1]), "shift": (none[0], shift), "both": (flip, shift)}[knobs]
    given = {"flip": (flip, None), "shift": (None, shift), "both": (flip, shift)}[knobs]
    expected = mirrored(*used) @ chain(generic(), *size)
    out = affine(generic(), size, *given)
    assert torch.allclose(out, expected[:, :2], rtol=0, atol=1e-12)


def test_zero_is_the_identity_matrix():
    for dtype in (torch.float32, torch.float64):
        out = affine(torch.zeros(2, 6, dtype=dtype), (9, 14))
        assert torch.equal(out, torch.eye(2, 3, dtype=dtype).expand(2, 2, 3))


def test_derivatives_of_the_matrix():
    values = generic().requires_grad_()
    flip, shift = torch.tensor([True, False]), torch.tensor([[2, -3], [-1, 4]])

    def run(values: Tensor) -> Tensor:
        return affine(values, (9, 14), flip, shift)

    assert torch.autograd.gradcheck(run, (values,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (values,))


# --- the warp -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (14, 9), (1, 5)])
def test_warp_is_bilinear(size, channels):
    images, matrix = pictures(2, channels, *size), affine(generic(), size)
    assert torch.allclose(warp(images, matrix), tents(images, matrix), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 31), (9, 14), (5, 64), (1, 1), (224, 3)])
def test_whole_pixels_are_exact(size, dtype, channels):
    images = torch.rand(24, channels, *size, generator=seeded(), dtype=dtype)
    zeros = images.new_zeros(24, 6)
    assert torch.equal(warp(images, affine(zeros, size)), images)
    flip = torch.rand(24, generator=seeded(1)) < 0.5
    shift = torch.randint(-9, 10, (24, 2), generator=seeded(2))
    out = warp(images, affine(zeros, size, flip, shift))
    assert torch.equal(out, moved(images, flip, shift))
    assert torch.equal(flip_and_shift(images, flip, shift), out)


def test_which_way_positive_values_go():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    images[..., 3, 4] = 1  # half a pixel above the center, and to its right
    for name, value, place in [
        ("translate_x", 2 / 8, (3, 6)),
        ("translate_y", 3 / 8, (6, 4)),
        ("rotate", math.pi / 2, (4, 4)),
        ("shear_x", 2.0, (3, 5)),
        ("shear_y", 2.0, (2, 4)),
        ("scale", math.log(3), (2, 5)),
    ]:
        out = warp(images, affine(alone(name, value), (8, 8)))[0, 0]
        assert divmod(int(out.argmax()), 8) == place, name
        assert out.max() == pytest.approx(1)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_quarter_turn(channels):
    images = pictures(2, channels, 7, 7)
    out = warp(images, affine(alone("rotate", math.pi / 2, 2), (7, 7)))
    assert torch.allclose(out, images.rot90(-1, (2, 3)), rtol=0, atol=1e-12)


TORCHVISION = {
    "translate_x": lambda m, h, w: {"translate": [m * w, 0.0]},
    "translate_y": lambda m, h, w: {"translate": [0.0, m * h]},
    "rotate": lambda m, h, w: {"angle": math.degrees(m)},
    "shear_x": lambda m, h, w: {"shear": [math.degrees(math.atan(m)), 0.0]},
    "shear_y": lambda m, h, w: {"shear": [0.0, math.degrees(math.atan(m))]},
    "scale": lambda m, h, w: {"scale": math.exp(m)},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", TORCHVISION)
def test_geometry_equals_torchvision(name, sign, size):
    value = sign * 0.19
    if name.startswith("translate"):  # torchvision moves by whole pixels
        value = sign * 2 / size[1 if name == "translate_x" else 0]
    images = smooth(2, 3, *size).float()
    knobs = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    knobs |= TORCHVISION[name](value, *size)
    expected = tv.affine(images, **knobs, interpolation=tv.InterpolationMode.BILINEAR)
    out = warp(images, affine(alone(name, value, 2).float(), size))
    assert torch.allclose(out, expected, rtol=0, atol=2e-5)  # float32 coordinates
    assert not torch.allclose(images, expected, rtol=0, atol=0.05)


def test_one_warp_is_close_to_two():
    images = smooth(1, 1, 64, 64)
    both = alone("rotate", 0.2) + alone("shear_x", -0.15)
    once = warp(images, affine(both, (64, 64)))
    first = warp(images, affine(alone("rotate", 0.2), (64, 64)))
    twice = warp(first, affine(alone("shear_x", -0.15), (64, 64)))
    inside = (..., slice(16, 48), slice(16, 48))
    error = (once - twice)[inside].abs().max()
    assert error < 5e-3 < (first - twice)[inside].abs().max()  # two interpolations


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(4, 4), (4, 5)])
def test_derivatives_of_the_warp(size, channels):
    images = pictures(1, channels, *size).requires_grad_()
    matrix = affine(generic()[:1], size).requires_grad_()
    assert torch.autograd.gradcheck(warp, (images, matrix), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(warp, (images, matrix), check_fwd_over_rev=True)


def test_autocast_leaves_the_coordinates_alone():
    images, values = pictures(2, 3, 9, 14).float(), generic().float()
    plain = warp(images, affine(values, (9, 14)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(warp(images, affine(values, (9, 14))), plain)


# --- flips and shifts -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 3)])
def test_flip_and_shift_is_a_window_of_the_padded_image(size, channels):
    images = torch.rand(60, channels, *size, generator=seeded())
    flip = torch.rand(60, generator=seeded(1)) < 0.5
    shift = torch.randint(-10, 11, (60, 2), generator=seeded(2))
    shift[:2] = torch.tensor([[10, 0], [0, 0]])  # one is moved out of sight, one is not
    out = flip_and_shift(images, flip, shift)
    assert torch.equal(out, moved(images, flip, shift))
    gone = out.flatten(1).amax(1) == 0
    assert gone.any() and not gone.all() and out.is_contiguous()


def test_flip_equals_torchvision():
    images = torch.rand(2, 3, 5, 6, generator=seeded())
    out = flip_and_shift(images, torch.tensor([True, False]), torch.zeros(2, 2).long())
    assert torch.equal(out[0], tv.horizontal_flip(images[0]))
    assert torch.equal(out[1], images[1])


def test_flip_and_shift_is_differentiable():
    images = pictures(2, 3, 4, 5).requires_grad_()
    flip, shift = torch.tensor([True, False]), torch.tensor([[1, -2], [-1, 0]])
    assert torch.autograd.gradcheck(lambda x: flip_and_shift(x, flip, shift), (images,))


@pytest.mark.parametrize("what", [warp, flip_and_shift])
def test_channels_last_gives_the_same(what):
    images = torch.rand(2, 3, 9, 14, generator=seeded())
    last = images.contiguous(memory_format=torch.channels_last)
    flip, shift = torch.tensor([True, False]), torch.tensor([[1, -2], [-1, 0]])
    draws = (flip, shift) if what is flip_and_shift else (affine(generic().float(), (9, 14)),)
    assert torch.equal(what(last, *draws), what(images, *draws))
