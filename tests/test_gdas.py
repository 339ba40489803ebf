"""GDAS: the sampled path is the one-hot network, at its cost, with straight-through derivatives."""

from __future__ import annotations

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
from darts_lite.architecture.space import SearchSpace
from darts_lite.architecture.weights import CellWeights, Weights
from darts_lite.data import Dataset, Splits
from darts_lite.nas.gdas import Gdas
from darts_lite.nas.relaxation import logit_shapes, relax

every_space = pytest.mark.parametrize("name", SPACES)
seeds = pytest.mark.parametrize("seed", range(5))
METHOD = Gdas()


def sampled(space: SearchSpace, logits: dict[str, Tensor], seed: int) -> Weights:
    return METHOD(space, logits, 0.7, METHOD.draw(space, seeded(seed)))


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
    weights = sampled(space, random_logits(space), seed)
    out = network(x, weights)
    torch.testing.assert_close(out, network(x, in_full(weights)), rtol=1e-9, atol=1e-9)
    discrete = Network(member(space, weights), IMAGE, CLASSES).double()
    discrete.inherit(network)
    torch.testing.assert_close(out, discrete(x), rtol=1e-9, atol=1e-9)


@seeds
@every_space
def test_a_path_costs_as_much_as_its_discrete_network(name: str, seed: int) -> None:
    space = SPACES[name]
    weights = sampled(space, random_logits(space), seed)
    network = Network(space, IMAGE, CLASSES, seeded()).double()
    with MacCounter() as counter:
        network(images(2), weights)
    assert counter.macs == 2 * network_cost(member(space, weights), IMAGE, CLASSES).macs


@seeds
@every_space
def test_derivatives_in_weights_and_operations_are_those_in_full(name: str, seed: int) -> None:
    """In full, an operation beside the path has a weight of zero, but a derivative of its own."""
    space, x = SPACES[name], images()
    network, weights = build(space), sampled(space, random_logits(space), seed)
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


@every_space
def test_weights_are_one_hot_with_the_derivatives_of_the_softmax(name: str) -> None:
    space = SPACES[name]
    logits = {n: v.requires_grad_() for n, v in random_logits(space).items()}
    draws = METHOD.draw(space, seeded(3))
    hard = METHOD(space, logits, 0.7, draws)
    soft = relax(space, {n: v + draws[n] for n, v in logits.items()}, 0.7)
    pairs = list(zip(_tensors(hard), _tensors(soft), strict=True))
    for one, p in pairs:
        assert torch.equal(one.detach(), one.detach().round())
        assert one.detach().sum() == pytest.approx(p.detach().sum().item())  # a cell may keep k
    probes = [torch.randn(p.shape, generator=seeded(i)).double() for i, (_, p) in enumerate(pairs)]
    found, expected = (
        torch.autograd.grad(
            sum((c * pair[i]).sum() for c, pair in zip(probes, pairs)), logits.values()
        )  # type: ignore[arg-type]
        for i in (0, 1)
    )
    torch.testing.assert_close(found, expected)


def _tensors(weights: Weights) -> list[Tensor]:
    found = []
    for w in weights.values():
        found += [w.operation, *(p for cs in w.choices.values() for p in cs.values())]
        found += [] if w.edge is None else [w.edge]
    return found


def test_operations_are_sampled_with_the_probabilities_of_the_softmax() -> None:
    space = blocks(4, 3)
    logits, count = random_logits(space), 4000
    expected = relax(space, logits)["block2"]
    hits = torch.zeros_like(expected.operation)
    sizes = torch.zeros_like(expected.choices["inverted_residual"]["expansion"])
    generator = seeded()
    for _ in range(count):
        found = METHOD(space, logits, 0.7, METHOD.draw(space, generator))["block2"]
        hits += found.operation
        sizes += found.choices["inverted_residual"]["expansion"]
    for p, n in (
        (expected.operation, hits),
        (expected.choices["inverted_residual"]["expansion"], sizes),
    ):
        deviation = (p * (1 - p) / count).sqrt()
        assert ((n / count - p).abs() < 4 * deviation).all()


def test_a_node_keeps_its_edges_with_the_probabilities_of_the_relaxation() -> None:
    """Gumbel top-k keeps sets as successive draws do, the relaxation as one draw of a set."""
    space = cells(4, 3)
    logits = {n: torch.zeros(s, dtype=torch.float64) for n, s in logit_shapes(space).items()}
    generator, cell = seeded(), space.cell("normal")
    kept = torch.zeros(len(cell.edges), dtype=torch.float64)
    for _ in range(2000):
        path = METHOD(space, logits, 1.0, METHOD.draw(space, generator))["normal"].path
        assert path is not None
        on = torch.tensor([o is not None for o in path])
        assert all(int(on[cell.into(node)].sum()) == 2 for node in cell.inner_nodes)
        kept += on
    edge = relax(space, logits)["normal"].edge
    assert edge is not None  # equal logits: both are 2 of n edges
    assert ((kept / 2000 - edge).abs() < 0.05).all()


def test_without_draws_the_weights_are_the_softmax() -> None:
    space = cells(4, 3)
    logits = random_logits(space)
    for left, right in zip(
        _tensors(METHOD(space, logits, 0.3)), _tensors(relax(space, logits, 0.3))
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", ["blocks", "cells"])
def test_a_search_learns_all_logits(digits: tuple[Dataset, Splits], name: str) -> None:
    search = task(digits, space=name, method="gdas")
    before = {n: v.clone() for n, v in search.hyper.variables.raw.items()}
    advance(search, 12, 30)
    moved = [n for n, v in search.hyper.variables.raw.items() if not torch.equal(v, before[n])]
    assert {n for n in before if n.startswith("alpha.")} <= set(moved)
    assert all(torch.tensor(v).isfinite() for v in search.report().values())
    assert search.genotype().parameters <= search.options.limit
