"""A discrete network as ordinary torch modules, for tools that hook modules, and for compression.

`nn.Conv2d`, `nn.BatchNorm2d`, `nn.SiLU`, `nn.AvgPool2d` and `nn.Linear` in `nn.Sequential`; only
sums and concatenations are code. A layer may be replaced by a smaller one: the code asks for no
widths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.space import Cell


class PlainEdge(nn.Module):
    """One edge: its operation, and the residual connection where shapes allow one.

    Arguments:
        residual: Whether the input is added to the output.
        operation: Map of the activated input; None for the residual connection alone.
    """

    def __init__(self, residual: bool, operation: nn.Sequential | None):
        super().__init__()
        self.residual, self.operation = residual, operation

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return features of the target node [B, C, H, W].

        Arguments:
            x: Features of the source node [B, C, H, W].
            activated: SiLU of `x`.
        """
        if self.operation is None:
            return x
        branch = self.operation(activated)
        return x + branch if self.residual else branch


class PlainCell(nn.Module):
    """One cell; see `darts_lite.architecture.space.Cell` for its graph.

    Arguments:
        cell: Graph of the cell, with one operation per edge.
        project: Map of each input to the width of the cell; empty if there is one input.
        edges: Module of each edge.
    """

    def __init__(self, cell: Cell, project: Iterable[nn.Module], edges: Iterable[PlainEdge]):
        super().__init__()
        self.cell = cell
        self.project, self.edges = nn.ModuleList(project), nn.ModuleList(edges)
        self.activation = nn.SiLU()

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Return the output of the cell from the outputs of the two cells before it."""
        return wired(
            self.cell,
            inputs,
            self.project,
            self.activation,
            lambda i, x, activated: self.edges[i](x, activated),
        )


def wired(
    cell: Cell,
    inputs: list[Tensor],
    project: Iterable[nn.Module],
    activation: Callable[[Tensor], Tensor],
    edge: Callable[[int, Tensor, Tensor], Tensor | None],
) -> Tensor:
    """Return the output of a cell: the walk through its graph, for every kind of network.

    Arguments:
        cell: Graph of the cell.
        inputs: Outputs of the two cells before it.
        project: Map of each input to the width of the cell; used if there are two inputs.
        activation: Activation of each node that edges read.
        edge: Returns the term of an edge, of its index, the source and the activated source; None
            for an edge that is left out.
    """
    nodes = inputs[-1:]
    if cell.inputs == 2:
        nodes = [each(x) for each, x in zip(project, inputs)]
    sources = {each.source for each in cell.edges}
    activated = {i: activation(x) for i, x in enumerate(nodes) if i in sources}
    for node in cell.inner_nodes:
        total: Tensor | None = None
        for i in cell.into(node):
            source = cell.edges[i].source
            term = edge(i, nodes[source], activated[source])
            if term is not None:
                total = term if total is None else total + term
        assert total is not None
        nodes.append(total)
        if node in sources:
            activated[node] = activation(total)
    return nodes[-1] if cell.nodes == 1 else torch.cat(nodes[cell.inputs :], 1)


class PlainNetwork(nn.Module):
    """The network of a discrete space, of ordinary modules; see `Network.plain`.

    Arguments:
        stem: First convolution.
        norm: BatchNorm of the stem.
        cells: Cells in their order.
        classifier: Map of the features to the logits.
    """

    def __init__(
        self, stem: nn.Module, norm: nn.Module, cells: Iterable[PlainCell], classifier: nn.Module
    ):
        super().__init__()
        self.stem, self.norm = stem, norm
        self.cells = nn.ModuleList(cells)
        self.activation = nn.SiLU()
        self.classifier = classifier

    def depths(self) -> dict[str, int]:
        """Return the depth of every parameter: 0 for the stem, the cells, last the classifier."""
        return cell_depths(self, len(self.cells))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W] in [0, 1]."""
        h = self.norm(self.stem(x - 0.5))
        states = [h, h]
        for cell in self.cells:
            states = [states[-1], cell(states)]
        return self.classifier(self.activation(states[-1]).mean((2, 3)))


def cell_depths(network: nn.Module, cells: int) -> dict[str, int]:
    """Return the depth of every parameter by its name: 0 for the stem, the cells, the classifier.

    Arguments:
        network: Network with a stem, `cells` and a `classifier`.
        cells: Number of cells.
    """

    def depth(name: str) -> int:
        first, _, rest = name.partition(".")
        if first == "cells":
            return int(rest.partition(".")[0]) + 1
        return cells + 1 if first == "classifier" else 0

    return {name: depth(name) for name, _ in network.named_parameters()}


def ordinary(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose norms are `nn.BatchNorm2d`, in evaluation mode.

    Arguments:
        network: Network of ordinary modules but for the norms of this library.
    """
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNorm):
                norm = nn.BatchNorm2d(child.num_features, child.eps).to(child.weight)
                norm.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, norm)
    return network.eval()


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode in which convolutions have taken over the map of BatchNorm.

    `BN(conv(x)) = conv'(x)`. A BatchNorm that follows no convolution becomes a depthwise one.

    Arguments:
        network: Network in which a convolution is assigned directly before its BatchNorm, with the
            statistics of `network.calibrate`.
    """
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        before: str | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                owner, at = _last(parent, before) if before else (parent, name)
                conv = getattr(owner, at)
                if isinstance(conv, nn.Conv2d):
                    setattr(owner, at, _fused(conv, child))
                    setattr(parent, name, nn.Identity())
                else:
                    unit = _identity(child.num_features).to(child.weight.device)
                    setattr(parent, name, _fused(unit, child))
            before = name
    return network


def _last(parent: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the owner and the name of the last layer of a child, which may be a sequence."""
    child = getattr(parent, name)
    if isinstance(child, nn.Sequential) and len(child):
        return _last(child, list(child._modules)[-1])
    return parent, name


def _identity(channels: int) -> nn.Conv2d:
    """Return a depthwise convolution that changes nothing."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(conv.weight)
    return conv


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the fused convolution, computed in float64."""
    dtype = norm.weight.dtype
    pair = copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double()
    return fuse_conv_bn_eval(*pair).to(dtype)
