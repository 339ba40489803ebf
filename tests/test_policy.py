"""Policies: draws against torchvision's tables, images against its functions, derivatives."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, autoaugment

from darts_lite.augment import (
    OPERATIONS,
    AutoAugment,
    Draws,
    Learned,
    Nothing,
    Policy,
    RandAugment,
    Scheduled,
    TrivialAugment,
    operate,
)
from darts_lite.augment.fused import NAMES, Places, Selection, chained, select, stage
from darts_lite.augment.operations.geometry import flip_and_shift
from darts_lite.augment.policies.fixed import TORCHVISION
from darts_lite.augment.policies.learned import KIND, REACH
from darts_lite.augment.policies.policy import Strength, check, moved
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

CHANNELS = (1, 3)
SIZE = (9, 8)
EXACT = tuple(n for n, op in OPERATIONS.items() if op.image == op.value == "exact")
KNOTS: dict[str, Schedule] = {
    "magnitude.rotate": ((0.0, 0.2), (1.0, 0.8)),
    "magnitude.translate": ((0.0, 0.5),),
    "magnitude.posterize": ((0.0, 0.9),),
    "magnitude.cutout": ((0.25, 0.1), (0.75, 0.9)),
    "probability.rotate": ((0.0, 0.3), (0.5, 0.9)),
    "probability.posterize": ((0.0, 0.5),),
}
MAKE: dict[str, Callable[..., Policy]] = {
    "standard": Policy,
    "none": lambda channels, **_: Nothing(channels=channels),
    "learned": Learned,
    "magnitudes": lambda **knobs: Learned(probabilities=False, **knobs),
    "some": lambda **knobs: Learned(operations=("cutout", "rotate", "equalize"), **knobs),
    "randaugment": RandAugment,
    "three": lambda **knobs: RandAugment(n=3, m=20, **knobs),
    "trivialaugment": TrivialAugment,
    "autoaugment": AutoAugment,
    "svhn": lambda **knobs: AutoAugment(dataset="svhn", **knobs),
    "schedule": lambda **knobs: Scheduled(knots=KNOTS, **knobs),
}
every_policy = pytest.mark.parametrize("kind", MAKE)
every_channels = pytest.mark.parametrize("channels", CHANNELS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, channels: int, height: int = 9, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(seed))


def smooth(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random images in about [0.2, 0.8], float64."""
    noise = torch.randn(batch, channels, 4, 4, generator=seeded(seed), dtype=torch.float64)
    return 0.5 + 0.3 * F.interpolate(noise, (height, width), mode="bicubic").tanh()


def halves(policy: Policy, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Generic learned values, all different."""
    steps = torch.linspace(0.35, 0.65, len(policy.names), dtype=dtype)
    return dict(zip(policy.names, steps))


def case(kind: str, channels: int, batch: int = 6, seed: int = 1, **knobs: int) -> tuple:
    """A policy, images, learned values and draws with everything that draws may have."""
    policy = MAKE[kind](channels=channels, **{"crop": 1, **knobs})
    values = halves(policy)
    draws = policy.sample(batch, SIZE, seeded(seed), values=values, fraction=0.5, turn=True)
    return policy, pictures(batch, channels), values, draws


def parts(value: object) -> list:
    """Return everything in draws, selections included, as a flat list."""
    if isinstance(value, Selection):
        return parts(vars(value))
    if isinstance(value, dict):
        return [list(value), *parts(tuple(value.values()))]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in parts(part)]
    return [value]


def tensors(draws: Draws) -> list[Tensor]:
    return [leaf for leaf in parts(draws) if isinstance(leaf, Tensor)]


def same(a: Draws, b: Draws) -> bool:
    rest = ([leaf for leaf in parts(d) if not isinstance(leaf, Tensor)] for d in (a, b))
    one, two = tensors(a), tensors(b)
    return next(rest) == next(rest) and len(one) == len(two) and all(map(torch.equal, one, two))


# --- every policy ---------------------------------------------------------------------------------


@every_policy
@every_channels
def test_draws_are_reproducible_and_apply_is_pure(kind, channels):
    policy, images, values, _ = case(kind, channels)
    generator, ambient = seeded(5), torch.get_rng_state()
    state = generator.get_state()
    first, second = (policy.sample(6, SIZE, generator, values=values, turn=True) for _ in range(2))
    assert kind == "none" or not same(first, second)
    generator.set_state(state)
    assert same(first, policy.sample(6, SIZE, generator, values=values, turn=True))
    own = generator.get_state()
    before, kept = images.clone(), [t.clone() for t in tensors(first)]
    once, again = (policy.apply(images, first, values) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(images, before) and all(map(torch.equal, tensors(first), kept))
    assert torch.equal(own, generator.get_state())
    assert torch.equal(ambient, torch.get_rng_state())


@every_policy
@every_channels
@pytest.mark.parametrize("batch", [1, 33])
def test_images_come_out_as_they_went_in(kind, channels, batch):
    policy, images, values, draws = case(kind, channels, batch, crop=2)
    out = policy.apply(images, draws, values)
    assert out.shape == images.shape and out.dtype == images.dtype
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    if batch > 1:
        assert torch.equal(out, images) == (kind == "none")


@every_policy
@every_channels
def test_an_image_depends_on_its_own_draws_only(kind, channels):
    """The slow twin: each image alone, and where a stage has one operation, by its name."""
    policy, images, values, draws = case(kind, channels, 40, flips=False, crop=0)
    reach = policy.reach(values) if values else None
    out = policy.apply(images, draws, values)
    for i in range(40):
        image = images[[i]]
        for units, center, start in zip(draws.units, draws.center, draws.start):
            value = units[[i]] * (1.0 if reach is None else reach)
            places = Places(center[[i]], start[[i]])
            active = units[i].nonzero().flatten().tolist()
            if len(active) == 1:
                image = operate(NAMES[active[0]], image, value[:, active[0]], places)
            else:
                image = stage(image, value, select(units[[i]] != 0), places)
        torch.testing.assert_close(out[[i]], image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("empty", [(), (0,), (1,), (2,), (0, 1), (1, 2)])
def test_stages_hand_their_images_on(empty):
    """In their own order, also past a stage that does nothing; at the end all are in place."""
    policy, images, _, draws = case("three", 3, 20)
    assert draws.selections[0].restore is None and draws.selections[2].restore is not None
    units = draws.units.clone()
    units[list(empty)] = 0
    alone = tuple(select(u != 0) for u in units)
    assert all((s.order is None) == (i in empty) for i, s in enumerate(alone))
    out, expected = (
        policy.apply(images, draws._replace(units=units, selections=selections))
        for selections in (chained(alone), alone)
    )
    assert torch.equal(out, expected) and not torch.equal(out, images)


@every_policy
def test_the_memory_format_is_kept(kind):
    policy, images, values, draws = case(kind, 3)
    last = images.contiguous(memory_format=torch.channels_last)
    a, b = (policy.apply(x, draws, values) for x in (images, last))
    assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@every_policy
@every_channels
def test_apply_never_waits_for_the_device(kind, channels):
    """Tensors of the meta device have no values, so reading one would fail."""
    policy, images, values, _ = case(kind, channels, 40)
    elsewhere = {  # `sample` does read the probabilities
        n: v if n.startswith("probability.") else v.to("meta") for n, v in values.items()
    }
    draws = policy.sample(40, SIZE, seeded(), "meta", elsewhere, turn=True)
    assert all(t.is_meta for t in tensors(draws))
    meta = {n: v.to("meta") for n, v in values.items()}
    for turned in (False, True) if draws.turned else (False,):
        out = policy.apply(images.to("meta"), draws, meta, turned=turned)
        assert out.is_meta and out.shape == images.shape
    if draws.turned:
        assert policy.chance(draws.turned.operation, meta).is_meta


@every_policy
def test_autocast_changes_nothing(kind):
    policy, images, values, draws = case(kind, 3)
    plain = policy.apply(images, draws, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy.apply(images, draws, values), plain)


@every_policy
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_half_precision_are_augmented_in_float32(kind, dtype):
    """Coordinates in bfloat16 would be off by pixels: only the result is rounded."""
    policy, images, values, draws = case(kind, 3)
    rounded = images.to(dtype)
    out = policy.apply(rounded, draws, values)
    assert out.dtype == dtype
    assert torch.equal(out, policy.apply(rounded.float(), draws, values).to(dtype))


def test_randaugment_of_large_images_in_bfloat16():
    images = torch.rand(4, 3, 224, 224, generator=seeded())
    policy = RandAugment(channels=3, n=2, m=9)
    exact, rounded = (policy(x, seeded(1)) for x in (images, images.bfloat16()))
    assert (rounded.float() - exact).abs().mean() < 2**-8


@every_policy
def test_calling_is_checking_sampling_and_applying(kind):
    policy, images, values, _ = case(kind, 3)
    draws = policy.sample(6, SIZE, seeded(3), values=values)
    assert torch.equal(policy(images, seeded(3), values), policy.apply(images, draws, values))
    with pytest.raises(UserError, match=r"got values from 0 to 255"):
        policy((255 * images / images.max()).floor() * (images > 0.1), seeded(3), values)


@pytest.mark.parametrize("name", [n for n in MAKE if n not in ("standard", "none")])
@every_channels
def test_strengths_say_what_is_drawn(name, channels):
    policy = MAKE[name](channels=channels)
    values, batch = halves(policy), 20_000
    said = policy.strengths(SIZE, values, 0.5)
    units = policy.sample(batch, SIZE, seeded(2), values=values, fraction=0.5).units
    reach = policy.reach(values) if values else None
    drawn = (units if reach is None else units * reach).abs()
    largest, rate = drawn.amax((0, 1)), (drawn > 0).sum((0, 1)) / batch
    assert set(said) >= {n for n, r in zip(NAMES, rate) if r > 0}
    for operation, strength in said.items():
        i = NAMES.index(operation)
        if strength.value == 0:
            assert largest[i] == 0
            continue
        assert 0.97 * strength.value < largest[i] < 1.0001 * strength.value
        tolerance = 4 * math.sqrt(strength.rate / batch)  # of a Poisson variable: more than enough
        still = 1.0  # the share of its chances in which it has a magnitude, see AutoAugment
        if isinstance(policy, AutoAugment):
            still = moving(policy.dataset, operation)
        if isinstance(policy, TrivialAugment) and operation not in ("autocontrast", "equalize"):
            still = 30 / 31
        assert rate[i] == pytest.approx(strength.rate * still, abs=tolerance)


def moving(dataset: str, operation: str) -> float:
    """Return the share of an AutoAugment operation's uses that have a magnitude above zero."""
    table = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(dataset)).policies
    own = [(p, m) for pair in table for n, p, m in pair if TORCHVISION[n] == operation]
    return sum(p for p, m in own if m != 0) / sum(p for p, _ in own)


# --- flips and shifts -----------------------------------------------------------------------------


@every_channels
def test_flips_and_shifts_are_uniform_and_done_exactly(channels):
    policy = Policy(channels=channels, crop=2)
    draws = policy.sample(20_000, SIZE, seeded())
    assert draws.flip.dtype == torch.bool and draws.shift.dtype == torch.long
    assert abs(draws.flip.double().mean() - 0.5) < 0.015
    places = 5 * (draws.shift[:, 0] + 2) + draws.shift[:, 1] + 2
    counts = torch.bincount(2 * places + draws.flip, minlength=50)
    assert len(counts) == 50 and stats.chisquare(counts).pvalue > 1e-3
    images = pictures(50, channels)
    some = policy.sample(50, SIZE, seeded(1))
    for out, image, flip, (x, y) in zip(
        policy.apply(images, some), images, some.flip, some.shift.tolist()
    ):
        image = F.pad(image.flip(2) if flip else image, (2, 2, 2, 2))
        assert torch.equal(out, image[:, 2 - y : 11 - y, 2 - x : 10 - x])


def test_a_knob_switches_flips_or_shifts_off():
    for policy, flips in ((Policy(channels=1, flips=False), 0), (Policy(channels=1), 1)):
        draws = policy.sample(64, SIZE, seeded())
        assert bool(draws.flip.any()) == flips and not draws.shift.any()
    images = pictures(64, 1)
    off = Policy(channels=1, flips=False)
    assert off.apply(images, off.sample(64, SIZE, seeded())) is images
    assert (
        Nothing(channels=1).apply(images, Nothing(channels=1).sample(64, SIZE, seeded())) is images
    )


@every_channels
@pytest.mark.parametrize("probability", [0.3, 0.97])
def test_zero_magnitudes_are_plain_flips_and_shifts(channels, probability):
    """With many images warped the flips go into the warp, with few they do not."""
    policy = Learned(channels=channels, crop=2, operations=("rotate", "scale", "contrast"))
    values = {n: torch.tensor(0.0 if n.startswith("m") else probability) for n in policy.names}
    images = pictures(64, channels, 28, 28)
    draws = policy.sample(64, (28, 28), seeded(1), values=values)
    assert (draws.selections[0].families["geometric"] is None) == (probability > 0.9)
    plain = flip_and_shift(images, draws.flip, draws.shift)
    out = policy.apply(images, draws, values)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-6)
    assert torch.equal(out == 0, plain == 0)  # nothing leaks in at the border


def test_flips_go_before_the_operations():
    policy = Learned(channels=1, crop=2, operations=("translate_x", "rotate"))
    values = {n: torch.tensor(0.9) for n in policy.names}
    images = smooth(24, 1, 24, 24).float()
    for seed in (0, 1):
        draws = policy.sample(24, (24, 24), seeded(seed), values=values)
        inside = draws._replace(shift=0 * draws.shift)  # then no content is lost on the way
        first = flip_and_shift(images, inside.flip, inside.shift)
        none = inside._replace(flip=inside.flip & False)
        expected = policy.apply(first, none, values)
        torch.testing.assert_close(policy.apply(images, inside, values), expected)
        assert not torch.allclose(policy.apply(images, none, values), expected, atol=0.05)


def test_a_whole_batch_is_flipped_shifted_and_warped_at_once():
    """If most of the batch is warped, the warp brings back what a shift moves out of sight."""
    policy, images = Learned(channels=1, crop=2), pictures(16, 1, 8, 8)
    draws = policy.sample(16, (8, 8), seeded())
    draws = draws._replace(shift=torch.tensor([[2, 0]]).expand(16, 2))
    flipped = torch.where(draws.flip.view(-1, 1, 1, 1), images.flip(3), images)
    for share in (2, 1):
        units = torch.zeros_like(draws.units)
        units[0, ::share, [NAMES.index("translate_x")]] = -2 / 8
        units[0, ::share, [NAMES.index("translate_y")]] = 1 / 8
        out = policy.apply(images, draws._replace(units=units, selections=(select(units[0] != 0),)))
        expected = torch.zeros_like(images)
        expected[..., 2:] = flipped[..., :-2]
        expected[::share, :, 1:, 2:] = flipped[::share, :, :-1, 2:]
        expected[::share, :, 1:, :2] = flipped[::share, :, :-1, :2]
        expected[::share, :, 0] = 0
        if share == 2:  # the others, and these before they are warped, are shifted by themselves
            expected[::2, ..., -2:] = 0
        assert torch.equal(out, expected)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Policy(channels=2), "channels must be 1 or 3, got 2"),
        (lambda: Policy(channels=1, crop=-1), "crop must be 0 pixels or more, got -1"),
        (lambda: RandAugment(channels=3, n=-1), "n must be 0 operations or more, got -1"),
        (lambda: RandAugment(channels=3, m=31), "m must be from 0 to 30, got 31"),
        (lambda: RandAugment(channels=3, m=-0.5), "m must be .* got -0.5"),
        (lambda: RandAugment(channels=3, m=math.nan), "m must be .* got nan"),
        (
            lambda: AutoAugment(channels=3, dataset="mnist"),
            "dataset must be one of cifar10, .*, got 'mnist'",
        ),
        (
            lambda: Learned(channels=3, operations=("twist",)),
            "operation must be one of transl.*, got 'twist'",
        ),
        (
            lambda: Scheduled(channels=3, knots={"magnitude.x": ((0, 1),)}),
            "a value must be one of .*, got 'magnitude.x'",
        ),
        (lambda: Scheduled(channels=3, knots={"lr": ((0, 1),)}), "got 'lr'"),
        (
            lambda: Scheduled(channels=3, knots={"magnitude.translate_x": ((0, 1),)}),
            "got 'magnitude.translate_x'",
        ),
    ],
)
def test_wrong_knobs_are_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schedule",
    [
        (),
        ((0.5, 0.1), (0.2, 0.1)),
        ((0.2, 0.1), (0.5, 0.1), (0.4, 0.1)),
        ((0.0, 1.1),),
        ((0.0, -0.1),),
        ((-0.1, 0.5),),
        ((0.0, 0.5), (1.1, 0.5)),
        ((0.0, math.nan),),
    ],
)
def test_wrong_knots_are_refused(schedule):
    with pytest.raises(
        UserError, match=r"schedule: magnitude.rotate must be .* in \[0, 1\], .* ascend"
    ):
        Scheduled(channels=1, knots={"magnitude.rotate": schedule})


@every_policy
def test_shifts_must_not_move_images_out_of_sight(kind):
    if kind == "none":
        return
    policy = MAKE[kind](channels=3, crop=8)
    with pytest.raises(UserError, match=r"crop must be less than .*, got 8 pixels for 9x8"):
        policy.sample(1, (9, 8), seeded())
    policy.sample(1, (9, 9), seeded())


@every_policy
def test_wrong_images_are_refused(kind):
    policy, images, values, draws = case(kind, 3)
    for wrong in (images[:, :1], images[0], images.double().round().long(), images[:, :2]):
        with pytest.raises(UserError, match=r"must be floating \[B, C, H, W\] .* with 3 channels"):
            policy.apply(wrong, draws, values)


def changed(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[1, 0, 2, 3] = value
    return images


@pytest.mark.parametrize(
    "change, channels, message",
    [
        (
            lambda x: changed(x, 1.5),
            3,
            r"must be in \[0, 1\], got values from 0.\d+ to 1.5; divide",
        ),
        (lambda x: changed(x, -0.25), 3, r"values from -0.25 to 0.\d+; divide"),
        (lambda x: changed(x, math.nan), 3, "values from nan to nan"),
        (lambda x: changed(x, math.inf), 3, "to inf; divide"),
        (lambda x: x[0], 3, r"floating \[B, C, H, W\].* shape \(3, 9, 8\) and torch.float32"),
        (lambda x: x[:, :2], None, r"1 or 3 channels, got shape \(4, 2, 9, 8\)"),
        (lambda x: x[:, :1], 3, r"with 3 channels, got shape \(4, 1, 9, 8\)"),
        (lambda x: (255 * x).byte(), 3, "torch.uint8; divide bytes"),
    ],
)
def test_check_says_what_is_wrong(change, channels, message):
    images = pictures(4, 3).clamp(0.01, 0.99)
    check(images, channels)
    check(images[:0], channels)
    with pytest.raises(UserError, match=message) as error:
        check(change(images), channels)
    assert "\n" not in str(error.value) and str(error.value).startswith("augment: images")


# --- another device -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in MAKE if k != "none"])
@every_channels
def test_moving_draws_keeps_every_tensor(kind, channels):
    _, _, _, draws = case(kind, channels, 50)
    back = moved(draws, "cpu")
    assert same(draws, back)
    assert [t.dtype for t in tensors(draws)] == [t.dtype for t in tensors(back)]


def test_moved_draws_cover_every_kind_of_selection():
    """Whole batches, some images, tables of many and of one operation, and turned coins."""
    learned, random = (case(kind, 3, 50)[3] for kind in ("learned", "randaugment"))
    rows = list(learned.selections[0].families.values())
    assert any(r is None for r in rows) and any(r is not None for r in rows)
    assert learned.selections[0].lookups and learned.turned is not None
    assert len(learned.turned_selections) == 1 and random.turned is None
    assert all(s.counts and s.order is not None for s in random.selections)


@every_channels
def test_learned_values_may_be_on_different_devices(channels):
    """Probabilities come to the CPU for the draws; the other values stay where they are."""
    policy = Learned(channels=channels, operations=("rotate", "saturation", "cutout"))
    here = halves(policy) | {"mixing.strength": torch.tensor(0.5)}
    there = {n: v if n.startswith("probability.") else v.to("meta") for n, v in here.items()}
    a, b = (policy.sample(8, SIZE, seeded(), values=v, turn=True) for v in (here, there))
    assert same(a, b)


# --- torchvision's tables -------------------------------------------------------------------------

Outcome = tuple[tuple[str, float] | None, ...]  # what each stage does to an image


def known(name: str, magnitude: float, size: tuple[int, int]) -> tuple[str, float] | None:
    """Our name and value, to four digits, for torchvision's."""
    if name == "Identity":
        return None
    value = magnitude
    match name:
        case "TranslateX":
            value = magnitude / size[1]
        case "TranslateY":
            value = magnitude / size[0]
        case "Rotate":
            value = math.radians(magnitude)
        case "Posterize":
            value = (8 - magnitude) / 8
        case "Solarize":
            value = 1 - magnitude / 255
        case "AutoContrast" | "Equalize" | "Invert":
            value = 1.0
    value = round(value, 4)
    return (TORCHVISION[name], value) if value else None


def signed(
    space: Mapping[str, tuple[Tensor, bool]], name: str, index: int | None, size: tuple[int, int]
) -> list[tuple[str, float] | None]:
    """Return what an operation of torchvision does at a bin, with each sign."""
    magnitudes, both = space[name]
    m = float(magnitudes[index]) if index is not None and magnitudes.ndim else 0.0
    return [known(name, sign * m, size) for sign in ((-1, 1) if both else (1, 1))]


def seen(units: Tensor) -> list[Outcome]:
    """Return what each stage does to each image: one operation, or None."""
    assert ((units != 0).sum(2) <= 1).all()
    value, index = units.abs().max(2)
    value = value * units.gather(2, index.unsqueeze(2)).squeeze(2).sign()
    posterize = index == NAMES.index("posterize")
    value = torch.where(posterize, (8 * value).round() / 8, value).tolist()
    rows = [
        [(NAMES[i], round(v, 4)) if round(v, 4) else None for i, v in zip(*stage)]
        for stage in zip(index.tolist(), value)
    ]
    return list(zip(*rows))


def agree(units: Tensor, expected: Mapping[Outcome, float]) -> None:
    """The draws have the distribution: a chi-square test of all outcomes at once."""
    observed, total = Counter(seen(units)), units.shape[1]
    assert set(observed) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1)
    often = [o for o, p in expected.items() if p * total >= 5]
    counts = [observed[o] for o in often]
    means = [expected[o] * total for o in often]
    if len(often) < len(expected) and total - sum(means) > 1:
        counts.append(total - sum(counts))
        means.append(total - sum(means))
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, means, strict=True))
    assert stats.chi2.sf(statistic, len(counts) - 1) > 1e-3


@pytest.mark.parametrize("size", [(9, 8), (32, 40)])
def test_randaugment_has_torchvisions_values_bin_by_bin(size):
    space = autoaugment.RandAugment()._augmentation_space(31, size)
    for m in range(31):
        expected = {o for name in space for o in signed(space, name, m, size)}
        units = RandAugment(channels=3, n=1, m=m).sample(600, size, seeded(m)).units
        assert {o for (o,) in seen(units)} == expected


@pytest.mark.parametrize("n, m", [(1, 30), (2, 9), (2, 0)])
def test_randaugment_draws_as_torchvision(n, m):
    space = autoaugment.RandAugment()._augmentation_space(31, SIZE)
    each = [o for name in space for o in signed(space, name, m, SIZE)]
    expected: Counter = Counter()
    for outcome in product(each, repeat=n):
        expected[outcome] += 1 / len(each) ** n
    draws = RandAugment(channels=3, n=n, m=m).sample(20_000, SIZE, seeded(4))
    assert draws.units.shape == (n, 20_000, len(NAMES))
    agree(draws.units, expected)


@pytest.mark.parametrize("size", [(9, 8), (36, 40)])
def test_trivialaugment_draws_as_torchvision(size):
    space = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    expected: Counter = Counter()
    for name, (magnitudes, _) in space.items():
        bins = len(magnitudes) if magnitudes.ndim else 1
        for index in range(bins):
            for outcome in signed(space, name, index, size):
                expected[(outcome,)] += 1 / (len(space) * bins * 2)
    draws = TrivialAugment(channels=3).sample(40_000, size, seeded(5))
    assert draws.units.shape == (1, 40_000, len(NAMES))
    agree(draws.units, expected)
    assert set(seen(draws.units)) == set(expected)


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_draws_as_torchvision(dataset):
    """Which pairs, in which order, how often and how strong each of the two."""
    theirs = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(dataset))
    space = theirs._augmentation_space(10, SIZE)
    expected: Counter = Counter()
    for pair in theirs.policies:
        stages = [
            [(None, 1 - p)] + [(o, p / 2) for o in signed(space, name, index, SIZE)]
            for name, p, index in pair
        ]
        for (one, p), (two, q) in product(*stages):
            expected[one, two] += p * q / len(theirs.policies)
    expected = Counter({o: p for o, p in expected.items() if p})
    draws = AutoAugment(channels=3, dataset=dataset).sample(30_000, SIZE, seeded(6))
    assert draws.units.shape == (2, 30_000, len(NAMES))
    agree(draws.units, expected)


LEVEL = 1 / 255
TOLERANCE = {  # torchvision rounds bytes or cuts them off, several times in color operations
    "rotate": 0.51 * LEVEL,
    "autocontrast": 1.01 * LEVEL,
    "brightness": 1.01 * LEVEL,
    "contrast": 3.01 * LEVEL,
    "saturation": 2.01 * LEVEL,
    "sharpness": 1.51 * LEVEL,
}


@every_channels
@pytest.mark.parametrize(
    "policy, theirs",
    [
        (RandAugment, lambda size: autoaugment.RandAugment()._augmentation_space(31, size)),
        (TrivialAugment, lambda _: autoaugment.TrivialAugmentWide()._augmentation_space(31)),
        (AutoAugment, lambda size: autoaugment.AutoAugment()._augmentation_space(10, size)),
    ],
)
def test_images_look_as_torchvisions(policy, theirs, channels):
    """The same operation at the same magnitude on the same bytes.

    Left out: shears, which are about another point there, and parts of a pixel, which it drops.
    """
    size, batch = (36, 40), 500
    knobs = {RandAugment: {"n": 1, "m": 18}, AutoAugment: {"dataset": "svhn"}}.get(policy, {})
    ours = policy(channels=channels, flips=False, **knobs)
    pixels = (255 * smooth(1, channels, *size, seed=3)).byte()
    pixels[..., :3, :] = torch.tensor([0, 64, 255], dtype=torch.uint8)[:, None]  # every level
    draws = ours.sample(batch, size, seeded(7))
    out = ours.apply((pixels / 255).expand(batch, -1, -1, -1), draws)
    space, magnitudes = theirs(size), {}
    for name, (bins, both) in space.items():
        for m in bins.view(-1).tolist():
            for sign in (-1, 1) if both else (1,):
                magnitudes[known(name, sign * m, size)] = (name, sign * m)
    compared, found = set(), {}
    for image, stages in zip(out, seen(draws.units)):
        acting = [o for o in stages if o]
        if len(acting) != 1 or acting[0][0].startswith("shear"):
            continue
        name, m = magnitudes[acting[0]]
        if name.startswith("Translate") and m != int(m):
            continue
        if acting[0] not in found:
            m = -m if name == "Rotate" else m  # theirs is anticlockwise
            bilinear = InterpolationMode.BILINEAR
            expected = autoaugment._apply_op(pixels[0], name, m, bilinear, None) / 255
            found[acting[0]] = expected
        tolerance = TOLERANCE.get(acting[0][0], 0) + 1e-5
        assert (image - found[acting[0]]).abs().max() < tolerance, acting
        compared.add(name)
    wanted = set(TORCHVISION) - {"ShearX", "ShearY", "TranslateX", "TranslateY", "Invert"}
    if policy is TrivialAugment:
        wanted |= {"TranslateX", "TranslateY"}
    if policy is AutoAugment:
        wanted = {"Invert", "Rotate", "Solarize", "Equalize", "AutoContrast"}
    assert compared >= wanted


# --- RandAugment, learned -------------------------------------------------------------------------


@every_channels
@pytest.mark.parametrize("value", [0.0, 0.3, 0.77, 1.0])
def test_a_learned_magnitude_is_that_many_thirtieths(channels, value):
    policy = RandAugment(channels=channels, n=3, m=4, crop=1)
    assert policy.names == ("magnitude.all",)
    assert policy.starts == {"magnitude.all": pytest.approx(4 / 30)}
    values = {"magnitude.all": torch.tensor(value)}
    images, fixed = (
        pictures(64, channels, 16, 17),
        RandAugment(channels=channels, n=3, m=30 * value, crop=1),
    )
    learned = policy.sample(64, (16, 17), seeded(8), values=values)
    expected = fixed.apply(images, fixed.sample(64, (16, 17), seeded(8)))
    out = policy.apply(images, learned, values)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert policy.strengths((16, 17), values)["rotate"].value == pytest.approx(
        value * math.radians(30)
    )
    replayed = policy.replayed({"magnitude.all": ((0.0, 0.9), (1.0, value))})
    assert replayed == fixed
    assert policy.replayed({"magnitude.rotate": ((0.0, 0.5),)}) == policy


def test_operations_without_a_magnitude_do_not_learn():
    policy = RandAugment(channels=3, n=1)
    values = {"magnitude.all": torch.tensor(0.25, requires_grad=True)}
    draws = policy.sample(400, SIZE, seeded(), values=values)
    reach = policy.reach(values).tolist()
    for name, factor in zip(NAMES, reach):
        assert factor == (1 if name in ("autocontrast", "equalize", "invert") else 0.25)
    (slope,) = torch.autograd.grad(
        policy.apply(pictures(400, 3), draws, values).sum(), values.values()
    )
    assert slope != 0


# --- Learned: what is drawn -----------------------------------------------------------------------


def test_names_starts_and_order():
    records = {KIND[name]: record for name, record in OPERATIONS.items()}
    gray = tuple(kind for kind in records if kind != "saturation")
    assert gray[:4] == ("translate", "rotate", "shear", "scale")
    for channels, kinds in ((1, gray), (3, tuple(records))):
        policy = Learned(channels=channels)
        magnitudes = tuple(f"magnitude.{k}" for k in kinds)
        assert policy.names == magnitudes + tuple(f"probability.{k}" for k in kinds)
        assert Learned(channels=channels, probabilities=False).names == magnitudes
        starts = policy.starts
        assert tuple(starts) == policy.names
        for kind in kinds:
            assert starts[f"magnitude.{kind}"] == records[kind].start
            assert starts[f"probability.{kind}"] == records[kind].rate
    assert starts["magnitude.rotate"] == 0.05 and starts["magnitude.gaussian_blur"] == 0.4
    assert starts["probability.rotate"] == 0.1 and starts["probability.cutout"] == 0.9


def test_only_the_operations_asked_for():
    policy = Learned(channels=1, operations=("cutout", "saturation", "shear_y", "rotate"))
    assert policy.active == ("rotate", "shear_y", "cutout")
    kinds = ("rotate", "shear", "cutout")
    assert policy.names == tuple(f"{w}.{k}" for w in ("magnitude", "probability") for k in kinds)
    units = policy.sample(500, SIZE, seeded(), values=halves(policy)).units
    acted = {n for n, used in zip(NAMES, (units != 0).any(1)[0]) if used}
    assert acted == set(policy.active)


@every_channels
@pytest.mark.parametrize("given", [True, False])
def test_coins_and_sizes_have_their_distribution(channels, given):
    """A Bernoulli coin of each operation, independent of the others; uniform sizes."""
    policy, batch = Learned(channels=channels), 20_000
    values = {n: v for n, v in halves(policy).items() if given or n.startswith("magnitude.")}
    units = policy.sample(batch, SIZE, seeded(3), values=values).units[0].double()
    chances = policy.usual | {n: float(v) for n, v in values.items()}
    coins = units != 0
    expected = [chances[f"probability.{KIND[n]}"] if n in policy.active else 0.0 for n in NAMES]
    p = torch.tensor(expected, dtype=torch.float64)
    error = (p * (1 - p) / batch).sqrt()
    assert ((coins.double().mean(0) - p).abs() <= 4 * error).all()
    assert policy.active == tuple(n for n in NAMES if n != "saturation" or channels == 3)
    for i, name in enumerate(NAMES):
        if name in policy.active:
            sizes = units[coins[:, i], i] / REACH[name]
            uniform = stats.uniform(-1, 2) if OPERATIONS[name].signed else stats.uniform(0, 1)
            assert stats.kstest(sizes, uniform.cdf).pvalue > 1e-4
    used = [NAMES.index(n) for n in policy.active]
    for part in (coins[:, used].double(), units[:, used]):
        correlation = torch.corrcoef(part.T) - torch.eye(len(used))
        assert correlation.abs().max() < 5 / math.sqrt(batch)


@every_channels
@pytest.mark.parametrize("magnitude", [0.3, 1.0])
def test_values_reach_up_to_their_magnitude(channels, magnitude):
    policy = Learned(channels=channels)
    values = {n: torch.tensor(magnitude if n.startswith("m") else 0.5) for n in policy.names}
    units = policy.sample(5000, SIZE, seeded(), values=values).units[0]
    reach = policy.reach(values)
    largest, lowest = (units * reach).amax(0), (units * reach).amin(0)
    for name, high, low in zip(NAMES, largest.tolist(), lowest.tolist()):
        top = magnitude * REACH[name] if name in policy.active else 0
        assert 0.995 * top <= high <= top * (1 + 1e-6)
        assert low == pytest.approx(-top if OPERATIONS[name].signed else 0, rel=5e-3)


def test_places_are_uniform():
    draws = Learned(channels=1).sample(20_000, SIZE, seeded())
    assert stats.kstest(draws.center.flatten(), stats.uniform.cdf).pvalue > 1e-3
    assert stats.kstest(draws.start.flatten() / 2**18, stats.uniform.cdf).pvalue > 1e-3
    columns = (draws.center[0], draws.start[0], draws.flip, draws.units[0])
    table = torch.cat([c.double().view(20_000, -1) for c in columns], 1)
    table = table[:, table.std(0) > 0]
    assert torch.corrcoef(table.T).fill_diagonal_(0).abs().max() < 0.04


def test_saturation_needs_three_channels():
    policy = Learned(channels=3, operations=("saturation",))
    assert policy.names == ("magnitude.saturation", "probability.saturation")
    values = {n: torch.tensor(0.9) for n in policy.names}
    images = pictures(16, 3)
    draws = policy.sample(16, SIZE, seeded(), values=values)
    assert not torch.equal(
        policy.apply(images, draws, values),
        policy.apply(images, draws, {"magnitude.saturation": torch.tensor(0.0)}),
    )
    gray = Learned(channels=1, operations=("saturation",), flips=False)
    assert gray.names == () and gray.strengths(SIZE) == {}
    one = gray.sample(16, SIZE, seeded())
    assert torch.equal(gray.apply(images[:, :1], one), images[:, :1])


def test_axes_share_magnitude_and_probability_but_not_their_draws():
    pairs = ("translate_x", "translate_y", "shear_x", "shear_y")
    policy = Learned(channels=1, operations=pairs)
    assert policy.kinds == ("translate", "shear")
    chances = {"probability.translate": 0.2, "probability.shear": 0.9}
    magnitudes = {"magnitude.translate": 0.25, "magnitude.shear": 0.75}
    values = {n: torch.tensor(v) for n, v in (magnitudes | chances).items()}
    draws = policy.sample(8000, SIZE, seeded(), values=values)
    units = draws.units[0, :, [NAMES.index(n) for n in pairs]]
    rates = (units != 0).double().mean(0)
    assert rates.tolist() == pytest.approx([0.2, 0.2, 0.9, 0.9], abs=0.02)
    assert torch.corrcoef(units.T).fill_diagonal_(0).abs().max() < 0.05
    assert policy.reach(values)[[NAMES.index(n) for n in pairs]].tolist() == [
        0.25,
        0.25,
        0.75,
        0.75,
    ]
    assert policy.strengths(SIZE, values) == {
        n: Strength(
            pytest.approx(REACH[n] * values[f"magnitude.{KIND[n]}"].item()),
            pytest.approx(chances[f"probability.{KIND[n]}"]),
        )
        for n in pairs
    }


# --- Learned: derivatives -------------------------------------------------------------------------


def derivable(channels: int, operations: tuple[str, ...] = EXACT, **knobs: int) -> tuple:
    """A policy, smooth images, fixed draws, its values and the magnitudes' names, in float64."""
    policy = Learned(channels=channels, operations=operations, **{"crop": 1, **knobs})
    values = halves(policy, torch.float64)
    values |= {n: v + 0.3 for n, v in values.items() if n.startswith("probability.")}
    draws = policy.sample(6, (12, 11), seeded(1), values=values)
    draws = draws._replace(units=draws.units.double(), center=draws.center.double())
    names = [n for n in policy.names if n.startswith("magnitude.")]
    return policy, smooth(6, channels, 12, 11), draws, values, names


def central(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    slopes = []
    for i in range(len(at)):
        shift = torch.zeros_like(at)
        shift[i] = step
        slopes.append((function(at + shift) - function(at - shift)) / (2 * step))
    return torch.stack(slopes)


def stacked(values: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.stack([values[n] for n in names])


@every_channels
@pytest.mark.parametrize("knobs", [{}, {"flips": False, "crop": 0}])
def test_the_derivative_in_the_magnitudes_is_exact(channels, knobs):
    policy, images, draws, values, names = derivable(channels, **knobs)
    weight = smooth(6, channels, 12, 11, seed=7) - 0.5

    def loss(m: Tensor) -> Tensor:
        return (policy.apply(images, draws, values | dict(zip(names, m))) * weight).sum()

    at = stacked(values, names).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    assert (gradient != 0).all()
    with torch.no_grad():
        expected = central(loss, at)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
@every_channels
def test_forward_mode_equals_backward_mode(channels):
    policy, images, draws, values, names = derivable(channels, NAMES)

    def function(m: Tensor) -> Tensor:
        return policy.apply(images, draws, values | dict(zip(names, m)))

    at = stacked(values, names)
    tangent = torch.linspace(-1, 1, len(at), dtype=torch.float64)
    _, forward = torch.func.jvp(function, (at,), (tangent,))
    for i in range(3):
        weight = torch.randn(forward.shape, generator=seeded(i), dtype=torch.float64)
        (backward,) = torch.func.vjp(function, at)[1](weight)
        assert float((forward * weight).sum()) == pytest.approx(float(backward @ tangent))


@every_channels
def test_the_dada_gradient_is_another_one(channels):
    """∂image/∂m = 1 (DADA, Li et al. 2020, eq. 11) is not our derivative, nor close to it."""
    policy, images, draws, values, names = derivable(channels)
    weight = smooth(6, channels, 12, 11, seed=7) - 0.5
    at = stacked(values, names).requires_grad_()
    out = policy.apply(images, draws, values | dict(zip(names, at)))
    slope, true = torch.autograd.grad((out * weight).sum(), (out, at))
    dada = slope.sum().expand_as(true)  # each magnitude is added to every pixel
    assert F.cosine_similarity(true, dada, dim=0).abs() < 0.9
    assert ((true - dada).abs() > 0.1 * true.abs()).all()


@every_channels
@pytest.mark.parametrize("kind", ["learned", "some"])
def test_one_coin_of_each_image_is_turned(kind, channels):
    """The coin is random; sizes, places and all other coins stay the same."""
    policy, batch = MAKE[kind](channels=channels, crop=1), 6000
    values = halves(policy, torch.float64)
    draws = policy.sample(batch, SIZE, seeded(2), values=values, turn=True)
    assert same(
        draws._replace(turned=None, turned_selections=()),
        policy.sample(batch, SIZE, seeded(2), values=values),
    )
    certain = {n: torch.ones(()) for n in policy.names}
    sizes = policy.sample(batch, SIZE, seeded(2), values=certain).units
    turned = draws.turned
    units, others = draws.units[0], turned.units[0]
    assert (units == 0).logical_or(units == sizes[0]).all()
    column = turned.operation.unsqueeze(1)
    acted = (units != 0).gather(1, column).squeeze(1)
    expected = torch.where(acted, 0, sizes[0].gather(1, column).squeeze(1))
    assert torch.equal(others, units.scatter(1, column, expected.unsqueeze(1)))
    counts = torch.bincount(turned.operation, minlength=len(NAMES)).tolist()
    used = [counts[NAMES.index(n)] for n in policy.active]
    assert sum(used) == batch and stats.chisquare(used).pvalue > 1e-3
    count = len(policy.active)
    assert torch.equal(turned.weight, torch.where(acted, float(count), -float(count)))
    chances = [float(values[f"probability.{KIND[NAMES[i]]}"]) for i in column]
    assert turned.chance.tolist() == chances
    assert torch.equal(policy.chance(turned.operation, values), turned.chance)


def test_draws_carry_no_gradient():
    """Otherwise the derivative in a probability would cancel."""
    policy = Learned(channels=1)
    values = {n: v.requires_grad_() for n, v in halves(policy).items()}
    draws = policy.sample(8, SIZE, seeded(), values=values, turn=True)
    assert not any(t.requires_grad for t in tensors(draws))


@every_channels
def test_turned_images_follow_the_turned_choices(channels):
    policy, images, values, draws = case("learned", channels, 24)
    as_drawn = draws._replace(
        units=draws.turned.units,
        selections=tuple(select(u != 0) for u in draws.turned.units),
        turned=None,
        turned_selections=(),
    )
    out = policy.apply(images, draws, values, turned=True)
    assert torch.equal(out, policy.apply(images, as_drawn, values))
    other = (out != policy.apply(images, draws, values)).flatten(1).any(1)
    assert other.double().mean() > 0.6  # but where it comes to nothing, as for few levels
    with pytest.raises(ValueError, match="draws without turned coins"):
        policy.apply(images, as_drawn, values, turned=True)


def test_the_chance_has_the_derivative_of_its_probability():
    policy = Learned(channels=1)
    values = {n: v.requires_grad_() for n, v in halves(policy).items()}
    operation = torch.tensor([NAMES.index(n) for n in ("shear_x", "cutout", "shear_y", "rotate")])
    (policy.chance(operation, values) * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    slopes = {n: float(v.grad) for n, v in values.items() if v.grad is not None and v.grad != 0}
    assert slopes == {
        "probability.shear": 101,
        "probability.cutout": 10,
        "probability.rotate": 1000,
    }


@pytest.mark.parametrize("kind", [k for k in MAKE if k not in ("learned", "some")])
def test_without_learned_probabilities_nothing_is_turned(kind):
    """Turning does not change the draws."""
    policy = MAKE[kind](channels=3)
    values = halves(policy)
    one, two = (
        policy.sample(40, SIZE, seeded(), values=values, fraction=0.25, turn=turn)
        for turn in (False, True)
    )
    assert two.turned is None and same(one, two)


@pytest.mark.parametrize("only", [("rotate",), ("rotate", "cutout")])
def test_some_probabilities_may_be_learned_and_others_not(only):
    """A probability that is not among the values keeps its usual value."""
    policy = Learned(channels=1, operations=("rotate", "cutout", "invert"))
    values = {f"probability.{n}": torch.tensor(0.7, dtype=torch.float64) for n in only}
    draws = policy.sample(4000, SIZE, seeded(), values=values)
    chances = {"rotate": 0.7, "cutout": 0.7 if "cutout" in only else 0.9, "invert": 0.1}
    for name, p in chances.items():
        acted = (draws.units[0, :, NAMES.index(name)] != 0).double()
        assert float(acted.mean()) == pytest.approx(p, abs=0.04)


# --- Scheduled ------------------------------------------------------------------------------------


def test_at_interpolates_the_knots():
    policy = Scheduled(channels=1, knots=KNOTS)
    assert policy.names == () and policy.starts == {}
    assert policy.active == ("translate_x", "translate_y", "rotate", "posterize", "cutout")
    at = policy.at(0.25)
    assert list(at) == list(KNOTS)
    assert at["magnitude.rotate"] == pytest.approx(0.35)
    assert at["magnitude.cutout"] == pytest.approx(0.1)
    assert at["probability.rotate"] == pytest.approx(0.6)
    assert policy.at(0.5)["magnitude.cutout"] == pytest.approx(0.5)
    assert policy.at(1.0)["probability.rotate"] == pytest.approx(0.9)
    assert Scheduled(channels=1).at(0.5) == {}
    jump = Scheduled(channels=1, knots={"magnitude.rotate": ((0.0, 0.1), (0.5, 0.1), (0.5, 0.9))})
    assert [jump.at(f)["magnitude.rotate"] for f in (0.49, 0.5, 1.0)] == [0.1, 0.9, 0.9]


@every_channels
def test_draws_change_with_the_fraction(channels):
    policy = Scheduled(channels=channels, knots=KNOTS)
    i = NAMES.index("rotate")
    for fraction, rate, magnitude in ((0.0, 0.3, 0.2), (0.25, 0.6, 0.35), (1.0, 0.9, 0.8)):
        units = policy.sample(8000, SIZE, seeded(), fraction=fraction).units[0, :, i]
        assert float((units != 0).double().mean()) == pytest.approx(rate, abs=0.02)
        top = magnitude * REACH["rotate"]
        assert 0.99 * top < units.max() <= top * (1 + 1e-6)
        strength = policy.strengths(SIZE, fraction=fraction)["rotate"]
        assert strength == pytest.approx((top, rate))
    images = pictures(8, channels)
    early, late = (
        policy.apply(images, policy.sample(8, SIZE, seeded(), fraction=f)) for f in (0.0, 1.0)
    )
    assert not torch.equal(early, late)


def test_without_knots_only_flips_and_shifts_remain():
    policy, images = Scheduled(channels=1, crop=1), pictures(20, 1)
    draws = policy.sample(20, SIZE, seeded())
    assert not draws.units.any() and policy.strengths(SIZE) == {}
    plain = flip_and_shift(images, draws.flip, draws.shift)
    assert torch.equal(policy.apply(images, draws), plain)
    only = Scheduled(channels=1, knots={"probability.rotate": ((0.0, 1.0),)})
    assert not only.sample(20, SIZE, seeded()).units.any()


@every_channels
@pytest.mark.parametrize("kind", ["learned", "magnitudes", "some"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_replayed_policy_does_what_was_learned(kind, channels, fraction):
    """At the knots the same images as the learned policy with these values, and the same draws."""
    policy = MAKE[kind](channels=channels, crop=1)
    ends = torch.rand(2, len(policy.names), generator=seeded(9)) * 0.6 + 0.2
    schedules = {n: ((0.0, a), (1.0, b)) for n, a, b in zip(policy.names, *ends.double().tolist())}
    replayed = policy.replayed(schedules | {"lr": ((0.0, 0.1),), "alpha": ((0.0, 3.0),)})
    assert isinstance(replayed, Scheduled) and replayed.knots == schedules
    assert replayed.replayed({}) is replayed
    assert (replayed.channels, replayed.flips, replayed.crop) == (channels, True, 1)
    assert (replayed.operations, replayed.active) == (policy.operations, policy.active)
    values = dict(zip(policy.names, ends[0] + fraction * (ends[1] - ends[0])))
    images = pictures(32, channels)
    draws = policy.sample(32, SIZE, seeded(4), values=values)
    again = replayed.sample(32, SIZE, seeded(4), fraction=fraction)
    assert again.turned is None
    assert torch.equal(draws.units != 0, again.units != 0)
    torch.testing.assert_close(
        replayed.apply(images, again), policy.apply(images, draws, values), rtol=0, atol=1e-5
    )
    assert not torch.allclose(
        replayed.apply(images, replayed.sample(32, SIZE, seeded(4), fraction=1 - fraction + 0.1)),
        policy.apply(images, draws, values),
        atol=1e-3,
    )


def test_nothing_learned_cannot_be_replayed():
    with pytest.raises(UserError, match="--augment learned must have learned values"):
        Learned(channels=1).replayed({"lr": ((0.0, 0.1),)})
    for policy in (Policy(channels=1), TrivialAugment(channels=1), AutoAugment(channels=1)):
        assert policy.replayed({"magnitude.rotate": ((0.0, 0.5),)}) is policy


def test_schedules_can_be_keys_of_a_dictionary():
    one, two = (Scheduled(channels=1, knots=dict(KNOTS)) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != Scheduled(channels=1, knots={"magnitude.rotate": ((0.0, 0.5),)})
