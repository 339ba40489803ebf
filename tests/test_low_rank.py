"""Low-rank layers: exact where the layer is of low rank, best of their rank, counted, chosen."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from darts_lite.architecture.cost import cost_of, count, genotype_with_cost
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.plain import folded
from darts_lite.architecture.presets import blocks
from darts_lite.compression import low_rank as module
from darts_lite.compression.factors import decompose, factorize, weight_of
from darts_lite.compression.low_rank import Bayes, Energy, Limit, apply, low_rank
from darts_lite.compression.variational import bayes_rank, free_energy, threshold_of
from darts_lite.errors import UserError
from darts_lite.nas.random_networks import uniform_random

pytest.importorskip("tensorly")
IMAGE = (3, 8, 8)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def network(seed: int = 0) -> nn.Sequential:
    """Return a network with every kind of layer, and random weights."""
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 16, 5, 2, 2, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 1),
        nn.Conv2d(24, 24, 3, dilation=2, padding=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 20),
    ).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(drawn(100 * seed + i, *p.shape) / max(1, p[0].numel()) ** 0.5)
    return net


def with_weight(weight: Tensor, stride: int = 1, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    outputs, inputs, k, _ = weight.shape
    layer = nn.Conv2d(inputs, outputs, k, stride, padding, bias=bias).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


PLANTED = {
    "tucker": lambda s: torch.einsum(
        "abkl,oa,ib->oikl", drawn(s, 4, 3, 3, 3), drawn(s + 1, 10, 4), drawn(s + 2, 8, 3)
    ),
    "cp": lambda s: torch.einsum(
        "or,ir,klr->oikl", drawn(s, 10, 3), drawn(s + 1, 8, 3), drawn(s + 2, 3, 3, 3)
    ),
    "svd": lambda s: torch.einsum("or,rikl->oikl", drawn(s, 10, 4), drawn(s + 1, 4, 8, 3, 3)),
}
RANKS = {"tucker": (3, 4), "cp": (3,), "svd": (4,)}


@pytest.mark.parametrize("data", [False, True], ids=["weights", "patches"])
@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 1), (1, 0)])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", PLANTED)
@torch.no_grad()
def test_a_layer_of_low_rank_is_reconstructed(
    method: str, seed: int, stride: int, padding: int, data: bool
) -> None:
    layer = with_weight(PLANTED[method](10 * seed), stride, padding)
    root = drawn(5, 72, 90)
    made = decompose(layer, method, RANKS[method], root @ root.T if data else None)
    x = drawn(7, 3, 8, 9, 9)
    assert (made(x) - layer(x)).abs().max() <= 1e-10 * layer(x).abs().max()
    less = tuple(r - 1 for r in RANKS[method])
    assert (decompose(layer, method, less)(x) - layer(x)).abs().max() > 0.01


@torch.no_grad()
def test_a_linear_layer_of_low_rank_is_reconstructed() -> None:
    layer = nn.Linear(9, 7).double()
    layer.weight.copy_(drawn(0, 7, 2) @ drawn(1, 2, 9))
    made, x = decompose(layer, "svd", (2,)), drawn(2, 5, 9)
    torch.testing.assert_close(made(x), layer(x), atol=1e-10, rtol=0)
    assert sum(p.numel() for p in made.parameters()) == 2 * 9 + 7 * 2 + 7


@pytest.mark.parametrize("method", PLANTED)
def test_the_error_falls_with_the_rank(method: str) -> None:
    weight, root = drawn(3, 8, 6, 3, 3), drawn(4, 54, 60)
    c = root @ root.T / 60
    grid = {"tucker": [(r, r) for r in (1, 2, 4, 6)], "cp": [(r,) for r in (1, 4, 12, 40)]}
    found = [
        factorize(weight, c, method, r).error for r in grid.get(method, [(r,) for r in (1, 3, 8)])
    ]
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[0] < 1 and (method == "cp" or found[-1] < 0.3)


@pytest.mark.parametrize("method, ranks", [("svd", (3,)), ("tucker", (3, 4)), ("cp", (5,))])
@torch.no_grad()
def test_the_error_is_that_of_the_outputs(method: str, ranks: tuple[int, ...]) -> None:
    """C of real patches gives the squared error of a layer without running it."""
    layer = with_weight(drawn(0, 8, 6, 3, 3), 2, bias=False)
    x = drawn(1, 20, 6, 9, 9).abs()
    rows = module._patches(layer, x)
    c = rows.T @ rows / len(rows)
    out = layer(x)
    made = decompose(layer, method, ranks, c)
    real = float((made(x) - out).square().sum() / out.square().sum())
    assert factorize(weight_of(layer), c, method, ranks).error == pytest.approx(real, rel=1e-6)
    blind = decompose(layer, method, ranks)
    assert real < float((blind(x) - out).square().sum() / out.square().sum())


@pytest.mark.parametrize("method, ranks", [("svd", (3,)), ("cp", (5,))])
def test_the_layers_share_the_scale_of_every_inner_channel(
    method: str, ranks: tuple[int, ...]
) -> None:
    weights = factorize(drawn(0, 8, 6, 3, 3), torch.eye(54).double(), method, ranks).weights
    norms = [w.flatten(1).norm(dim=1) for w in weights[:-1]]
    norms.append(weights[-1].transpose(0, 1).flatten(1).norm(dim=1))
    for each in norms[1:]:
        torch.testing.assert_close(each, norms[0], rtol=0.05, atol=0)


@torch.no_grad()
def test_svd_is_the_principal_components_of_the_outputs() -> None:
    layer = with_weight(drawn(0, 8, 6, 3, 3), bias=False)
    x = drawn(1, 20, 6, 9, 9).abs()
    rows = layer(x).transpose(0, 1).flatten(1)
    squares = torch.linalg.svdvals(rows).square()
    patches = module._patches(layer, x)
    error = factorize(weight_of(layer), patches.T @ patches, "svd", (3,)).error
    assert error == pytest.approx(float(squares[3:].sum() / squares.sum()), rel=1e-6)


# --- whole networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [False, True], ids=["weights", "images"])
@pytest.mark.parametrize("what", ["parameters", "macs", "energy", "bayes"])
@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_the_cost_is_that_of_the_network(method: str, what: str, data: bool) -> None:
    net, x = network(), torch.zeros(1, *IMAGE).double()
    before, state = count(net, x), {n: v.clone() for n, v in net.state_dict().items()}
    if method == "cp" and what == "bayes":
        with pytest.raises(UserError, match="cp has none; use Energy or Limit"):
            low_rank(net, method, Bayes(), IMAGE)
        return
    how = {
        "parameters": Limit(parameters=int(0.7 * before.parameters)),
        "macs": Limit(macs=int(0.7 * before.macs)),
        "energy": Energy(0.6),
        "bayes": Bayes(),
    }[what]
    images = drawn(9, 70, *IMAGE) if data else None
    net.train()
    plan = low_rank(net, method, how, IMAGE, images)
    assert net.training and not any(m._forward_hooks for m in net.modules())
    small = apply(net, plan)
    assert count(small, x) == plan.cost
    assert plan.layers and plan.cost.parameters < before.parameters and plan.cost.macs < before.macs
    if isinstance(how, Limit):
        assert (plan.cost.parameters if what == "parameters" else plan.cost.macs) <= 0.7 * (
            before.parameters if what == "parameters" else before.macs
        )
    assert plan.kept["3"] == "depthwise" and "dilated" in plan.kept["6"]
    assert set(plan.layers) | set(plan.kept) == {"0", "2", "3", "5", "6", "9"}
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    again = low_rank(net, method, how, IMAGE, images)
    assert again.ranks == plan.ranks and again.errors == plan.errors
    x = drawn(1, 2, *IMAGE)
    torch.testing.assert_close(apply(net, again)(x), small(x))


@pytest.mark.parametrize("what", ["parameters", "macs"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_the_budget_is_spent_best(
    method: str, share: float, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    net = nn.Sequential(network()[:3], nn.Conv2d(16, 24, 1).double())
    images = drawn(9, 40, *IMAGE)
    before = count(net, torch.zeros(1, *IMAGE).double())
    limit = int(share * getattr(before, what))
    layers, _, macs = module._layers(net, IMAGE, images)
    groups = [
        [module._whole(n)] + [module._candidate(n, k, r) for r in module._cheaper(n, k)]
        for n in layers
        for k in [module._method(n.weight, method)]
    ]
    fixed = getattr(before, what) - sum(getattr(g[0].cost, what) for g in groups)
    best = min(
        sum(c.factors.error for c in chosen if c.factors)
        for chosen in itertools.product(*groups)
        if fixed + sum(getattr(c.cost, what) for c in chosen) <= limit
    )
    plan = low_rank(net, method, Limit(**{what: limit}), IMAGE, images)
    assert getattr(plan.cost, what) <= limit and macs == before.macs
    assert sum(plan.errors.values()) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_an_impossible_limit_names_the_smallest(method: str) -> None:
    net = network()
    with pytest.raises(UserError, match=r"the limit of parameters must be at least \d+") as error:
        low_rank(net, method, Limit(parameters=10), IMAGE)
    smallest = int(str(error.value).split("at least ")[1].split(",")[0])
    assert low_rank(net, method, Limit(parameters=smallest), IMAGE).cost.parameters == smallest


def test_a_layer_that_is_used_twice_stays() -> None:
    twice = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(twice, nn.SiLU(), twice, nn.Conv2d(8, 16, 3)).double()
    x = torch.zeros(1, 8, 6, 6).double()
    plan = low_rank(net, "svd", Limit(parameters=1300), (8, 6, 6), drawn(0, 4, 8, 6, 6))
    assert list(plan.layers) == ["3"] and plan.kept["0"] == "used 2 times in a forward pass"
    assert count(apply(net, plan), x) == plan.cost


def test_a_network_without_such_layers_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(UserError, match="got none: 0 is grouped; choose another network"):
        low_rank(net, "svd", Energy(), (4, 6, 6))


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_energy_keeps_its_share(share: float) -> None:
    net, images = network(), drawn(9, 40, *IMAGE).abs()
    plan = low_rank(net, "svd", Energy(share), IMAGE, images)
    for layer in module._layers(net, IMAGE, images)[0]:
        if layer.name in plan.ranks:
            (r,) = plan.ranks[layer.name]
            assert plan.errors[layer.name] <= 1 - share + 1e-9
            if r > 1:
                less = factorize(layer.weight, layer.covariance, "svd", (r - 1,))
                assert less.error > 1 - share


def test_a_genotype_carries_the_layers() -> None:
    """The plain network of a genotype, made small, is the network of its new genotype."""
    space = uniform_random(blocks(8, 4), torch.Generator().manual_seed(1))
    genotype = genotype_with_cost(space, (1, 8, 8), ("a", "b", "c"))
    net = network_of(genotype).plain()  # type: ignore[operator]
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    limit = Limit(parameters=int(0.6 * genotype.parameters))
    plan = low_rank(net, "tucker", limit, genotype.image, images)
    small = apply(net, plan)
    made = replace(genotype, structure=plan.structure)
    assert cost_of(made) == plan.cost
    again = network_of(made)
    again.load_state_dict(small.state_dict(), strict=False)
    torch.testing.assert_close(again.eval()(images), small(images))


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda n: low_rank(n, "qr", Energy(), IMAGE), "one of svd, tucker, cp, got 'qr'"),
        (lambda n: low_rank(n, "svd", Energy(1.5), IMAGE), "above 0 and at most 1, got 1.5"),
        (lambda n: low_rank(n, "svd", Limit(), IMAGE), "give one of the two"),
        (lambda n: decompose(n[2], "tucker", (4, 17)), r"from 1 to \[12, 16\], got \[4, 17\]"),
        (lambda n: decompose(n[2], "svd", (0,)), r"1 numbers from 1 to \[16\], got \[0\]"),
        (lambda n: decompose(n[5], "cp", (2,)), "larger than 1x1, got 1x1; use svd"),
        (lambda n: decompose(n[3], "svd", (2,)), "got depthwise"),
    ],
)
def test_bad_input_is_one_line(call: object, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        call(network())  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(UserError, match="run pip install tensorly, or use svd"):
        low_rank(network(), "tucker", Energy(), IMAGE)
    low_rank(network(), "svd", Energy(), IMAGE)


# --- variational Bayes ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "shape, rank", [((60, 90), 3), ((64, 300), 10), ((40, 40), 5), ((8, 50), 0)]
)
def test_bayes_finds_the_rank_under_noise(shape: tuple[int, int], rank: int, seed: int) -> None:
    low = drawn(seed, shape[0], rank) @ drawn(seed + 10, rank, shape[1])
    noisy = low + 0.3 * drawn(seed + 20, *shape)
    assert bayes_rank(noisy) == bayes_rank(noisy.T) == bayes_rank(7 * noisy) == rank


def test_bayes_finds_an_exact_rank_and_none_in_nothing() -> None:
    assert bayes_rank(drawn(0, 16, 4) @ drawn(1, 4, 144)) == 4
    assert bayes_rank(torch.zeros(4, 9)) == 0


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0])
def test_at_the_threshold_signal_and_noise_have_the_same_energy(alpha: float) -> None:
    """This is what defines the threshold; at alpha = 1 it is (1 + 2.5129) (1 + 1 / 2.5129)."""
    x = threshold_of(alpha)
    kept, noise = (free_energy(np.array([x * (1 + d)]), alpha, x) for d in (1e-9, 0.0))
    assert kept == pytest.approx(noise, abs=1e-6)
    assert free_energy(np.array([2 * x]), alpha, x) < free_energy(np.array([2 * x]), alpha, 3 * x)
    if alpha == 1.0:
        assert x == pytest.approx(3.5129 * (1 + 1 / 2.5129), rel=1e-4)


@torch.no_grad()
def test_norms_fold_into_the_last_of_the_new_layers() -> None:
    space = uniform_random(blocks(8, 4), torch.Generator().manual_seed(1))
    net = network_of(genotype_with_cost(space, (1, 8, 8), ("a", "b"))).plain()  # type: ignore[operator]
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    small = apply(net, low_rank(net, "svd", Energy(0.6), (1, 8, 8)))
    x, without = torch.rand(4, 1, 8, 8), folded(small)
    torch.testing.assert_close(without(x), small(x), atol=1e-5, rtol=1e-5)
    assert len(small.cells[0].edges[0].operation[0]) == 2  # type: ignore[index,arg-type]
    more = [len(convolutions(n)) for n in (small, net, without, folded(net))]
    assert more[0] - more[1] == more[2] - more[3] > 0


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]
