"""Random discrete spaces, their one-hot weights, and a counter of MACs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.architecture.weights import CellWeights, Weights
from darts_lite.nas.relaxation import logit_shapes


def random_member(space: SearchSpace, seed: int) -> SearchSpace:
    """Return a random discrete space: `keep` edges per node, one option per edge."""
    rng = random.Random(seed)
    return replace(space, cells=tuple(_discrete_cell(cell, rng) for cell in space.cells))


def _discrete_cell(cell: Cell, rng: random.Random) -> Cell:
    nodes = range(cell.inputs, cell.inputs + cell.nodes)
    into = {node: cell.into(node) for node in nodes}
    kept = [i for node in nodes for i in rng.sample(into[node], min(cell.keep, len(into[node])))]
    edges = (cell.edges[i] for i in sorted(kept))
    return replace(
        cell, edges=tuple(replace(e, operations=(rng.choice(e.options),)) for e in edges)
    )


def one_hot(space: SearchSpace, member: SearchSpace) -> Weights:
    """Return weights (float64) of `space`: one for the options of `member`, zero for all others."""
    return {cell.name: _one_hot_cell(cell, member.cell(cell.name)) for cell in space.cells}


def _one_hot_cell(cell: Cell, member: Cell) -> CellWeights:
    chosen = {(edge.source, edge.target): edge.operations[0] for edge in member.edges}
    options = [chosen.get((edge.source, edge.target)) for edge in cell.edges]
    rows = [
        [_is(option, operation.name) for operation in edge.operations]
        for option, edge in zip(options, cell.edges)
    ]
    choices = {
        operation.name: {
            choice: torch.stack([_size(option, operation, choice) for option in options])
            for choice, sizes in operation.choices.items()
            if len(sizes) > 1
        }
        for operation in cell.edges[0].operations
    }
    edge = torch.tensor([float(option is not None) for option in options], dtype=torch.float64)
    return CellWeights(edge, torch.tensor(rows, dtype=torch.float64), choices)


def _is(option: Operation | None, name: str) -> float:
    return float(option is not None and option.name == name)


def _size(option: Operation | None, operation: Operation, choice: str) -> Tensor:
    """Return [n]: one at the size of the option, or at the first size for another operation."""
    sizes = operation.choices[choice]
    taken = option is not None and option.name == operation.name
    index = sizes.index(option.choices[choice][0]) if option is not None and taken else 0
    return torch.eye(len(sizes), dtype=torch.float64)[index]


def random_logits(space: SearchSpace, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Return normally distributed logits in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in logit_shapes(space).items()
    }


class MacCounter(TorchFunctionMode):
    """Counter of multiply-accumulates: weights × output positions of convolutions, and matrices.

    It is independent of the source code, because it sees the calls of every module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.linear):
            positions = out.shape[2:].numel() if func is F.conv2d else 1
            self.macs += args[1].numel() * out.shape[0] * positions
        return out
