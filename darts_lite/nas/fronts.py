"""Multiple-choice knapsack, solved exactly by Pareto fronts. Knows no networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Choice = tuple[int, float]  # cost and score of one choice


def best_choices(groups: Sequence[Sequence[Choice]], limit: int | None = None) -> list[int] | None:
    """Return one choice per group with the largest total score and at most `limit` of cost.

    Of several best ones, the cheapest. The Pareto fronts of (cost, score) of the groups are merged
    one after the other (Kellerer, Pferschy and Pisinger 2004, section 11.5).

    Arguments:
        groups: Cost and score of every choice, per group.
        limit: Largest sum of the costs; None for no limit.

    Returns:
        Index of the choice of each group; None if the cheapest choices cost more than the limit.

    >>> best_choices([[(1, 0.0), (5, 9.0)], [(1, 0.0), (4, 8.0), (2, 3.0)]], 7)
    [1, 2]
    """
    rest = [min(cost for cost, _ in group) for group in groups]
    costs, scores = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, int]] = []  # kept pairs (front, group), size of the group
    for i, group in enumerate(groups):
        more = np.array([cost for cost, _ in group], np.int64)
        gain = np.array([score for _, score in group], np.float64)
        total, sums = (costs[:, None] + more).ravel(), (scores[:, None] + gain).ravel()
        order = np.lexsort((-sums, total))
        if limit is not None:
            order = order[total[order] <= limit - sum(rest[i + 1 :])]
        highest = np.maximum.accumulate(np.r_[-np.inf, sums[order]])[:-1]
        kept = order[sums[order] > highest]
        if not len(kept):
            return None
        costs, scores = total[kept], sums[kept]
        steps.append((kept, len(group)))
    place, chosen = len(costs) - 1, []
    for kept, size in reversed(steps):
        place, index = divmod(int(kept[place]), size)
        chosen.append(index)
    return chosen[::-1]
