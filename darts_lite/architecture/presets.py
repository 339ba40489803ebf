"""The search spaces by name, with all registered operations: DARTS cells, and a chain of blocks."""

from darts_lite.architecture.operations import CANDIDATES
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace

OPERATIONS = tuple(Operation(c.name, c.sizes) for c in CANDIDATES.values())


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
