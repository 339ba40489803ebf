"""The network of a genotype, whatever kind it is."""

from __future__ import annotations

import torch
from torch import nn

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.network import Network, initialize
from darts_lite.architecture.plain import PlainNetwork
from darts_lite.architecture.structure import (
    ChangedLayers,
    ConvLayer,
    Layer,
    NormLayer,
    TimmModel,
)
from darts_lite.architecture.timm_network import TimmNetwork, timm_network
from darts_lite.errors import UserError


def network_of(
    genotype: Genotype, generator: torch.Generator | None = None
) -> Network | PlainNetwork | TimmNetwork:
    """Return the network of a genotype, with new weights.

    Arguments:
        genotype: Genotype.
        generator: CPU generator of the weights; None keeps torch's default initialization.
    Raises: `UserError` if the changed layers do not fit the space, or timm cannot make the network.
    """
    structure, classes = genotype.structure, len(genotype.classes)
    if isinstance(structure, TimmModel):
        return timm_network(structure.name, genotype.image, classes, generator)
    network = Network(genotype.space, genotype.image, classes)
    whole = network if structure is None else changed(network, structure)
    if generator is not None:
        initialize(whole, generator)
    return whole


def changed(network: Network, structure: ChangedLayers) -> PlainNetwork:
    """Return the plain network of a discrete network, with other layers in the place of some.

    Arguments:
        network: Discrete network; its other layers are taken over, not copied.
        structure: The layers.
    Raises: `UserError` if the network has no such layer.
    """
    plain = network.sequential()
    for name, layers in structure.layers.items():
        try:
            plain.get_submodule(name)
        except AttributeError:
            raise UserError(
                f"structure.layers must name modules of the network, got {name!r}; compress the "
                "training again"
            ) from None
        built = [_built(layer) for layer in layers]
        plain.set_submodule(name, built[0] if len(built) == 1 else nn.Sequential(*built))
    return plain


def _built(layer: Layer) -> nn.Module:
    if isinstance(layer, ConvLayer):
        return nn.Conv2d(
            layer.inputs,
            layer.outputs,
            layer.kernel,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=layer.bias,
        )
    if isinstance(layer, NormLayer):
        return BatchNorm(layer.channels)
    return nn.Linear(layer.inputs, layer.outputs, layer.bias)
