"""Mini-batches: float tensors on the device of the images."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from darts_lite.data.images import Images, floats
from darts_lite.errors import UserError


class Batches:
    """Endless iterator over shuffled mini-batches, without replacement within one epoch.

    Every batch is full. The remainder of an epoch (fewer images than one batch) is dropped. Every
    epoch has a new order, so no image is dropped in all epochs.

    With balanced sampling, an epoch draws every class that has images equally often. The images of
    a class come in shuffled order; those of a rare class come several times in an epoch.

    Arguments:
        images: Images to draw from, on the device where the batches are needed.
        batch_size: Images per batch, B.
        generator: CPU generator of the order. The caller saves and restores its state.
        sampling: "uniform" over the images, or "balanced" over the classes.

    Raises:
        UserError: `batch_size` is below 1 or above the number of images.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        generator: torch.Generator,
        sampling: Literal["uniform", "balanced"] = "uniform",
    ) -> None:
        if not 0 < batch_size <= images.count:
            raise UserError(
                f"batch size must be 1 to {images.count}, the number of images,"
                f" got {batch_size}; use a smaller batch size or a larger subset"
            )
        self.images = images
        self.batch_size = batch_size
        self._generator = generator
        self._groups: list[Tensor] | None = None
        if sampling == "balanced":
            labels = images.labels.cpu()
            labels = labels if labels.dim() == 1 else labels.argmax(1)
            self._groups = [(labels == k).nonzero()[:, 0] for k in labels.unique()]
        self._order = torch.empty(0, dtype=torch.int64)  # on the device of the images
        self._position = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch.

        Returns:
            x: Images, float32 [B, C, H, W] in [0, 1], channels_last.
            y: Labels, int64 [B]; floating [B, K] of soft labels.
        """
        if self._position + self.batch_size > len(self._order):
            order = self._shuffled()
            self._order = order.to(self.images.labels.device)
            self._position = 0
        index = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return floats(self.images.pixels[index]), self.images.labels[index]

    def _shuffled(self) -> Tensor:
        """Return the order of an epoch, int64 [N]."""
        count = self.images.count
        if self._groups is None:
            return torch.randperm(count, generator=self._generator)
        each = -(-count // len(self._groups))  # rounded up
        drawn = torch.cat([self._repeated(group, each) for group in self._groups])
        return drawn[torch.randperm(len(drawn), generator=self._generator)[:count]]

    def _repeated(self, group: Tensor, count: int) -> Tensor:
        """Return `count` images of a group in shuffled order, each equally often up to one."""
        rounds = -(-count // len(group))
        orders = [
            group[torch.randperm(len(group), generator=self._generator)] for _ in range(rounds)
        ]
        return torch.cat(orders)[:count]

    def state_dict(self) -> dict[str, object]:
        """Return the order of the images in this epoch and the position in this order."""
        return {"order": self._order.cpu(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the batch where `state_dict` was called.

        The caller restores the state of the generator.

        Raises:
            UserError: The state belongs to another number of images.
        """
        order, position = state["order"].cpu(), int(state["position"])
        whole = torch.equal(order.sort().values, torch.arange(self.images.count))
        if self._groups is not None:
            whole = len(order) == self.images.count and bool((order < len(order)).all())
        if not (whole or len(order) == 0) or not 0 <= position <= len(order):
            raise UserError(
                f"the saved order of batches must be an order of {self.images.count} images,"
                f" got {len(order)} entries and position {position};"
                " resume with the data set, subset and seed of the checkpoint"
            )
        self._order, self._position = order.to(self.images.labels.device), position


def evaluation_batches(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order; the last batch may be smaller.

    Arguments:
        images: Images to go through, on the device where the batches are needed.
        batch_size: Images per batch, B.

    Yields:
        x: Images, float32 [B, C, H, W] in [0, 1], channels_last.
        y: Labels, int64 [B].
    """
    for start in range(0, images.count, batch_size):
        end = start + batch_size
        yield floats(images.pixels[start:end]), images.labels[start:end]
