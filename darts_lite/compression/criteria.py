"""Scores of channels: how much each is needed. To add one, write a function and name it below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.plain import PlainNetwork
from darts_lite.compression.gates import Batch, Gated
from darts_lite.compression.widths import Group


@torch.no_grad()
def magnitude(network: PlainNetwork, groups: Sequence[Group]) -> Tensor:
    """Return the squared norm of all weights that go with each channel, as a share of its group.

    Li et al. 2017, for groups of layers as Fang et al. 2023 (DepGraph), equation 6.

    Arguments:
        network: the network.
        groups: its groups.

    Returns:
        Scores `[N]` over all groups; their mean in each group is one.
    """
    found = []
    for group in groups:
        total = torch.zeros(group.size)
        for cut in group.cuts:
            module = network.get_submodule(cut.name)
            if isinstance(module, nn.Conv2d | nn.Linear):
                along = module.weight if cut.side == "outputs" else module.weight.transpose(0, 1)
                norms = along.detach().cpu().flatten(1).square().sum(1)
                total += norms[cut.index].sum(1)
        found.append(total / total.mean().clamp(min=1e-12))
    return torch.cat(found)


@torch.no_grad()
def norm(network: PlainNetwork, groups: Sequence[Group]) -> Tensor:
    """Return the scales of the BatchNorms of each channel (network slimming, Liu et al. 2017).

    Arguments:
        network: the network.
        groups: its groups.

    Returns:
        Scores `[N]` over all groups: the root of the sum of squared scales.
    """
    found = []
    for group in groups:
        total = torch.zeros(group.size)
        for cut in group.cuts:
            if cut.name in group.norms:
                module = network.get_submodule(cut.name)
                assert isinstance(module, nn.BatchNorm2d)
                total += module.weight.detach().cpu().square()[cut.index].sum(1)
        found.append(total.sqrt())
    return torch.cat(found)


def taylor(network: PlainNetwork, groups: Sequence[Group], batches: Iterable[Batch]) -> Tensor:
    """Return the mean squared derivative of the loss in a gate on each channel.

    It estimates the squared change of the loss if the channel goes (Molchanov et al. 2019,
    equation 8, with one gate for all layers of a group).

    Arguments:
        network: network in evaluation mode.
        groups: its groups.
        batches: images `[B, C, H, W]` in [0, 1] and labels `[B]`.

    Returns:
        Scores `[N]` over all groups.
    """
    gated = Gated(network.eval(), groups)
    device = next(network.parameters()).device
    total, count = torch.zeros(gated.count, device=device), 0
    for images, labels in batches:
        gates = torch.ones(gated.count, device=device, requires_grad=True)
        loss = F.cross_entropy(gated(images, gates), labels)
        (gradient,) = torch.autograd.grad(loss, gates)
        total += gradient.square()
        count += 1
    gated.free()
    return (total / count).cpu()
