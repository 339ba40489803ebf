"""A network as a pure function of flat vectors: f(params, x, weights) -> logits.

All parameters live in two vectors, those that weight decay acts on (convolutions, the classifier's
matrix) and those it spares (BatchNorm, biases). An update is then a handful of operations on two
tensors, a hypergradient's dot product is one, and a copy is cheap. Convolution weights are laid
out so that their views are channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from darts_lite.architecture.network import Network
from darts_lite.architecture.weights import Weights

Params = tuple[Tensor, ...]
DECAYED = (True, False)  # which of the two vectors weight decay acts on


class FlatNetwork:
    """Wraps a network, whose own parameters serve only as the starting point and for export.

    Attributes: `params`, the two vectors as they were at construction.
    """

    def __init__(self, network: Network):
        self.network = network
        self._groups: tuple[list[tuple[str, torch.Size]], ...] = ([], [])
        for name, parameter in network.named_parameters():
            self._groups[0 if parameter.dim() > 1 else 1].append((name, parameter.shape))
        self.params = self.flatten(network)

    def flatten(self, network: Network) -> Params:
        """The vectors of a network with this one's architecture."""
        values = dict(network.named_parameters())
        return tuple(
            torch.cat([_memory(values[name].detach()).reshape(-1) for name, _ in group])
            for group in self._groups
        )

    def unflatten(self, params: Params) -> dict[str, Tensor]:
        """Named views of the vectors; differentiable."""
        named = {}
        for group, vector in zip(self._groups, params):
            parts = vector.split([shape.numel() for _, shape in group])
            for (name, shape), part in zip(group, parts):
                named[name] = _view(part, shape)
        return named

    def __call__(self, params: Params, x: Tensor, weights: Weights | None = None) -> Tensor:
        """Logits [B, classes] in training mode (batch statistics); touches no buffer."""
        self.network.train()
        return functional_call(self.network, self.unflatten(params), (x, weights))

    @torch.no_grad()
    def export(self, params: Params) -> Network:
        """Writes the vectors back into the network and returns it."""
        named = self.unflatten(params)
        for name, parameter in self.network.named_parameters():
            parameter.copy_(named[name])
        return self.network


def _memory(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        return part.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
    return part.view(shape)
