"""Single-path search: a sampled path is its discrete network, at its cost; scores find effects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from spaces import MacCounter, random_logits
from test_network import CLASSES, IMAGE, SPACES, build, images, seeded
from test_search import advance, task
from torch import Tensor

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import blocks, cells
from darts_lite.architecture.space import Edge, Operation, SearchSpace
from darts_lite.architecture.weights import CellWeights, Weights
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.nas.relaxation import logit_shapes, option_scores, relax
from darts_lite.nas.single_path import PathScores, UniformPath
from darts_lite.nas.task import PATHS

every_space = pytest.mark.parametrize("name", SPACES)
seeds = pytest.mark.parametrize("seed", range(5))
METHOD = UniformPath()


def sampled(space: SearchSpace, seed: int) -> Weights:
    logits = {n: torch.zeros(shape).double() for n, shape in logit_shapes(space).items()}
    return METHOD(space, logits, 1.0, METHOD.draw(space, seeded(seed)))


def in_full(weights: Weights) -> Weights:
    """Return the same weights without their path: the network evaluates everything."""
    return {name: cell._replace(path=None) for name, cell in weights.items()}


def member(space: SearchSpace, weights: Weights) -> SearchSpace:
    """Return the discrete space of a path."""

    def discrete(name: str, cell: CellWeights) -> tuple:
        assert cell.path is not None
        pairs = zip(space.cell(name).edges, cell.path)
        return tuple(replace(e, operations=(o,)) for e, o in pairs if o is not None)

    return replace(
        space, cells=tuple(replace(c, edges=discrete(c.name, weights[c.name])) for c in space.cells)
    )


@seeds
@every_space
def test_a_path_is_its_one_hot_weights_and_its_discrete_network(name: str, seed: int) -> None:
    space, x = SPACES[name], images()
    network = build(space)
    weights = sampled(space, seed)
    out = network(x, weights)
    torch.testing.assert_close(out, network(x, in_full(weights)), rtol=1e-9, atol=1e-9)
    discrete = Network(member(space, weights), IMAGE, CLASSES).double()
    discrete.inherit(network)
    torch.testing.assert_close(out, discrete(x), rtol=1e-9, atol=1e-9)


@seeds
@every_space
def test_a_path_costs_as_much_as_its_discrete_network(name: str, seed: int) -> None:
    space = SPACES[name]
    weights = sampled(space, seed)
    network = Network(space, IMAGE, CLASSES, seeded()).double()
    with MacCounter() as counter:
        network(images(2), weights)
    assert counter.macs == 2 * network_cost(member(space, weights), IMAGE, CLASSES).macs


@seeds
@every_space
def test_derivatives_in_weights_and_operations_are_those_in_full(name: str, seed: int) -> None:
    """In full, an operation beside the path has a weight of zero, but a derivative of its own."""
    space, x = SPACES[name], images()
    network, weights = build(space), sampled(space, seed)
    leaves = {n: w.operation.detach().requires_grad_() for n, w in weights.items()}
    weights = {n: w._replace(operation=leaves[n]) for n, w in weights.items()}
    variables = [*network.parameters(), *leaves.values()]
    probe = torch.randn(len(x), CLASSES, generator=seeded(2), dtype=torch.float64)
    path, full = (
        torch.autograd.grad(
            (probe * network(x, w)).sum(), variables, allow_unused=True, materialize_grads=True
        )
        for w in (weights, in_full(weights))
    )
    count = len(list(network.parameters()))
    for found, expected in zip(path[:count], full[:count]):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for found, expected, leaf in zip(path[count:], full[count:], leaves.values()):
        on_path = leaf.detach() > 0
        torch.testing.assert_close(found[on_path], expected[on_path], rtol=1e-9, atol=1e-9)
        assert not found[~on_path].any()


def test_operations_sizes_and_edges_are_sampled_uniformly() -> None:
    space, count = cells(4, 3), 2000
    cell = space.cell("normal")
    labels: dict[str, int] = {}
    kept = torch.zeros(len(cell.edges))
    for seed in range(count):
        path = sampled(space, seed)["normal"].path
        assert path is not None
        on = torch.tensor([o is not None for o in path])
        assert all(int(on[cell.into(node)].sum()) == 2 for node in cell.inner_nodes)
        kept += on
        if path[0] is not None:
            labels[path[0].label] = labels.get(path[0].label, 0) + 1
    assert ((kept / count - torch.tensor([1, 1, 2 / 3, 2 / 3, 2 / 3])).abs() < 0.05).all()
    first = [o for o in cell.edges[0].options if o.label in labels]
    assert len(first) == 13
    for option in first:
        whole = next(o for o in cell.edges[0].operations if o.name == option.name)
        share = 1 / 4 / len(whole.options)
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(labels[option.label] / count - share) < 4 * deviation


def test_without_draws_the_weights_are_the_softmax() -> None:
    space, name = cells(4, 3), "normal"
    logits = random_logits(space)
    found, expected = METHOD(space, logits, 0.3)[name], relax(space, logits, 0.3)[name]
    assert torch.equal(found.operation, expected.operation) and found.path is None


# --- scores ---------------------------------------------------------------------------------------


def effects(space: SearchSpace, seed: int) -> dict[str, Tensor]:
    """Return an effect on the loss for every decision."""
    return random_logits(space, seed, scale=0.1)


def loss_of(scores: PathScores, path: Weights, own: dict[str, Tensor]) -> float:
    return float(scores.features(path) @ torch.cat([v.flatten() for v in own.values()]))


def filled(
    space: SearchSpace, own: dict[str, Tensor], batches: int, noise: float = 0.0
) -> PathScores:
    """Return scores of paths whose losses are sums of effects, with an effect of each batch."""
    scores, generator = PathScores(space), seeded(5)
    for batch in range(batches):
        paths = [sampled(space, 10 * batch + i) for i in range(4)]
        common = 10 * float(torch.randn((), generator=generator))
        rest = noise * torch.randn(len(paths), generator=generator)
        scores.add(
            paths, [loss_of(scores, p, own) + common + float(r) for p, r in zip(paths, rest)]
        )
    return scores


@pytest.mark.parametrize("preset", [blocks, cells])
def test_additive_losses_are_ranked_without_an_error(preset: Callable[..., SearchSpace]) -> None:
    space = preset(4, 3)
    own = effects(space, 1)
    scores = filled(space, own, 1500)
    weights = relax(space, scores.logits())
    for cell in space.cells:
        found = option_scores(cell, weights[cell.name])
        for row, edge in enumerate(cell.edges):
            exact = torch.tensor([_effect(cell.name, o, row, edge, own) for o in edge.options])
            assert torch.equal(found[row].argsort(), (-exact).argsort())


def _effect(cell: str, option: Operation, row: int, edge: Edge, own: dict[str, Tensor]) -> float:
    """Return the effect of an option: that of its operation and of each of its sizes."""
    names = [o.name for o in edge.operations]
    column = names.index(option.name)
    total = float(own[f"{cell}.operation"][row, column])
    for choice, (size,) in option.choices.items():
        sizes = edge.operations[column].choices[choice]
        total += float(own[f"{cell}.{option.name}.{choice}"][row, sizes.index(size)])
    return total


def test_logits_are_in_standard_errors() -> None:
    """Without effects they are noise of order one, however many losses there are."""
    space = blocks(4, 3)
    none = {n: torch.zeros(shape).double() for n, shape in logit_shapes(space).items()}
    for batches in (50, 400):
        logits = filled(space, none, batches, noise=0.3).logits()
        sizes = torch.cat([v.flatten() for n, v in logits.items() if not n.endswith("operation")])
        assert 0.4 < float(sizes.std()) < 1.6


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    space = blocks(4, 3)
    scores, paths = PathScores(space), [sampled(space, i) for i in range(3)]
    scores.add(paths, [1.0, math.nan, math.inf])
    assert scores.freedom == 0 and not scores.moments.any()
    scores.add(paths, [1.0, 2.0, math.inf])
    assert scores.freedom == 1


def test_an_estimator_of_the_architecture_needs_a_mixture(digits: tuple[Dataset, Splits]) -> None:
    with pytest.raises(UserError, match="needs --method darts, because"):
        task(digits, method="single_path", estimator="one_step,architecture=unrolled")


def test_a_search_scores_after_its_training(digits: tuple[Dataset, Splits]) -> None:
    for name in ("blocks", "cells"):
        search = task(digits, space=name, method="single_path")
        before = {n: v.clone() for n, v in search.hyper.variables.raw.items()}
        alpha = {n for n in before if n.startswith("alpha.")}
        advance(search, 0, 30)  # SCORING is at 30 of 40
        raw = search.hyper.variables.raw
        assert not any(torch.equal(raw[n], before[n]) is False for n in alpha)
        weights = [p.clone() for p in search.inner.params]
        advance(search, 30, 40)
        assert all(torch.equal(raw[n], before[n]) is False for n in alpha)
        assert all(map(torch.equal, weights, search.inner.params))
        assert search.scores is not None and search.scores.freedom == 10 * (PATHS - 1)
        assert search.genotype().parameters <= search.options.limit
