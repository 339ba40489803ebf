"""Pictures and tables of augmentations: their content, and that every policy has one."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from darts_lite.augment import (
    OPERATIONS,
    Augmentation,
    AutoAugment,
    Learned,
    Mixing,
    Nothing,
    Policy,
    RandAugment,
    Scheduled,
    TrivialAugment,
    operate,
)
from darts_lite.augment.policies.policy import Strength
from darts_lite.reporting import augmentation_report, pictures

KNOTS = {
    "magnitude.rotate": ((0.0, 0.2), (1.0, 0.8)),
    "magnitude.cutout": ((0.0, 0.5),),
    "probability.rotate": ((0.0, 0.25), (1.0, 0.75)),
}
POLICIES = {
    "none": Nothing,
    "standard": Policy,
    "learned": Learned,
    "randaugment": RandAugment,
    "trivialaugment": TrivialAugment,
    "autoaugment": AutoAugment,
    "schedule": lambda channels: Scheduled(channels=channels, knots=KNOTS),
}


def images(batch: int, channels: int) -> Tensor:
    return torch.rand(batch, channels, 16, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def grids(monkeypatch):
    """Collect the arguments of `labeled_grid`: images, row names, column names, title."""
    made, real = [], pictures.labeled_grid
    monkeypatch.setattr(pictures, "labeled_grid", lambda *a: made.append(a) or real(*a))
    return made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_has_a_picture(name, channels, grids):
    mixing = None if name == "learned" else Mixing(("mixup",))
    augment = Augmentation(POLICIES[name](channels=channels), mixing)
    some = images(3, channels)
    picture = augmentation_report.draw_augmentation(augment, some)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    generator = torch.Generator().manual_seed(0)
    choices = augment.sample(32, (16, 12), generator)
    drawn = augment.apply(some[torch.arange(32) % 3], choices).images
    grid = pictures.image_grid(drawn.numpy())
    height, width = grid.shape[:2]
    assert np.array_equal(picture[-height:, :width], grid)
    if name in ("none", "standard"):
        assert not grids and picture.shape == grid.shape
        return
    ((rows, names, columns, _),) = grids
    strengths = augment.policy.strengths((16, 12))
    assert rows.shape == (len(strengths), 9, channels, 16, 12)
    assert names == [f"{n}, {s.rate:.2f}" for n, s in strengths.items()]
    assert (columns[0], columns[-1], len(columns)) == ("lowest", "highest", 9)
    assert picture.shape[0] > height + 64 * len(strengths)


def test_a_row_goes_from_the_lowest_to_the_highest_value(grids):
    """Each row shows one operation on the next image; a signed operation goes from -end to end."""
    augment = Augmentation(Learned(channels=3, operations=("rotate", "contrast", "solarize")))
    values = {n: torch.tensor(0.5 if n.startswith("m") else 0.75) for n in augment.names}
    some = images(2, 3)
    augmentation_report.draw_augmentation(augment, some, values)
    ((rows, names, _, _),) = grids
    assert names == ["rotate, 0.75", "contrast, 0.75", "solarize, 0.75"]
    ends = {"rotate": math.radians(15), "contrast": 0.4, "solarize": 0.5}
    for i, (name, end) in enumerate(ends.items()):
        image = some[[i % 2]]
        low = -end if OPERATIONS[name].signed else 0.0
        for column, value in ((0, low), (4, (low + end) / 2), (8, end)):
            expected = operate(name, image, torch.tensor([value]))
            np.testing.assert_allclose(rows[i, column], expected[0], rtol=0, atol=1e-5)
        assert np.abs(rows[i, 8] - rows[i, 0]).max() > 0.05


def test_the_picture_shows_the_learned_values_and_the_fraction():
    some = images(3, 1)
    learned = Augmentation(Learned(channels=1, operations=("rotate", "invert")))
    weak, strong = (
        augmentation_report.draw_augmentation(
            learned, some, {n: torch.tensor(v) for n in learned.names}
        )
        for v in (0.1, 0.9)
    )
    assert weak.shape == strong.shape and not np.array_equal(weak, strong)
    values = {n: torch.tensor(0.1) for n in learned.names}
    assert np.array_equal(
        augmentation_report.draw_augmentation(learned, some, values), weak
    )  # the same every time
    schedule = Augmentation(Scheduled(channels=1, knots=KNOTS))
    early, late = (
        augmentation_report.draw_augmentation(schedule, some, fraction=f) for f in (0.0, 1.0)
    )
    assert not np.array_equal(early, late)
    shown = some[torch.arange(32) % 3]
    for augment, given, fraction, picture in (
        (learned, values, 0.0, weak),
        (schedule, None, 0.0, early),
        (schedule, None, 1.0, late),
    ):
        generator = torch.Generator().manual_seed(0)
        choices = augment.sample(32, (16, 12), generator, "cpu", given, fraction)
        grid = pictures.image_grid(augment.apply(shown, choices, given).images.numpy())
        height, width = grid.shape[:2]
        assert np.array_equal(picture[-height:, :width], grid)


def test_values_with_gradients_and_double_images_are_accepted():
    augment, some = Augmentation(Learned(channels=3, operations=("rotate", "cutout"))), images(2, 3)
    values = {n: torch.tensor(0.5) for n in augment.names}
    expected = augmentation_report.draw_augmentation(augment, some, values)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    assert np.array_equal(augmentation_report.draw_augmentation(augment, some, leaves), expected)
    double = augmentation_report.draw_augmentation(augment, some.double(), values).astype(int)
    assert double.shape == expected.shape and np.abs(double - expected).max() <= 1


def test_the_strength_table_is_readable():
    strengths = {
        "rotate": Strength(math.radians(30), 0.5),
        "solarize": Strength(1.0, 1 / 14),
        "gaussian_noise": Strength(0.02, 0.1),
        "translate_x": Strength(0.3, 1.25),
    }
    assert augmentation_report.strength_table(strengths).split("\n") == [
        "operation       how often  up to",
        "rotate               0.50  ±0.524 radians",
        "solarize             0.07   1.000 one minus the threshold",
        "gaussian_noise       0.10   0.020 standard deviation",
        "translate_x          1.25  ±0.300 fraction of the width",
    ]
    assert augmentation_report.strength_table({}) == "operation       how often  up to"


@pytest.mark.parametrize("name", [n for n in POLICIES if n not in ("none", "standard")])
def test_the_strength_table_has_one_line_per_operation(name):
    strengths = POLICIES[name](channels=3).strengths((16, 12), fraction=0.5)
    lines = augmentation_report.strength_table(strengths).split("\n")[1:]
    assert [line.split()[0] for line in lines] == list(strengths)
    for line in lines:
        assert ("±" in line) == OPERATIONS[line.split()[0]].signed


def test_draw_schedules_shows_learned_magnitudes_and_probabilities(monkeypatch):
    made, real = [], pictures.heat_map
    monkeypatch.setattr(pictures, "heat_map", lambda *a: made.append(a) or real(*a))
    schedules = {"lr": ((0.0, 0.1),), "alpha.x": ((0.0, 9.0),), **KNOTS}
    for what in ("magnitude", "probability"):
        picture = augmentation_report.draw_schedules(schedules, what)
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    (rows, columns, values, title), (others, _, more, _) = made
    assert rows == ["rotate", "cutout"] and others == ["rotate"] and "magnitude" in title
    assert columns[0] == "0%" and columns[5] == "50%" and columns[-1] == "100%"
    assert values[0] == pytest.approx([0.2 + 0.06 * i for i in range(11)])
    assert values[1] == [0.5] * 11
    assert more[0] == pytest.approx([0.25 + 0.05 * i for i in range(11)])
    assert augmentation_report.draw_schedules({"lr": ((0.0, 0.1),)}, "magnitude") is None
    assert (
        augmentation_report.draw_schedules({"magnitude.rotate": ((0.0, 0.1),)}, "probability")
        is None
    )
