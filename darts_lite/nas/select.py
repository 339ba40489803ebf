"""Selection: from a search space and mixing weights to the best discrete space within a limit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from darts_lite.architecture.cost import CostTable
from darts_lite.architecture.space import Cell, Edge, SearchSpace
from darts_lite.architecture.speed import Seconds
from darts_lite.architecture.weights import Weights, option_probabilities, uniform
from darts_lite.errors import UserError
from darts_lite.nas.fronts import best_choices
from darts_lite.nas.relaxation import option_scores

DEAREST = 1e6  # largest price of the time of the average network, in log probabilities
BISECTIONS = 20


class _Partial(NamedTuple):
    """Decisions for some of the nodes: parameters, score, and the chosen edges by cell name."""

    parameters: int
    score: float
    edges: tuple[tuple[str, Edge], ...]


class Selector(Protocol):
    """A map from a space to a discrete space with at most `limit` parameters."""

    def __call__(
        self, space: SearchSpace, weights: Weights, costs: CostTable, limit: int | None
    ) -> SearchSpace: ...


def knapsack(
    space: SearchSpace,
    weights: Weights,
    costs: CostTable,
    limit: int | None = None,
    penalties: Mapping[str, Tensor] | None = None,
) -> SearchSpace:
    """Return the discrete space with the largest total score and at most `limit` parameters.

    Each node keeps `keep` edges, each edge keeps one option. The score of an edge is the log of its
    probability to be kept plus the score of its option (`option_scores`). Parameters are additive
    over edges, so the selection is a multiple-choice knapsack problem. `best_choices` solves it
    exactly. Without a limit the result is the argmax of each decision (DARTS).

    Arguments:
        space: the search space.
        weights: mixing weights of every cell.
        costs: costs of the space.
        limit: parameter limit; None for no limit.
        penalties: by cell name, `[E, options]` to subtract from the scores; None for none.
    Raises: `UserError` if no network fits; it reports the smallest possible number of parameters.
    """
    nodes: list[list[_Partial]] = []
    for cell in space.cells:
        scores = option_scores(cell, weights[cell.name])
        if penalties is not None:
            scores = scores - penalties[cell.name].to(scores)
        edge = weights[cell.name].edge
        log_edges = None if edge is None else edge.clamp_min(1e-30).log().tolist()
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            nodes.append(_node(cell, node, scores.tolist(), log_edges, costs))
    fixed = costs.constant.parameters
    groups = [[(p.parameters, p.score) for p in node] for node in nodes]
    chosen = best_choices(groups, None if limit is None else limit - fixed)
    if chosen is None:
        smallest = fixed + sum(node[0].parameters for node in nodes)
        raise UserError(
            f"the parameter limit must be at least {smallest}, the smallest possible "
            f"network at {space.channels} channels, got {limit}; raise --max-params or search with "
            "fewer --channels"
        )
    best = _join(*(node[i] for node, i in zip(nodes, chosen)))
    return replace(
        space,
        cells=tuple(
            replace(cell, edges=tuple(edge for name, edge in best.edges if name == cell.name))
            for cell in space.cells
        ),
    )


@dataclass(frozen=True)
class TimedKnapsack:
    """`knapsack` among networks whose training takes at most a share of the average network's time.

    The price of a second is the smallest, found by bisection, at which the best network is fast
    enough (Lagrange relaxation: exact for the price, not for the limit of time).

    Arguments:
        seconds: measured seconds per image of every option.
        share: longest time, as a share of that of the average network of the space.
    """

    seconds: Seconds
    share: float = 1.0

    def __call__(
        self, space: SearchSpace, weights: Weights, costs: CostTable, limit: int | None
    ) -> SearchSpace:
        longest = self.share * self.average(space)

        def best(price: float) -> SearchSpace:
            penalties = {n: price * s / longest for n, s in self.seconds.items()}
            return knapsack(space, weights, costs, limit, penalties)

        found, low, high = best(0.0), 0.0, 1.0
        if self.of(space, found) <= longest:
            return found
        while self.of(space, found := best(high)) > longest and high < DEAREST:
            low, high = high, 4 * high
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            candidate = best(middle)
            if self.of(space, candidate) <= longest:
                found, high = candidate, middle
            else:
                low = middle
        return found

    def average(self, space: SearchSpace) -> float:
        """Return the seconds per image of the average network of a space."""
        total, even = 0.0, uniform(space)
        for cell in space.cells:
            p = option_probabilities(cell, even[cell.name]).double()
            edge = even[cell.name].edge
            p = p if edge is None else p * edge[:, None]
            total += float((p * self.seconds[cell.name]).sum())
        return total

    def of(self, space: SearchSpace, member: SearchSpace) -> float:
        """Return the seconds per image of a network of the space."""
        total = 0.0
        for cell in space.cells:
            places = {(e.source, e.target): i for i, e in enumerate(cell.edges)}
            for edge in member.cell(cell.name).edges:
                row = places[edge.source, edge.target]
                option = cell.edges[row].options.index(edge.operations[0])
                total += float(self.seconds[cell.name][row, option])
        return total


def _node(
    cell: Cell,
    node: int,
    scores: list[list[float]],
    log_edges: list[float] | None,
    costs: CostTable,
) -> list[_Partial]:
    """Return the Pareto front of the decisions at one node."""
    fronts = {}
    for i in cell.into(node):
        edge = cell.edges[i]
        strength = 0.0 if log_edges is None else log_edges[i]
        fronts[i] = _pareto(
            _Partial(
                cost.parameters,
                strength + score,
                ((cell.name, replace(edge, operations=(option,))),),
            )
            for option, score, cost in zip(
                edge.options, scores[i], costs.costs[cell.name][i], strict=True
            )
        )
    keep = min(cell.keep, len(fronts))
    return _pareto(
        _join(*parts)
        for group in itertools.combinations(fronts, keep)
        for parts in itertools.product(*(fronts[i] for i in group))
    )


def _join(*parts: _Partial) -> _Partial:
    return _Partial(
        sum(p.parameters for p in parts),
        sum(p.score for p in parts),
        tuple(edge for p in parts for edge in p.edges),
    )


def _pareto(candidates: object) -> list[_Partial]:
    """Return the Pareto front of fewer parameters and higher score, ascending in both."""
    front: list[_Partial] = []
    for candidate in sorted(candidates, key=lambda p: (p.parameters, -p.score)):  # type: ignore[call-overload]
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
    return front
