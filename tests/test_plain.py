"""Plain networks: the same function of ordinary modules, with BatchNorm or folded, and changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spaces import random_member
from test_export import shaken
from test_network import CLASSES, IMAGE, SPACES, build, every_space, images, seeds
from torch import nn

from darts_lite.architecture.cost import cost_of, genotype_with_cost
from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.network import calibrate
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.plain import PlainEdge
from darts_lite.architecture.structure import ChangedLayers, ConvLayer, LinearLayer, NormLayer
from darts_lite.errors import UserError

NAMES = tuple(f"class {i}" for i in range(CLASSES))
ORDINARY = (nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.Linear, nn.AvgPool2d, nn.Identity)


@seeds
@every_space
@torch.no_grad()
def test_a_plain_network_is_the_same_function(name: str, seed: int) -> None:
    network = build(random_member(SPACES[name], seed), seed)
    shaken(network, seed)
    x, before = images(seed=seed), {n: v.clone() for n, v in network.state_dict().items()}
    plain, folded = network.plain(), network.plain(fold=True)
    for each in (plain, folded):
        torch.testing.assert_close(each(x), network(x), atol=1e-9, rtol=1e-9)
        leaves = [m for m in each.modules() if not list(m.children())]
        assert all(isinstance(leaf, (*ORDINARY, nn.ModuleList, PlainEdge)) for leaf in leaves)
        assert not any(isinstance(leaf, BatchNorm) for leaf in leaves)
        torch.testing.assert_close(torch.fx.symbolic_trace(each)(x), network(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    plain.stem.weight.zero_()  # a copy
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


@every_space
def test_a_plain_network_trains_alike(name: str) -> None:
    network = build(random_member(SPACES[name], 1))
    x = images()
    flat = FlatNetwork(network)
    other = FlatNetwork(network.sequential())
    gradients = []
    for each in (flat, other):
        params = tuple(p.requires_grad_() for p in each.params)
        out = each(params, x)
        vectors = torch.autograd.grad(out.square().sum(), params)
        gradients.append(sorted(torch.cat(vectors).tolist()))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-9, rtol=1e-9)


def compressed() -> Genotype:
    """Return a genotype with a pruned inner width, and two maps in its classifier."""
    space = SPACES["blocks"]
    member = random_member(space, 0)
    for seed in range(50):
        member = random_member(space, seed)
        if member.cells[0].edges[0].operations[0].name == "bottleneck":
            break
    genotype = genotype_with_cost(member, IMAGE, NAMES)
    edge = "cells.0.edges.0.operation"
    old = network_of(genotype).sequential().get_submodule(edge)
    conv = old[3]
    kernel, padding = conv.kernel_size, conv.padding
    layers = {
        f"{edge}.0": (ConvLayer(inputs=old[0].in_channels, outputs=1),),
        f"{edge}.1": (NormLayer(channels=1),),
        f"{edge}.3": (
            ConvLayer(inputs=1, outputs=1, kernel=kernel, padding=padding, stride=conv.stride),
        ),
        f"{edge}.4": (NormLayer(channels=1),),
        f"{edge}.6": (ConvLayer(inputs=1, outputs=old[6].out_channels),),
        "classifier": (
            LinearLayer(inputs=network_of(genotype).classifier.in_features, outputs=2, bias=False),
            LinearLayer(inputs=2, outputs=CLASSES),
        ),
    }
    made = replace(genotype, structure=ChangedLayers(layers=layers))
    return replace(made, **cost_of(made)._asdict())


def test_changed_layers_are_in_the_json_and_in_the_network(tmp_path) -> None:
    genotype = compressed()
    path = tmp_path / "g.json"
    genotype.save(path)
    again = Genotype.load(path)
    assert again == genotype
    assert genotype.parameters < cost_of(replace(genotype, structure=None)).parameters
    network = network_of(again, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in network.parameters()) == genotype.parameters
    x = images().float()
    calibrate(network, [(x, torch.zeros(len(x)))])
    out = network.eval()(x)
    assert out.shape == (len(x), CLASSES) and out.std() > 0
    flat = FlatNetwork(network)
    torch.testing.assert_close(flat.export(flat.params).eval()(x), out)


@pytest.mark.parametrize("layers", [{"cells.9.edges.0": (NormLayer(channels=1),)}])
def test_layers_of_another_network_are_named(layers) -> None:
    made = replace(compressed(), structure=ChangedLayers(layers=layers))
    with pytest.raises(UserError, match=r"must name modules of the network, got 'cells.9.edges.0'"):
        network_of(made)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="positive sizes"):
        ConvLayer(inputs=0, outputs=1)
    with pytest.raises(ValueError, match="whole groups"):
        ConvLayer(inputs=3, outputs=3, groups=2)
