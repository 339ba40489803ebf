"""One network class for supernet and discrete network: the cells of a space, with weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.operations import CANDIDATES, has_residual
from darts_lite.architecture.plain import (
    PlainCell,
    PlainEdge,
    PlainNetwork,
    cell_depths,
    folded,
    ordinary,
    wired,
)
from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.architecture.weights import EdgeWeights, Weights


class MixedOp(nn.Module):
    """One edge: the weighted sum of its operations, sum_o p_o (x + o(silu(x))).

    Where shapes allow, every operation has a residual connection. The operations share one
    connection, x + sum_o p_o o(silu(x)), and `skip` adds nothing to it. No operation alone gives
    the gradient a short path, so skip has no unfair lead (the argument of DARTS-, Chu et al.
    2021).

    Arguments:
        operations: Operations of the edge.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(
        self, operations: tuple[Operation, ...], in_channels: int, out_channels: int, stride: int
    ):
        super().__init__()
        self.residual = has_residual(in_channels, out_channels, stride)
        self.operations = nn.ModuleDict(
            {
                o.name: CANDIDATES[o.name].build(o, in_channels, out_channels, stride)
                for o in operations
                if not (o.name == "skip" and self.residual)
            }
        )
        self.position = {o.name: i for i, o in enumerate(operations)}
        self.sizes = {o.name: o.choices for o in operations}

    def forward(self, x: Tensor, activated: Tensor, weights: EdgeWeights | None) -> Tensor:
        if weights is not None and weights.option is not None:
            return self._sampled(x, activated, weights, weights.option)
        out = None
        if self.residual:
            out = x if weights is None or weights.edge is None else x * weights.edge
        for name, operation in self.operations.items():
            if weights is None:
                branch = operation(activated, None, None)
            else:
                scale = weights.operations[self.position[name]]
                branch = operation(activated, scale, weights.choices[name])
            out = branch if out is None else out + branch
        assert out is not None
        return out

    def _sampled(
        self, x: Tensor, activated: Tensor, weights: EdgeWeights, option: Operation
    ) -> Tensor:
        """Return the output of one option; every weight of it, of size one, multiplies its branch.

        In a mixture, the weight of a size scales a part of the kernel, and a BatchNorm after it
        takes the scale of the whole kernel away.
        """
        out = None
        if self.residual:
            out = x if weights.edge is None else x * weights.edge
        if option.name not in self.operations:
            assert out is not None
            return out
        operation = self.operations[option.name]
        scale, sizes = weights.operations[self.position[option.name]], {}
        for choice, p in weights.choices[option.name].items():
            sizes[choice] = self.sizes[option.name][choice].index(option.choices[choice][0])
            scale = scale * p[sizes[choice]]
        branch = operation(activated, scale, sizes)
        return branch if out is None else out + branch

    def sequential(self) -> PlainEdge:
        """Return the layers of a concrete operation, not copied."""
        plain = [operation.plain() for operation in self.operations.values()]  # type: ignore[operator]
        return PlainEdge(self.residual, plain[0] if plain else None)


class Project(nn.Module):
    """1x1 convolution to the width of a cell, with a stride where the resolutions differ.

    The input is subsampled before the convolution, because a strided convolution can corrupt
    memory in its backward pass: in channels_last, with fewer channels than a block of oneDNN
    (oneDNN issue 6035).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.silu(x[:, :, :: self.stride, :: self.stride])))

    def sequential(self) -> nn.Sequential:
        """Return the layers, not copied."""
        subsampled = nn.AvgPool2d(1, self.stride) if self.stride > 1 else nn.Identity()
        return nn.Sequential(nn.SiLU(), subsampled, self.conv, self.norm)


class CellModule(nn.Module):
    """The module of one cell; see `darts_lite.architecture.space.Cell` for its graph."""

    def __init__(self, cell: Cell, in_channels: list[int], strides: list[int], channels: int):
        super().__init__()
        self.cell = cell
        width = channels if cell.inputs == 2 else in_channels[-1]
        self.project = nn.ModuleList(
            Project(c, channels, s) for c, s in zip(in_channels, strides) if cell.inputs == 2
        )
        self.edges = nn.ModuleList(
            MixedOp(
                edge.operations,
                width if edge.source < cell.inputs else channels,
                channels,
                2 if cell.reduction and edge.source < cell.inputs else 1,
            )
            for edge in cell.edges
        )

    def forward(self, inputs: list[Tensor], weights: list[EdgeWeights | None] | None) -> Tensor:
        def edge(i: int, x: Tensor, activated: Tensor) -> Tensor | None:
            if weights is None:
                return self.edges[i](x, activated, None)
            own = weights[i]
            return None if own is None else self.edges[i](x, activated, own)

        return wired(self.cell, inputs, self.project, F.silu, edge)

    def sequential(self) -> PlainCell:
        """Return the layers of a discrete cell, not copied."""
        project = [each.sequential() for each in self.project]  # type: ignore[operator]
        edges = [edge.sequential() for edge in self.edges]  # type: ignore[operator]
        return PlainCell(self.cell, project, edges)


class Stage:
    """Shape bookkeeping of one cell in the stack."""

    def __init__(self, cell: Cell, in_channels: list[int], sizes: list[tuple[int, int]], c: int):
        self.cell, self.in_channels, self.sizes, self.channels = cell, in_channels, sizes, c
        self.strides = [1 if size == sizes[-1] else 2 for size in sizes]

    def shape(self, source: int) -> tuple[int, int, tuple[int, int]]:
        """Return (input channels, stride, input size) of an edge from node `source`."""
        reduces = self.cell.reduction
        if source < self.cell.inputs:
            channels = self.channels if self.cell.inputs == 2 else self.in_channels[-1]
            return channels, 2 if reduces else 1, self.sizes[-1]
        return self.channels, 1, _half(self.sizes[-1]) if reduces else self.sizes[-1]


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def stages_of(space: SearchSpace, size: tuple[int, int]) -> tuple[list[Stage], int]:
    """Return the shapes of every cell in the stack, and the width of the features.

    Arguments:
        space: Search space or discrete space.
        size: Height and width of an input image.
    """
    channels = space.channels
    stem = channels * max(cell.nodes for cell in space.cells)
    size = _half(size) if space.stem_stride == 2 else size
    widths, sizes, stages = [stem, stem], [size, size], []
    for name in space.sequence:
        cell = space.cell(name)
        channels = channels * 2 if cell.reduction else channels
        stages.append(Stage(cell, widths[-2:], sizes[-2:], channels))
        widths.append(channels * cell.nodes)
        sizes.append(_half(sizes[-1]) if cell.reduction else sizes[-1])
    return stages, widths[-1]


class Network(nn.Module):
    """A stem, the cells of a space, global average pooling and a linear classifier.

    `parameters()` is exactly w; the mixing weights are an argument of `forward`.

    Arguments:
        space: Search space of a supernet, or discrete space.
        image: Shape (C, H, W) of an input image.
        classes: Number of classes.
        generator: CPU generator of the initial weights (He et al. 2015); None keeps torch's
            default initialization.

    >>> from darts_lite.architecture.presets import blocks
    >>> net = Network(blocks(8, 3), (1, 8, 8), 10, torch.Generator().manual_seed(0))
    >>> from darts_lite.nas.relaxation import logit_shapes, relax
    >>> alpha = {name: torch.zeros(shape) for name, shape in logit_shapes(net.space).items()}
    >>> net(torch.rand(4, 1, 8, 8), relax(net.space, alpha)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        space: SearchSpace,
        image: tuple[int, int, int],
        classes: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.space = space
        self.image = image
        stages, features = stages_of(space, image[1:])
        stem = stages[0].in_channels[-1]
        self.stem = nn.Conv2d(image[0], stem, 3, space.stem_stride, 1, bias=False)
        self.norm = BatchNorm(stem)
        self.cells = nn.ModuleList(
            CellModule(s.cell, s.in_channels, s.strides, s.channels) for s in stages
        )
        self.classifier = nn.Linear(features, classes)
        if generator is not None:
            initialize(self, generator)

    def forward(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        """Return the logits.

        Arguments:
            x: Images [B, C, H, W] in [0, 1].
            weights: Mixing weights of a supernet; None for a discrete network.

        Returns:
            Logits [B, classes].
        """
        rows = None if weights is None else {n: w.edges() for n, w in weights.items()}
        h = self.norm(self.stem(x - 0.5))
        states = [h, h]
        for name, module in zip(self.space.sequence, self.cells):
            states = [states[-1], module(states, None if rows is None else rows[name])]
        return self.classifier(F.silu(states[-1]).mean((2, 3)))

    def depths(self) -> dict[str, int]:
        """Return the depth of every parameter: 0 for the stem, the cells, last the classifier."""
        return cell_depths(self, len(self.cells))

    def sequential(self) -> PlainNetwork:
        """Return the layers of a discrete network as a `PlainNetwork`, not copied."""
        cells = [cell.sequential() for cell in self.cells]  # type: ignore[operator]
        return PlainNetwork(self.stem, self.norm, cells, self.classifier)

    def plain(self, fold: bool = False) -> nn.Module:
        """Return a copy of a discrete network of ordinary torch modules, in evaluation mode.

        For tools that hook modules: pruning, summaries, Grad-CAM, torch.fx.

        Arguments:
            fold: Whether convolutions take over the map of the BatchNorm after them.

        >>> from darts_lite.architecture.presets import blocks
        >>> from darts_lite.nas.random_networks import uniform_random
        >>> space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(0))
        >>> net, x = Network(space, (1, 8, 8), 10), torch.rand(2, 1, 8, 8)
        >>> torch.allclose(net.plain()(x), net.eval()(x), atol=1e-6)
        True
        """
        plain = ordinary(self.sequential())
        return folded(plain) if fold else plain

    def inherit(self, other: Network) -> None:
        """Copy the weights of this architecture out of a supernet.

        A smaller kernel is the center of the larger kernel, a smaller width its first channels.
        An entangled operation with one-hot choices computes the same function as its slice.

        Arguments:
            other: Supernet whose space contains this network.
        """
        source = dict(other.named_parameters())
        edges = {
            f"cells.{i}.edges.{j}": f"cells.{i}.edges.{_index(whole, edge)}"
            for i, name in enumerate(self.space.sequence)
            for whole in [other.space.cell(name)]
            for j, edge in enumerate(self.space.cell(name).edges)
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                prefix = ".".join(name.split(".")[:4])
                larger = source[edges.get(prefix, prefix) + name[len(prefix) :]]
                parameter.copy_(_slice(larger, parameter.shape))


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions and linear layers (He et al. 2015), in place."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", generator=generator)
        elif isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, std=0.01, generator=generator)
            if each.bias is not None:
                nn.init.zeros_(each.bias)


def _index(cell: Cell, edge: object) -> int:
    pairs = [(e.source, e.target) for e in cell.edges]
    return pairs.index((edge.source, edge.target))  # type: ignore[attr-defined]


def _slice(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the first channels and the center of the kernel, with the given shape."""
    for dim, size in enumerate(shape):
        start = (tensor.shape[dim] - size) // 2 if dim >= 2 else 0
        tensor = tensor.narrow(dim, start, size)
    return tensor


@torch.no_grad()
def calibrate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], weights: Weights | None = None
) -> None:
    """Set the running statistics of every BatchNorm to the averages over batches.

    Arguments:
        network: Network to change, in place; it is in training mode afterwards.
        batches: Pairs of images [B, C, H, W] in [0, 1] and labels [B]; batches of one image are
            skipped.
        weights: Mixing weights of a supernet; None for a discrete network.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [norm.track_running_stats for norm in norms]
    network.train()
    several = (
        (x, y) for x, y in batches if len(x) > 1
    )  # the variance of one image may be undefined
    for i, (x, _) in enumerate(several):
        for norm in norms:
            norm.momentum, norm.track_running_stats = 1 / (i + 1), True
        network(x) if weights is None else network(x, weights)
    for norm, tracks in zip(norms, kept):
        norm.momentum, norm.track_running_stats = 0.0, tracks
