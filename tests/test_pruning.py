"""Pruning: groups of channels, exact costs, exact removal, criteria, gates, targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spaces import random_member
from test_export import shaken
from test_network import CLASSES, IMAGE, SPACES, build, every_space, images, seeds
from torch import Tensor, nn

from darts_lite.architecture.cost import cost_of, genotype_with_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.plain import PlainNetwork, ordinary
from darts_lite.architecture.structure import ConvLayer
from darts_lite.compression import criteria, target
from darts_lite.compression.gates import Gated, binary, learn_gates
from darts_lite.compression.layers import Trained, plain_copy, small_of
from darts_lite.compression.pruning import (
    Pruning,
    groups_of,
    prune,
    smallest_cost,
    widths_within,
)
from darts_lite.compression.target import Target, largest_within
from darts_lite.compression.widths import (
    Cut,
    Group,
    WidthCost,
    coupled_groups,
    inner_groups,
    narrowed,
)
from darts_lite.data import Images
from darts_lite.errors import UserError

NAMES = tuple(f"class {i}" for i in range(CLASSES))
SCOPES = ("inner", "all")
every_scope = pytest.mark.parametrize("scope", SCOPES)


def made(name: str, seed: int) -> tuple[Genotype, PlainNetwork]:
    """Return a network with unusual statistics, in float64."""
    member = random_member(SPACES[name], seed)
    network = build(member, seed)
    shaken(network, seed)
    return genotype_with_cost(member, IMAGE, NAMES), plain_copy(network.eval())


def groups_in(network: PlainNetwork, scope: str) -> list[Group]:
    if scope == "inner":
        return inner_groups(network)
    return coupled_groups(network)


def some(groups: list[Group], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.rand(group.size, generator=generator) < 0.6 for group in groups]
    for mask in kept:
        mask[0] = True
    return kept


# --- removing -------------------------------------------------------------------------------------


@seeds
@every_scope
@every_space
@torch.no_grad()
def test_channels_without_influence_are_removed_exactly(name: str, scope: str, seed: int) -> None:
    """If the gates behind them are shut, the rest of the network never sees them."""
    genotype, network = made(name, seed)
    groups = groups_in(network, scope)
    kept, x = some(groups, seed), images(seed=seed)
    for group, keep in zip(groups, kept):
        for cut in group.cuts:
            if cut.name in group.norms:
                norm = network.get_submodule(cut.name)
                norm.weight[cut.index[~keep].flatten()] = 0
                norm.bias[cut.index[~keep].flatten()] = 0
    small = narrowed(network, groups, kept)
    torch.testing.assert_close(small(x), network(x), atol=1e-9, rtol=1e-9)
    if groups:
        assert sum(p.numel() for p in small.parameters()) < genotype.parameters


@torch.no_grad()
def test_an_inner_channel_with_zero_outgoing_weights_is_removed_exactly() -> None:
    for seed in range(6):
        _, network = made("blocks", seed)
        groups = inner_groups(network)
        kept, x = some(groups, seed), images(seed=seed)
        for group, keep in zip(groups, kept):
            reader = next(cut for cut in group.cuts if cut.side == "inputs")
            network.get_submodule(reader.name).weight[:, ~keep] = 0
        small = narrowed(network, groups, kept)
        torch.testing.assert_close(small(x), network(x), atol=1e-9, rtol=1e-9)


@seeds
@every_scope
@every_space
def test_the_cost_of_widths_is_the_cost_of_the_network(name: str, scope: str, seed: int) -> None:
    genotype, network = made(name, seed)
    groups = groups_in(network, scope)
    cost = WidthCost(network, groups, IMAGE)
    assert cost(cost.sizes) == (genotype.parameters, genotype.macs)
    kept = some(groups, seed)
    small = small_of(genotype, narrowed(network, groups, kept))
    widths = [int(mask.sum()) for mask in kept]
    assert cost(widths) == small.cost == cost_of(small.genotype)
    for i in range(len(groups)):
        other = [*cost.sizes]
        other[i] = widths[i]
        saved = cost.saving(cost.sizes, i, widths[i])
        assert tuple(saved) == tuple(a - b for a, b in zip(cost(cost.sizes), cost(other)))


@every_scope
@every_space
def test_a_pruned_network_is_data(tmp_path: Path, name: str, scope: str) -> None:
    """Its genotype and its weights alone give the same function, and it can be pruned again."""
    genotype, network = made(name, 2)
    for _ in range(2):
        groups = groups_in(network, scope)
        small = small_of(genotype, narrowed(network, groups, some(groups, 3)))
        small.genotype.save(tmp_path / "g.json")
        again = network_of(Genotype.load(tmp_path / "g.json")).double()
        again.load_state_dict(small.network.state_dict())
        x = images()
        torch.testing.assert_close(again.eval()(x), small.network(x))
        genotype, network = small.genotype, small.network
    assert genotype.structure is not None or not groups


def test_a_sequence_in_the_place_of_a_layer_is_flat_and_data() -> None:
    genotype, network = made("blocks", 1)
    old = network.classifier
    inner = nn.Sequential(nn.Linear(old.in_features, 3, bias=False), nn.Linear(3, 2, bias=False))
    network.classifier = nn.Sequential(inner, nn.Linear(2, CLASSES))
    small = small_of(genotype, network.float())
    assert len(small.genotype.structure.layers["classifier"]) == 3
    again = network_of(small.genotype)
    again.load_state_dict(small.network.state_dict())
    x = images().float()
    torch.testing.assert_close(again.eval()(x), small.network(x))


# --- groups ---------------------------------------------------------------------------------------


@every_space
def test_every_channel_but_those_of_images_and_classes_can_go(name: str) -> None:
    """Inner widths are among all groups; with one channel per group each layer has one per part."""
    _, network = made(name, 4)
    inner, whole = groups_in(network, "inner"), groups_in(network, "all")
    named = [{(cut.name, cut.side) for cut in group.cuts} for group in whole]
    assert all({(cut.name, cut.side) for cut in group.cuts} in named for group in inner)
    covered = {cut.name for group in whole for cut in group.cuts}
    layers = {n for n, m in network.named_modules()
              if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)}  # fmt: skip
    assert covered == layers
    ones = [torch.arange(group.size) == 0 for group in whole]
    small = narrowed(network, whole, ones)
    assert small(images()).shape == (len(images()), CLASSES)
    assert small.stem.out_channels < network.stem.out_channels


def test_without_inner_widths_the_remedy_is_named() -> None:
    with pytest.raises(UserError, match=r"--scope inner needs bottlenecks.*use --scope all"):
        groups_of(nn.Module(), "inner")


@seeds
@pytest.mark.parametrize("name", ["blocks", "blocks, long"])
def test_torch_pruning_finds_the_same_groups_of_chains(name: str, seed: int) -> None:
    library = pytest.importorskip("torch_pruning")
    _, network = made(name, seed)
    plain = ordinary(network).float()
    names = {module: n for n, module in plain.named_modules()}
    graph = library.DependencyGraph().build_dependency(plain, torch.rand(1, *IMAGE))
    theirs = {
        frozenset(names[i.dep.target.module] for i in group if i.dep.target.module in names)
        for group in graph.get_all_groups(ignored_layers=[plain.classifier])
    }
    layers = nn.Conv2d | nn.BatchNorm2d | nn.Linear
    kinds = {n for n, m in plain.named_modules() if isinstance(m, layers)}
    assert {frozenset(cut.name for cut in group.cuts) for group in coupled_groups(network)} == {
        each & kinds for each in theirs
    }


# --- gates and criteria ---------------------------------------------------------------------------


@every_scope
@every_space
@torch.no_grad()
def test_shut_gates_compute_what_the_narrow_network_computes(name: str, scope: str) -> None:
    _, network = made(name, 5)
    groups = groups_in(network, scope)
    kept, x = some(groups, 0), images()
    small = narrowed(network, groups, kept)
    gated = Gated(network, groups)
    gates = torch.cat([*kept, torch.zeros(0, dtype=torch.bool)]).double()
    torch.testing.assert_close(gated(x, gates), small(x), atol=1e-9, rtol=1e-9)
    plain = gated.free()
    torch.testing.assert_close(plain(x), gated.network(x))


def test_gates_have_derivatives_of_the_loss_also_where_they_are_shut() -> None:
    raw = torch.tensor([-1.0, 0.5], dtype=torch.float64, requires_grad=True)
    out = binary(raw)
    assert out.tolist() == [0.0, 1.0]
    (gradient,) = torch.autograd.grad((out * torch.tensor([3.0, 5.0])).sum(), raw)
    s = raw.detach().sigmoid()
    torch.testing.assert_close(gradient, torch.tensor([3.0, 5.0]).double() * s * (1 - s))


def test_the_taylor_score_is_the_squared_derivative_in_the_gate() -> None:
    """Against central differences of the loss."""
    _, network = made("blocks", 0)
    groups = groups_in(network, "all")
    x, labels = images(), torch.arange(len(images())) % CLASSES
    scores = criteria.taylor(network.double(), groups, [(x, labels)]).sqrt()
    gated, step = Gated(network, groups), 1e-5
    with torch.no_grad():
        for j in range(0, gated.count, max(1, gated.count // 7)):
            losses = []
            for sign in (1, -1):
                gates = torch.ones(gated.count, dtype=torch.float64)
                gates[j] += sign * step
                losses.append(nn.functional.cross_entropy(gated(x, gates), labels))
            slope = abs(float(losses[0] - losses[1])) / (2 * step)
            assert float(scores[j]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_magnitude_and_norm_are_those_of_the_channels() -> None:
    _, network = made("blocks", 3)
    groups = groups_in(network, "inner")
    assert groups
    group, first = groups[-1], groups_before(groups)
    total = torch.zeros(group.size, dtype=torch.float64)
    scale = torch.zeros(group.size, dtype=torch.float64)
    for cut in group.cuts:
        module = network.get_submodule(cut.name)
        for c in range(group.size):
            if isinstance(module, nn.Conv2d):
                part = module.weight[c] if cut.side == "outputs" else module.weight[:, c]
                total[c] += float(part.detach().square().sum())
            if cut.name in group.norms:
                scale[c] = float(module.weight[c].detach().abs())
    magnitude = criteria.magnitude(network, groups)[first:]
    torch.testing.assert_close(magnitude, (total / total.mean()).float())
    torch.testing.assert_close(criteria.norm(network, groups)[first:], scale.float())


def groups_before(groups: list[Group]) -> int:
    return sum(group.size for group in groups[:-1])


def test_learned_gates_keep_what_the_labels_need() -> None:
    """Half of the inner channels carry the classes, half carry noise: the noise is shut out."""
    network, genotype, data = separable()
    groups = groups_in(network, "inner")
    cost = WidthCost(network, groups, genotype.image)
    generator = torch.Generator().manual_seed(0)
    limit = float(cost([g.size // 2 for g in groups])[0])

    def batches():
        while True:
            index = torch.randint(data.count, (64,), generator=generator)
            yield data.pixels[index].float() / 255, data.labels[index]

    raw = learn_gates(network, groups, cost, limit, 0, batches(), batches(), 150, 0.05)
    widths = [int((part > 0).sum()) for part in raw.split(cost.sizes)]
    assert cost(widths)[0] <= 1.15 * limit
    assert any(width < size for width, size in zip(widths, cost.sizes))
    assert not any(m._forward_hooks for m in network.modules()) and not network.training


def separable() -> tuple[PlainNetwork, Genotype, Images]:
    """Return a small network with inner widths, and bright and dark images of two classes."""
    for seed in range(50):
        member = random_member(SPACES["blocks"], seed)
        if member.cells[0].edges[0].operations[0].name == "inverted_residual":
            break
    genotype = genotype_with_cost(member, IMAGE, NAMES)
    network = network_of(genotype, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (256,), generator=generator)
    noise = torch.randint(100, (256, *IMAGE), generator=generator)
    pixels = (noise + 120 * labels[:, None, None, None]).to(torch.uint8)
    return plain_copy(network), genotype, Images(pixels, labels)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "norm", "taylor", "gates"])
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_the_target_is_reached_and_nearly_used(kind: str, criterion: str) -> None:
    network, genotype, data = separable()
    before = {n: v.clone() for n, v in network.state_dict().items()}
    trained = Trained(genotype, network, data, data, torch.Generator().manual_seed(0))
    whole = genotype.parameters if kind == "params" else genotype.macs
    aim = Target(kind, 0.6 * whole)
    knobs = Pruning(criterion=criterion, scope="all", gate_steps=8)
    small = prune(trained, aim, knobs)
    assert 0.5 * whole < aim.of(small.cost) <= aim.limit
    assert cost_of(small.genotype) == small.cost
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    again = prune(replace(trained, generator=torch.Generator().manual_seed(0)), aim, knobs)
    one, two = small.network.state_dict(), again.network.state_dict()
    assert again.genotype == small.genotype and all(torch.equal(one[n], two[n]) for n in one)


@every_scope
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_an_impossible_target_names_the_smallest_network(kind: str, scope: str) -> None:
    network, genotype, data = separable()
    trained = Trained(genotype, network, data, data, torch.Generator())
    least = smallest_cost(genotype, network, scope)
    value = least.parameters if kind == "params" else least.macs
    knobs = Pruning(criterion="norm", scope=scope)
    made = prune(trained, Target(kind, value), knobs)
    assert Target(kind, value).of(made.cost) == value
    with pytest.raises(UserError, match=rf"--target-{kind} must be at least {value} ") as error:
        prune(trained, Target(kind, value - 1), knobs)
    assert "\n" not in str(error.value)


def test_a_target_in_milliseconds_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that shows the parameters, so that the test does not depend on the machine."""
    network, genotype, data = separable()
    clock = lambda net, image: sum(p.numel() for p in net.parameters()) / 1000  # noqa: E731
    for module in ("pruning", "target"):
        monkeypatch.setattr(f"darts_lite.compression.{module}.milliseconds", clock)
    trained = Trained(genotype, network, data, data, torch.Generator().manual_seed(0))
    aim = Target("ms", 0.6 * clock(network, IMAGE))
    small = prune(trained, aim, Pruning(criterion="norm", scope="all"))
    assert 0.5 * clock(network, IMAGE) < clock(small.network, IMAGE) <= aim.limit
    with pytest.raises(UserError, match=r"--target-ms must be at least .* ms, the smallest"):
        prune(trained, Target("ms", 1e-6), Pruning(criterion="norm", scope="all"))


def test_milliseconds_are_those_of_a_batch_of_32() -> None:
    network, genotype, _ = separable()
    sizes = []
    network.register_forward_hook(lambda module, inputs, out: sizes.append(len(out)))
    assert target.milliseconds(network, genotype.image) > 0
    assert target.BATCH in sizes


def test_a_bisection_finds_the_largest_size_within_a_target() -> None:
    aim = Target("ms", 30.0)
    found = largest_within(lambda size: size, lambda made: made**2, aim, (1.0, 10.0), "squares")
    assert found == pytest.approx(30**0.5, abs=0.06) and found**2 <= 30
    with pytest.raises(UserError, match=r"at least 36 ms, the smallest possible network by squ"):
        largest_within(lambda size: size, lambda made: made**2, aim, (6.0, 10.0), "squares")


def chain(sizes: list[int]) -> tuple[list[Group], WidthCost]:
    """Return the groups of dense 1x1 convolutions in a row, and their cost."""
    layers = [nn.Conv2d(a, b, 1, bias=False) for a, b in zip([1, *sizes], [*sizes, 1])]
    groups = [
        Group(
            n,
            (
                Cut(str(i), "outputs", torch.arange(n)[:, None]),
                Cut(str(i + 1), "inputs", torch.arange(n)[:, None]),
            ),
            (),
        )
        for i, n in enumerate(sizes)
    ]
    return groups, WidthCost(nn.Sequential(*layers), groups, (1, 1, 1))


def test_the_channel_with_the_smallest_score_goes_first() -> None:
    groups, cost = chain([4, 4])
    assert cost([4, 4]) == (24, 24)
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 9.0, 9.0])
    assert widths_within(groups, cost, scores, 23, 0) == [4, 3]
    assert widths_within(groups, cost, scores, 14, 0) == [4, 2]
    assert widths_within(groups, cost, scores, 13, 0) == [3, 2]
    assert widths_within(groups, cost, scores, 3, 0) == [1, 1]
    assert widths_within(groups, cost, scores, 2, 0) is None
    assert widths_within(groups, cost, scores, 23, 0, multiple=2) == [4, 2]


def test_scores_per_cost_spare_cheap_channels() -> None:
    groups, cost = chain([2, 16])
    scores = torch.cat([torch.full((2,), 2.0), torch.full((16,), 1.0)])
    assert widths_within(groups, cost, scores, 45, 0) == [2, 14]
    assert widths_within(groups, cost, scores, 45, 0, per_cost=True) == [1, 16]


@pytest.mark.parametrize("multiple", [2, 4])
def test_widths_are_multiples_where_they_can_be(multiple: int) -> None:
    network, genotype, data = separable()
    trained = Trained(genotype, network, data, data, torch.Generator())
    knobs = Pruning(criterion="norm", scope="inner", multiple=multiple)
    limit = 0.7 * genotype.parameters
    small = prune(trained, Target("params", limit), knobs)
    convs = [layer for group in small.genotype.structure.layers.values() for layer in group
             if isinstance(layer, ConvLayer)]  # fmt: skip
    assert convs
    for conv in convs:
        assert any(w % multiple == 0 or w < multiple for w in (conv.inputs, conv.outputs))
