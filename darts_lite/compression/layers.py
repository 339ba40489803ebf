"""From a changed network back to data: its genotype, whose structure names the changed layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from darts_lite.architecture.cost import Cost, cost_of
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.plain import PlainNetwork
from darts_lite.architecture.structure import (
    ChangedLayers,
    ConvLayer,
    Layer,
    LinearLayer,
    NormLayer,
)
from darts_lite.data import Images


class Small(NamedTuple):
    """A compressed network.

    Attributes:
        genotype: genotype with the changed layers, and the exact numbers of parameters and MACs.
        network: network with its weights, in evaluation mode; None for new weights.
    """

    genotype: Genotype
    network: PlainNetwork | None

    @property
    def cost(self) -> Cost:
        """Parameters and MACs."""
        return Cost(self.genotype.parameters, self.genotype.macs)


@dataclass(frozen=True)
class Trained:
    """A trained network that is to become smaller, and what its compression may use.

    Arguments:
        genotype: genotype of the network.
        network: the network, in evaluation mode, on the device of the images.
        train: training images.
        validation: validation images.
        generator: CPU generator of all random draws.
    """

    genotype: Genotype
    network: PlainNetwork
    train: Images
    validation: Images
    generator: torch.Generator


def plain_copy(network: nn.Module) -> PlainNetwork:
    """Return a copy of a trained network as a `PlainNetwork`, in evaluation mode.

    Its norms stay those of this library, so that it can be trained.

    Arguments:
        network: `Network` of a discrete space, or `PlainNetwork`.
    """
    network = copy.deepcopy(network)
    plain = network.sequential() if isinstance(network, Network) else network
    assert isinstance(plain, PlainNetwork)
    return plain.eval()


def small_of(genotype: Genotype, network: PlainNetwork) -> Small:
    """Return a changed network with the genotype that describes it.

    A layer in whose place stands an `nn.Sequential` becomes a flat sequence of layers, in place.

    Arguments:
        genotype: genotype of the network before the change.
        network: network of the same space in which some layers are smaller, or several.
    """
    with torch.device("meta"):
        base = network_of(replace(genotype, structure=None))
    whole = base.sequential() if isinstance(base, Network) else base
    layers: dict[str, tuple[Layer, ...]] = {}
    for name, old in whole.named_modules():
        if isinstance(old, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            found = _leaves(network.get_submodule(name))
            described = tuple(map(layer_of, found))
            if described != (layer_of(old),):
                layers[name] = described
                one = found[0] if len(found) == 1 else nn.Sequential(*found)
                network.set_submodule(name, one)
    structure = ChangedLayers(layers=layers) if layers else None
    made = replace(genotype, structure=structure)
    return Small(replace(made, **cost_of(made)._asdict()), network.eval())


def layer_of(module: nn.Module) -> Layer:
    """Return the description of a convolution, BatchNorm or linear layer.

    >>> layer_of(nn.Linear(3, 2))
    LinearLayer(kind='linear', inputs=3, outputs=2, bias=True)
    """
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        return ConvLayer(
            inputs=module.in_channels,
            outputs=module.out_channels,
            kernel=_pair(module.kernel_size),
            stride=_pair(module.stride),
            padding=_pair(module.padding),
            groups=module.groups,
            bias=module.bias is not None,
        )
    if isinstance(module, nn.BatchNorm2d):
        return NormLayer(channels=module.num_features)
    assert isinstance(module, nn.Linear)
    return LinearLayer(
        inputs=module.in_features, outputs=module.out_features, bias=module.bias is not None
    )


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def _leaves(module: nn.Module) -> list[nn.Module]:
    """Return the layers of nested sequences, in their order."""
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]
