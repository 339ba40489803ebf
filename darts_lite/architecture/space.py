"""Search spaces as plain frozen data. Imports no torch.

A genotype is a search space with one option per edge. One description therefore serves search and
final training, and selection maps a space to a smaller space. Module `operations` has the known
operations; in this module an operation is a name with sizes to choose from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Operation:
    """An operation with its conditional choices.

    Arguments:
        name: Name of the operation, a key of `operations.CANDIDATES`.
        choices: Choice -> its sizes, ascending; choices and their order are as in `CANDIDATES`.

    >>> Operation("conv", {"kernel": (3, 5)}).options[1]
    Operation(name='conv', choices={'kernel': (5,)})
    """

    __pydantic_config__ = STRICT
    name: str
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, sizes in self.choices.items():
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ValueError(
                    f"{self.name}.{name} must be ascending positive sizes, got {sizes}"
                )
            if name == "kernel" and any(size % 2 == 0 for size in sizes):
                raise ValueError(f"{self.name}.kernel must be odd, got {sizes}")

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.choices.items())))

    @property
    def options(self) -> list[Operation]:
        """Every combination of one size per choice; the last choice varies fastest."""
        sizes = itertools.product(*self.choices.values())
        return [Operation(self.name, {c: (s,) for c, s in zip(self.choices, row)}) for row in sizes]

    @property
    def label(self) -> str:
        """Short name for reports, such as `inverted_residual k5 e4`."""
        sizes = (f"{c[0]}{'/'.join(map(str, s))}" for c, s in self.choices.items())
        return " ".join([self.name, *sizes])


@dataclass(frozen=True)
class Edge:
    """An edge of a cell.

    Arguments:
        source: Node that the edge reads; the inputs of a cell are its first nodes.
        target: Node that the edge ends in.
        operations: Operations of the edge.
    """

    __pydantic_config__ = STRICT
    source: int
    target: int
    operations: tuple[Operation, ...]

    @property
    def options(self) -> list[Operation]:
        """Every concrete operation of the edge."""
        return [option for operation in self.operations for option in operation.options]


@dataclass(frozen=True)
class Cell:
    """A directed acyclic graph of edges; a node is the sum of its incoming edges.

    A cell with two inputs reads the two cells before it, each projected to the width of the cell.
    It returns the concatenation of its nodes (DARTS, Liu et al. 2019, section 2.1). A cell with
    one input is a block in a chain.

    Arguments:
        name: Name of the cell.
        inputs: Number of inputs, 1 or 2.
        nodes: Number of nodes after the inputs.
        keep: Number of edges per node that discretization keeps.
        reduction: Whether the cell halves the resolution.
        edges: Edges of the cell.
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
            raise ValueError(
                f"cell {self.name!r} must have 1 or 2 inputs, at least 1 node and keep at least 1 "
                f"edge, got inputs {self.inputs}, nodes {self.nodes}, keep {self.keep}"
            )
        for edge in self.edges:
            if not 0 <= edge.source < edge.target or not edge.operations:
                raise ValueError(
                    f"an edge of cell {self.name!r} must have 0 <= source < target and at least "
                    f"one operation, got {edge}"
                )
            if not self.inputs <= edge.target < self.inputs + self.nodes:
                raise ValueError(
                    f"the edges of cell {self.name!r} must end in nodes {self.inputs} to "
                    f"{self.inputs + self.nodes - 1}, got {edge.target}"
                )
            if len({operation.name for operation in edge.operations}) < len(edge.operations):
                raise ValueError(
                    f"an edge of cell {self.name!r} must have each operation once, got {edge}"
                )
        if len({(edge.source, edge.target) for edge in self.edges}) < len(self.edges):
            raise ValueError(
                f"cell {self.name!r} must have at most one edge between two nodes, got several"
            )
        for node in range(self.inputs, self.inputs + self.nodes):
            if not self.into(node):
                raise ValueError(
                    f"every node of cell {self.name!r} must have an incoming edge, got none for "
                    f"node {node}"
                )
        if not self.is_discrete and len({edge.operations for edge in self.edges}) > 1:
            raise ValueError(f"all edges of cell {self.name!r} must have the same operations")

    def into(self, node: int) -> list[int]:
        """Return the indices of the edges that end in `node`."""
        return [i for i, edge in enumerate(self.edges) if edge.target == node]

    @property
    def inner_nodes(self) -> range:
        """The nodes after the inputs."""
        return range(self.inputs, self.inputs + self.nodes)

    @property
    def edges_compete(self) -> bool:
        """Whether a node has more incoming edges than it keeps."""
        return any(len(self.into(node)) > self.keep for node in self.inner_nodes)

    @property
    def is_discrete(self) -> bool:
        """Whether every edge has one option and no node has more than `keep` edges."""
        return all(len(edge.options) == 1 for edge in self.edges) and not self.edges_compete


@dataclass(frozen=True)
class SearchSpace:
    """The cells of a network and their order.

    All cells with one name share their architecture. Each reduction cell halves the resolution and
    doubles the width.

    Arguments:
        preset: Name of the preset.
        cells: One entry per cell name.
        sequence: Names of the cells, from the first to the last of the network.
        channels: Width C before the first reduction.
        stem_stride: Stride of the first convolution, 1 or 2.
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
            raise ValueError(f"sequence must use each of the cells {names}, got {self.sequence}")
        if self.channels < 1 or self.stem_stride not in (1, 2):
            raise ValueError(
                "channels must be at least 1 and stem_stride 1 or 2, "
                f"got {self.channels} and {self.stem_stride}"
            )

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    def with_channels(self, channels: int) -> SearchSpace:
        """Return the same architecture with another width."""
        return replace(self, channels=channels)

    @property
    def is_discrete(self) -> bool:
        return all(cell.is_discrete for cell in self.cells)

    @property
    def edges(self) -> Iterator[tuple[Cell, Edge]]:
        return ((cell, edge) for cell in self.cells for edge in cell.edges)
