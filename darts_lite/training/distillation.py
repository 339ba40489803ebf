"""Knowledge distillation: a student learns from the outputs of a teacher beside the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from darts_lite.augment import Targets
from darts_lite.hypergradient.hyperparameters import HyperSpec, Interval, LogInterval
from darts_lite.training.distillation_losses import decoupled, kl

Kind = Literal["kl", "decoupled"]
WEIGHT: Mapping[str, float] = {"kl": 0.9, "decoupled": 0.5}  # default weight of the teacher
TEMPERATURE = 4.0
TRAVEL = 4.0  # distance that a learned raw value can move in one training


@dataclass(frozen=True)
class Teacher:
    """The part of a loss that comes from a teacher:

        loss = (1 - weight) loss(labels) + weight loss(teacher)

    Teacher and student see the same augmented images. The teacher's weights are constant, but its
    outputs depend on the images, so that learned augmentation gets its whole derivative.

    Arguments:
        logits: maps images `[B, C, H, W]` to the teacher's logits `[B, K]`.
        kind: "kl" (Hinton et al. 2015) or "decoupled" (Zhao et al. 2022).
        weight: share of the teacher, 0 to 1, where it is not learned.
        temperature: temperature of both softmaxes, above 0, where it is not learned.
    """

    logits: Callable[[Tensor], Tensor]
    kind: Kind = "kl"
    weight: float = WEIGHT["kl"]
    temperature: float = TEMPERATURE

    def specs(self) -> list[HyperSpec]:
        """Return weight and temperature as values to learn, at their current values."""
        start = min(max(self.weight, 0.02), 0.98), min(max(self.temperature, 1.01), 19.0)
        return [
            HyperSpec("teacher_weight", torch.tensor(start[0]), Interval(0.0, 1.0), "loss", TRAVEL),
            HyperSpec(
                "temperature", torch.tensor(start[1]), LogInterval(1.0, 20.0), "loss", TRAVEL
            ),
        ]

    def criterion(
        self, loss: Callable[[Tensor, Targets], Tensor], values: Mapping[str, Tensor]
    ) -> Callable[[Tensor, Targets], Tensor]:
        """Return the loss `[B]` of the logits of student and teacher, `[B, 2K]`, and targets.

        Arguments:
            loss: loss `[B]` of the student's logits and targets.
            values: learned values by name; "teacher_weight" and "temperature" are used.
        """
        weight = values.get("teacher_weight", self.weight)
        temperature = values.get("temperature", self.temperature)

        def both(logits: Tensor, targets: Targets) -> Tensor:
            student, teacher = logits.chunk(2, 1)
            if self.kind == "kl":
                told = kl(student, teacher, temperature)
            else:
                told = decoupled(student, teacher, targets, temperature)
            return (1 - weight) * loss(student, targets) + weight * told

        return both

    def beside(self, student: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a function from images to the logits of student and teacher, `[B, 2K]`."""
        return lambda images: torch.cat([student(images), self.logits(images)], 1)


def ensemble(members: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return a function from images to the logarithm of the mean probabilities of the members.

    >>> one = lambda images: torch.tensor([[0.0, 0.0]]); two = lambda images: one(images) * 3
    >>> ensemble([one, two])(torch.zeros(1, 1, 2, 2)).exp()
    tensor([[0.5000, 0.5000]])
    """
    if len(members) == 1:
        return members[0]

    def logits(images: Tensor) -> Tensor:
        parts = torch.stack([member(images).log_softmax(1) for member in members])
        return parts.logsumexp(0) - torch.tensor(float(len(members))).log()

    return logits
