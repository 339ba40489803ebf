"""A trained network without BatchNorm, for a network in use: its map joins the convolution."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from darts_lite.architecture.layers import BatchNorm


class Folded(nn.Module):
    """The place of a BatchNorm whose map is part of the convolution before it."""

    def forward(self, x: Tensor, scale: None = None) -> Tensor:
        """Return `x`."""
        return x


class Affine(nn.Module):
    """The place of a BatchNorm without a convolution before it: a map of each channel.

    Arguments:
        scale: `[C]`.
        shift: `[C]`.
    """

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor, scale: None = None) -> Tensor:
        """Return the map of features `[B, C, H, W]`."""
        return x * self.scale + self.shift  # type: ignore[operator]


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a discrete network in evaluation mode, without BatchNorm.

    A convolution whose module is assigned directly before a BatchNorm takes over its map:
    `BN(conv(x)) = conv'(x)`.

    Arguments:
        network: network with the statistics of `network.calibrate`.
    """
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                setattr(parent, name, _without(child, before))
            before = child
    return network


def _without(norm: BatchNorm, before: nn.Module | None) -> nn.Module:
    """Return what takes the place of a BatchNorm; change the convolution before it."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()  # type: ignore[union-attr]
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    shift = norm.bias.double() - mean * scale
    if not isinstance(before, nn.Conv2d):
        return Affine(scale.float(), shift.float())
    before.weight.copy_(before.weight.double() * scale[:, None, None, None])
    before.bias = nn.Parameter(shift.float())
    return Folded()
