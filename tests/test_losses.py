"""Every loss of `LOSSES`, on every kind of targets; then the values of each."""

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
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
    log_complement,
    soft_f1,
    target_shares,
)

BATCH, CLASSES = 8, 4
KINDS = ("hard", "soft", "mixed hard", "mixed soft")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(BATCH, CLASSES, generator=seeded(0), dtype=torch.float64).to(dtype)


def targets(kind: str, dtype: torch.dtype = torch.float64) -> Targets:
    labels = torch.randperm(BATCH, generator=seeded(1)) % CLASSES  # each class twice
    if kind.endswith("soft"):
        labels = torch.rand(BATCH, CLASSES, generator=seeded(2), dtype=torch.float64).softmax(1)
        labels = labels.to(dtype)
    if kind.startswith("mixed"):
        share = torch.linspace(0, 1, BATCH, dtype=torch.float64).to(dtype)
        return MixedLabels(labels, labels.roll(1, 0), share)
    return labels


def weights() -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


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
        one = LOSSES[name](logits(dtype)[:1], first(targets(kind, dtype)))
        same = torch.allclose(one, losses[:1])
        assert same != LOSSES[name].batch_statistic  # examples do not influence each other


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_can_be_learned(name, kind):
    """Smoothing, class weights and own settings, with the mixed derivatives of a hypergradient."""
    own = LOSSES[name].settings
    starts = [torch.tensor(0.1), weights(), *(torch.tensor(s.default) for s in own.values())]
    knobs = [start.double().requires_grad_() for start in starts]

    def loss(x: Tensor, smoothing: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        return LOSSES[name](x, targets(kind), smoothing, weights, **dict(zip(own, rest)))

    x = logits().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, *knobs), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (x, *knobs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_smoothed_labels_are_soft_labels(name, kind):
    """For `soft_f1`, only where every class has targets: else smoothing would give it some."""
    given, smoothing = targets(kind), 0.3
    assert bool((as_soft(given).sum(0) > 0).all())
    soft = (1 - smoothing) * as_soft(given) + smoothing / CLASSES
    for knob in (smoothing, torch.tensor(smoothing, dtype=torch.float64)):
        torch.testing.assert_close(
            LOSSES[name](logits(), given, knob, weights()),
            LOSSES[name](logits(), soft, class_weights=weights()),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_class_weights_of_one_change_nothing(name, kind):
    for smoothing in (0.0, 0.1):
        plain = LOSSES[name](logits(), targets(kind), smoothing)
        ones = LOSSES[name](logits(), targets(kind), smoothing, torch.ones(CLASSES))
        torch.testing.assert_close(ones, plain)


@pytest.mark.parametrize("name", LOSSES)
def test_confident_predictions_have_finite_derivatives(name):
    """First and second, in float32, where a probability is exactly zero or one."""
    x = torch.tensor([[200.0, 0.0, -200.0], [0.0, 200.0, 1.0], [0.0, 0.0, 0.0]])
    assert x.softmax(1)[0].tolist() == [1.0, 0.0, 0.0]
    own = LOSSES[name].settings
    for value in ({n: s.default for n, s in own.items()}, dict.fromkeys(own, 0.5)):
        knobs = [torch.tensor(each, requires_grad=True) for each in value.values()]
        for label in range(3):
            variables = [x.clone().requires_grad_(), *knobs]
            losses = LOSSES[name](
                variables[0], torch.full((3,), label), **dict(zip(own, variables[1:]))
            )
            slopes = torch.autograd.grad(losses.sum(), variables, create_graph=True)
            total = torch.stack([slope.square().sum() for slope in slopes]).sum()
            second = torch.autograd.grad(total, variables)
            for each in (losses, *slopes, *second):
                assert each.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_record_has_the_settings_of_the_function(name):
    record = LOSSES[name]
    first, *own = list(inspect.signature(record.function).parameters.values())[3:]
    assert first.name == "class_weights"
    assert {each.name: each.default for each in own} == {
        setting: entry.default for setting, entry in record.settings.items()
    }
    assert all(entry.low < entry.default < entry.high for entry in record.settings.values())


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
        (lambda x, y: (x, y.float()), r"got \(8,\), torch.float32 for \(8, 4\)"),
        (lambda x, y: (x[0], y), r"for logits \[B, K\], got .* for \(4,\)"),
        (lambda x, y: (x, MixedLabels(y, y[:3], x[:, 0])), r"got \(3,\), torch.int64"),
        (lambda x, y: (x, MixedLabels(y, y, x[:1, 0])), r"share must be \[B\], got \(1,\) for 8"),
        (lambda x, y: (x, y, 0.0, x[0, :3]), r"class_weights must be \[K\], got \(3,\) for 4 cla"),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_do_not_fit_are_refused(name, change, message):
    with pytest.raises(UserError, match=message) as error:
        LOSSES[name](*change(logits(), targets("hard")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", LOSSES)
def test_label_smoothing_out_of_range_is_refused(name, smoothing):
    with pytest.raises(UserError, match=rf"label_smoothing must be in \[0, 1\], got {smoothing}"):
        LOSSES[name](logits(), targets("hard"), smoothing)


# --- cross entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, weights()], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_equals_that_of_torch(kind, smoothing, weight):
    given = targets(kind)
    alike = [as_soft(given)] if kind != "hard" else [as_soft(given), given]
    for knob in (smoothing, torch.tensor(smoothing, dtype=torch.float64)):
        losses = cross_entropy(logits(), given, knob, weight)
        for each in alike:
            expected = F.cross_entropy(
                logits(), each, weight, reduction="none", label_smoothing=smoothing
            )
            torch.testing.assert_close(losses, expected)


def test_cross_entropy_of_labels_is_the_fused_kernel_of_torch():
    """Bit for bit: the usual recipe."""
    x, labels = logits(torch.float32), targets("hard")
    expected = F.cross_entropy(x, labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(cross_entropy(x, labels, 0.1), expected)


# --- focal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_focal_with_gamma_zero_is_cross_entropy(kind):
    for gamma in (0.0, torch.tensor(0.0)):
        torch.testing.assert_close(
            focal(logits(), targets(kind), 0.1, weights(), gamma),
            cross_entropy(logits(), targets(kind), 0.1, weights()),
        )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_focal_is_its_formula(kind, gamma):
    p = logits().softmax(1)
    costs = -weights() * (1 - p) ** gamma * p.log()
    expected = 0.9 * (as_soft(targets(kind)) * costs).sum(1) + 0.1 * costs.mean(1)
    for knob in (gamma, torch.tensor(gamma, dtype=torch.float64)):
        torch.testing.assert_close(focal(logits(), targets(kind), 0.1, weights(), knob), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_two_classes_is_that_of_torchvision(gamma):
    """The logit of torchvision is the difference of ours, and its alpha weights the first class."""
    x, labels = logits()[:, :2], torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    expected = sigmoid_focal_loss(x[:, 1] - x[:, 0], labels.double(), 0.25, gamma)
    alpha = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(
        focal(x, labels, class_weights=alpha.double(), gamma=gamma), expected
    )


@pytest.mark.parametrize("gamma", [-0.1, float("inf"), float("nan")])
def test_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(UserError, match=rf"gamma must be finite and at least 0, got {gamma}"):
        focal(logits(), targets("hard"), gamma=gamma)


def test_log_complement_is_exact_in_float32():
    """Compared with float64, and with the closed form where that cancels too."""
    x = torch.tensor([[30.0, 0.0, -1.0], [0.0, 0.0, 0.0], [12.0, 5.0, 5.0], [1.0, 1.0, -9.0]])
    exact = torch.log1p(-x.double().softmax(1))
    exact[0, 0] = torch.tensor([0.0, -1.0]).logsumexp(0).double() - 30
    torch.testing.assert_close(log_complement(x.log_softmax(1)).double(), exact, rtol=1e-5, atol=0)


# --- binary cross entropy -------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bce_equals_that_of_torch(kind, smoothing):
    """With the smoothed shares of timm: s / K for the others, 1 - s + s / K for the label."""
    off = smoothing / CLASSES
    shares = off + (1 - smoothing) * as_soft(targets(kind))
    expected = F.binary_cross_entropy_with_logits(
        logits(), shares, pos_weight=weights(), reduction="none"
    )
    losses = bce(logits(), targets(kind), smoothing, weights())
    torch.testing.assert_close(losses, expected.sum(1))


def test_bce_takes_labels_of_several_classes():
    several = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    expected = F.binary_cross_entropy_with_logits(logits()[:2], several, reduction="none").sum(1)
    torch.testing.assert_close(bce(logits()[:2], several), expected)


# --- soft F1 --------------------------------------------------------------------------------------


def f1_of(p: Tensor, y: Tensor, k: int) -> Tensor:
    """Return the F1 score of class k from its soft counts, one by one."""
    true = sum(y[i, k] * p[i, k] for i in range(len(p)))
    false_positive = sum((1 - y[i, k]) * p[i, k] for i in range(len(p)))
    false_negative = sum(y[i, k] * (1 - p[i, k]) for i in range(len(p)))
    return 2 * true / (2 * true + false_positive + false_negative)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_f1_is_one_minus_the_macro_f1_score_of_soft_counts(kind, smoothing):
    p, y = logits().softmax(1), as_soft(targets(kind))
    y = (1 - smoothing) * y + smoothing / CLASSES
    scores = torch.stack([f1_of(p, y, k) for k in range(CLASSES)])
    found = soft_f1(logits(), targets(kind), smoothing).mean()
    torch.testing.assert_close(found, 1 - scores.mean())
    found = soft_f1(logits(), targets(kind), smoothing, weights()).mean()
    torch.testing.assert_close(found, 1 - (weights() * scores).sum() / weights().sum())


def test_soft_f1_of_sure_predictions_is_the_f1_score():
    from sklearn.metrics import f1_score

    predicted = torch.randint(CLASSES, (50,), generator=seeded(3))
    labels = torch.randint(CLASSES, (50,), generator=seeded(4))
    found = soft_f1(1000.0 * F.one_hot(predicted, CLASSES), labels).mean()
    assert 1 - found.item() == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_f1_leaves_out_classes_without_targets(smoothing):
    """Predicted or not; with a probability of zero as well."""
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    y = (1 - smoothing) * F.one_hot(labels, CLASSES).double() + smoothing / CLASSES
    for x in (logits(), logits() - torch.tensor([0.0, 0.0, 0.0, 2000.0]).double()):
        x.requires_grad_()
        expected = 1 - (f1_of(x.softmax(1), y, 0) + f1_of(x.softmax(1), y, 1)) / 2
        found = soft_f1(x, labels, smoothing).mean()
        torch.testing.assert_close(found, expected)
        assert torch.autograd.grad(found, x)[0].isfinite().all()


def test_soft_f1_of_no_weight_or_no_target_is_one():
    losses = soft_f1(logits(), targets("hard"), class_weights=torch.zeros(CLASSES))
    assert torch.equal(losses, torch.ones_like(losses))
    assert torch.equal(soft_f1(logits(), torch.zeros(BATCH, CLASSES).double()), losses)


# --- the helpers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_target_shares_are_soft_labels(kind):
    torch.testing.assert_close(target_shares(targets(kind), logits()), as_soft(targets(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_is_the_mean_over_the_targets(kind):
    costs, given = logits(), targets(kind)
    torch.testing.assert_close(expected_cost(costs, given), (as_soft(given) * costs).sum(1))
