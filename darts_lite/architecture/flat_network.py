"""A network as a pure function of flat vectors: f(params, x, weights) -> logits.

All parameters are in two vectors:

- parameters with weight decay: convolutions and the matrix of the classifier,
- parameters without weight decay: BatchNorm and biases.

An update is therefore a few operations on two tensors, the dot product of a hypergradient is one
operation, and a copy is cheap. Convolution weights are stored so that their views are
channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite.architecture.weights import Weights

Params = tuple[Tensor, ...]
DECAYED = (True, False)  # whether weight decay acts on the vector


class FlatNetwork:
    """Pure function of two parameter vectors that evaluates a network.

    The network's own parameters are only the starting point and the target of `export`.

    Arguments:
        network: nn.Module to wrap.

    Attributes:
        params: The two vectors at construction.
        groups: Names and shapes of the parameters in each of the two vectors.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.groups: tuple[list[tuple[str, torch.Size]], ...] = ([], [])
        for name, parameter in network.named_parameters():
            self.groups[0 if parameter.dim() > 1 else 1].append((name, parameter.shape))
        self.params = self.flatten(network)

    def flatten(self, network: nn.Module) -> Params:
        """Return the two vectors of another network with the same architecture."""
        values = dict(network.named_parameters())
        return tuple(
            torch.cat([_memory(values[name].detach()).reshape(-1) for name, _ in group])
            for group in self.groups
        )

    def unflatten(self, params: Params) -> dict[str, Tensor]:
        """Return named views of the vectors, one per parameter; differentiable."""
        named = {}
        for group, vector in zip(self.groups, params):
            parts = vector.split([shape.numel() for _, shape in group])
            for (name, shape), part in zip(group, parts):
                named[name] = _view(part, shape)
        return named

    def __call__(self, params: Params, x: Tensor, weights: Weights | None = None) -> Tensor:
        """Return logits in training mode (batch statistics), without a change of any buffer.

        Arguments:
            params: The two vectors.
            x: Images [B, C, H, W] in [0, 1].
            weights: Mixing weights of a supernet; None for a discrete network.

        Returns:
            Logits [B, classes].
        """
        self.network.train()
        inputs = (x,) if weights is None else (x, weights)
        return functional_call(self.network, self.unflatten(params), inputs)

    @torch.no_grad()
    def export(self, params: Params) -> nn.Module:
        """Write the vectors into the parameters of the network, and return the network."""
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
