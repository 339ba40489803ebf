"""Losses of several processes as one loss: its derivatives are means over the processes.

Every process (rank) evaluates the loss of its own share of the batch. Here the parameters and
hyperparameters pass through `Ranks.share`, whose backward pass averages. So every estimator sees
the gradients, second-order products and hypergradients of the whole batch, equal on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model.

    Arguments:
        group: their process group.
    """

    group: dist.ProcessGroup

    def share(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the tensors; derivatives in them are means over the ranks."""
        return _Share.apply(self.group, *tensors)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over the ranks; its derivatives stay those of this rank."""
        whole = value.detach().clone()
        dist.all_reduce(whole, group=self.group)
        return value + (whole / self.group.size() - value.detach())

    def copy_first(self, tensors: tuple[Tensor, ...]) -> None:
        """Copy the tensors of the first rank to all ranks, as DDP does with buffers."""
        for tensor in tensors:
            dist.broadcast(tensor, group=self.group, group_src=0)


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.like = group, [torch.empty_like(t, device="meta") for t in tensors]
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = [p if need else None for p, need in zip(parts, ctx.needs_input_grad[1:])]
        return None, *_Mean.apply(ctx.group, ctx.like, *wanted)


class _Mean(torch.autograd.Function):
    """Means over the ranks; None for what no rank has."""

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup, like: list[Tensor], *parts: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        some = next(p for p in parts if p is not None)
        used = torch.tensor([float(p is not None) for p in parts], device=some.device)
        dist.all_reduce(used, group=group)
        places = [i for i, many in enumerate(used.tolist()) if many]
        zeros = [torch.zeros_like(t, device=some.device) for t in like]
        filled = [zeros[i] if (p := parts[i]) is None else p for i in places]
        flat = torch.cat([f.reshape(-1) for f in filled])
        dist.all_reduce(flat, group=group)
        pieces = (flat / group.size()).split([f.numel() for f in filled])
        found: dict[int, Tensor] = {
            i: piece.view(f.shape).to(f.dtype) for i, piece, f in zip(places, pieces, filled)
        }
        return tuple(found.get(i) for i in range(len(parts)))

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        # The direction is the same on every rank. `_Share` averages what comes of it.
        return (
            None,
            None,
            *(a if need else None for a, need in zip(along, ctx.needs_input_grad[2:])),
        )
