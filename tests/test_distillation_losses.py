"""Distillation losses against torch, their definition and each other."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import MixedLabels
from darts_lite.errors import UserError
from darts_lite.training.distillation_losses import decoupled, kl, main_labels, map_classes

BATCH, CLASSES = 6, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(BATCH, CLASSES, generator=seeded(seed), dtype=torch.float64)


STUDENT, TEACHER = 0, 1
LABELS = torch.randint(CLASSES, (BATCH,), generator=seeded(2))
LOSSES = {"kl": kl, "decoupled": partial(decoupled, labels=LABELS)}


# --- every loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_are_exact(name: str) -> None:
    """In both logits and in a learned temperature."""
    variables = (logits(STUDENT), logits(TEACHER), torch.tensor(3.0, dtype=torch.float64))
    variables = tuple(each.requires_grad_() for each in variables)

    def loss(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        return LOSSES[name](student, teacher, temperature=temperature)

    assert torch.autograd.gradcheck(loss, variables, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, variables)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_zero_for_the_teacher_and_above_for_all_others(name: str) -> None:
    teacher = logits(TEACHER).requires_grad_()
    losses = LOSSES[name](teacher, logits(TEACHER))
    (slope,) = torch.autograd.grad(losses.sum(), teacher)
    torch.testing.assert_close(losses, torch.zeros_like(losses))
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    assert (LOSSES[name](logits(STUDENT), logits(TEACHER)) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_examples_do_not_influence_each_other(name: str) -> None:
    losses = LOSSES[name](logits(STUDENT), logits(TEACHER))
    assert losses.shape == (BATCH,)
    labels = {"labels": LABELS[:2]} if name == "decoupled" else {}
    torch.testing.assert_close(
        LOSSES[name](logits(STUDENT)[:2], logits(TEACHER)[:2], **labels), losses[:2]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_confident_predictions_have_finite_derivatives(name: str) -> None:
    """First and second, in float32, where a probability is exactly zero or one."""
    student = torch.full((BATCH, CLASSES), -300.0).scatter(1, LABELS.unsqueeze(1), 300.0)
    teacher = student.roll(1, 1)
    for pair in ((student, teacher), (teacher, student), (student, student)):
        variables = [*(each.clone() for each in pair), torch.tensor(1.0)]
        variables = [each.requires_grad_() for each in variables]
        losses = LOSSES[name](variables[0], variables[1], temperature=variables[2])
        slopes = torch.autograd.grad(losses.sum(), variables, create_graph=True)
        second = torch.autograd.grad(sum(slope.sum() for slope in slopes), variables)
        for each in (losses, *slopes, *second):
            assert each.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """Tensors of the meta device have no values."""
    x, teacher = (logits(seed).to("meta").requires_grad_() for seed in (STUDENT, TEACHER))
    labels = {"labels": LABELS.to("meta")} if name == "decoupled" else {}
    losses = LOSSES[name](x, teacher, **labels)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    assert losses.shape == (BATCH,) and slope.shape == x.shape


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"\[B, K\] as of the student, got \(6, 3\) for \(6, 4\)"):
        LOSSES[name](logits(STUDENT), logits(TEACHER)[:, :3])
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"finite and above 0, got {temperature}"):
            LOSSES[name](logits(STUDENT), logits(TEACHER), temperature=temperature)


# --- kl -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_that_of_torch(temperature: float) -> None:
    q, p = ((logits(seed) / temperature).log_softmax(1) for seed in (STUDENT, TEACHER))
    expected = temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    for knob in (temperature, torch.tensor(temperature)):
        torch.testing.assert_close(kl(logits(STUDENT), logits(TEACHER), knob), expected)


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    """It approaches (student - teacher) / K of logits with the mean zero (Hinton et al., eq. 4)."""
    pair = [x - x.mean(1, keepdim=True) for x in (logits(STUDENT), logits(TEACHER))]
    student = pair[0].requires_grad_()
    (slope,) = torch.autograd.grad(kl(student, pair[1], 1e5).sum(), student)
    torch.testing.assert_close(slope, (pair[0] - pair[1]) / CLASSES, rtol=1e-3, atol=1e-4)


# --- decoupled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_with_the_weights_of_kl_is_kl(temperature: float) -> None:
    p = (logits(TEACHER) / temperature).softmax(1).gather(1, LABELS.unsqueeze(1)).squeeze(1)
    found = decoupled(logits(STUDENT), logits(TEACHER), LABELS, temperature, beta=1 - p)
    torch.testing.assert_close(found, kl(logits(STUDENT), logits(TEACHER), temperature))


@pytest.mark.parametrize("alpha, beta", [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)])
def test_decoupled_is_its_definition(alpha: float, beta: float) -> None:
    """One example at a time, with the other classes in a list of their own."""
    expected = []
    for x, y, t in zip(logits(STUDENT), logits(TEACHER), LABELS.tolist()):
        q, p = (x / 4).softmax(0), (y / 4).softmax(0)
        binary = [torch.stack((each[t], 1 - each[t])) for each in (p, q)]
        rest = [torch.cat((each[:t], each[t + 1 :])) / (1 - each[t]) for each in (p, q)]
        tckd, nckd = ((a * (a / b).log()).sum() for a, b in (binary, rest))
        expected.append(16 * (alpha * tckd + beta * nckd))
    found = decoupled(logits(STUDENT), logits(TEACHER), LABELS, 4.0, alpha, beta)
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_larger_share_of_mixed_labels_is_the_label() -> None:
    share = torch.tensor([0.0, 0.4, 0.5, 0.6, 0.9, 1.0], dtype=torch.float64)
    mixed = MixedLabels(LABELS, LABELS.roll(1), share)
    main = torch.cat((LABELS[:3], LABELS.roll(1)[3:]))
    hot = F.one_hot(LABELS, CLASSES).double()
    share = torch.where(share == 0.5, 0.49, share)
    soft = MixedLabels(hot, hot.roll(1, 0), share)
    x, teacher = logits(STUDENT), logits(TEACHER)
    for targets in (mixed, soft):
        assert torch.equal(main_labels(targets, x), main)
        assert torch.equal(decoupled(x, teacher, targets), decoupled(x, teacher, main))
    assert torch.equal(main_labels(hot, x), LABELS)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"labels must be \[B\] long, got \(2,\), torch.int64 for"):
        decoupled(logits(STUDENT), logits(TEACHER), LABELS[:2])


# --- classes of the teacher -----------------------------------------------------------------------


def test_map_classes_chooses_columns() -> None:
    teacher = torch.randn(2, 7, generator=seeded(3))
    index = torch.tensor([6, 0, 0])
    assert torch.equal(map_classes(teacher, index), teacher[:, [6, 0, 0]])
    for bad in (index.float(), index.view(1, 3)):
        with pytest.raises(UserError, match=r"index must be \[K\] long"):
            map_classes(teacher, bad)
