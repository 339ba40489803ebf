"""Discretisation: the most probable architecture under a hard cap, exactly."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from darts_lite.derive import discretise, uniform_random
from darts_lite.errors import UserError
from darts_lite.network import CostTable, network_cost
from darts_lite.relaxation import Weights, logit_shapes, option_scores, relax
from darts_lite.space import SearchSpace, blocks, cells

IMAGE, CLASSES = (1, 8, 8), 10


def random_weights(space: SearchSpace, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    logits = {n: 2 * torch.randn(s, generator=generator) for n, s in logit_shapes(space).items()}
    return relax(space, logits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cap", [None, 3000, 2000, 1200])
def test_it_is_the_best_of_all_by_enumeration(seed: int, cap: int | None) -> None:
    space = blocks(6, 3)
    weights, costs = random_weights(space, seed), CostTable(space, IMAGE, CLASSES)
    best = (-math.inf, ())
    scores = [option_scores(c, weights[c.name])[0].tolist() for c in space.cells]
    for choice in itertools.product(range(13), repeat=3):
        parameters = costs.constant.parameters + sum(
            costs.costs[c.name][0][i].parameters for c, i in zip(space.cells, choice)
        )
        score = sum(s[i] for s, i in zip(scores, choice))
        if (cap is None or parameters <= cap) and score > best[0]:
            best = (score, choice)
    found = discretise(space, weights, costs, cap)
    options = space.cells[0].edges[0].options
    assert [c.edges[0].operations[0] for c in found.cells] == [options[i] for i in best[1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", [cells, blocks])
def test_without_a_cap_it_is_the_argmax_of_each_decision(preset: object, seed: int) -> None:
    space = preset(4, 5)  # type: ignore[operator]
    weights = random_weights(space, seed)
    found = discretise(space, weights, CostTable(space, IMAGE, CLASSES))
    for cell, result in zip(space.cells, found.cells):
        p = option_scores(cell, weights[cell.name]).exp()
        edge = weights[cell.name].edge
        strength = p.max(1).values * (1 if edge is None else edge)
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            into = cell.into(node)
            best = sorted(into, key=lambda i: -float(strength[i]))[: cell.keep]
            chosen = [result.edges[i] for i in result.into(node)]
            assert {e.source for e in chosen} == {cell.edges[i].source for i in best}
            for e in chosen:
                i = next(j for j in into if cell.edges[j].source == e.source)
                assert e.operations[0] == cell.edges[i].options[int(p[i].argmax())]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("preset", [cells, blocks])
def test_the_cap_holds_for_the_built_network(preset: object, seed: int) -> None:
    space = preset(8, 7)  # type: ignore[operator]
    weights, costs = random_weights(space, seed), CostTable(space, IMAGE, CLASSES)
    free = network_cost(discretise(space, weights, costs), IMAGE, CLASSES).parameters
    for share in (0.9, 0.6, 0.4):
        found = discretise(space, weights, costs, int(share * free))
        assert found.is_discrete
        assert network_cost(found, IMAGE, CLASSES).parameters <= share * free


def test_an_impossible_cap_names_the_smallest_network() -> None:
    space = cells(8)
    weights, costs = random_weights(space, 0), CostTable(space, IMAGE, CLASSES)
    with pytest.raises(UserError, match="smallest possible at 8 channels has") as error:
        discretise(space, weights, costs, 10)
    smallest = int(str(error.value).split(" has ")[1].split(";")[0])
    found = discretise(space, weights, costs, smallest)
    assert network_cost(found, IMAGE, CLASSES).parameters == smallest


def test_random_genotypes_are_members_of_the_space_and_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    space = cells(4)
    drawn = [uniform_random(space, generator) for _ in range(20)]
    assert all(s.is_discrete for s in drawn)
    assert len(set(map(repr, drawn))) > 15
    assert replace(drawn[0], cells=space.cells) == space


def test_an_operation_does_not_lose_for_offering_more_sizes() -> None:
    """inverted_residual leads by operation; its six options share its probability."""
    space = blocks(8, 3)
    logits = {n: torch.zeros(s) for n, s in logit_shapes(space).items()}
    for cell in space.cells:
        logits[f"{cell.name}.operation"][:, 2] = 0.1
        logits[f"{cell.name}.inverted_residual.expansion"][:, 1] = 0.1
    found = discretise(space, relax(space, logits), CostTable(space, IMAGE, CLASSES))
    chosen = {edge.operations[0].label for _, edge in found.edges}
    assert {label.split()[0] for label in chosen} == {"inverted_residual"}
    assert all(label.endswith("e4") for label in chosen)
