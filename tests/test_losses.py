"""Every loss of `LOSSES`, on every kind of targets; then the values of each."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from darts_lite.augment import MixedLabels, Targets
from darts_lite.errors import UserError
from darts_lite.training.losses import (
    LOSSES,
    bce,
    cross_entropy,
    expected_cost,
    focal,
    soft_f1,
)

BATCH, CLASSES = 6, 4
KINDS = ("hard", "soft", "mixed hard", "mixed soft")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(BATCH, CLASSES, generator=seeded(0), dtype=torch.float64).to(dtype)


def targets(kind: str, dtype: torch.dtype = torch.float64) -> Targets:
    labels = torch.randint(CLASSES, (BATCH,), generator=seeded(1))
    if kind.endswith("soft"):
        labels = torch.rand(BATCH, CLASSES, generator=seeded(2), dtype=torch.float64).softmax(1)
        labels = labels.to(dtype)
    if kind.startswith("mixed"):
        share = torch.linspace(0, 1, BATCH, dtype=torch.float64).to(dtype)
        return MixedLabels(labels, labels.roll(1, 0), share)
    return labels


def as_soft(targets: Targets) -> Tensor:
    """Return the same targets as shares `[B, K]` of each class."""
    if isinstance(targets, MixedLabels):
        own, partner = as_soft(targets.labels), as_soft(targets.partners)
        return own + targets.share.unsqueeze(1) * (partner - own)
    return targets if targets.is_floating_point() else F.one_hot(targets, CLASSES).double()


# --- every loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_there_is_one_finite_loss_for_each_example(name, kind):
    for dtype in (torch.float32, torch.float64):
        losses = LOSSES[name](logits(dtype), targets(kind, dtype))
        assert losses.shape == (BATCH,) and losses.dtype == dtype and losses.isfinite().all()
        if not LOSSES[name].of_the_batch:  # examples do not influence each other
            one = LOSSES[name](logits(dtype)[:1], first(targets(kind, dtype)))
            torch.testing.assert_close(one, losses[:1])


def first(targets: Targets) -> Targets:
    """Return the targets of the first example."""
    if isinstance(targets, MixedLabels):
        return MixedLabels(*(part[:1] for part in targets))
    return targets[:1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_are_exact(name, kind):
    given, x = targets(kind), logits().requires_grad_()
    loss = partial(LOSSES[name], targets=given)
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)
    if isinstance(given, MixedLabels):
        share = given.share.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, s: LOSSES[name](x, given._replace(share=s)), (x, share)
        )


@pytest.mark.parametrize("name", LOSSES)
def test_hard_labels_are_soft_labels_that_are_one_hot(name):
    hard = targets("hard")
    torch.testing.assert_close(LOSSES[name](logits(), hard), LOSSES[name](logits(), as_soft(hard)))


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_zero_and_one_are_the_two_labels(name):
    labels, partners, _ = targets("mixed hard")
    for share, expected in ((torch.zeros(BATCH), labels), (torch.ones(BATCH), partners)):
        mixed = MixedLabels(labels, partners, share.double())
        torch.testing.assert_close(LOSSES[name](logits(), mixed), LOSSES[name](logits(), expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_device(name, kind):
    """Tensors of the meta device have no values."""
    given = targets(kind)
    there = (
        MixedLabels(*(part.to("meta") for part in given))
        if isinstance(given, MixedLabels)
        else given.to("meta")
    )
    x = logits().to("meta").requires_grad_()
    losses = LOSSES[name](x, there)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    assert losses.shape == (BATCH,) and slope.shape == x.shape


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, y[:3]), r"labels must be \[B\] long .*, got \(3,\), torch.int64 for"),
        (lambda x, y: (x, y.float()), r"got \(6,\), torch.float32 for \(6, 4\)"),
        (lambda x, y: (x[0], y), r"for logits \[B, K\], got .* for \(4,\)"),
        (lambda x, y: (x, MixedLabels(y, y[:3], x[:, 0])), r"got \(3,\), torch.int64"),
        (lambda x, y: (x, MixedLabels(y, y, x[:1, 0])), r"share must be \[B\], got \(1,\) for 6"),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_do_not_fit_are_refused(name, change, message):
    with pytest.raises(UserError, match=message) as error:
        LOSSES[name](*change(logits(), targets("hard")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_label_smoothing_and_own_settings_can_be_learned(name, kind):
    """The mixed second derivative is what a hypergradient needs."""
    own = LOSSES[name].settings
    starts = {"label_smoothing": 0.1, **{n: s.default for n, s in own.items()}}
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in starts.values()]
    x, given = logits().requires_grad_(), targets(kind)

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return LOSSES[name](x, given, **dict(zip(starts, values)))

    assert torch.autograd.gradcheck(loss, (x, *values))
    assert torch.autograd.gradgradcheck(loss, (x, *values))


@pytest.mark.parametrize("name", LOSSES)
def test_a_number_and_a_tensor_give_the_same_loss(name):
    for kind in KINDS:
        given, knob = targets(kind), torch.tensor(0.2, dtype=torch.float64)
        found = LOSSES[name](logits(), given, label_smoothing=0.2)
        torch.testing.assert_close(LOSSES[name](logits(), given, label_smoothing=knob), found)


@pytest.mark.parametrize("name", LOSSES)
def test_sure_logits_have_finite_derivatives_in_float32(name):
    """Also of learned settings, where a probability is exactly one or zero."""
    for size in (1.0, 30.0, 200.0):
        x = (size * torch.eye(CLASSES)).requires_grad_()
        labels = torch.tensor([0, 1, 2, 0])
        own = {n: torch.tensor(s.default) for n, s in LOSSES[name].settings.items()}
        knobs = {"label_smoothing": torch.tensor(0.1), **own}
        for knob in knobs.values():
            knob.requires_grad_()
        losses = LOSSES[name](x, labels, **knobs)
        slopes = torch.autograd.grad(losses.sum(), [x, *knobs.values()], create_graph=True)
        assert losses.isfinite().all() and all(s.isfinite().all() for s in slopes)
        (second,) = torch.autograd.grad(slopes[0].square().sum(), x)
        assert second.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_class_weights_change_nothing_but_the_scale(name):
    """Of a mean over classes, as in soft F1, they change nothing at all."""
    for kind in KINDS:
        twice = torch.full((CLASSES,), 2.0)
        found = LOSSES[name](logits(), targets(kind), label_smoothing=0.1, class_weights=twice)
        plain = LOSSES[name](logits(), targets(kind), label_smoothing=0.1)
        torch.testing.assert_close(found, plain if LOSSES[name].of_the_batch else 2 * plain)


# --- cross entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_equals_that_of_torch(kind, smoothing):
    given = targets(kind)
    expected = F.cross_entropy(
        logits(), as_soft(given), reduction="none", label_smoothing=smoothing
    )
    for knob in (smoothing, torch.tensor(smoothing, dtype=torch.float64)):
        torch.testing.assert_close(cross_entropy(logits(), given, knob), expected)


def test_cross_entropy_of_labels_is_the_fused_kernel_of_torch():
    """Bit for bit: the usual recipe."""
    x, labels = logits(torch.float32), targets("hard")
    expected = F.cross_entropy(x, labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(cross_entropy(x, labels, 0.1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_label_smoothing_can_be_learned(kind):
    x, s = logits().requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss: Callable[..., Tensor] = lambda x, s: cross_entropy(x, targets(kind), s)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x, s))
    assert torch.autograd.gradgradcheck(loss, (x, s))  # the mixed derivative of a hypergradient


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_label_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(UserError, match=rf"label_smoothing must be in \[0, 1\], got {smoothing}"):
        cross_entropy(logits(), targets("hard"), smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_are_those_of_torch(kind, smoothing):
    given, weights = targets(kind), torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    expected = F.cross_entropy(
        logits(), as_soft(given), weights, reduction="none", label_smoothing=smoothing
    )
    for knob in (smoothing, torch.tensor(smoothing, dtype=torch.float64)):
        torch.testing.assert_close(cross_entropy(logits(), given, knob, weights), expected)
    if kind == "hard":
        hard = F.cross_entropy(
            logits(), given, weights, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(cross_entropy(logits(), given, smoothing, weights), hard)


# --- the other losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_focal_with_gamma_zero_is_cross_entropy(kind):
    for smoothing in (0.0, 0.1):
        found = focal(logits(), targets(kind), smoothing, gamma=0.0)
        torch.testing.assert_close(found, cross_entropy(logits(), targets(kind), smoothing))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_of_two_classes_is_that_of_torchvision(gamma):
    """The softmax of (0, z) is the sigmoid of z."""
    z = logits()[:, 0]
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    expected = sigmoid_focal_loss(z, labels.double(), alpha=-1, gamma=gamma)
    found = focal(torch.stack([torch.zeros_like(z), z], 1), labels, gamma=gamma)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_bce_is_the_sum_of_that_of_torch(kind, smoothing):
    given = targets(kind)
    shares = as_soft(given) * (1 - smoothing) + smoothing / CLASSES
    expected = F.binary_cross_entropy_with_logits(logits(), shares, reduction="none")
    torch.testing.assert_close(bce(logits(), given, smoothing), expected.sum(1))
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    found = bce(logits(), given, smoothing, weights)
    torch.testing.assert_close(found, (expected * weights).sum(1))


def test_soft_f1_of_certain_predictions_is_one_minus_macro_f1():
    """Over the classes with targets; scikit-learn counts."""
    labels = torch.tensor([0, 0, 1, 1, 2, 0])  # no target of class 3
    guesses = torch.tensor([0, 1, 1, 3, 2, 2])
    x = 200.0 * F.one_hot(guesses, CLASSES).double()
    expected = 1 - f1_score(labels, guesses, labels=[0, 1, 2], average="macro")
    assert float(soft_f1(x, labels).mean()) == pytest.approx(expected)
    weights = torch.tensor([3.0, 1.0, 1.0, 7.0])
    each = f1_score(labels, guesses, labels=[0, 1, 2], average=None)
    found = soft_f1(x, labels, class_weights=weights).mean()
    assert float(found) == pytest.approx(1 - (3 * each[0] + each[1] + each[2]) / 5)


def test_soft_f1_is_the_statistic_of_soft_counts():
    given = targets("mixed soft")
    p, y = logits().softmax(1), as_soft(given)
    tp, fp, fn = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
    expected = 1 - (2 * tp / (2 * tp + fp + fn)).mean()
    torch.testing.assert_close(soft_f1(logits(), given).mean(), expected)


# --- the helper -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_is_the_mean_over_the_targets(kind):
    costs, given = logits(), targets(kind)
    torch.testing.assert_close(expected_cost(costs, given), (as_soft(given) * costs).sum(1))
