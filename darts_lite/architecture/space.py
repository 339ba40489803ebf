"""Search spaces and genotypes as plain frozen data, and their JSON form. Imports no torch.

A genotype is a search space with one option per edge, so one description serves search and
retraining, and `derive` maps a space to a smaller space.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

FORMAT_VERSION = 1
CHOICES = {  # operation -> its conditional choices, in the order in which they are reported
    "conv": ("kernel",),
    "bottleneck": ("kernel", "ratio"),
    "inverted_residual": ("kernel", "expansion"),
    "skip": (),
}

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Operation:
    """An operation with its conditional choices, each a set of sizes in ascending order.

    >>> Operation("conv", {"kernel": (3, 5)}).options[1]
    Operation(name='conv', choices={'kernel': (5,)})
    """

    __pydantic_config__ = _STRICT
    name: str
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CHOICES:
            raise ValueError(f"unknown operation {self.name!r}; known: {', '.join(CHOICES)}")
        if tuple(self.choices) != CHOICES[self.name]:
            raise ValueError(
                f"operation {self.name!r} has the choices {list(CHOICES[self.name])}, "
                f"not {list(self.choices)}"
            )
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

    __pydantic_config__ = _STRICT
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

    __pydantic_config__ = _STRICT
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
    def is_discrete(self) -> bool:
        """One option per edge, and no more edges than are kept."""
        nodes = range(self.inputs, self.inputs + self.nodes)
        return all(len(edge.options) == 1 for edge in self.edges) and all(
            len(self.into(node)) <= self.keep for node in nodes
        )


@dataclass(frozen=True)
class SearchSpace:
    """The cells of a network and the order in which they are stacked.

    Cells of one name share their architecture. `channels` is the width C of the first stage; each
    reduction halves the resolution and doubles the width. `stem_stride` is that of the first
    convolution.
    """

    __pydantic_config__ = _STRICT
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


OPERATIONS = (
    Operation("conv", {"kernel": (3, 5)}),
    Operation("bottleneck", {"kernel": (3, 5), "ratio": (2, 4)}),
    Operation("inverted_residual", {"kernel": (3, 5), "expansion": (2, 4, 6)}),
    Operation("skip"),
)


def _reductions(length: int) -> set[int]:
    return {length // 3, 2 * length // 3}


def cells(channels: int = 16, length: int = 7, stem_stride: int = 1) -> SearchSpace:
    """DARTS cells, normal and reduction: 2 inputs, 2 nodes, 2 edges kept per node.

    >>> [cell.name for cell in cells().cells], cells().sequence.count("reduction")
    (['normal', 'reduction'], 2)
    """
    edges = tuple(Edge(s, t, OPERATIONS) for t in (2, 3) for s in range(t))
    at = _reductions(length)
    sequence = tuple("reduction" if i in at else "normal" for i in range(length))
    kinds = tuple(Cell(n, 2, 2, 2, n == "reduction", edges) for n in sorted(set(sequence)))
    return SearchSpace("cells", kinds, sequence, channels, stem_stride)


def blocks(channels: int = 16, length: int = 7, stem_stride: int = 1) -> SearchSpace:
    """A chain of mixed blocks, each with its own logits (Cai et al. 2019; Wu et al. 2019).

    >>> len(blocks().cells), sum(cell.reduction for cell in blocks().cells)
    (7, 2)
    """
    at = _reductions(length)
    edge = (Edge(0, 1, OPERATIONS),)
    chain = tuple(Cell(f"block{i + 1}", 1, 1, 1, i in at, edge) for i in range(length))
    return SearchSpace("blocks", chain, tuple(c.name for c in chain), channels, stem_stride)


PRESETS = {"cells": cells, "blocks": blocks}


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """What a search found: a discrete space, the learned schedules, and where they come from."""

    __pydantic_config__ = _STRICT
    format: Literal["darts_lite.genotype"] = "darts_lite.genotype"
    version: int = FORMAT_VERSION
    space: SearchSpace
    image: tuple[int, int, int]  # channels, height, width
    classes: tuple[str, ...]
    parameters: int
    macs: int
    hyperparameters: dict[str, Schedule] = field(default_factory=dict)
    dataset: dict[str, str | int | list[int]] = field(default_factory=dict)
    settings: dict[str, bool | str | int | float | None] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(
                f"format version {self.version}, this darts_lite reads version {FORMAT_VERSION}"
            )
        if not self.space.is_discrete:
            raise ValueError("a genotype has one option per edge")
        if min(self.image) < 1 or len(self.classes) < 2:
            raise ValueError("a genotype needs images of some size and two classes")
        for name, schedule in self.hyperparameters.items():
            if not schedule or any(a[0] > b[0] for a, b in itertools.pairwise(schedule)):
                raise ValueError(f"the schedule of {name!r} must ascend in the budget fraction")

    def save(self, path: Path) -> None:
        """Write JSON under a temporary name, then rename."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What `read` reads, once it is text."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def load(path: Path) -> Genotype:
        """Read and check a genotype; raises `UserError` with the first thing that is wrong."""
        try:
            return Genotype.read(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    @staticmethod
    def read(content: str | bytes, source: object) -> Genotype:
        """From JSON; `source` is for errors."""
        try:
            return _ADAPTER.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            what = first["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{source} is no genotype of this version: {where}: {what}; "
                "make it again with `search` or `derive`"
            ) from None


_ADAPTER = TypeAdapter(Genotype)


def write_json(path: Path, value: object) -> None:
    """Readable JSON, atomically: a temporary name in the same folder, then a rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
