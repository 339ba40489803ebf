"""The teacher's part of a loss: shares, mixed labels, derivatives, ensembles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import MixedLabels
from darts_lite.training.distillation import Teacher, ensemble
from darts_lite.training.distillation_losses import decoupled, kl
from darts_lite.training.losses import LOSSES

BATCH, CLASSES = 6, 4


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = normal(0, BATCH, CLASSES), 3 * normal(1, BATCH, CLASSES)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def criterion(logits: Tensor, targets: object) -> Tensor:
    return LOSSES["cross_entropy"](logits, targets)


def test_the_loss_is_shared_between_labels_and_teacher() -> None:
    both = torch.cat([STUDENT, TEACHER], 1)
    teacher = Teacher(lambda images: images, "kl", 0.25, 3.0)
    found = teacher.criterion(criterion, {})(both, LABELS)
    expected = 0.75 * criterion(STUDENT, LABELS) + 0.25 * kl(STUDENT, TEACHER, 3.0)
    torch.testing.assert_close(found, expected)
    learned = {"teacher_weight": torch.tensor(1.0), "temperature": torch.tensor(2.0)}
    found = teacher.criterion(criterion, learned)(both, LABELS)
    torch.testing.assert_close(found, kl(STUDENT, TEACHER, 2.0))


def test_decoupled_distillation_takes_the_label_with_the_larger_share() -> None:
    share = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    mixed = MixedLabels(LABELS, LABELS.roll(1), share)
    teacher = Teacher(lambda images: images, "decoupled", 1.0, 2.0)
    found = teacher.criterion(criterion, {})(torch.cat([STUDENT, TEACHER], 1), mixed)
    labels = torch.where(share > 0.5, LABELS.roll(1), LABELS)
    torch.testing.assert_close(found, decoupled(STUDENT, TEACHER, labels, 2.0))
    soft = F.one_hot(LABELS, CLASSES).double()
    torch.testing.assert_close(
        teacher.criterion(criterion, {})(torch.cat([STUDENT, TEACHER], 1), soft),
        decoupled(STUDENT, TEACHER, LABELS, 2.0),
    )


@pytest.mark.parametrize("kind", ["kl", "decoupled"])
def test_weight_and_temperature_have_derivatives(kind: str) -> None:
    teacher = Teacher(lambda images: images, kind, 0.5, 4.0)  # type: ignore[arg-type]
    both = torch.cat([STUDENT, TEACHER], 1).requires_grad_()

    def loss(logits: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
        values = {"teacher_weight": weight, "temperature": temperature}
        return teacher.criterion(criterion, values)(logits, LABELS)

    half = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    four = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (both, half, four))


def test_student_and_teacher_see_the_same_images() -> None:
    seen: list[Tensor] = []

    def watching(images: Tensor) -> Tensor:
        seen.append(images)
        return images.flatten(1)

    images = normal(2, BATCH, 1, 2, 2)
    both = Teacher(watching).beside(lambda images: 2 * images.flatten(1))(images)
    assert seen[0] is images
    torch.testing.assert_close(both, torch.cat([2 * images.flatten(1), images.flatten(1)], 1))


def test_an_ensemble_has_the_mean_probabilities() -> None:
    parts = [normal(s, BATCH, CLASSES) for s in range(3)]
    found = ensemble([lambda x, p=p: p for p in parts])(torch.zeros(1))
    expected = torch.stack([p.softmax(1) for p in parts]).mean(0)
    torch.testing.assert_close(found.softmax(1), expected)
    assert torch.equal(ensemble([lambda x: parts[0]])(torch.zeros(1)), parts[0])
