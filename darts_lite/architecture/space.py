"""Search spaces as plain frozen data. Imports no torch.

A genotype is a search space with one option per edge, so one description serves search and
retraining, and selection maps a space to a smaller space. Which operations exist is known in
`operations`; here an operation is a name with sizes to choose from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Operation:
    """An operation with its conditional choices, each a set of sizes in ascending order.

    >>> Operation("conv", {"kernel": (3, 5)}).options[1]
    Operation(name='conv', choices={'kernel': (5,)})
    """

    __pydantic_config__ = STRICT
    name: str
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, sizes in self.choices.items():
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ValueError(f"{self.name}.{name} must be ascending positive sizes: {sizes}")
            if name == "kernel" and any(size % 2 == 0 for size in sizes):
                raise ValueError(f"{self.name}.kernel must be odd: {sizes}")

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.choices.items())))

    @property
    def options(self) -> list[Operation]:
        """Every combination of one size per choice, the last choice varying fastest."""
        sizes = itertools.product(*self.choices.values())
        return [Operation(self.name, {c: (s,) for c, s in zip(self.choices, row)}) for row in sizes]

    @property
    def label(self) -> str:
        """A short name for people: `inverted_residual k5 e4`."""
        sizes = (f"{c[0]}{'/'.join(map(str, s))}" for c, s in self.choices.items())
        return " ".join([self.name, *sizes])


@dataclass(frozen=True)
class Edge:
    """From node `source` to node `target` of a cell; the cell's inputs are its first nodes."""

    __pydantic_config__ = STRICT
    source: int
    target: int
    operations: tuple[Operation, ...]

    @property
    def options(self) -> list[Operation]:
        """Every concrete operation that the edge may become."""
        return [option for operation in self.operations for option in operation.options]


@dataclass(frozen=True)
class Cell:
    """A directed acyclic graph of mixed edges; a node is the sum of its incoming edges.

    `keep` edges per node survive discretisation. A cell with two inputs reads the two cells
    before it, each projected to the cell's width, and gives the concatenation of its nodes (DARTS,
    Liu et al. 2019, section 2.1); one with a single input is a block in a chain.
    """

    __pydantic_config__ = STRICT
    name: str
    inputs: int
    nodes: int
    keep: int
    reduction: bool
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if self.inputs not in (1, 2) or self.nodes < 1 or self.keep < 1:
            raise ValueError(f"cell {self.name!r} needs 1 or 2 inputs, a node and an edge to keep")
        for edge in self.edges:
            if not 0 <= edge.source < edge.target or not edge.operations:
                raise ValueError(f"cell {self.name!r} has a malformed edge: {edge}")
            if not self.inputs <= edge.target < self.inputs + self.nodes:
                raise ValueError(f"cell {self.name!r} has no node {edge.target}")
            if len({operation.name for operation in edge.operations}) < len(edge.operations):
                raise ValueError(f"an edge of cell {self.name!r} has an operation twice: {edge}")
        if len({(edge.source, edge.target) for edge in self.edges}) < len(self.edges):
            raise ValueError(f"cell {self.name!r} has two edges between the same nodes")
        for node in range(self.inputs, self.inputs + self.nodes):
            if not self.into(node):
                raise ValueError(f"node {node} of cell {self.name!r} has no incoming edge")
        if not self.is_discrete and len({edge.operations for edge in self.edges}) > 1:
            raise ValueError(f"the edges of cell {self.name!r} must offer the same operations")

    def into(self, node: int) -> list[int]:
        """Indices of the edges that end in `node`."""
        return [i for i, edge in enumerate(self.edges) if edge.target == node]

    @property
    def inner_nodes(self) -> range:
        """The nodes that edges end in."""
        return range(self.inputs, self.inputs + self.nodes)

    @property
    def edges_compete(self) -> bool:
        """Whether a node has more incoming edges than it keeps."""
        return any(len(self.into(node)) > self.keep for node in self.inner_nodes)

    @property
    def is_discrete(self) -> bool:
        """Whether every edge has one option, and no node more edges than it keeps."""
        return all(len(edge.options) == 1 for edge in self.edges) and not self.edges_compete


@dataclass(frozen=True)
class SearchSpace:
    """The cells of a network and the order in which they are stacked.

    Cells of one name share their architecture. `channels` is the width C of the first stage; each
    reduction halves the resolution and doubles the width. `stem_stride` is that of the first
    convolution.
    """

    __pydantic_config__ = STRICT
    preset: str
    cells: tuple[Cell, ...]
    sequence: tuple[str, ...]
    channels: int
    stem_stride: int = 1

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if not names or len(set(names)) != len(names) or set(self.sequence) != set(names):
            raise ValueError(f"the sequence {self.sequence} must use each of the cells {names}")
        if self.channels < 1 or self.stem_stride not in (1, 2):
            raise ValueError("channels must be positive and stem_stride 1 or 2")

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    def with_channels(self, channels: int) -> SearchSpace:
        """The same architecture at another width."""
        return replace(self, channels=channels)

    @property
    def is_discrete(self) -> bool:
        return all(cell.is_discrete for cell in self.cells)

    @property
    def edges(self) -> Iterator[tuple[Cell, Edge]]:
        return ((cell, edge) for cell in self.cells for edge in cell.edges)
