"""Search spaces and genotypes as frozen data, and their JSON form. Imports no torch.

A genotype is a search space with one option per edge. One description therefore serves search and
final training, and `derive` maps a space to a smaller space.
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
CHOICES = {  # operation -> its conditional choices, in the order of all reports
    "conv": ("kernel",),
    "bottleneck": ("kernel", "ratio"),
    "inverted_residual": ("kernel", "expansion"),
    "skip": (),
}

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Operation:
    """An operation with its conditional choices.

    Arguments:
        name: A key of `CHOICES`.
        choices: Choice -> its sizes, ascending; the choices of `CHOICES[name]`, in this order.

    >>> Operation("conv", {"kernel": (3, 5)}).options[1]
    Operation(name='conv', choices={'kernel': (5,)})
    """

    __pydantic_config__ = _STRICT
    name: str
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CHOICES:
            raise ValueError(f"operation must be one of {', '.join(CHOICES)}, got {self.name!r}")
        if tuple(self.choices) != CHOICES[self.name]:
            raise ValueError(
                f"choices of operation {self.name!r} must be {list(CHOICES[self.name])}, "
                f"got {list(self.choices)}"
            )
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

    __pydantic_config__ = _STRICT
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

    __pydantic_config__ = _STRICT
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
    def is_discrete(self) -> bool:
        """Whether there is one option per edge and no node has more than `keep` edges."""
        nodes = range(self.inputs, self.inputs + self.nodes)
        return all(len(edge.options) == 1 for edge in self.edges) and all(
            len(self.into(node)) <= self.keep for node in nodes
        )


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

    __pydantic_config__ = _STRICT
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


OPERATIONS = (
    Operation("conv", {"kernel": (3, 5)}),
    Operation("bottleneck", {"kernel": (3, 5), "ratio": (2, 4)}),
    Operation("inverted_residual", {"kernel": (3, 5), "expansion": (2, 4, 6)}),
    Operation("skip"),
)


def _reductions(length: int) -> set[int]:
    return {length // 3, 2 * length // 3}


def cells(channels: int = 16, length: int = 7, stem_stride: int = 1) -> SearchSpace:
    """Return the space of DARTS cells, normal and reduction: 2 inputs, 2 nodes, keep 2 edges.

    Arguments:
        channels: Width before the first reduction.
        length: Number of cells.
        stem_stride: Stride of the first convolution, 1 or 2.

    >>> [cell.name for cell in cells().cells], cells().sequence.count("reduction")
    (['normal', 'reduction'], 2)
    """
    edges = tuple(Edge(s, t, OPERATIONS) for t in (2, 3) for s in range(t))
    at = _reductions(length)
    sequence = tuple("reduction" if i in at else "normal" for i in range(length))
    kinds = tuple(Cell(n, 2, 2, 2, n == "reduction", edges) for n in sorted(set(sequence)))
    return SearchSpace("cells", kinds, sequence, channels, stem_stride)


def blocks(channels: int = 16, length: int = 7, stem_stride: int = 1) -> SearchSpace:
    """Return the space of a chain of blocks, each with its own architecture.

    Based on Cai et al. 2019 and Wu et al. 2019.

    Arguments:
        channels: Width before the first reduction.
        length: Number of blocks.
        stem_stride: Stride of the first convolution, 1 or 2.

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
    """The result of a search: a discrete space, the learned schedules, and their origin.

    Arguments:
        space: Discrete space.
        image: Channels, height and width of the images.
        classes: Class names; `classes[label]`.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulate operations per image.
        hyperparameters: Learned schedules by name, as functions of the budget fraction.
        dataset: Fingerprint of the data set.
        settings: Settings of the search.
        seed: Random seed of the search, which also split the data.
        versions: Versions of the libraries.
    """

    __pydantic_config__ = _STRICT
    format: Literal["darts_lite.genotype"] = "darts_lite.genotype"
    version: int = FORMAT_VERSION
    space: SearchSpace
    image: tuple[int, int, int]
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
            raise ValueError(f"format version must be {FORMAT_VERSION}, got version {self.version}")
        if not self.space.is_discrete:
            raise ValueError("a genotype must have one option per edge")
        if min(self.image) < 1 or len(self.classes) < 2:
            raise ValueError(
                "image sizes must be at least 1 and there must be at least 2 classes, "
                f"got {self.image} and {len(self.classes)}"
            )
        for name, schedule in self.hyperparameters.items():
            if not schedule or any(a[0] > b[0] for a, b in itertools.pairwise(schedule)):
                raise ValueError(
                    f"the schedule of {name!r} must ascend in the budget fraction, got {schedule}"
                )

    def save(self, path: Path) -> None:
        """Write the genotype as JSON, atomically."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the genotype as JSON values; `read` accepts their text."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def load(path: Path) -> Genotype:
        """Read and check the genotype in a file.

        Raises:
            UserError: The file cannot be read, or is no genotype; the message names the first
                error.
        """
        try:
            return Genotype.read(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    @staticmethod
    def read(content: str | bytes, source: object) -> Genotype:
        """Read and check a genotype.

        Arguments:
            content: JSON text.
            source: Origin of the text, for error messages.

        Raises:
            UserError: The text is no genotype; the message names the first error.
        """
        try:
            return _ADAPTER.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            what = first["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{source} must be a genotype of this version: {where}: {what}; "
                "create it again with `search` or `derive`"
            ) from None


_ADAPTER = TypeAdapter(Genotype)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON atomically: to a temporary file in the same folder, then rename.

    Arguments:
        path: File to write.
        value: JSON values.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
