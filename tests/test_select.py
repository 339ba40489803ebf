"""Selection of the most probable architecture within a parameter limit; random genotypes."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from darts_lite.architecture.cost import CostTable, network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks, cells
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import Operation, SearchSpace
from darts_lite.architecture.speed import training_seconds
from darts_lite.architecture.weights import Weights
from darts_lite.errors import UserError
from darts_lite.nas.random_networks import random_genotypes, uniform_random
from darts_lite.nas.relaxation import logit_shapes, option_scores, relax
from darts_lite.nas.select import TimedKnapsack, knapsack

IMAGE, CLASSES = (1, 8, 8), 10


def random_weights(space: SearchSpace, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    logits = {n: 2 * torch.randn(s, generator=generator) for n, s in logit_shapes(space).items()}
    return relax(space, logits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [None, 3000, 2000, 1200])
def test_selection_is_the_best_of_all_by_enumeration(seed: int, limit: int | None) -> None:
    space = blocks(6, 3)
    weights, costs = random_weights(space, seed), CostTable(space, IMAGE, CLASSES)
    best = (-math.inf, ())
    scores = [option_scores(c, weights[c.name])[0].tolist() for c in space.cells]
    for choice in itertools.product(range(13), repeat=3):
        parameters = costs.constant.parameters + sum(
            costs.costs[c.name][0][i].parameters for c, i in zip(space.cells, choice)
        )
        score = sum(s[i] for s, i in zip(scores, choice))
        if (limit is None or parameters <= limit) and score > best[0]:
            best = (score, choice)
    found = knapsack(space, weights, costs, limit)
    options = space.cells[0].edges[0].options
    assert [c.edges[0].operations[0] for c in found.cells] == [options[i] for i in best[1]]


@pytest.mark.parametrize("seed", range(6))
def test_a_timed_selection_is_fast_enough_and_no_other_is_better_and_faster(seed: int) -> None:
    space = blocks(6, 3)
    weights, costs = random_weights(space, seed), CostTable(space, IMAGE, CLASSES)
    generator = torch.Generator().manual_seed(100 + seed)
    seconds = {c.name: torch.rand(1, 13, generator=generator).double() for c in space.cells}
    selector, limit = TimedKnapsack(seconds), 2500
    scores = [option_scores(c, weights[c.name])[0].tolist() for c in space.cells]
    options = space.cells[0].edges[0].options

    def value(choice: tuple[int, ...]) -> tuple[float, float]:
        taken = [
            (s[i], float(seconds[c.name][0, i])) for s, c, i in zip(scores, space.cells, choice)
        ]
        return sum(v for v, _ in taken), sum(t for _, t in taken)

    found = selector(space, weights, costs, limit)
    chosen = tuple(options.index(c.edges[0].operations[0]) for c in found.cells)
    score, time = value(chosen)
    assert time == pytest.approx(selector.of(space, found))
    assert time <= selector.share * selector.average(space)
    average = sum(float((s[0] * _even(options)).sum()) for s in seconds.values())
    assert selector.average(space) == pytest.approx(average)
    free = knapsack(space, weights, costs, limit)
    assert found == free or selector.of(space, free) > selector.share * average
    for choice in itertools.product(range(13), repeat=3):
        parameters = costs.constant.parameters + sum(
            costs.costs[c.name][0][i].parameters for c, i in zip(space.cells, choice)
        )
        other = value(choice)
        assert parameters > limit or not (other[0] > score + 1e-6 and other[1] < time - 1e-6)


def _even(options: list[Operation]) -> torch.Tensor:
    """Return the probability of each option if operations, then sizes, are drawn uniformly."""
    counts = Counter(o.name for o in options)
    return torch.tensor([1 / len(counts) / counts[o.name] for o in options]).double()


def test_measured_seconds_cover_every_option_and_skip_is_free() -> None:
    for space in (blocks(4, 3), cells(4, 3)):
        seconds = training_seconds(space, (8, 8), torch.device("cpu"))
        for cell in space.cells:
            table = seconds[cell.name]
            assert table.shape == (len(cell.edges), 13) and table.isfinite().all()
            for row, edge in zip(table, cell.edges):
                for option, value in zip(edge.options, row.tolist()):
                    free = option.name == "skip" and not (
                        cell.reduction and edge.source < cell.inputs
                    )
                    assert (value == 0) is free


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", [cells, blocks])
def test_without_a_limit_selection_is_the_argmax_of_each_decision(
    preset: object, seed: int
) -> None:
    space = preset(4, 5)  # type: ignore[operator]
    weights = random_weights(space, seed)
    found = knapsack(space, weights, CostTable(space, IMAGE, CLASSES))
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
def test_the_built_network_is_within_the_limit(preset: object, seed: int) -> None:
    space = preset(8, 7)  # type: ignore[operator]
    weights, costs = random_weights(space, seed), CostTable(space, IMAGE, CLASSES)
    free = network_cost(knapsack(space, weights, costs), IMAGE, CLASSES).parameters
    for share in (0.9, 0.6, 0.4):
        found = knapsack(space, weights, costs, int(share * free))
        assert found.is_discrete
        assert network_cost(found, IMAGE, CLASSES).parameters <= share * free


def test_the_error_of_an_impossible_limit_reports_the_smallest_network() -> None:
    space = cells(8)
    weights, costs = random_weights(space, 0), CostTable(space, IMAGE, CLASSES)
    with pytest.raises(UserError, match="smallest possible network at 8 channels, got") as error:
        knapsack(space, weights, costs, 10)
    smallest = int(str(error.value).split("at least ")[1].split(",")[0])
    found = knapsack(space, weights, costs, smallest)
    assert network_cost(found, IMAGE, CLASSES).parameters == smallest


def test_random_networks_are_members_of_the_space_and_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    space = cells(4)
    drawn = [uniform_random(space, generator) for _ in range(20)]
    assert all(s.is_discrete for s in drawn)
    assert len(set(map(repr, drawn))) > 15
    assert replace(drawn[0], cells=space.cells) == space


def test_more_sizes_do_not_lower_the_score_of_an_operation() -> None:
    """inverted_residual has the highest probability, shared by its six options."""
    space = blocks(8, 3)
    logits = {n: torch.zeros(s) for n, s in logit_shapes(space).items()}
    for cell in space.cells:
        logits[f"{cell.name}.operation"][:, 2] = 0.1
        logits[f"{cell.name}.inverted_residual.expansion"][:, 1] = 0.1
    found = knapsack(space, relax(space, logits), CostTable(space, IMAGE, CLASSES))
    chosen = {edge.operations[0].label for _, edge in found.edges}
    assert {label.split()[0] for label in chosen} == {"inverted_residual"}
    assert all(label.endswith("e4") for label in chosen)


# --- Random genotypes of a size class -------------------------------------------------------------


def genotype(space: SearchSpace) -> Genotype:
    """Return the genotype of a discrete space, as a search writes it."""
    cost = network_cost(space, IMAGE, CLASSES)
    return Genotype(
        space=space,
        image=IMAGE,
        classes=tuple("0123456789"),
        parameters=cost.parameters,
        macs=cost.macs,
        recipe=Recipe(schedules={"lr": ((0.0, 0.1),), "weight_decay": ((0.0, 1e-3),)}),
        seed=7,
    )


def member(space: SearchSpace, seed: int = 99) -> Genotype:
    return genotype(uniform_random(space, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("space", [cells(4, 3), blocks(8, 5, 2)], ids=lambda s: s.preset)
def test_random_genotypes_equal_rejection_sampling(space: SearchSpace) -> None:
    """The slow reference draws a network, builds it, counts it, and repeats."""
    like = member(space)
    found = random_genotypes(like, 3)
    for seed, random in enumerate(found):
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = uniform_random(space, generator)
            cost = network_cost(drawn, IMAGE, CLASSES)
            if 0.9 * like.parameters <= cost.parameters <= 1.1 * like.parameters:
                break
        assert (random.space, random.parameters, random.macs) == (drawn, *cost)
        same = {"space": like.space, "parameters": like.parameters, "macs": like.macs}
        assert replace(random, **same) == like
    assert random_genotypes(like, 2) == found[:2]


def size_class(like: Genotype, whole: SearchSpace, limit: int | None = None) -> set[SearchSpace]:
    """Return all other members of a chain of blocks within a tenth of the parameters."""
    costs, found = CostTable(whole, IMAGE, CLASSES), set()
    edges = [cell.edges[0] for cell in whole.cells]
    sizes = [[cost.parameters for cost in costs.costs[cell.name][0]] for cell in whole.cells]
    made = [[replace(edge, operations=(o,)) for o in edge.options] for edge in edges]
    for choice in itertools.product(*(range(len(row)) for row in made)):
        size = costs.constant.parameters + sum(row[i] for row, i in zip(sizes, choice))
        if abs(size - like.parameters) <= like.parameters / 10 and (limit is None or size <= limit):
            chosen = zip(whole.cells, made, choice)
            cells = tuple(replace(cell, edges=(row[i],)) for cell, row, i in chosen)
            found.add(replace(whole, cells=cells))
    return found - {like.space}


@pytest.mark.parametrize("limited", [False, True])
def test_random_genotypes_are_distinct_and_cover_the_size_class(limited: bool) -> None:
    draws = 3000  # the space has 169 members
    space = blocks(6, 2)
    like = member(space)
    limit = like.parameters if limited else None
    others = size_class(like, space, limit)
    assert 5 < len(others) < 100
    found = random_genotypes(like, len(others), limit, draws)
    assert {genotype.space for genotype in found} == others
    with pytest.raises(UserError, match=f"use --random {len(others)}$"):
        random_genotypes(like, len(others) + 1, limit, draws)


def test_random_genotypes_are_uniform_in_the_size_class() -> None:
    """Each trait of 150 genotypes is as frequent as in the class, within four deviations."""
    space = blocks(4, 3)
    like = next(g for seed in range(99) if len(size_class(g := member(space, seed), space)) > 300)
    others = size_class(like, space)
    found = {genotype.space for genotype in random_genotypes(like, 150)}
    for block, trait in itertools.product(range(3), ("k5", "conv", "bottleneck", "e6", "skip")):
        drawn, known = (
            [trait in space.cells[block].edges[0].operations[0].label for space in group]
            for group in (found, others)
        )
        share = sum(known) / len(known)
        four = 4 * math.sqrt(share * (1 - share) / len(drawn))
        assert sum(drawn) / len(drawn) == pytest.approx(share, abs=four), (block, trait)


def test_an_empty_size_class_gives_an_error_with_a_remedy() -> None:
    """The smallest network of a large space is one draw in a hundred thousand."""
    space = cells(8)
    costs = CostTable(space, IMAGE, CLASSES)
    smallest = knapsack(space, random_weights(space, 0), costs, 12_698)
    with pytest.raises(UserError, match="search again with other --channels"):
        random_genotypes(genotype(smallest), 1, draws=300)


def test_a_space_that_is_no_preset_has_no_random_genotypes() -> None:
    like = member(blocks(4, 3))
    for odd in (replace(like.space, preset="own"), replace(like.space, preset="cells")):
        with pytest.raises(UserError, match="must be one of cells, blocks, got"):
            random_genotypes(replace(like, space=odd), 1)
