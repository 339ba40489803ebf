"""Mixing weights: sums, limits, probabilities by enumeration, entropy, decay, derivatives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from spaces import one_hot, random_logits, random_member
from torch import Tensor

from darts_lite.architecture.presets import OPERATIONS, blocks, cells
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.architecture.weights import Weights, option_probabilities
from darts_lite.nas.regularizers import beta_decay
from darts_lite.nas.relaxation import entropy, logit_shapes, relax


def dense(nodes: int, keep: int) -> SearchSpace:
    """Return a cell where every node reads all earlier nodes; the edges are not sorted by node."""
    edges = [Edge(s, t, OPERATIONS[1:]) for t in range(2, 2 + nodes) for s in range(t)]
    cell = Cell("c", 2, nodes, keep, False, tuple(edges[::2] + edges[1::2]))
    return SearchSpace("dense", (cell,), ("c",), 4)


SPACES = {
    "cells": cells(4, 3),
    "blocks": blocks(4, 3),
    "keep one": dense(3, 1),
    "keep two": dense(3, 2),
    "keep three": dense(3, 3),
    "keep all": dense(2, 3),
}
every_space = pytest.mark.parametrize("name", SPACES)


def tensors(weights: Weights) -> list[Tensor]:
    """Return every weight tensor in one list."""
    return [
        t
        for w in weights.values()
        for t in (w.edge, w.operation, *(p for cs in w.choices.values() for p in cs.values()))
        if t is not None
    ]


# --- Names and sums -------------------------------------------------------------------------------


def test_logit_shapes_of_presets() -> None:
    choices = {
        "conv.kernel": 2,
        "bottleneck.kernel": 2,
        "bottleneck.ratio": 2,
        "inverted_residual.kernel": 2,
        "inverted_residual.expansion": 3,
    }
    shapes: dict[str, tuple[int, ...]] = {k: (5, n) for k, n in choices.items()}
    shapes |= {"edge": (5,), "operation": (5, 4)}
    assert logit_shapes(cells()) == {
        f"{cell}.{key}": shape for cell in ("normal", "reduction") for key, shape in shapes.items()
    }
    sizes = {"operation": 4} | choices
    assert logit_shapes(blocks(length=2)) == {
        f"block{i}.{key}": (1, size) for i in (1, 2) for key, size in sizes.items()
    }


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
@every_space
def test_weights_sum_as_documented(name: str, temperature: float) -> None:
    space = SPACES[name]
    weights = relax(space, random_logits(space), temperature)
    assert list(weights) == [cell.name for cell in space.cells]
    for cell in space.cells:
        w = weights[cell.name]
        nodes = range(cell.inputs, cell.inputs + cell.nodes)
        competing = any(len(cell.into(node)) > cell.keep for node in nodes)
        assert (w.edge is not None) == competing
        if w.edge is not None:
            for node in nodes:
                into = cell.into(node)
                assert w.edge[into].sum().item() == pytest.approx(min(cell.keep, len(into)))
        rows = [w.operation, *(p for choices in w.choices.values() for p in choices.values())]
        for row in rows:
            assert row.shape[0] == len(cell.edges) and (row > 0).all()
            torch.testing.assert_close(row.sum(1), torch.ones(len(cell.edges)).double())


@every_space
def test_weights_of_single_edges(name: str) -> None:
    space = SPACES[name]
    for w in relax(space, random_logits(space)).values():
        edges = w.edges()
        assert len(edges) == len(w.operation)
        for i, edge in enumerate(edges):
            scale = 1.0 if w.edge is None else w.edge[i]
            assert (edge.edge is None) == (w.edge is None)
            assert edge.edge is None or torch.equal(edge.edge, w.edge[i])  # type: ignore[index]
            torch.testing.assert_close(torch.stack(edge.operations), w.operation[i] * scale)
            assert edge.choices.keys() == w.choices.keys()
            for operation, choices in w.choices.items():
                assert edge.choices[operation].keys() == choices.keys()
                for choice, p in choices.items():
                    assert torch.equal(edge.choices[operation][choice], p[i])


# --- Limits ---------------------------------------------------------------------------------------


@every_space
def test_weights_at_high_temperature_are_uniform(name: str) -> None:
    space = SPACES[name]
    hot = relax(space, random_logits(space), 1e9)
    uniform = relax(space, {k: torch.zeros_like(v) for k, v in random_logits(space).items()})
    for left, right in zip(tensors(hot), tensors(uniform), strict=True):
        torch.testing.assert_close(left, right)


@every_space
def test_weights_at_low_temperature_are_one_hot(name: str) -> None:
    space = SPACES[name]
    logits = random_logits(space)
    cold = relax(space, logits, 1e-4)
    for cell in space.cells:
        w = cold[cell.name]
        named = {"operation": w.operation} | {
            f"{operation}.{choice}": p
            for operation, choices in w.choices.items()
            for choice, p in choices.items()
        }
        for key, p in named.items():
            best = logits[f"{cell.name}.{key}"].argmax(1)
            torch.testing.assert_close(p, torch.eye(p.shape[1]).double()[best])
        if w.edge is not None:
            for node in range(cell.inputs, cell.inputs + cell.nodes):
                into = cell.into(node)
                best = logits[f"{cell.name}.edge"][into].topk(min(cell.keep, len(into))).indices
                expected = torch.zeros(len(into)).double().index_fill(0, best, 1.0)
                torch.testing.assert_close(w.edge[into], expected)


def test_edge_weights_are_marginals_of_drawn_sets() -> None:
    """Compare with enumeration: one logit per edge, two of three edges kept."""
    space = SPACES["cells"]
    logits = random_logits(space)
    for cell in space.cells:
        into = cell.into(3)
        e = logits[f"{cell.name}.edge"][into].exp()
        pairs = {(0, 1): e[0] * e[1], (0, 2): e[0] * e[2], (1, 2): e[1] * e[2]}
        total = sum(pairs.values())
        expected = [sum(p for s, p in pairs.items() if i in s) / total for i in range(3)]
        edge = relax(space, logits)[cell.name].edge
        assert edge is not None
        torch.testing.assert_close(edge[into], torch.stack(expected))
        assert (edge <= 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_large_logits_select_any_discrete_chain(seed: int) -> None:
    space = SPACES["blocks"]
    target = one_hot(space, random_member(space, seed))
    logits = {}
    for cell in space.cells:
        w = target[cell.name]
        logits[f"{cell.name}.operation"] = 100 * w.operation
        for operation, choices in w.choices.items():
            logits |= {f"{cell.name}.{operation}.{c}": 100 * p for c, p in choices.items()}
    reached = relax(space, logits)
    for name, w in target.items():
        torch.testing.assert_close(reached[name].operation, w.operation)
        torch.testing.assert_close(reached[name].choices, w.choices)


# --- Probabilities --------------------------------------------------------------------------------


@every_space
def test_option_probabilities_by_enumeration(name: str) -> None:
    space = SPACES[name]
    weights = relax(space, random_logits(space))
    for cell in space.cells:
        w = weights[cell.name]
        found = option_probabilities(cell, w)
        torch.testing.assert_close(found.sum(1), torch.ones(len(cell.edges)).double())
        positions = {o.name: i for i, o in enumerate(cell.edges[0].operations)}
        for e, edge in enumerate(cell.edges):
            assert found.shape[1] == len(edge.options)
            for column, option in enumerate(edge.options):
                offered = edge.operations[positions[option.name]]
                p = w.operation[e, positions[option.name]].item()
                for choice, (size,) in option.choices.items():
                    index = offered.choices[choice].index(size)
                    p *= w.choices[option.name][choice][e, index].item()
                assert found[e, column].item() == pytest.approx(p, rel=1e-12)


def test_choice_with_one_size_has_no_weight() -> None:
    operations = (
        Operation("bottleneck", {"kernel": (3,), "ratio": (2, 4)}),
        Operation("conv", {"kernel": (3,)}),
    )
    cell = Cell("c", 1, 1, 1, False, (Edge(0, 1, operations),))
    space = SearchSpace("x", (cell,), ("c",), 4)
    assert logit_shapes(space) == {"c.operation": (1, 2), "c.bottleneck.ratio": (1, 2)}
    weights = relax(space, random_logits(space))["c"]
    p, q = weights.operation[0], weights.choices["bottleneck"]["ratio"][0]
    expected = torch.stack([p[0] * q[0], p[0] * q[1], p[1]])
    torch.testing.assert_close(option_probabilities(cell, weights)[0], expected)


# --- Regularizers ---------------------------------------------------------------------------------


@every_space
def test_entropy_is_a_fraction_of_the_maximum(name: str) -> None:
    space = SPACES[name]
    logits = random_logits(space)
    zeros = {key: torch.zeros_like(value) for key, value in logits.items()}
    assert entropy(relax(space, zeros)).item() == pytest.approx(1)
    assert entropy(relax(space, logits, 1e-4)).item() == pytest.approx(0, abs=1e-9)
    values = [entropy(relax(space, logits, t)).item() for t in (0.1, 0.3, 1.0, 3.0, 10.0)]
    assert values == sorted(values) and values[0] > 0 and values[-1] < 1
    rows = torch.cat([w.operation for w in relax(space, logits).values()])
    exact = torch.distributions.Categorical(rows).entropy().mean() / math.log(rows.shape[1])
    torch.testing.assert_close(entropy(relax(space, logits)), exact)


def test_entropy_of_one_hot_weights_is_zero() -> None:
    space = cells(4, 3)
    assert entropy(one_hot(space, random_member(space, 0))).item() == 0


def test_single_operation_has_zero_entropy() -> None:
    space = SPACES["blocks"]
    only = tuple(replace(c, edges=(Edge(0, 1, OPERATIONS[:1]),)) for c in space.cells)
    space = replace(space, cells=only)
    logits = {k: v.requires_grad_() for k, v in random_logits(space).items()}
    value = entropy(relax(space, logits))
    value.backward()
    assert value.item() == 0
    grad = logits["block1.operation"].grad
    assert grad is not None and (grad == 0).all()


@every_space
def test_beta_decay_gradient_is_softmax_over_rows(name: str) -> None:
    logits = {k: v.requires_grad_() for k, v in random_logits(SPACES[name]).items()}
    beta_decay(logits).backward()
    rows = sum(len(v) for k, v in logits.items() if k.endswith(".operation"))
    for key, value in logits.items():
        if key.endswith(".operation"):
            torch.testing.assert_close(value.grad, value.detach().softmax(1) / rows)
        else:
            assert value.grad is None


# --- Derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@every_space
def test_relaxation_and_entropy_pass_gradcheck(name: str, temperature: float) -> None:
    space = SPACES[name]
    logits = random_logits(space)

    def everything(*values: Tensor) -> tuple[Tensor, ...]:
        weights = relax(space, dict(zip(logits, values)), temperature)
        options = [option_probabilities(cell, weights[cell.name]) for cell in space.cells]
        probe = torch.cat([t.flatten() for t in [*tensors(weights), *options]])
        mixture = (probe * torch.linspace(-1, 1, len(probe), dtype=probe.dtype).sin()).sum()
        return mixture, entropy(weights), beta_decay(dict(zip(logits, values)))

    assert torch.autograd.gradcheck(everything, [v.requires_grad_() for v in logits.values()])
