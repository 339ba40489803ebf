"""Stages: each operation through `operate`, and many at once against one after the other."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as tv

from darts_lite.augment import OPERATIONS, operate
from darts_lite.augment.fused import (
    COLUMNS,
    FAMILIES,
    FAMILY_OF,
    LOOKUPS,
    NAMES,
    WHOLE,
    Places,
    Selection,
    select,
    stage,
)
from darts_lite.augment.operations import filters, lookup, noise
from darts_lite.augment.operations.color import COLOR, gains, recolor
from darts_lite.augment.operations.geometry import GEOMETRIC, affine, flip_and_shift, warp
from darts_lite.augment.operations.lookup import POINT
from darts_lite.errors import UserError

CHANNELS = (1, 3)
VALUE = {  # of no special value; every one does something that is seen
    "translate_x": 0.23,
    "translate_y": 0.17,
    "rotate": 0.31,
    "shear_x": 0.27,
    "shear_y": 0.21,
    "scale": 0.19,
    "brightness": 0.33,
    "contrast": 0.47,
    "saturation": 0.61,
    "autocontrast": 0.63,
    "equalize": 0.57,
    "solarize": 0.43,
    "posterize": 0.52,
    "invert": 0.37,
    "sharpness": 0.71,
    "gaussian_blur": 0.93,
    "gaussian_noise": 0.041,
    "cutout": 0.53,
}
IMAGE_EXACT = [n for n, op in OPERATIONS.items() if op.image == "exact"]
VALUE_EXACT = [n for n, op in OPERATIONS.items() if op.value == "exact"]
EXACT = [n for n in NAMES if n in IMAGE_EXACT and n in VALUE_EXACT]
SEED = 12
KINDS = ("many", "point", "single")  # operations an image; one point operation; one at all
LINES = ("autocontrast", "invert")  # point operations that have one line for all levels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random images in [0.2, 0.8], float64."""
    coarse = torch.randn(batch, channels, 4, 4, generator=seeded(seed), dtype=torch.float64)
    return 0.5 + 0.3 * F.interpolate(coarse, (height, width), mode="bicubic").tanh()


def somewhere(batch: int, dtype: torch.dtype = torch.float64) -> Places:
    """Squares whose borders fall inside of pixels, and noises of which one is at the bank's end."""
    center = 0.3 + 0.4 * torch.rand(batch, 2, generator=seeded(5), dtype=torch.float64)
    start = torch.randint(noise.BANK, (batch,), generator=seeded(6))
    start[-1] = noise.BANK - 1
    return Places(center.to(dtype), start)


def generic(name: str) -> Tensor:
    """Return values for two images, of both signs if the operation is signed."""
    value = VALUE[name]
    other = -0.62 * value if OPERATIONS[name].signed else 0.62 * value
    return torch.tensor([value, other], dtype=torch.float64)


def run(name: str, images: Tensor, value: Tensor) -> Tensor:
    return operate(name, images, value, somewhere(len(images), images.dtype))


class Case(NamedTuple):
    """A stage ready to be done: `stage(*case)`."""

    images: Tensor
    values: Tensor
    selection: Selection
    places: Places


def random_values(batch: int, rate: float, kind: str, names: Sequence[str], seed: int) -> Tensor:
    """Values `[batch, operations]` of random subsets of a kind (see `KINDS`)."""
    draw = partial(torch.rand, batch, len(NAMES), generator=seeded(seed), dtype=torch.float64)
    active, size, sign, order = draw() < rate, 0.4 + 0.6 * draw(), draw(), draw()
    active &= torch.tensor([n in names for n in NAMES])
    if kind != "many":
        columns = COLUMNS["lookup"] if kind == "point" else slice(None)
        order = order[:, columns] * active[:, columns]
        active[:, columns] &= order == order.amax(1, keepdim=True)
    # whatever is drawn, two point operations meet, and every family acts on one image
    if names is NAMES and rate >= 0.1 and batch >= len(FAMILIES):
        if kind == "many":
            active[0, COLUMNS["lookup"]] = True
        elif kind == "single" and rate >= 0.5:
            for image, columns in enumerate(COLUMNS.values()):
                active[image] = False
                active[image, columns.start] = True
    signs = torch.where(torch.tensor([OPERATIONS[n].signed for n in NAMES]) & (sign < 0.5), -1, 1)
    return active * size * signs * torch.tensor([VALUE[n] for n in NAMES], dtype=torch.float64)


def case(
    rate: float = 0.5,
    kind: str = "many",
    names: Sequence[str] = NAMES,
    size: tuple[int, int, int, int] = (24, 3, 9, 8),
    seed: int = SEED,
) -> Case:
    values = random_values(size[0], rate, kind, names, seed)
    return Case(smooth(*size), values, select(values != 0), somewhere(size[0]))


def differentiate(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """Central difference of a scalar function."""
    step = 1e-6 * along
    with torch.no_grad():
        return (function(at + step) - function(at - step)) / 2e-6


# --- the table ------------------------------------------------------------------------------------


def test_families_are_columns_that_stand_together():
    assert tuple(COLUMNS) == tuple(FAMILIES) and tuple(OPERATIONS) == NAMES
    assert set(VALUE) == set(NAMES)  # a new operation needs a row in VALUE
    columns = [list(range(len(NAMES)))[COLUMNS[family]] for family in FAMILIES]
    assert [i for own in columns for i in own] == list(range(len(NAMES)))
    for family, own in zip(FAMILIES, columns, strict=True):
        assert {FAMILY_OF[NAMES[i]] for i in own} == {family}
    assert NAMES[COLUMNS["geometric"]] == tuple(GEOMETRIC)
    assert NAMES[COLUMNS["color"]] == tuple(COLOR) and tuple(POINT) == LOOKUPS


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_record_is_complete(name):
    record = OPERATIONS[name]
    assert record.unit and record.reach > 0 and 0 < record.start <= 1 and 0 < record.rate < 1
    assert record.image in ("exact", "straight-through")
    assert record.value in ("exact", "relaxed")
    for other in OPERATIONS.values():  # operations of one magnitude begin as one
        if record.shared and record.shared == other.shared:
            assert (record.start, record.rate) == (other.start, other.rate)


# --- one operation --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (9, 14), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_zero_is_the_identity_exactly(name, size, dtype, channels):
    images = torch.rand(4, channels, *size, generator=seeded(), dtype=dtype)
    images[0], images[1] = 0, 1
    out = run(name, images, images.new_zeros(4))
    assert torch.equal(out, images) and out.dtype == dtype


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_does_something_and_stays_in_range(name, channels):
    images = torch.rand(2, channels, 17, 19, generator=seeded(), dtype=torch.float64)
    images[0] = 0.2 + 0.6 * images[0]
    if name == "autocontrast":  # where all levels are in use it has nothing to do
        images = images[:1].expand(2, -1, -1, -1)
    out = run(name, images, generic(name))
    assert out.min() >= 0 and out.max() <= 1
    change = (out - images).abs().amax((1, 2, 3))
    assert (change < 1e-12 if name == "saturation" and channels == 1 else change > 0.01).all()


@pytest.mark.parametrize("name", [n for n, op in OPERATIONS.items() if op.signed])
def test_a_sign_matters(name):
    images, value = smooth(2, 3, 8, 8), generic(name).abs()
    assert not torch.allclose(run(name, images, value), run(name, images, -value), atol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_are_independent(name):
    images, value = smooth(2, 3, 17, 18), generic(name)
    changed = torch.stack((images[0], 1 - images[1]))
    a, b = run(name, images, value), run(name, changed, value)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_default_places_are_the_middle_and_zero():
    images, value = smooth(2, 3, 8, 9), torch.tensor([0.3, 0.2], dtype=torch.float64)
    middle = Places(torch.full((2, 2), 0.5, dtype=torch.float64), torch.zeros(2).long())
    for name in ("cutout", "gaussian_noise"):
        out = operate(name, images, value)
        assert torch.equal(out, operate(name, images, value, middle))
        assert not torch.equal(out, run(name, images, value))


# --- one operation against torchvision ------------------------------------------------------------


def turned(images: Tensor, **knobs: Any) -> Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return tv.affine(images, **(still | knobs), interpolation=tv.InterpolationMode.BILINEAR)


def in_bytes(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: function((255 * images).round().to(torch.uint8)) / 255


def degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


TORCHVISION: dict[str, tuple[float, float, Callable[[Tensor], Tensor]]] = {
    # value, tolerance, and theirs; coordinates are float32; their 0.2989 is our 0.299
    "translate_x": (3 / 32, 1e-4, lambda x: turned(x, translate=[3, 0])),
    "translate_y": (-5 / 32, 1e-4, lambda x: turned(x, translate=[0, -5])),
    "rotate": (0.3, 1e-4, lambda x: turned(x, angle=math.degrees(0.3))),
    "shear_x": (-0.2, 1e-4, lambda x: turned(x, shear=[degrees(-0.2), 0.0])),
    "shear_y": (0.25, 1e-4, lambda x: turned(x, shear=[0.0, degrees(0.25)])),
    "scale": (0.3, 1e-4, lambda x: turned(x, scale=math.exp(0.3))),
    "brightness": (0.8, 1e-6, lambda x: tv.adjust_brightness(x, 1.8)),
    "contrast": (-0.7, 1.01e-4, lambda x: tv.adjust_contrast(x, 0.3)),
    "saturation": (0.9, 1.01e-4, lambda x: tv.adjust_saturation(x, 1.9)),
    "autocontrast": (1.0, 1e-6, tv.autocontrast),
    "equalize": (1.0, 1e-6, in_bytes(tv.equalize)),
    "solarize": (0.4, 1e-6, in_bytes(lambda x: tv.solarize(x, 153))),
    "posterize": (0.5, 1e-6, in_bytes(lambda x: tv.posterize(x, 4))),
    "invert": (1.0, 1e-6, tv.invert),
    "sharpness": (0.9, 1e-6, lambda x: tv.adjust_sharpness(x, 1.9)),
    "gaussian_blur": (0.9, 1e-6, lambda x: tv.gaussian_blur(x, [7, 7], [0.9, 0.9])),
    "cutout": (0.25, 0.0, lambda x: tv.erase(x, 12, 12, 8, 8, torch.zeros(()))),
}


def test_every_operation_has_a_reference():
    """All but the noise, whose random numbers are our own."""
    assert set(NAMES) - set(TORCHVISION) == {"gaussian_noise"}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_equal_torchvision(name, channels):
    value, tolerance, theirs = TORCHVISION[name]
    images = (255 * smooth(2, channels, 32, 32)).round().float() / 255  # as if read from bytes
    out = operate(name, images, torch.full((2,), value))
    assert torch.allclose(out, theirs(images), rtol=0, atol=tolerance)
    same = name == "saturation" and channels == 1
    assert torch.allclose(images, theirs(images), rtol=0, atol=0.01) == same


# --- derivatives of one operation -----------------------------------------------------------------


def ready(name: str, channels: int) -> tuple[Tensor, Tensor]:
    size = (16, 17) if name == "equalize" else (6, 5)  # of fewer pixels it is the identity
    return smooth(2, channels, *size).requires_grad_(), generic(name)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_are_exact(name, channels):
    """Straight-through derivatives too: between two levels the values are on a line."""
    images, value = ready(name, channels)
    inputs = (images, value.requires_grad_(OPERATIONS[name].value == "exact"))
    assert torch.autograd.gradcheck(partial(run, name), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(partial(run, name), inputs, fast_mode=True)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", [n for n, op in OPERATIONS.items() if op.value == "relaxed"])
def test_relaxed_derivatives_are_there_where_the_true_ones_are_zero(name, channels):
    images, value = ready(name, channels)
    value.requires_grad_()
    out = run(name, images, value)
    (gradient,) = torch.autograd.grad(out.sum(), value)
    assert gradient.isfinite().all() and (gradient.abs() > 0.1).all()
    with torch.no_grad():
        assert torch.equal(run(name, images, value + 1e-6), out)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", [n for n, op in OPERATIONS.items() if op.image != "exact"])
def test_straight_through_is_the_derivative_of_the_identity(name, channels):
    images, value = ready(name, channels)
    weight = smooth(*images.shape, seed=3)
    (gradient,) = torch.autograd.grad((run(name, images, value) * weight).sum(), images)
    assert torch.equal(gradient, weight)
    with torch.no_grad():  # though on the whole the values are those of a staircase
        levels = (255 * run(name, images, torch.ones_like(value) * 0.5)).round().unique()
        assert len(levels) < 255 / 2 or name == "equalize"


# --- what a stage touches -------------------------------------------------------------------------


@hypothesis.settings(deadline=None, derandomize=True, max_examples=150, database=None)
@hypothesis.given(
    st.integers(0, 9),
    st.sampled_from([0, 0.03, 0.1, 0.3, 0.7, 1]),
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
)
def test_select_equals_a_loop(batch, rate, kind, seed):
    active = random_values(batch, rate, kind, NAMES, seed) != 0
    found, table = select(active), active.tolist()
    pairs = [(c, i) for c in range(len(NAMES)) for i in range(batch) if table[i][c]]
    images = {f: [i for i in range(batch) if any(table[i][c])] for f, c in COLUMNS.items()}
    points = [(NAMES[c], i) for c, i in pairs if NAMES[c] in LOOKUPS]
    disjoint = len({i for _, i in points}) == len(points)
    single = disjoint and bool(pairs) and max(map(sum, table)) == 1
    assert list(found.families) == [family for family in FAMILIES if images[family]]
    if single:
        done = [i for _, i in pairs]
        assert found.order.tolist() == [i for i in range(batch) if i not in done] + done
        assert found.order[found.restore].tolist() == list(range(batch))
    else:
        assert found.order is None and found.restore is None
    for family, rows in found.families.items():
        if single or (family == "lookup" and disjoint):
            columns = range(len(NAMES))[COLUMNS[family]]
            assert rows.tolist() == [i for c, i in pairs if c in columns]
        elif rows is None:
            assert len(images[family]) > WHOLE * batch
        else:
            assert len(images[family]) <= WHOLE * batch and rows.tolist() == images[family]
    if disjoint:
        assert not found.lookups
        assert [n for n, count in found.counts.items() for _ in range(count)] == [
            n for n, _ in points
        ]
        return
    rows = found.families["lookup"]
    own = range(batch) if rows is None else rows.tolist()
    acting = {n: [own[k] for k in rows.tolist()] for n, rows in found.lookups.items()}
    assert not found.counts and acting == {
        n: [i for m, i in points if m == n] for n in dict(points)
    }


def test_select_makes_indices_of_all_kinds():
    """The cases cover every kind of selection, so the tests that use them do."""
    few, half, most, every = (case(rate).selection for rate in (0.1, 0.5, 0.95, 1))
    assert None not in few.families.values() and few.lookups
    assert {rows is None for rows in half.families.values()} == {True, False}
    assert most.families["lookup"] is None and set(most.lookups) == set(LOOKUPS)
    assert any(len(rows) < 24 for rows in most.lookups.values())
    assert set(every.families.values()) == {None}
    assert half.lookups and not half.counts
    for rate in (0.5, 0.95, 1):
        point = case(rate, "point").selection
        assert point.counts and point.order is None
        single = case(rate, "single").selection
        assert single.order is not None and set(single.families) == set(FAMILIES)
    assert select(torch.zeros(4, len(NAMES), dtype=torch.bool)) == Selection({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.99])
def test_untouched_images_pass_through_and_nothing_is_written_to(rate, kind, dtype):
    values = random_values(24, rate, kind, NAMES, SEED).to(dtype)
    values[:5] = 0
    images = torch.rand(24, 3, 17, 18, generator=seeded(), dtype=dtype)
    images[0] = 0
    given = (images, values, somewhere(24, dtype))
    kept = [(t.clone(), t._version) for t in tree_leaves(given)]
    selection = select(values != 0)
    assert (
        rate < 0.99 or kind == "single" or selection.families["geometric"] is None
    )  # those pass through it
    out = stage(images, values, selection, given[2])
    still = (values == 0).all(1)
    assert torch.equal(out[still], images[still]) and out.dtype == dtype
    assert ((out != images).flatten(1).any(1) == ~still).all()
    for tensor, (before, version) in zip(tree_leaves(given), kept, strict=True):
        assert torch.equal(tensor, before) and tensor._version == version


def test_a_stage_does_not_write_to_what_the_one_before_it_gave():
    first, second = case(0.3), case(0.3, seed=SEED + 1)
    out = stage(*first)
    kept = out.clone()
    stage(out, *second[1:])
    assert torch.equal(out, kept)


def test_without_operations_nothing_happens():
    images, values = smooth(3, 1, 5, 5), torch.zeros(3, len(NAMES), dtype=torch.float64)
    assert torch.equal(stage(images, values, select(values != 0), somewhere(3)), images)
    empty = stage(images[:0], values[:0], select(values[:0] != 0), somewhere(3))
    assert empty.shape == (0, 1, 5, 5)


# --- many operations ------------------------------------------------------------------------------


def square(matrix: Tensor) -> Tensor:
    """`[1, 2, 3]` as `[3, 3]`."""
    return torch.cat((matrix[0], matrix.new_tensor([[0, 0, 1]])))


def one_by_one(images: Tensor, values: Tensor, places: Places) -> Tensor:
    """The slow twin: each image alone, one operation after another; a family is one pass."""
    size, done = (images.shape[-2], images.shape[-1]), []
    for i in range(len(images)):
        out, here = images[[i]], Places(*(p[[i]] for p in places))
        acting = {n: values[[i], c] for c, n in enumerate(NAMES) if values[i, c] != 0}
        single = {
            n: torch.where(torch.tensor([n == m for m in NAMES]), values[[i]], 0) for n in acting
        }
        geometric = [single[n][:, COLUMNS["geometric"]] for n in acting if n in GEOMETRIC]
        if geometric:
            matrix = torch.eye(3, dtype=images.dtype)
            for row in geometric:
                matrix = matrix @ square(affine(row, size))
            out = warp(out, matrix[:2].unsqueeze(0))
        color = [gains(single[n][:, COLUMNS["color"]]) for n in acting if n in COLOR]
        if color:
            out = recolor(out, torch.stack(color).prod(0))
        entering, table = out, lookup.identity(out)
        for name in LOOKUPS:
            if name in acting:
                table = lookup.compose(table, POINT[name][1](entering, acting[name]))
        out = lookup.lookup(out, table)
        for name, value in acting.items():
            if FAMILY_OF[name] not in ("geometric", "color", "lookup"):
                out = operate(name, out, value, here)
        done.append(out)
    return torch.cat(done)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.95, 1.0])
def test_a_stage_equals_its_slow_twin(rate, kind, channels):
    given = case(rate, kind, size=(24, channels, 17, 18))
    images, values, _, places = given
    assert torch.allclose(stage(*given), one_by_one(images, values, places), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_a_stage_is_one_operation_after_the_other(rate, kind):
    """Compare with `operate`, at values that neither interpolate nor reach a clamp in between."""
    names = tuple(n for n in NAMES if n not in ("rotate", "shear_x", "shear_y", "scale"))
    if kind == "many":  # those of one line know no levels, to which a table rounds in between
        names = tuple(n for n in names if n not in LOOKUPS or n in LINES)
    images = 0.3 + 0.5 * smooth(24, 3, 17, 18)
    values = random_values(24, rate, kind, names, SEED)
    values[:, NAMES.index("translate_x")] = values[:, NAMES.index("translate_x")].sign() * 3 / 18
    values[:, NAMES.index("translate_y")] = values[:, NAMES.index("translate_y")].sign() * 2 / 17
    values[:, COLUMNS["color"]] *= images.new_tensor([0.5, 0.5, 0.3])
    contrast = values[:, NAMES.index("contrast")]
    contrast.copy_(-contrast.abs())  # so that the black that came in stays above the clamp
    places, out = somewhere(24), images
    for column, name in enumerate(NAMES):
        acts = values[:, column] != 0
        here = Places(*(p[acts] for p in places))
        out = out.index_put((acts,), operate(name, out[acts], values[acts, column], here))
        assert COLUMNS["color"].stop <= column or out.max() < 1
    done = stage(images, values, select(values != 0), places)
    assert torch.allclose(done, out, rtol=0, atol=1e-12)


def tables(image: np.ndarray, values: dict[str, float]) -> np.ndarray:
    """One channel of bytes through PIL's tables, one after the other, at full strength."""
    levels = np.arange(256)
    counts = np.bincount(image.ravel(), minlength=256)
    present = np.flatnonzero(counts)
    out = image
    for name in values:
        table = levels
        if name == "autocontrast":
            low, high = present[0], present[-1]
            table = np.clip((levels - low) * 255 // max(high - low, 1), 0, 255)
        elif name == "equalize":
            step = (image.size - counts[present[-1]]) // 255
            if step:
                table = np.clip((counts.cumsum() - counts + step // 2) // step, 0, 255)
        elif name == "solarize":
            table = np.where(levels >= 255 * (1 - values[name]) - 1e-6, 255 - levels, levels)
        elif name == "posterize":
            table = levels & (256 - 2 ** round(8 * values[name]))
        elif name == "invert":
            table = 255 - levels
        out = table[out]
    return out


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.2, 0.6, 1.0])
def test_point_operations_use_statistics_of_the_incoming_images(rate, kind, channels):
    """Images of four levels that every operation takes to whole levels at full strength."""
    levels = torch.tensor([51, 102, 153, 204])
    images = levels[torch.randint(4, (40, channels, 32, 32), generator=seeded())]
    images[:, :, :16][images[:, :, :16] == 204] = 153  # not uniform
    values = random_values(40, rate, kind, LOOKUPS, SEED)
    full = {"autocontrast": 1.0, "equalize": 1.0, "solarize": 0.55, "posterize": 0.5, "invert": 1.0}
    values = (values != 0) * torch.tensor([full.get(n, 0.0) for n in NAMES], dtype=torch.float64)
    out = stage(images.double() / 255, values, select(values != 0), somewhere(40))
    for i, row in enumerate(values.tolist()):
        acting = {n: m for n, m in zip(NAMES, row, strict=True) if m}
        for channel, image in zip(out[i], images[i], strict=True):
            expected = tables(image.numpy(), acting)
            assert np.abs(255 * channel.numpy() - expected).max() < 1e-9


def test_colors_are_clamped_once():
    images = torch.tensor([[[[0.2, 0.8]]], [[[0.2, 0.8]]]], dtype=torch.float64)
    values = torch.zeros(2, len(NAMES), dtype=torch.float64)
    values[0, NAMES.index("brightness")], values[0, NAMES.index("contrast")] = 1.0, -0.75
    out = stage(images, values, select(values != 0), somewhere(2))
    assert torch.allclose(out[0], images.new_tensor([0.85, 1.0]))  # 0.4, 1.6: about 1.0, a quarter
    assert torch.equal(out[1], images[1])


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_flips_and_shifts_are_done_first(rate):
    images, values, _, places = case(rate, size=(24, 3, 17, 18))
    images = images * F.pad(torch.ones(11, 12), (3, 3, 3, 3))  # so that nothing is moved out
    flip = torch.rand(24, generator=seeded(7)) < 0.5
    shift = torch.randint(-3, 4, (24, 2), generator=seeded(8))
    selection = select(values != 0)
    whole = Selection({"geometric": None} | {**selection.families, "geometric": None})
    whole = Selection(whole.families, selection.lookups, selection.counts)
    out = stage(images, values, whole, places, flip, shift)
    expected = stage(flip_and_shift(images, flip, shift), values, selection, places)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(out, stage(images, values, whole, places), atol=0.1)


def test_memory_formats_give_the_same():
    images, values, selection, places = case()
    last = images.contiguous(memory_format=torch.channels_last)
    out = stage(last, values, selection, places)
    assert torch.allclose(out, stage(images, values, selection, places), rtol=0, atol=1e-12)


def test_autocast_changes_nothing():
    images, values, selection, places = case(0.5)
    given = (images.float(), values.float(), selection, Places(places.center.float(), places.start))
    plain = stage(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stage(*given), plain)


@pytest.mark.parametrize("name", NAMES)
def test_one_operation_on_images_in_bfloat16(name):
    """It is computed in float32; only the result is rounded."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    value = torch.full((4,), 0.3)
    out = operate(name, images, value)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, operate(name, images.float(), value).bfloat16())


# --- derivatives of many --------------------------------------------------------------------------

PARTS = [(0.15, "point"), (0.5, "many"), (1.0, "many"), (0.1, "single"), (1.0, "single")]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rate, kind", PARTS)
def test_derivatives_of_a_stage_equal_central_differences(rate, kind, channels):
    images, values, selection, places = case(rate, kind, EXACT, (8, channels, 9, 8))
    weight = smooth(*images.shape, seed=7)

    def loss(images: Tensor, values: Tensor) -> Tensor:
        return (stage(images, values, selection, places) * weight).sum()

    inputs = (images.clone().requires_grad_(), values.clone().requires_grad_())
    of_images, of_values = torch.autograd.grad(loss(*inputs), inputs)
    acts = values != 0
    expected = torch.zeros_like(values)
    for place in acts.nonzero().tolist():
        along = torch.zeros_like(values)
        along[tuple(place)] = 1
        expected[tuple(place)] = differentiate(partial(loss, images), values, along)
    assert torch.allclose(of_values[acts], expected[acts], rtol=1e-6, atol=1e-6)
    for i in range(len(images)):
        along = torch.zeros_like(images)
        along[i] = torch.randn(images.shape[1:], generator=seeded(i), dtype=torch.float64)
        true = differentiate(partial(loss, values=values), images, along)
        assert torch.allclose((of_images * along).sum(), true, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_has_a_derivative(kind):
    """Invented derivatives too; no write spoils a tensor that is kept for the backward pass."""
    images, values, selection, places = case(0.5, kind, size=(24, 3, 17, 18))
    images = 0.3 + 0.2 * images  # else some are of all levels, which autocontrast leaves alone
    inputs = (images.requires_grad_(), values.requires_grad_())
    loss = (stage(*inputs, selection, places) * smooth(*images.shape, seed=7)).sum()
    of_images, of_values = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert of_images.isfinite().all() and of_values.isfinite().all()
    assert (of_values[values != 0] != 0).all()
    assert of_images.flatten(1).abs().amax(1).min() > 0
    again = torch.autograd.grad(loss, inputs)
    assert torch.equal(again[0], of_images) and torch.equal(again[1], of_values)


@pytest.mark.parametrize("rate, kind", PARTS)
def test_derivatives_of_a_stage_equal_its_slow_twin(rate, kind):
    """Invented derivatives too, for which there is no finite difference to compare with."""
    images, values, selection, places = case(rate, kind, size=(24, 3, 17, 18))
    inputs = (images.requires_grad_(), values.requires_grad_())
    weight = smooth(*images.shape, seed=7)
    done = (stage(*inputs, selection, places), one_by_one(*inputs, places))
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs) for out in done)
    assert torch.allclose(found[0], expected[0], rtol=1e-9, atol=1e-9)
    acts = values != 0
    assert torch.allclose(found[1][acts], expected[1][acts], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate, kind", PARTS)
def test_forward_mode_equals_backward_mode(rate, kind):
    images, values, selection, places = case(rate, kind, size=(12, 3, 9, 8))
    weight = smooth(*images.shape, seed=7)
    along = (
        smooth(*images.shape, seed=8) - 0.5,
        values * smooth(1, 1, *values.shape, seed=9)[0, 0],
    )

    def function(images: Tensor, values: Tensor) -> Tensor:
        return (stage(images, values, selection, places) * weight).sum()

    _, forward = torch.func.jvp(function, (images, values), along)
    backward = torch.func.grad(function, (0, 1))(images, values)
    assert torch.allclose(forward, sum((b * a).sum() for a, b in zip(along, backward, strict=True)))
    inputs = (images.requires_grad_(), values.requires_grad_())
    plain = torch.autograd.grad(function(*inputs), inputs)
    for a, b in zip(plain, backward, strict=True):  # a warp's are computed in two ways
        assert torch.allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rate, kind", PARTS)
def test_mixed_second_derivative_of_a_training_loss(rate, kind, channels):
    """∂²L/∂m∂w · v, the term of the hypergradient: backward twice, and forward over backward."""
    images, values, selection, places = case(rate, kind, EXACT, (8, channels, 9, 8))
    w = torch.randn(channels * 72, 3, generator=seeded(3), dtype=torch.float64)
    v = torch.randn(w.shape, generator=seeded(4), dtype=torch.float64)
    labels, along = torch.arange(8) % 3, values * smooth(1, 1, *values.shape, seed=9)[0, 0]

    def loss(w: Tensor, values: Tensor) -> Tensor:
        logits = stage(images, values, selection, places).flatten(1).tanh() @ w
        return F.cross_entropy(logits, labels)

    def slope(values: Tensor) -> Tensor:
        leaf = w.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf, values), leaf, create_graph=True)
        return (g * v).sum()

    leaf = values.clone().requires_grad_()
    (mixed,) = torch.autograd.grad(slope(leaf), leaf)
    step = 1e-6 * along
    expected = (slope(values + step) - slope(values - step)).detach() / 2e-6
    assert expected.abs() > 1e-4
    assert torch.allclose((mixed * along).sum(), expected, rtol=1e-6, atol=1e-9)
    there = (torch.zeros_like(w), along)
    _, forward = torch.func.jvp(torch.func.grad(loss), (w, values), there)
    assert torch.allclose((forward * v).sum(), expected, rtol=1e-6, atol=1e-9)


def test_cached_tensors_outlive_the_transform_that_made_them():
    """The bank of the noise and the basis of the blur: wrapped, they would be of no further use."""
    images, values, selection, places = case(1.0, names=["gaussian_blur", "gaussian_noise"])

    def loss(values: Tensor) -> Tensor:
        return stage(images, values, selection, places).square().sum()

    expected = torch.func.grad(loss)(values)
    for transform in (
        lambda: torch.func.jvp(torch.func.grad(loss), (values,), (values,)),
        lambda: torch.func.vmap(loss)(values.expand(2, -1, -1)),
        lambda: torch.inference_mode()(loss)(values),
    ):
        noise.bank.cache_clear()
        filters.blur_basis.cache_clear()
        transform()
        assert torch.equal(torch.func.grad(loss)(values), expected)


# --- the device -----------------------------------------------------------------------------------


class NoTransfers(TorchDispatchMode):
    """Refuse tensors on other devices than meta, except constants of Python."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == "meta" or not tensor.dim(), func
        return out


@pytest.mark.parametrize("rate, kind", PARTS)
def test_a_stage_never_waits_for_the_device(rate, kind):
    """Tensors of the meta device have no values, so nothing can wait for one or be sent there."""
    images, values, selection, places = case(rate, kind)
    families = {f: None if r is None else r.to("meta") for f, r in selection.families.items()}
    lookups = {n: rows.to("meta") for n, rows in selection.lookups.items()}
    permutations = (p if p is None else p.to("meta") for p in (selection.order, selection.restore))
    there = Selection(families, lookups, selection.counts, *permutations)
    given = [t.to("meta") for t in (images, values, *places)]
    inputs = [t.requires_grad_() for t in given[:2]]
    flip = torch.ones(24, dtype=torch.bool, device="meta") if None in families.values() else None
    stage(*inputs, there, Places(*given[2:]), flip)  # what is made once is made
    with NoTransfers():
        out = stage(*inputs, there, Places(*given[2:]), flip)
        of_images, of_values = torch.autograd.grad(out.sum(), inputs)
    assert out.shape == of_images.shape == images.shape and of_values.shape == values.shape


def test_a_wait_for_the_device_would_be_seen():
    for look in (lambda t: t.sum().item(), lambda t: t.nonzero(), lambda t: t[t > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look(torch.ones(3, device="meta"))
    with NoTransfers(), pytest.raises(AssertionError):
        torch.tensor([1.0, 2.0]).to("meta")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, images, message",
    [
        (
            "blur",
            torch.rand(2, 3, 8, 8),
            "augment: operation must be one of translate_x, .*, got 'blur'; give",
        ),
        (
            "invert",
            torch.rand(2, 3, 8),
            r"images must be .*, got shape \(2, 3, 8\) and torch.float32; divide",
        ),
        ("scale", torch.rand(2, 3, 8, 8, 8), r"got shape \(2, 3, 8, 8, 8\) and"),
        ("rotate", torch.rand(2, 2, 8, 8), r"with 1 or 3 channels, got shape \(2, 2, 8, 8\)"),
        ("cutout", torch.ones(2, 3, 8, 8).byte(), r"floating \[B, C, H, W\] .* and torch.uint8"),
        ("equalize", torch.ones(2, 3, 8, 8).long(), "torch.int64; divide bytes by 255"),
    ],
)
def test_bad_input_is_one_line(name, images, message):
    with pytest.raises(UserError, match=message) as refused:
        operate(name, images, torch.zeros(2))
    assert "\n" not in str(refused.value)
