"""The exact multiple-choice knapsack against enumeration."""

from __future__ import annotations

import itertools
import random

import pytest

from darts_lite.nas.fronts import best_choices


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_the_best_of_all_by_enumeration(seed: int) -> None:
    rng = random.Random(seed)
    groups = [
        [(rng.randrange(12), float(rng.randrange(-9, 10))) for _ in range(rng.randint(1, 5))]
        for _ in range(rng.randint(1, 5))
    ]
    costs = [sum(c for c, _ in choice) for choice in itertools.product(*groups)]
    for limit in (None, min(costs) - 1, min(costs), rng.randint(min(costs), max(costs))):
        found = best_choices(groups, limit)
        ranked = [
            (-sum(s for _, s in choice), cost)
            for choice, cost in zip(itertools.product(*groups), costs)
            if limit is None or cost <= limit
        ]
        if not ranked:
            assert found is None
            continue
        assert found is not None
        taken = [group[i] for group, i in zip(groups, found)]
        assert (-sum(s for _, s in taken), sum(c for c, _ in taken)) == min(ranked)
