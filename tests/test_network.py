"""Networks: a slow reference twin, one-hot weights, exact costs, calibration, flat vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spaces import MacCounter, one_hot, random_logits, random_member
from torch import Tensor, nn

from darts_lite.architecture.cost import Cost, CostTable, network_cost
from darts_lite.architecture.flat_network import DECAYED, FlatNetwork
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.presets import OPERATIONS, blocks, cells
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.architecture.weights import CellWeights, Weights
from darts_lite.nas.relaxation import relax

IMAGE = (3, 9, 7)
CLASSES = 5


def three_nodes() -> SearchSpace:
    """Return a cell with three nodes (no node reads the first) and a chain with two nodes."""
    pairs = [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (3, 4)]
    edges = tuple(Edge(s, t, OPERATIONS[1:]) for s, t in pairs)
    chain = tuple(Edge(s, t, OPERATIONS[2:]) for s, t in [(0, 1), (0, 2), (1, 2)])
    wide, long = Cell("wide", 2, 3, 1, True, edges), Cell("long", 1, 2, 2, True, chain)
    return SearchSpace("three nodes", (wide, long), ("long", "wide", "wide", "long"), 4)


SPACES = {
    "cells": cells(4, 3),
    "cells, long": cells(4, 5, stem_stride=2),
    "blocks": blocks(4, 3),
    "blocks, long": blocks(4, 5, stem_stride=2),
    "three nodes": three_nodes(),
}
every_space = pytest.mark.parametrize("name", SPACES)
presets = pytest.mark.parametrize("name", ["cells", "blocks"])
seeds = pytest.mark.parametrize("seed", range(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(space: SearchSpace, seed: int = 0, image: tuple[int, int, int] = IMAGE) -> Network:
    """Return a network in float64 with random weights, affine maps and biases."""
    generator = seeded(seed)
    network = Network(space, image, CLASSES, generator).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif parameter.dim() == 2:
                parameter.mul_(30)  # logits of order one
    return network


def images(count: int = 4, seed: int = 1, image: tuple[int, int, int] = IMAGE) -> Tensor:
    return torch.rand(count, *image, generator=seeded(seed), dtype=torch.float64)


def close(left: Any, right: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# --- The reference twin: one pass per size and operation, BatchNorm by its formula ----------------


def twin_norm(norm: BatchNorm, x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    affine = [v[:, None, None] for v in (norm.weight, norm.bias)]
    return (x - mean) / (variance + norm.eps).sqrt() * affine[0] + affine[1]


def twin_operation(
    module: Any, operation: Operation, x: Tensor, choices: dict[str, Tensor], stride: int
) -> Tensor:
    """Return o(x), with every mixture as a sum over sizes."""

    def mixture(choice: str) -> list[tuple[Any, int]]:
        sizes = operation.choices[choice]
        return [(1.0, sizes[0])] if len(sizes) == 1 else list(zip(choices[choice], sizes))

    def kernels(layer: nn.Conv2d) -> list[tuple[Any, Tensor]]:
        largest = layer.weight.shape[-1]
        squares = [(p, (largest - size) // 2, size) for p, size in mixture("kernel")]
        return [(p, layer.weight[..., r : r + size, r : r + size]) for p, r, size in squares]

    def conv(x: Tensor, weight: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)

    if operation.name == "conv":
        h = sum(p * conv(x, w, stride=stride) for p, w in kernels(module.conv))
        return twin_norm(module.norm, h)
    if operation.name == "bottleneck":
        outputs = module.expand.weight.shape[0]
        widths = [(p, max(1, outputs // ratio)) for p, ratio in mixture("ratio")]
        h = F.silu(twin_norm(module.norm1, conv(x, module.reduce.weight)))
        h = sum(
            p * q * conv(h[:, :n], w[:, :n], stride=stride)
            for p, n in widths
            for q, w in kernels(module.conv)
        )
        h = F.silu(twin_norm(module.norm2, h))
        h = sum(p * conv(h[:, :n], module.expand.weight[:, :n]) for p, n in widths)
        return twin_norm(module.norm3, h)
    if operation.name == "inverted_residual":
        widths = [(p, x.shape[1] * expansion) for p, expansion in mixture("expansion")]
        h = F.silu(twin_norm(module.norm1, conv(x, module.expand.weight)))
        h = sum(p * conv(h, w, h.shape[1], stride) for p, w in kernels(module.depthwise))
        h = F.silu(twin_norm(module.norm2, h))
        h = sum(p * conv(h[:, :n], module.project.weight[:, :n]) for p, n in widths)
        return twin_norm(module.norm3, h)
    assert operation.name == "skip"
    if stride == 2:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return twin_norm(module.norm, x if module.project is None else conv(x, module.project.weight))


def twin_edge(
    module: Any, edge: Edge, x: Tensor, weights: CellWeights, i: int, stride: int, channels: int
) -> Tensor:
    """Return beta * sum_o p_o (x + o(silu(x))), without `x +` where the shape changes."""
    same = stride == 1 and x.shape[1] == channels
    total: Any = 0
    for position, operation in enumerate(edge.operations):
        if operation.name == "skip" and same:
            branch: Any = 0
        else:
            choices = {c: p[i] for c, p in weights.choices.get(operation.name, {}).items()}
            layers = module.operations[operation.name]
            branch = twin_operation(layers, operation, F.silu(x), choices, stride)
        total = total + weights.operation[i, position] * (x + branch if same else branch)
    return total if weights.edge is None else weights.edge[i] * total


def twin(network: Network, x: Tensor, weights: Weights) -> Tensor:
    """Return the correct value of `network(x, weights)`, computed slowly."""
    space = network.space
    h = F.conv2d(x - 0.5, network.stem.weight, None, space.stem_stride, 1)
    h = twin_norm(network.norm, h)
    before, last, channels = h, h, space.channels
    for name, module in zip(space.sequence, network.cells):
        cell: Cell = space.cell(name)
        channels *= 2 if cell.reduction else 1
        nodes = [last]
        if cell.inputs == 2:
            nodes = []
            for project, state in zip(module.project, (before, last)):  # type: ignore
                stride = 2 if state.shape[2:] != last.shape[2:] else 1
                state = F.conv2d(F.silu(state), project.conv.weight, None, stride)
                nodes.append(twin_norm(project.norm, state))
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            total: Any = 0
            for i, edge in enumerate(cell.edges):
                if edge.target == node:
                    stride = 2 if cell.reduction and edge.source < cell.inputs else 1
                    source, mixed = nodes[edge.source], module.edges[i]  # type: ignore
                    total = total + twin_edge(
                        mixed, edge, source, weights[name], i, stride, channels
                    )
            nodes.append(total)
        before, last = last, torch.cat(nodes[cell.inputs :], 1)
    features = F.silu(last).flatten(2).mean(2)
    return features @ network.classifier.weight.T + network.classifier.bias


@pytest.mark.parametrize("image", [IMAGE, (1, 8, 8)])
@every_space
def test_supernet_equals_its_twin(name: str, image: tuple[int, int, int]) -> None:
    space, x = SPACES[name], images(image=image)
    network, weights = build(space, image=image), relax(space, random_logits(space))
    expected = twin(network, x, weights)
    close(network(x, weights), expected)
    assert expected.std(0).min() > 1e-3  # the logits differ between images


@seeds
@every_space
def test_discrete_network_equals_its_twin(name: str, seed: int) -> None:
    member = random_member(SPACES[name], seed)
    network, x = build(member), images()
    close(network(x), twin(network, x, one_hot(member, member)))


@presets
def test_supernets_and_their_twins_have_the_same_derivatives(name: str) -> None:
    space, x = SPACES[name], images()
    network, logits = build(space), random_logits(space)
    variables = [*network.parameters(), *(v.requires_grad_() for v in logits.values())]
    probe = torch.randn(len(x), CLASSES, generator=seeded(2), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((probe * f(network, x, relax(space, logits))).sum(), variables)
        for f in (lambda n, *args: n(*args), twin)
    )
    close(found, expected, 1e-8)


@seeds
@every_space
def test_one_hot_weights_give_the_discrete_network(name: str, seed: int) -> None:
    space, x = SPACES[name], images()
    member = random_member(space, seed)
    supernet, discrete = build(space, seed), build(member, seed + 10)
    discrete.inherit(supernet)
    close(supernet(x, one_hot(space, member)), discrete(x))


@presets
def test_inherit_from_equal_network_copies_it(name: str) -> None:
    space = SPACES[name]
    old, new = build(space, 0), build(space, 1)
    new.inherit(old)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(old.parameters(), new.parameters()))


@every_space
def test_every_supernet_parameter_receives_a_gradient(name: str) -> None:
    space = SPACES[name]
    network = build(space)
    out = network(images(), relax(space, random_logits(space)))
    out.backward(torch.randn(out.shape, generator=seeded(2), dtype=out.dtype))
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


# --- Initial weights ------------------------------------------------------------------------------


def state_bytes(network: Network) -> bytes:
    return b"".join(v.numpy().tobytes() for v in network.state_dict().values())


@presets
def test_initial_weights_depend_only_on_the_generator(name: str) -> None:
    drawn = []
    for global_seed, seed in [(0, 7), (1, 7), (1, 8)]:
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            drawn.append(state_bytes(Network(SPACES[name], IMAGE, CLASSES, seeded(seed))))
    assert drawn[0] == drawn[1] != drawn[2]


# --- Cost -----------------------------------------------------------------------------------------


def counted(space: SearchSpace, image: tuple[int, int, int]) -> Cost:
    """Return the cost, counted while the network runs."""
    network = Network(space, image, CLASSES, seeded())
    with MacCounter() as counter:
        network(torch.rand(2, *image))
    assert counter.macs % 2 == 0
    return Cost(sum(p.numel() for p in network.parameters()), counter.macs // 2)


@pytest.mark.parametrize(
    "image, stem_stride",
    [((1, 8, 8), 1), ((3, 9, 13), 1), ((3, 9, 13), 2), ((1, 28, 28), 2), ((3, 32, 32), 1)],
)
@every_space
def test_costs_are_exact(name: str, image: tuple[int, int, int], stem_stride: int) -> None:
    space = replace(SPACES[name], stem_stride=stem_stride)
    table, member = CostTable(space, image, CLASSES), random_member(space, sum(image))
    exact = counted(member, image)
    assert exact == network_cost(member, image, CLASSES)
    assert exact == Cost(*(int(v) for v in table.expected(one_hot(space, member))))
    total = table.constant
    for cell in space.cells:
        for edge in member.cell(cell.name).edges:
            at = [(e.source, e.target) for e in cell.edges].index((edge.source, edge.target))
            option = cell.edges[at].options.index(edge.operations[0])
            total = total + table.costs[cell.name][at][option]
    assert exact == total


@every_space
def test_cost_table_of_discrete_space_gives_network_cost(name: str) -> None:
    member = random_member(SPACES[name], 0)
    found = CostTable(member, IMAGE, CLASSES).expected(one_hot(member, member))
    assert Cost(*(int(v) for v in found)) == network_cost(member, IMAGE, CLASSES)


def test_cost_of_small_network_by_hand() -> None:
    edge = Edge(0, 1, (Operation("conv", {"kernel": (3,)}),))
    space = SearchSpace("x", (Cell("c", 1, 1, 1, True, (edge,)),), ("c",), 4)
    parameters = (9 * 3 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 5 + 5)
    macs = 9 * 3 * 4 * 63 + 9 * 4 * 8 * 20 + 8 * 5
    assert network_cost(space, (3, 9, 7), 5) == (parameters, macs)


def test_expected_cost_of_one_block_by_enumeration() -> None:
    space = blocks(4, 1)
    weights = relax(space, random_logits(space))
    (cell,) = space.cells
    expected = [0.0, 0.0]
    for option in cell.edges[0].options:
        operation = [o.name for o in OPERATIONS].index(option.name)
        p = weights[cell.name].operation[0, operation].item()
        for choice, (size,) in option.choices.items():
            index = OPERATIONS[operation].choices[choice].index(size)
            p *= weights[cell.name].choices[option.name][choice][0, index].item()
        member = replace(space, cells=(replace(cell, edges=(Edge(0, 1, (option,)),)),))
        for i, cost in enumerate(network_cost(member, IMAGE, CLASSES)):
            expected[i] += p * cost
    found = CostTable(space, IMAGE, CLASSES).expected(weights)
    assert [v.item() for v in found] == pytest.approx(expected, rel=1e-12)


@every_space
def test_expected_cost_passes_gradcheck(name: str) -> None:
    space = SPACES[name]
    logits, table = random_logits(space, scale=0.3), CostTable(space, IMAGE, CLASSES)

    def cost(*values: Tensor) -> tuple[Tensor, ...]:
        found = table.expected(relax(space, dict(zip(logits, values))))
        return tuple(v / c for v, c in zip(found, table.constant))

    assert torch.autograd.gradcheck(cost, [v.requires_grad_() for v in logits.values()])


# --- Calibration ----------------------------------------------------------------------------------

Batches = list[tuple[Tensor, Tensor]]


def batches(*counts: int, seed: int = 3) -> Batches:
    return [(images(n, seed + i), torch.zeros(n)) for i, n in enumerate(counts)]


@contextmanager
def watch(network: Network) -> Iterator[dict[BatchNorm, list[tuple[tuple, Tensor]]]]:
    """Record arguments and results of every call of every BatchNorm."""
    seen: dict[BatchNorm, list] = {m: [] for m in network.modules() if isinstance(m, BatchNorm)}
    handles = [
        m.register_forward_hook(lambda m, args, out: seen[m].append((args, out)))  # type: ignore
        for m in seen
    ]
    yield seen
    for handle in handles:
        handle.remove()


def calibration(name: str, discrete: bool) -> tuple[Network, Weights | None]:
    space = SPACES[name]
    if discrete:
        return build(random_member(space, 0)), None
    return build(space), relax(space, random_logits(space))


@pytest.mark.parametrize("discrete", [False, True])
@presets
def test_calibration_averages_over_the_batches(name: str, discrete: bool) -> None:
    network, weights = calibration(name, discrete)
    calibrate(network, batches(3, seed=9), weights)  # the calibration below replaces this one
    with watch(network) as seen:
        calibrate(network, iter(batches(4, 6, 5)), weights)
    for norm, calls in seen.items():
        inputs = [args[0] for args, _ in calls]
        assert len(inputs) == 3
        close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
        close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0))
    before = {k: v.clone() for k, v in network.named_buffers()}
    network.train()(images(), weights)
    assert all(torch.equal(before[k], v) for k, v in network.named_buffers())


@pytest.mark.parametrize("discrete", [False, True])
@presets
def test_evaluation_uses_the_calibrated_statistics(name: str, discrete: bool) -> None:
    network, weights = calibration(name, discrete)
    calibrate(network, batches(4, 6), weights)
    x = images(seed=5)
    with watch(network) as seen:
        whole = network.eval()(x, weights)
    for norm, ((args, out),) in seen.items():
        mean, variance, weight, bias = (
            v[:, None, None]  # type: ignore[index]
            for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        h = (args[0] - mean) / (variance + norm.eps).sqrt() * weight + bias
        close(out, h * (1 if len(args) == 1 or args[1] is None else args[1]))
    close(torch.cat([network(x[i : i + 1], weights) for i in range(len(x))]), whole)


# --- Flat vectors ---------------------------------------------------------------------------------


@presets
def test_flat_network_equals_the_module(name: str) -> None:
    space, x = SPACES[name], images()
    network, weights = build(space), relax(space, random_logits(space))
    expected = network.train()(x, weights)
    buffers = {k: v.clone() for k, v in network.named_buffers()}
    flat = FlatNetwork(network.eval())
    torch.testing.assert_close(flat(flat.params, x, weights), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(buffers[k], v) for k, v in network.named_buffers())


@presets
def test_two_vectors_hold_every_parameter_once(name: str) -> None:
    network = build(SPACES[name])
    flat = FlatNetwork(network)
    assert len(flat.params) == len(DECAYED) == 2
    assert all(vector.dim() == 1 and not vector.requires_grad for vector in flat.params)
    named = flat.unflatten(flat.params)
    assert named.keys() == dict(network.named_parameters()).keys()
    for key, parameter in network.named_parameters():
        assert torch.equal(named[key], parameter)
        decayed = key.endswith("weight") and "norm" not in key
        assert named[key].untyped_storage().data_ptr() == (
            flat.params[DECAYED.index(decayed)].untyped_storage().data_ptr()
        )
        if parameter.dim() == 4:
            assert named[key].is_contiguous(memory_format=torch.channels_last)
    assert sum(map(len, flat.params)) == sum(p.numel() for p in network.parameters())


@presets
def test_export_writes_the_vectors_back(name: str) -> None:
    flat, x = FlatNetwork(build(SPACES[name])), images()
    weights = relax(flat.network.space, random_logits(flat.network.space))
    start = tuple(vector.clone() for vector in flat.params)
    other = tuple(
        torch.randn(v.shape, generator=seeded(i), dtype=v.dtype) for i, v in enumerate(start)
    )
    expected = flat(other, x, weights)
    network = flat.export(other)
    assert all(torch.equal(a, b) for a, b in zip(flat.flatten(network), other))
    assert all(torch.equal(a, b) for a, b in zip(flat.params, start))
    torch.testing.assert_close(network.train()(x, weights), expected, rtol=0, atol=1e-12)
    assert all(p.is_leaf and p.requires_grad for p in network.parameters())


@presets
def test_vector_gradients_equal_module_gradients(name: str) -> None:
    space, x = SPACES[name], images()
    network, weights = build(space), relax(space, random_logits(space))
    labels = torch.arange(len(x))
    F.cross_entropy(network(x, weights), labels).backward()
    flat = FlatNetwork(network)
    params = [vector.clone().requires_grad_() for vector in flat.params]
    grads = torch.autograd.grad(F.cross_entropy(flat(tuple(params), x, weights), labels), params)
    named = flat.unflatten(grads)
    for key, parameter in network.named_parameters():
        torch.testing.assert_close(named[key], parameter.grad, rtol=0, atol=1e-12)


@presets
def test_mixed_second_derivatives_against_central_differences(name: str) -> None:
    """Check d/dalpha of <grad_w L, v>, which a second-order hypergradient needs."""
    space, x = SPACES[name], images()
    flat, logits = FlatNetwork(build(space)), random_logits(space)
    alpha = [value.requires_grad_() for value in logits.values()]
    params = [vector.requires_grad_() for vector in flat.params]
    v = [torch.randn(p.shape, generator=seeded(2), dtype=p.dtype) for p in params]

    def loss(params: list[Tensor]) -> Tensor:
        out = flat(tuple(params), x, relax(space, logits))
        return F.cross_entropy(out, torch.arange(len(x)))

    grads = torch.autograd.grad(loss(params), params, create_graph=True)
    product = torch.stack([(g * d).sum() for g, d in zip(grads, v)]).sum()
    found = torch.autograd.grad(product, alpha)
    step = 1e-6
    above, below = (
        torch.autograd.grad(loss([p + sign * step * d for p, d in zip(params, v)]), alpha)
        for sign in (1, -1)
    )
    for exact, high, low in zip(found, above, below):
        close(exact, (high - low) / (2 * step), 1e-6)
