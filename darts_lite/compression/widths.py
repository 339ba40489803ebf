"""Channels that can go together: groups, their exact cost, and the narrower network.

A channel goes only if all layers that write or read it are cut. `inner_groups` finds the channels
inside of an operation by the order of its layers; `coupled_groups` finds all channels, also those
of the residual stream. torch-pruning 1.6.1 finds the same on chains of blocks (a test compares),
but makes networks that do not run if terms of a concatenation have residual connections between
them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from darts_lite.architecture.cost import Cost
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.plain import PlainEdge, PlainNetwork, ordinary

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True)
class Cut:
    """Channels of one layer that go with the channels of a group.

    Arguments:
        name: name of the layer in the network.
        side: the side of its weights; "outputs" of a depthwise convolution or a BatchNorm is both.
        index: `[n, r]` the channels of the layer for each of the n channels of the group.
    """

    name: str
    side: Side
    index: Tensor


@dataclass(frozen=True)
class Group:
    """Channels that several layers share.

    Attributes:
        size: number of channels n.
        cuts: what goes with each channel.
        norms: names of the BatchNorms after which a gate can switch the channels off: each
            channel is zero, and has no influence, if the outputs of these are zero.
    """

    size: int
    cuts: tuple[Cut, ...]
    norms: tuple[str, ...]


def inner_groups(network: PlainNetwork) -> list[Group]:
    """Return the inner widths of the operations: of bottlenecks and inverted residuals.

    Arguments:
        network: the network.
    """
    found = []
    for prefix, edge in network.named_modules():
        if isinstance(edge, PlainEdge) and edge.operation is not None:
            leaves = [
                (f"{prefix}.operation.{name}", module)
                for name, module in edge.operation.named_modules()
                if not list(module.children())
            ]
            found += _inside(leaves)
    return found


def _inside(leaves: Sequence[tuple[str, nn.Module]]) -> list[Group]:
    """Return the groups between the dense convolutions of a sequence of layers."""
    found: list[Group] = []
    members: list[tuple[str, Side]] = []
    norms: list[str] = []
    size = 0
    for name, module in leaves:
        if isinstance(module, nn.Conv2d) and not _is_depthwise(module):
            if members and norms:
                found.append(_group(size, [*members, (name, "inputs")], norms[-1:]))
            members, norms, size = [(name, "outputs")], [], module.out_channels
        elif isinstance(module, nn.Conv2d | nn.BatchNorm2d) and members:
            members.append((name, "outputs"))
            norms += [name] if isinstance(module, nn.BatchNorm2d) else []
    return found


def _group(size: int, members: Sequence[tuple[str, Side]], norms: Sequence[str]) -> Group:
    index = torch.arange(size)[:, None]
    return Group(size, tuple(Cut(name, side, index) for name, side in members), tuple(norms))


def coupled_groups(network: PlainNetwork) -> list[Group]:
    """Return all channels that can go, each group with all layers that share its channels.

    Channels are followed through the graph of the network: a sum makes channels one, a
    concatenation puts them beside each other (DepGraph, Fang et al. 2023). Those of the images and
    the classes stay.

    Arguments:
        network: the network.

    >>> from darts_lite.architecture.presets import blocks
    >>> from darts_lite.architecture.network import Network
    >>> from darts_lite.nas.random_networks import uniform_random
    >>> space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(0))
    >>> groups = coupled_groups(Network(space, (1, 8, 8), 10).sequential())
    >>> [cut.name for cut in groups[0].cuts][:2]
    ['stem', 'norm']
    """
    plain = ordinary(network)
    members = _members(plain)
    alike: dict[tuple[tuple[str, Side, int], ...], list[_Places]] = {}
    for places in members:
        signature = tuple((name, side, len(found)) for (name, side), found in places.items())
        alike.setdefault(signature, []).append(places)
    groups = []
    for signature, channels in alike.items():
        cuts = tuple(
            Cut(name, side, torch.tensor([each[name, side] for each in channels]))
            for name, side, _ in signature
        )
        norms = _writers(plain, [cut.name for cut in cuts])
        if norms:  # factors of a low-rank layer have none: their widths are its ranks
            groups.append(Group(len(channels), cuts, norms))
    return groups


_Places = dict[tuple[str, Side], list[int]]  # layer and side -> its channels


def _members(plain: nn.Module) -> list[_Places]:
    """Return for every channel that can go the channels of layers that go with it."""
    parent: list[int] = []  # union-find over the outputs of dense layers
    places: list[tuple[int, str, Side, int]] = []
    fixed: set[int] = set()

    def root(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def new(count: int) -> list[int]:
        first = len(parent)
        parent.extend(range(first, first + count))
        return list(range(first, first + count))

    def note(channels: Sequence[int], name: str, side: Side) -> None:
        places.extend((channel, name, side, i) for i, channel in enumerate(channels))

    graph = torch.fx.symbolic_trace(plain).graph
    values: dict[torch.fx.Node, list[int]] = {}
    for node in graph.nodes:
        inputs = [values[each] for each in node.all_input_nodes]
        if node.op == "placeholder":
            module = plain.get_submodule("stem")
            first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
            values[node] = new(first.in_channels)
            fixed.update(values[node])
        elif node.op == "call_module":
            name, module = str(node.target), plain.get_submodule(str(node.target))
            dense = isinstance(module, nn.Linear | nn.Conv2d) and not _is_depthwise(module)
            if dense:
                note(inputs[0], name, "inputs")
                values[node] = new(_count(module, "outputs"))
            else:
                values[node] = inputs[0]
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                note(values[node], name, "outputs")
        elif node.op == "output":
            fixed.update(inputs[0])
        elif node.target is torch.cat:
            values[node] = [channel for part in node.args[0] for channel in values[part]]
        else:  # sums, the shift of the images, the mean over pixels
            values[node] = inputs[0]
            for other in inputs[1:]:
                for one, two in zip(inputs[0], other):
                    parent[root(two)] = root(one)
    found: dict[int, _Places] = {}
    for channel, name, side, place in places:
        found.setdefault(root(channel), {}).setdefault((name, side), []).append(place)
    kept = {root(channel) for channel in fixed}
    return [mine for channel, mine in found.items() if channel not in kept]


def _writers(network: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the BatchNorms of a group whose outputs no depthwise convolution of it reads.

    After a depthwise convolution, a channel that was switched off is a constant again.
    """
    modules = {name: network.get_submodule(name) for name in names}
    depthwise = [n for n, m in modules.items() if _is_depthwise(m)]
    return tuple(
        name
        for name, module in modules.items()
        if isinstance(module, nn.BatchNorm2d)
        and not any(_before(name, other) for other in depthwise)
    )


def _before(name: str, other: str) -> bool:
    """Tell whether a layer lies before another one in the same operation."""
    parent, _, place = name.rpartition(".")
    same, _, later = other.rpartition(".")
    return parent == same and place.isdigit() and int(place) < int(later)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )


class WidthCost:
    """Exact cost of a network as a function of the widths of groups.

    Arguments:
        network: the network before the cut.
        groups: its groups.
        image: channels, height and width of an input image.
    """

    def __init__(self, network: PlainNetwork, groups: Sequence[Group], image: tuple[int, int, int]):
        self.sizes = [group.size for group in groups]
        self._layers: list[_Layer] = []
        positions = _positions(network, image)
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                cuts = [
                    (g, cut.side, cut.index.shape[1])
                    for g, group in enumerate(groups)
                    for cut in group.cuts
                    if cut.name == name
                ]
                self._layers.append(_layer(module, cuts, positions.get(name, 1)))
        self._touched = [
            [layer for layer in self._layers if any(g == i for g, _, _ in layer.cuts)]
            for i in range(len(groups))
        ]

    def __call__(self, widths: Sequence[Any]) -> tuple[Any, Any]:
        """Return parameters and MACs.

        Arguments:
            widths: kept channels of each group: numbers, or scalars that are differentiable.
        """
        costs = [self._of(layer, widths) for layer in self._layers]
        return sum(c[0] for c in costs), sum(c[1] for c in costs)

    def saving(self, widths: Sequence[int], group: int, width: int) -> Cost:
        """Return what is saved if one group gets another width.

        Arguments:
            widths: kept channels of each group.
            group: position of the group.
            width: its new width.
        """
        other = [*widths]
        other[group] = width
        total = Cost(0, 0)
        for layer in self._touched[group]:
            before, after = self._of(layer, widths), self._of(layer, other)
            total += (before[0] - after[0], before[1] - after[1])
        return total

    def _of(self, layer: _Layer, widths: Sequence[Any]) -> tuple[Any, Any]:
        inputs: Any = layer.inputs
        outputs: Any = layer.outputs
        for group, side, ratio in layer.cuts:
            gone = ratio * (self.sizes[group] - widths[group])
            if side == "inputs":
                inputs = inputs - gone
            else:
                outputs = outputs - gone
        weights = layer.kernel * outputs * (inputs if layer.dense else 1)
        return weights + layer.further * outputs, weights * layer.positions


class _Layer(NamedTuple):
    """Counts of a layer: its weights are kernel * outputs * inputs, or without the inputs."""

    inputs: int
    outputs: int
    kernel: int
    further: int  # parameters per output beside the weights
    dense: bool
    positions: int  # pixels of the output
    cuts: list[tuple[int, Side, int]]


def _layer(module: nn.Module, cuts: list[tuple[int, Side, int]], positions: int) -> _Layer:
    if isinstance(module, nn.BatchNorm2d):
        return _Layer(1, module.num_features, 0, 2, False, positions, cuts)
    bias = int(module.bias is not None)
    if isinstance(module, nn.Conv2d):
        dense = not _is_depthwise(module)
        inputs = module.in_channels // module.groups if dense else 1
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return _Layer(inputs, module.out_channels, kernel, bias, dense, positions, cuts)
    assert isinstance(module, nn.Linear)
    return _Layer(module.in_features, module.out_features, 1, bias, True, 1, cuts)


@torch.no_grad()
def _positions(network: PlainNetwork, image: tuple[int, int, int]) -> dict[str, int]:
    """Return the pixels of the output of every convolution."""
    found: dict[str, int] = {}
    plain = copy.deepcopy(network).to("meta")
    for name, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
                found[name] = out.shape[2] * out.shape[3]

            module.register_forward_hook(note)
    plain.eval()(torch.empty(1, *image, device="meta"))
    return found


def narrowed(
    network: PlainNetwork, groups: Sequence[Group], kept: Sequence[Tensor]
) -> PlainNetwork:
    """Return a copy of a network without some channels; the others keep their weights.

    Arguments:
        network: the network.
        groups: its groups.
        kept: for each group, bool `[n]`: the channels that stay; at least one.
    """
    masks: dict[str, dict[str, Tensor]] = {}
    for group, keep in zip(groups, kept):
        for cut in group.cuts:
            module = network.get_submodule(cut.name)
            mine = masks.setdefault(cut.name, {})
            mask = mine.setdefault(cut.side, torch.ones(_count(module, cut.side), dtype=torch.bool))
            mask[cut.index[~keep].flatten()] = False
    made = copy.deepcopy(network)
    for name, sides in masks.items():
        if not all(mask.all() for mask in sides.values()):
            old = made.get_submodule(name)
            made.set_submodule(name, _cut(old, sides))
    return made.eval()


def _count(module: nn.Module, side: Side) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels if side == "inputs" else module.out_channels
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    assert isinstance(module, nn.Linear)
    return module.in_features if side == "inputs" else module.out_features


@torch.no_grad()
def _cut(old: nn.Module, sides: Mapping[str, Tensor]) -> nn.Module:
    """Return a layer with some of the channels of another one."""
    if isinstance(old, nn.BatchNorm2d):
        keep = sides["outputs"]
        norm = BatchNorm(int(keep.sum())).to(old.weight)
        values = old.state_dict()
        for name, value in norm.state_dict().items():
            value.copy_(values[name][keep])
        return norm
    assert isinstance(old, nn.Conv2d | nn.Linear)
    weight, bias = old.weight, old.bias
    if "outputs" in sides:
        weight = weight[sides["outputs"]]
        bias = None if bias is None else bias[sides["outputs"]]
    if "inputs" in sides:
        weight = weight[:, sides["inputs"]]
    new: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d):
        depthwise = _is_depthwise(old)
        new = nn.Conv2d(
            len(weight) if depthwise else weight.shape[1] * old.groups,
            len(weight),
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            groups=len(weight) if depthwise else old.groups,
            bias=bias is not None,
        )
    else:
        new = nn.Linear(weight.shape[1], len(weight), bias is not None)
    new.to(old.weight)
    new.weight.copy_(weight)
    if bias is not None and new.bias is not None:
        new.bias.copy_(bias)
    return new
