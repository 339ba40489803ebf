"""Distances from a teacher: against torch, the identity of the decoupled one, derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.training.distillation_losses import decoupled, kl, map_classes

BATCH, CLASSES = 6, 4


def normal(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64)


STUDENT, TEACHER, LABELS = normal(0), normal(1), torch.tensor([0, 1, 2, 3, 3, 0])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_that_of_torch(temperature: float) -> None:
    log_q, log_p = ((x / temperature).log_softmax(1) for x in (STUDENT, TEACHER))
    expected = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(kl(STUDENT, TEACHER, temperature), temperature**2 * expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_decoupled_distance_with_the_teachers_own_weight_is_kl(temperature: float) -> None:
    """Zhao et al. 2022, equation 6."""
    own = (TEACHER / temperature).softmax(1).gather(1, LABELS.unsqueeze(1))[:, 0]
    targets = decoupled(STUDENT, TEACHER, LABELS, temperature, alpha=1.0, beta=0.0)
    others = decoupled(STUDENT, TEACHER, LABELS, temperature, alpha=0.0, beta=1.0)
    torch.testing.assert_close(targets + (1 - own) * others, kl(STUDENT, TEACHER, temperature))
    found = decoupled(STUDENT, TEACHER, LABELS, temperature)
    torch.testing.assert_close(found, targets + 8 * others)


def test_derivatives_are_exact_in_logits_and_temperature() -> None:
    four = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    x, y = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    for distance in (kl, lambda s, t, T: decoupled(s, t, LABELS, T)):
        assert torch.autograd.gradcheck(distance, (x, y, four))
        assert torch.autograd.gradgradcheck(distance, (x, y, four))


def test_a_very_sure_teacher_gives_finite_derivatives() -> None:
    sure = 300 * F.one_hot(LABELS, CLASSES).float()
    x = STUDENT.float().requires_grad_()
    for losses in (kl(x, sure, 1.0), decoupled(x, sure, LABELS, 1.0)):
        (slope,) = torch.autograd.grad(losses.sum(), x)
        assert losses.isfinite().all() and slope.isfinite().all()


def test_nothing_waits_for_the_device() -> None:
    """Tensors of the meta device have no values."""
    one, two, labels = (x.to("meta") for x in (STUDENT, TEACHER, LABELS))
    assert kl(one, two).shape == decoupled(one, two, labels).shape == (BATCH,)


def test_classes_are_mapped() -> None:
    found = map_classes(TEACHER, torch.tensor([3, 3, 0]))
    assert torch.equal(found, TEACHER[:, [3, 3, 0]])
