"""What a task is fed with: augmented training batches and plain validation batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darts_lite.architecture.recipe import Sampling
from darts_lite.augment import Augmentation
from darts_lite.data import Batches, Images
from darts_lite.training.problem import Batch


class Feed:
    """Endless batches of training and validation images, and their random draws.

    Arguments:
        train: training images, on the device of the task.
        validation: validation images, on the same device.
        batch_size: images per batch.
        augment: the augmentation of training images.
        seed: seed of the order of the images and of all draws.
        sampling: whether training images or their classes are drawn uniformly.
    """

    def __init__(
        self,
        train: Images,
        validation: Images,
        batch_size: int,
        augment: Augmentation,
        seed: int,
        sampling: Sampling = "uniform",
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.train = Batches(train, batch_size, self.generator, sampling)
        self.validation = Batches(validation, batch_size, self.generator)
        self.augment = augment

    def batch(self, values: dict[str, Tensor], fraction: float, turn: bool = False) -> Batch:
        """Return the next training batch with the draws of its augmentation.

        Arguments:
            values: values of the augmentation, by name.
            fraction: fraction of the budget.
            turn: whether to turn one coin per image, to learn probabilities.
        """
        x, y = next(self.train)
        size = (x.shape[2], x.shape[3])
        draws = self.augment.sample(len(x), size, self.generator, x.device, values, fraction, turn)
        return Batch(x, y, draws)

    def window(
        self, steps: int, turn: bool, values: dict[str, Tensor], fraction: float
    ) -> tuple[list[Batch], Batch]:
        """Return the training batches of a number of steps, and one validation batch."""
        train = [self.batch(values, fraction, turn) for _ in range(steps)]
        return train, self.held_out()

    def held_out(self) -> Batch:
        """Return the next validation batch."""
        return Batch(*next(self.validation))

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "train": self.train.state_dict(),
            "validation": self.validation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.train.load_state_dict(state["train"])
        self.validation.load_state_dict(state["validation"])
