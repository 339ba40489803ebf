"""Ranking of records by accuracy, or by fronts of accuracy and parameters."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from records import fronts, record

from darts_lite.hpo.pareto import front, ranked
from darts_lite.hpo.records import Record

ACCURACIES = st.sampled_from([None, 0.0, 0.25, 0.5, 0.75])
PAIRS = st.lists(st.tuples(ACCURACIES, st.integers(1, 5)), max_size=12)


def sized(pairs: Iterable[tuple[float | None, int]]) -> list[Record]:
    return [record(i, a, parameters=p) for i, (a, p) in enumerate(pairs)]


def test_ranked_sorts_by_accuracy() -> None:
    records = sized([(0.5, 1), (None, 2), (0.75, 3), (0.5, 4), (0.0, 5)])
    assert [r.trial for r in ranked(reversed(records))] == [2, 0, 3, 1, 4]
    assert ranked([]) == ranked([], pareto=True) == front([]) == []


def test_front_of_hand_made_records() -> None:
    """Two of them, and a record that both beat."""
    records = sized([(0.9, 90), (0.5, 20), (0.8, 95), (0.4, 20), (0.7, 40), (0.5, 50), (0.1, 99)])
    assert [r.trial for r in front(records)] == [0, 4, 1]
    assert [r.trial for r in ranked(records, pareto=True)] == [0, 4, 1, 2, 5, 3, 6]


@given(PAIRS, st.randoms())
def test_the_front_is_complete_and_not_dominated(
    pairs: list[tuple[float | None, int]], chance: random.Random
) -> None:
    """Of records that are equal in both there is one."""
    records = sized(pairs)
    shuffled = chance.sample(records, len(records))
    found = front(shuffled)
    goods = [(r.accuracy or 0.0, -(r.parameters or 0)) for r in found]
    assert goods == sorted(set(goods), reverse=True)
    for i, (accuracy, size) in enumerate(goods):
        assert not any(a >= accuracy and p >= size for a, p in goods[:i] + goods[i + 1 :])
    for r in records:
        own = (r.accuracy or 0.0, -(r.parameters or 0))
        assert any(a >= own[0] and p >= own[1] for a, p in goods)


@given(PAIRS, st.randoms())
def test_ranked_with_pareto_sorts_by_fronts(
    pairs: list[tuple[float | None, int]], chance: random.Random
) -> None:
    records = sized(pairs)
    shuffled = chance.sample(records, len(records))
    found = [r.trial for r in ranked(shuffled, pareto=True)]
    layers = [sorted(layer, key=lambda r: -(r.accuracy or 0.0)) for layer in fronts(records)]
    assert found == [r.trial for layer in layers for r in layer]
