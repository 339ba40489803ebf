"""Mini-batches: float tensors on the device where the images live."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from darts_lite.data.images import Images, floats
from darts_lite.errors import UserError


class Batches:
    """Endless shuffled mini-batches, without replacement within an epoch.

    Every batch is full.  The remainder of an epoch, less than a batch, is dropped; the next
    epoch is shuffled anew, so no image is dropped for good.

    Arguments:
        images: on the device where the batches are wanted.
        batch_size: number of images B.
        generator: on the CPU; its owner saves and restores its state.
    """

    def __init__(self, images: Images, batch_size: int, generator: torch.Generator) -> None:
        if not 0 < batch_size <= images.count:
            raise UserError(
                f"batch size {batch_size} does not fit {images.count} images;"
                f" use 1 to {images.count}, or a larger subset"
            )
        self.images = images
        self.batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)  # on the device of the images
        self._position = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """x float32 [B, C, H, W] in [0, 1], channels_last, and y int64 [B]."""
        if self._position + self.batch_size > len(self._order):
            order = torch.randperm(self.images.count, generator=self._generator)
            self._order = order.to(self.images.labels.device)
            self._position = 0
        index = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return floats(self.images.pixels[index]), self.images.labels[index]

    def state_dict(self) -> dict[str, object]:
        """The permutation of this epoch and the position in it."""
        return {"order": self._order.cpu(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, once the generator's owner has restored it."""
        order, position = state["order"].cpu(), int(state["position"])
        whole = torch.equal(order.sort().values, torch.arange(self.images.count))
        if not (whole or len(order) == 0) or not 0 <= position <= len(order):
            raise UserError(
                f"the saved order of batches is not one of {self.images.count} images;"
                " resume with the data set, subset and seed of the checkpoint"
            )
        self._order, self._position = order.to(self.images.labels.device), position


def evaluation_batches(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once and in order, as `Batches` gives them; the last batch may be smaller."""
    for start in range(0, images.count, batch_size):
        end = start + batch_size
        yield floats(images.pixels[start:end]), images.labels[start:end]
