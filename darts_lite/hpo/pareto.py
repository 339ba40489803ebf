"""Which records are best: by accuracy, or by accuracy and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from darts_lite.hpo.records import Record


def ranked(records: Iterable[Record], pareto: bool = False) -> list[Record]:
    """The best first.

    With `pareto`, by fronts of non-dominated records (Deb et al. 2002), in each by accuracy.
    """
    rest = sorted(records, key=lambda r: (-(r.accuracy or 0.0), r.trial))
    if not pareto:
        return rest
    found: list[Record] = []
    while rest:
        best = front(rest)
        found += best
        rest = [r for r in rest if r not in best]
    return found


def front(records: Sequence[Record]) -> list[Record]:
    """Those that no other equals or beats in both accuracy and parameters; most accurate first."""
    found: list[Record] = []
    size = float("inf")
    for record in sorted(records, key=lambda r: (-(r.accuracy or 0.0), r.parameters or 0)):
        if (record.parameters or 0) < size:
            found.append(record)
            size = record.parameters or 0
    return found
