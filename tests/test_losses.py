"""Every loss of `LOSSES`, on every kind of targets; then the values of each."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import MixedLabels, Targets
from darts_lite.errors import UserError
from darts_lite.training.losses import LOSSES, cross_entropy, expected_cost

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
        one = LOSSES[name](logits(dtype)[:1], first(targets(kind, dtype)))
        torch.testing.assert_close(one, losses[:1])  # examples do not influence each other


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


# --- the helper -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_is_the_mean_over_the_targets(kind):
    costs, given = logits(), targets(kind)
    torch.testing.assert_close(expected_cost(costs, given), (as_soft(given) * costs).sum(1))
