"""Transfer: start from the weights of another training, and learn at rates by depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.errors import UserError
from darts_lite.hypergradient.hyperparameters import HyperSpec, LogInterval
from darts_lite.training.options import TeacherOptions

RANGE = LogInterval(1e-3, 10.0)  # range of a learned factor of the learning rate
START = (1.1e-3, 9.0)  # range of its start
TRAVEL = 4.0  # distance that its raw value can move in one training


def take_over(network: nn.Module, other: nn.Module, name: str) -> bool:
    """Copy the weights of a network of the same architecture; return whether with its classifier.

    If the numbers of classes differ, the weights of the classifier that depend on it are kept.

    Arguments:
        network: network to change.
        other: network to copy from.
        name: name of the other network, for the error.
    Raises: `UserError` if a weight beside the classifier has another shape.
    """
    own, theirs = dict(network.named_parameters()), dict(other.named_parameters())
    depths: dict[str, int] = network.depths()  # type: ignore[operator]
    classifier = max(depths.values())
    other_classes = {
        name
        for name, value in own.items()
        if depths[name] == classifier and name in theirs and theirs[name].shape != value.shape
    }
    wanted = {name: value for name, value in own.items() if name not in other_classes}
    for key, value in wanted.items():
        if key not in theirs or theirs[key].shape != value.shape:
            got = tuple(theirs[key].shape) if key in theirs else "nothing"
            raise UserError(
                f"--from {name}: its network must have the architecture of the genotype, got {got} "
                f"for {key} of shape {tuple(value.shape)}; take the genotype of that training"
            )
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(theirs[key])
    return not other_classes


@dataclass(frozen=True)
class Rates:
    """Factors of the learning rate by depth, from the stem to the classifier.

    Arguments:
        sizes: for each of the two vectors of a `FlatNetwork`, the number of weights of every
            parameter, its depth, and the number of all weights.
        count: number of depths.
    """

    sizes: tuple[tuple[Tensor, Tensor, int], ...]
    count: int

    def __call__(self, factors: Tensor) -> Params:
        """Return the factor of every weight, as two vectors.

        Arguments:
            factors: `[count]`, one factor per depth; differentiable.
        """
        return tuple(
            factors[depths].repeat_interleave(counts, output_size=total)
            for counts, depths, total in self.sizes
        )


@dataclass(frozen=True)
class BlockRates:
    """Factor of the learning rate of every weight, from the factors of the blocks.

    Arguments:
        rates: depth of every weight.
        factors: `[count]` factor of every depth; zero for a frozen depth.
    """

    rates: Rates
    factors: Tensor

    def __call__(self, values: Mapping[str, Tensor]) -> Params:
        """Return two vectors of factors; learned factors "layer_lr.<depth>" replace the constants.

        A frozen depth stays frozen, whatever its learned factor.
        """
        names = [f"layer_lr.{i}" for i in range(self.rates.count)]
        factors = self.factors
        if names[0] in values:
            factors = torch.stack([values[n] for n in names]) * (factors > 0)
        return self.rates(factors)


def frozen_depths(text: str, count: int) -> int:
    """Return the number of frozen depths that `--freeze` asks for.

    Arguments:
        text: a number, or "features" for all but the classifier.
        count: number of depths of the network.
    Raises: `UserError` if the text is neither.

    >>> frozen_depths("features", 5), frozen_depths("1", 5)
    (4, 1)
    """
    if text == "features":
        return count - 1
    if not text.isdigit() or int(text) >= count:
        raise UserError(
            f"--freeze must be features or a number from 0 to {count - 1}, the blocks below the "
            f"classifier of this network, got {text!r}; 0 freezes nothing"
        )
    return int(text)


def layer_specs(network: FlatNetwork, options: TeacherOptions) -> list[HyperSpec]:
    """Return the factors of the learning rate by depth as values to learn.

    Arguments:
        network: the network.
        options: options of the transfer; `layer_decay` gives the starts.
    """
    factors = factors_by_depth(rates_of(network).count, options.layer_decay)
    return [
        HyperSpec(f"layer_lr.{i}", factor.clamp(*START), RANGE, "optimizer", TRAVEL)
        for i, factor in enumerate(factors)
    ]


def block_rates(
    network: FlatNetwork, options: TeacherOptions, learned: bool
) -> tuple[BlockRates | None, BlockRates | None]:
    """Return the rates by depth while blocks are frozen, and afterwards; None for one rate.

    Arguments:
        network: the network.
        options: options of the transfer.
        learned: whether there are learned factors.
    Raises: `UserError` for a bad `--freeze`.
    """
    rates = rates_of(network)
    frozen = frozen_depths(options.freeze, rates.count)
    factors = factors_by_depth(rates.count, options.layer_decay).to(network.params[0].device)
    after = BlockRates(rates, factors) if learned or options.layer_decay < 1 else None
    if not frozen:
        return after, after
    kept = torch.arange(rates.count, device=factors.device) >= frozen
    return BlockRates(rates, factors * kept), after


def rates_of(network: FlatNetwork) -> Rates:
    """Return the depth of every weight of a network.

    >>> from darts_lite.architecture.presets import blocks
    >>> from darts_lite.architecture.network import Network
    >>> from darts_lite.nas.random_networks import uniform_random
    >>> space = uniform_random(blocks(4, 3), torch.Generator().manual_seed(0))
    >>> rates_of(FlatNetwork(Network(space, (1, 8, 8), 10))).count
    5
    """
    depth_of: dict[str, int] = network.network.depths()  # type: ignore[operator]
    device = network.params[0].device
    sizes = []
    for group in network.groups:
        counts = torch.tensor([shape.numel() for _, shape in group], device=device)
        depths = torch.tensor([depth_of[name] for name, _ in group], device=device)
        sizes.append((counts, depths, int(counts.sum())))
    return Rates(tuple(sizes), 1 + max(depth_of.values()))


def factors_by_depth(count: int, decay: float = 1.0) -> Tensor:
    """Return the factor of the learning rate of every depth (Howard and Ruder 2018).

    Arguments:
        count: number of depths.
        decay: factor from one depth to the depth below; the classifier has the whole rate.

    >>> factors_by_depth(4, decay=0.5)
    tensor([0.1250, 0.2500, 0.5000, 1.0000])
    """
    return decay ** torch.arange(count - 1, -1, -1.0)
