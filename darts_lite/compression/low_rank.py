"""Ranks of the layers of a network, and the network of low rank (see `factors`).

Ranks come from a share of the energy, from variational Bayes, or from one budget of the whole
network: the exact knapsack over the layers of (cost, error of the output) at a grid of ranks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.cost import Cost
from darts_lite.architecture.structure import ChangedLayers
from darts_lite.compression.factors import (
    METHODS,
    Factors,
    Method,
    Ranks,
    built,
    described,
    factorize,
    largest_ranks,
    of_channels,
    require_packages,
    root,
    scaled,
    unfit,
    weight_of,
)
from darts_lite.compression.variational import bayes_rank
from darts_lite.errors import UserError
from darts_lite.nas.fronts import best_choices

STEPS = 12  # ranks that a budget chooses from, per layer and mode
BATCH = 64  # images per forward pass
RIDGE = 1e-6  # of the mean diagonal of C, added to it: patches may lie in a subspace


@dataclass(frozen=True)
class Energy:
    """Ranks with at least a share of the energy: of each unfolding; for cp, of the output.

    Arguments:
        share: Share of the sum of squared singular values, above 0 and at most 1.
    """

    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(
                f"the share of energy must be above 0 and at most 1, got {self.share}; 0.9 is usual"
            )


@dataclass(frozen=True)
class Bayes:
    """Ranks by variational Bayes (`variational.bayes_rank`), as Kim et al. 2016 choose them."""


@dataclass(frozen=True)
class Limit:
    """Ranks with the least sum of the errors of all layers, for a budget of the whole network.

    Arguments:
        parameters: Largest number of parameters; None if the other is given.
        macs: Largest number of multiply-accumulates per image; None if the other is given.
    """

    parameters: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        if (self.parameters is None) == (self.macs is None):
            raise UserError("a limit must be of parameters or of macs; give one of the two")


@dataclass(frozen=True)
class Plan:
    """What a low-rank network is.

    Attributes:
        layers: Name of a layer -> modules in its place.
        ranks: Name of a layer -> its ranks.
        errors: Name of a layer -> mean squared error of its output, as a share of the mean square.
        kept: Name of a layer -> why it stays, a phrase.
        cost: Cost of the network with these layers.
    """

    layers: dict[str, nn.Sequential]
    ranks: dict[str, Ranks]
    errors: dict[str, float]
    kept: dict[str, str]
    cost: Cost = field(default=Cost(0, 0))

    @property
    def structure(self) -> ChangedLayers:
        """The changed layers of a genotype, if the network is the plain one of its space."""
        return ChangedLayers(layers={n: described(m) for n, m in self.layers.items()})


class _Layer(NamedTuple):
    """A layer that can be replaced.

    Attributes:
        name: Its name.
        module: The layer.
        weight: W as float64 [outputs, inputs, k, k].
        covariance: C as float64 [inputs * k * k, inputs * k * k].
        sizes: Pixels of its input, and of its output.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    weight: Tensor
    covariance: Tensor
    sizes: tuple[int, int]


class _Candidate(NamedTuple):
    ranks: Ranks
    cost: Cost
    factors: Factors | None  # None: the layer as it is


def low_rank(
    network: nn.Module,
    method: Method,
    ranks: Energy | Bayes | Limit,
    image: tuple[int, int, int],
    images: Tensor | None = None,
) -> Plan:
    """Return the low-rank layers of a network; `apply` puts them in.

    svd replaces every dense convolution and linear layer. tucker and cp replace convolutions
    larger than 1x1, and svd all others. A layer stays if no lower rank makes it cheaper.

    Arguments:
        network: Network of ordinary modules, such as `Network.plain()`.
        method: svd, tucker or cp.
        ranks: How ranks are chosen.
        image: Channels, height and width of an image.
        images: Images [N, C, H, W] in [0, 1] on which outputs are reconstructed; None: the error
            is that of the weights.
    Raises: `UserError` if tensorly is missing, nothing can be replaced, variational Bayes is asked
        for the ranks of cp, or no ranks are within the limit; it names the smallest possible.

    >>> net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 8, 1))
    >>> plan = low_rank(net, "svd", Limit(parameters=900), (8, 6, 6))
    >>> small = apply(net, plan)
    >>> sum(p.numel() for p in small.parameters()) == plan.cost.parameters <= 900
    True
    """
    if method not in METHODS:
        raise UserError(f"the method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != "svd":
        require_packages()
    if method == "cp" and isinstance(ranks, Bayes):
        raise UserError(
            "variational Bayes finds ranks of matrices, and cp has none; use Energy or Limit, or "
            "the method tucker"
        )
    layers, kept, macs = _layers(network, image, images)
    if not layers:
        reasons = "; ".join(f"{name} is {why}" for name, why in kept.items()) or "no layers"
        raise UserError(
            f"the network must have a dense convolution or linear layer, got none: {reasons}; "
            "choose another network"
        )
    if isinstance(ranks, Limit):
        chosen = _within(network, layers, method, ranks, macs)
    else:
        chosen = [_by_share(layer, method, ranks) for layer in layers]
    replaced, total = {}, Cost(sum(p.numel() for p in network.parameters()), macs)
    for layer, candidate in zip(layers, chosen):
        if candidate.factors is None:
            kept[layer.name] = "no lower rank is cheaper or within the error"
            continue
        replaced[layer.name] = candidate
        before = _whole(layer).cost
        total += Cost(
            candidate.cost.parameters - before.parameters, candidate.cost.macs - before.macs
        )
    modules = {layer.name: layer.module for layer in layers}
    return Plan(
        {n: built(modules[n], c.factors.weights) for n, c in replaced.items() if c.factors},
        {n: c.ranks for n, c in replaced.items()},
        {n: c.factors.error for n, c in replaced.items() if c.factors},
        kept,
        total,
    )


def apply(network: nn.Module, plan: Plan | Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of a network with other layers in the place of some.

    Every BatchNorm keeps its statistics; `calibrate` fits them to the new layers.

    Arguments:
        network: The network of the plan.
        plan: Plan, or name of a layer -> module.
    """
    network = copy.deepcopy(network)
    layers = plan.layers if isinstance(plan, Plan) else plan
    for name, module in layers.items():
        network.set_submodule(name, copy.deepcopy(module))
    return network


@torch.no_grad()
def _layers(
    network: nn.Module, image: tuple[int, int, int], images: Tensor | None
) -> tuple[list[_Layer], dict[str, str], int]:
    """Return the layers that can be replaced, why others stay, and the MACs per image."""
    named = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    kept = {n: why for n, m in named.items() if (why := unfit(m))}
    fit = {n: m for n, m in named.items() if n not in kept}
    sums = {n: torch.zeros(2 * (weight_of(m)[0].numel(),)).double() for n, m in fit.items()}
    counts, sizes = dict.fromkeys(fit, 0), dict.fromkeys(named, (0, 0))
    macs, uses = dict.fromkeys(named, 0), dict.fromkeys(named, 0)
    first = next(network.parameters())
    zero = torch.zeros(1, *image, dtype=first.dtype, device=first.device)

    def hook(name: str, counting: bool):  # type: ignore[no-untyped-def]
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            out = output.shape[2:].numel() if x.dim() == 4 else 1
            if counting:
                sizes[name] = (x.shape[2:].numel() if x.dim() == 4 else 1, out)
                uses[name] += 1
                macs[name] += module.weight.numel() * out  # type: ignore[operator,union-attr]
                return
            rows = _patches(module, x)
            counts[name] += len(rows)
            sums[name] += (rows.T @ rows).double().cpu()

        return seen

    def pass_through(x: Tensor, names: Mapping[str, nn.Module], counting: bool) -> None:
        hooks = [m.register_forward_hook(hook(n, counting)) for n, m in names.items()]
        try:
            network(x)
        finally:
            for each in hooks:
                each.remove()

    training = network.training
    network.eval()
    pass_through(zero, named, True)
    for part in () if images is None else images.split(BATCH):
        pass_through(part.to(zero), fit, False)
    network.train(training)
    unused = {n: f"used {uses[n]} times in a forward pass" for n in fit if uses[n] != 1}
    layers = []
    for name, module in fit.items():
        if name not in unused:
            c = torch.eye(len(sums[name])).double()
            if images is not None:
                mean = sums[name] / counts[name]
                c = mean + RIDGE * mean.diagonal().mean() * c
            layers.append(_Layer(name, module, weight_of(module), c, sizes[name]))
    return layers, kept | unused, sum(macs.values())


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of a layer as rows [patches, inputs * k * k]."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    kernel, padding, stride = module.kernel_size, module.padding, module.stride
    columns = F.unfold(x, kernel, 1, padding, stride)  # type: ignore[arg-type]
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


# --- ranks ----------------------------------------------------------------------------------------


def _method(weight: Tensor, method: Method) -> Method:
    """Return the method of a layer: tucker and cp are of kernels larger than 1x1."""
    return method if weight[0, 0].numel() > 1 else "svd"


def _whole(layer: _Layer) -> _Candidate:
    """Return the layer as it is, as a candidate."""
    size = layer.weight.numel()
    return _Candidate((), Cost(size, size * layer.sizes[1]), None)


def _cost(layer: _Layer, method: Method, ranks: Ranks) -> Cost:
    """Return parameters and MACs of the factors of given ranks, without the bias."""
    outputs, inputs, *kernel = layer.weight.shape
    size, (before, after) = kernel[0] * kernel[1], layer.sizes
    r = ranks[-1]
    if method == "svd":
        parts = [(r * inputs * size, after)]
    elif method == "tucker":
        parts = [(ranks[0] * inputs, before), (r * ranks[0] * size, after)]
    else:
        parts = [(r * inputs, before), (r * size, after)]
    parts.append((r * outputs, after))
    return Cost(sum(p for p, _ in parts), sum(p * pixels for p, pixels in parts))


def _grid(largest: int) -> list[int]:
    """Return up to `STEPS` ranks, in even ratios, from 1 to the largest."""
    exponents = [i / (STEPS - 1) for i in range(STEPS)]
    return sorted({round(largest**e) for e in exponents})


def _cheaper(layer: _Layer, method: Method) -> Iterator[Ranks]:
    """Yield the ranks of a grid at which the layer has fewer parameters and MACs."""
    largest, before = largest_ranks(layer.weight, method), _whole(layer).cost
    size = layer.weight[0, 0].numel()
    for ranks in itertools.product(*map(_grid, largest)):
        if max(ranks) > min(ranks) * size:  # an unfolding of the core has a lower rank
            continue
        cost = _cost(layer, method, ranks)
        if cost.parameters < before.parameters and cost.macs <= before.macs:
            yield ranks


def _candidate(layer: _Layer, method: Method, ranks: Ranks) -> _Candidate:
    factors = factorize(layer.weight, layer.covariance, method, ranks)
    return _Candidate(ranks, _cost(layer, method, ranks), factors)


def _within(
    network: nn.Module, layers: list[_Layer], method: Method, limit: Limit, macs: int
) -> list[_Candidate]:
    """Return the candidates with the least sum of errors within a limit of the whole network."""
    groups = []
    for layer in layers:
        mine = _method(layer.weight, method)
        candidates = [_candidate(layer, mine, ranks) for ranks in _cheaper(layer, mine)]
        groups.append([_whole(layer), *candidates])
    kind = 0 if limit.macs is None else 1
    total = (sum(p.numel() for p in network.parameters()), macs)[kind]
    fixed = total - sum(group[0].cost[kind] for group in groups)
    choices = [
        [(c.cost[kind], -c.factors.error if c.factors else 0.0) for c in group] for group in groups
    ]
    most = limit.parameters if limit.macs is None else limit.macs
    assert most is not None
    found = best_choices(choices, most - fixed)
    if found is None:
        smallest = fixed + sum(min(c for c, _ in group) for group in choices)
        what = ("parameters", "macs")[kind]
        raise UserError(
            f"the limit of {what} must be at least {smallest}, the smallest possible with "
            f"{method}, got {most}; raise it, or prune too"
        )
    return [group[i] for group, i in zip(groups, found)]


def _by_share(layer: _Layer, method: Method, how: Energy | Bayes) -> _Candidate:
    """Return the factors of the ranks that energy or variational Bayes give to a layer."""
    method, weight = _method(layer.weight, method), layer.weight
    if method == "cp":
        assert isinstance(how, Energy)
        for ranks in _cheaper(layer, "cp"):
            candidate = _candidate(layer, "cp", ranks)
            assert candidate.factors is not None
            if candidate.factors.error <= 1 - how.share:
                return candidate
        return _whole(layer)
    if method == "svd":
        matrices = [weight.flatten(1) @ root(layer.covariance)]
    else:
        target = scaled(weight, root(of_channels(weight, layer.covariance)))
        matrices = [target.transpose(0, 1).flatten(1), target.flatten(1)]
    ranks = tuple(max(1, _rank(matrix, how)) for matrix in matrices)
    cost, before = _cost(layer, method, ranks), _whole(layer).cost
    if cost.parameters >= before.parameters or cost.macs > before.macs:
        return _whole(layer)
    return _candidate(layer, method, ranks)


def _rank(matrix: Tensor, how: Energy | Bayes) -> int:
    if isinstance(how, Bayes):
        return bayes_rank(matrix)
    squares = torch.linalg.svdvals(matrix).square()
    shares = squares.cumsum(0) / squares.sum()
    return int((shares < how.share - 1e-12).sum()) + 1
