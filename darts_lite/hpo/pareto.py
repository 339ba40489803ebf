"""Order of records: by accuracy, or by accuracy and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from darts_lite.hpo.records import Record


def ranked(records: Iterable[Record], pareto: bool = False) -> list[Record]:
    """Return the records, the best first.

    Arguments:
        records: Records to sort.
        pareto: Sort by fronts of non-dominated records (Deb et al. 2002), then by accuracy. False
            sorts by accuracy only.
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
    """Return the Pareto front of accuracy and parameters, the most accurate record first.

    Of several records with equal accuracy and parameters, the front has one.
    """
    found: list[Record] = []
    size = float("inf")
    for record in sorted(records, key=lambda r: (-(r.accuracy or 0.0), r.parameters or 0)):
        if (record.parameters or 0) < size:
            found.append(record)
            size = record.parameters or 0
    return found
