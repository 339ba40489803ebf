"""Cost of networks: exact parameters and multiply-accumulates, and the width that fits a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network, stages_of
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.operations import CANDIDATES, has_residual
from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.architecture.weights import Weights, option_probabilities, uniform


class Cost(NamedTuple):
    """Cost of a network or an operation.

    Attributes:
        parameters: Number of trainable parameters.
        macs: Multiply-accumulate operations per image.
    """

    parameters: int
    macs: int

    def __add__(self, other: tuple) -> Cost:  # type: ignore[override]
        return Cost(self[0] + other[0], self[1] + other[1])


def count(module: nn.Module, *inputs: Tensor) -> Cost:
    """Return the exact cost of a module on the meta device.

    Arguments:
        module: Module to count; it is in evaluation mode afterwards.
        inputs: Inputs of one image, for torch's count of floating-point operations.
    """
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)


@cache
def option_cost(
    option: Operation, in_channels: int, out_channels: int, stride: int, size: tuple[int, int]
) -> Cost:
    """Return the exact cost of a concrete operation on one edge.

    Arguments:
        option: Operation with one size per choice.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.
        size: Height and width of the input.
    """
    if option.name == "skip" and has_residual(in_channels, out_channels, stride):
        return Cost(0, 0)
    with torch.device("meta"):
        module = CANDIDATES[option.name].build(option, in_channels, out_channels, stride)
        return count(_Plain(module), torch.empty(1, in_channels, *size))


class _Plain(nn.Module):
    def __init__(self, operation: nn.Module):
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, None, None)


def network_cost(space: SearchSpace, image: tuple[int, int, int], classes: int) -> Cost:
    """Return the exact cost of the network of a discrete space, counted on the network itself.

    Arguments:
        space: Discrete space.
        image: Channels, height and width of an input image.
        classes: Number of classes.
    """
    assert space.is_discrete
    with torch.device("meta"):
        network = Network(space, image, classes)
        return count(network, torch.empty(1, *image))


def cost_of(genotype: Genotype) -> Cost:
    """Return the exact cost of the network of a genotype, counted on the network itself."""
    with torch.device("meta"):
        network = network_of(genotype).to("meta")  # timm makes its networks on the CPU
        return count(network, torch.empty(1, *genotype.image))


def genotype_with_cost(
    space: SearchSpace, image: tuple[int, int, int], classes: tuple[str, ...], **rest: Any
) -> Genotype:
    """Return the genotype of a discrete space, with its numbers of parameters and MACs.

    Arguments:
        space: Discrete space.
        image: Channels, height and width of an input image.
        classes: Class names.
        rest: Further fields of `Genotype`.
    """
    cost = network_cost(space, image, len(classes))
    return Genotype(space=space, image=image, classes=classes, **cost._asdict(), **rest)


class CostTable:
    """Cost of every option of every edge; the cost of a network is a constant plus their sum.

    Arguments:
        space: Search space.
        image: Channels, height and width of an input image.
        classes: Number of classes.

    Attributes:
        constant: Cost of stem, projections and classifier.
        costs: Per cell name, one row per edge and one cost per option, summed over all positions
            of the cell in the network.
        options: Per cell name, the same numbers as two tensors [E, options]: parameters and MACs.
    """

    def __init__(self, space: SearchSpace, image: tuple[int, int, int], classes: int):
        self.space = space
        stages, _ = stages_of(space, image[1:])
        sums: dict[str, list[list[Cost]]] = {}
        for stage in stages:
            rows = []
            for edge in stage.cell.edges:
                channels, stride, size = stage.shape(edge.source)
                rows.append(
                    [option_cost(o, channels, stage.channels, stride, size) for o in edge.options]
                )
            old = sums.get(stage.cell.name)
            sums[stage.cell.name] = (
                rows if old is None else [[a + b for a, b in zip(r, s)] for r, s in zip(old, rows)]
            )
        self.costs = sums
        with torch.device("meta"):
            network = Network(_any_member(space), image, classes)
            whole = count(network, torch.empty(1, *image))
        chosen = [
            sums[cell.name][cell.edges.index(edge)][-1]
            for cell in space.cells
            for edge in _kept(cell)
        ]
        self.constant = Cost(
            whole.parameters - sum(c.parameters for c in chosen),
            whole.macs - sum(c.macs for c in chosen),
        )
        self.options = {
            name: (
                torch.tensor([[c.parameters for c in row] for row in rows], dtype=torch.float32),
                torch.tensor([[c.macs for c in row] for row in rows], dtype=torch.float32),
            )
            for name, rows in sums.items()
        }

    def to(self, device: torch.device) -> CostTable:
        """Move the tensors to a device, in place; return the table."""
        self.options = {n: (p.to(device), m.to(device)) for n, (p, m) in self.options.items()}
        return self

    def expected(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the expected parameters and MACs, as scalars differentiable in the mixing weights.

        E[cost] = constant + sum_e P(e kept) sum_o p_o cost(e, o). The value is exact if edges and
        options are drawn independently.

        Arguments:
            weights: Mixing weights of every cell.
        """
        totals: list[Tensor | int] = list(self.constant)
        for cell in self.space.cells:
            p = option_probabilities(cell, weights[cell.name])
            edge = weights[cell.name].edge
            if edge is not None:
                p = p * edge[:, None]
            for i, table in enumerate(self.options[cell.name]):
                totals[i] = totals[i] + (p * table).sum()
        parameters, macs = totals
        assert isinstance(parameters, Tensor) and isinstance(macs, Tensor)
        return parameters, macs


def _kept(cell: Cell) -> list:
    nodes = range(cell.inputs, cell.inputs + cell.nodes)
    return [cell.edges[i] for node in nodes for i in cell.into(node)[: cell.keep]]


def _any_member(space: SearchSpace) -> SearchSpace:
    """Return a discrete member of the space: first edges per node, last option per edge."""
    return replace(
        space,
        cells=tuple(
            replace(
                cell,
                edges=tuple(replace(e, operations=(e.options[-1],)) for e in _kept(cell)),
            )
            for cell in space.cells
        ),
    )


def default_channels(
    space: Callable[[int], SearchSpace], image: tuple[int, int, int], classes: int, cap: int
) -> int:
    """Return the largest even width at which the average network is within a parameter limit.

    Arguments:
        space: Returns the search space of a width.
        image: Channels, height and width of an input image.
        classes: Number of classes.
        cap: Parameter limit of the expected number under uniform mixing weights.
    """

    def average(channels: int) -> float:
        candidate = space(channels)
        parameters, _ = CostTable(candidate, image, classes).expected(uniform(candidate))
        return float(parameters)

    low = 2
    while average(2 * low) <= cap:
        low *= 2
    high = 2 * low
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if average(middle) <= cap else (low, middle)
    return low


def filled(space: SearchSpace, image: tuple[int, int, int], classes: int, cap: int) -> SearchSpace:
    """Return a discrete space at the largest width, at least its own, within a parameter limit.

    Arguments:
        space: Discrete space.
        image: Channels, height and width of an input image.
        classes: Number of classes.
        cap: Parameter limit.

    >>> from darts_lite.architecture.presets import blocks
    >>> from darts_lite.nas.random_networks import uniform_random
    >>> space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(0))
    >>> wide = filled(space, (1, 28, 28), 10, 20_000)
    >>> network_cost(wide, (1, 28, 28), 10).parameters <= 20_000 and wide.channels > 4
    True
    """
    while True:
        wider = space.with_channels(space.channels + 1)
        if network_cost(wider, image, classes).parameters > cap:
            return space
        space = wider
