"""The methods of `compress` by name. Each maps a trained network and a target to a smaller one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.plain import PlainNetwork
from darts_lite.compression.layers import Small, Trained, small_of
from darts_lite.compression.low_rank import Limit, apply, low_rank
from darts_lite.compression.options import CompressOptions
from darts_lite.compression.pruning import Pruning, prune
from darts_lite.compression.target import Target, largest_within, milliseconds
from darts_lite.data import evaluation_batches
from darts_lite.errors import UserError
from darts_lite.training.metrics import sample

RECONSTRUCTED = 256  # training images on which the outputs of low-rank layers are reconstructed
SMALLER = 0.85  # factor between the sizes that are tried for the smallest network of low rank
Method = Callable[[Trained, Target, CompressOptions], Small]


def pruned(trained: Trained, target: Target, options: CompressOptions) -> Small:
    """Return the network without the channels that are needed least; see `pruning`."""
    knobs = Pruning(options.criterion, options.scope, options.multiple, options.gate_steps)
    return prune(trained, target, knobs)


def narrower(trained: Trained, target: Target, options: CompressOptions) -> Small:
    """Return the same architecture with fewer channels, within a target, with new weights.

    Arguments:
        trained: the trained network, whose space is taken.
        target: the target.
        options: options of the command; unused.
    Raises: `UserError` if even one channel is too much.
    """
    genotype = trained.genotype
    value = float("inf")
    for channels in range(genotype.space.channels, 0, -1):
        made = _with_channels(genotype, channels)
        if target.kind == "ms":
            network = network_of(made, torch.Generator().manual_seed(0)).eval()
            value = milliseconds(network.to(trained.validation.pixels.device), made.image)
        else:
            value = target.of((made.parameters, made.macs))
        if value <= target.limit:
            return Small(made, None)
    raise target.impossible(value, "distill")


def _with_channels(genotype: Genotype, channels: int) -> Genotype:
    space = genotype.space.with_channels(channels)
    cost = network_cost(space, genotype.image, len(genotype.classes))
    return replace(genotype, space=space, structure=None, **cost._asdict())


def _factorized(method: Literal["tucker", "cp", "svd"]) -> Method:
    def factorized(trained: Trained, target: Target, options: CompressOptions) -> Small:
        """Return the network of low-rank layers, whose outputs are reconstructed on images."""
        genotype = trained.genotype
        network = copy.deepcopy(trained.network).cpu()
        chosen = sample(trained.train, RECONSTRUCTED).to("cpu")
        (images, _) = next(iter(evaluation_batches(chosen, RECONSTRUCTED)))

        def made(limit: Limit) -> Small:
            plan = low_rank(network, method, limit, genotype.image, images)
            whole = apply(network, plan)
            assert isinstance(whole, PlainNetwork)
            return small_of(genotype, whole)

        def time(small: Small) -> float:
            assert small.network is not None
            return milliseconds(small.network, genotype.image)

        if target.kind == "params":
            return made(Limit(parameters=int(target.limit)))
        if target.kind == "macs":
            return made(Limit(macs=int(target.limit)))
        least = float(genotype.macs)
        while _possible(made, SMALLER * least):
            least *= SMALLER
        sizes = least, float(genotype.macs)
        return largest_within(lambda m: made(Limit(macs=int(m))), time, target, sizes, method)

    return factorized


def _possible(made: Callable[[Limit], Small], macs: float) -> bool:
    try:
        made(Limit(macs=int(macs)))
    except UserError:
        return False
    return True


METHODS: dict[str, Method] = {
    "prune": pruned,
    "tucker": _factorized("tucker"),
    "cp": _factorized("cp"),
    "svd": _factorized("svd"),
    "distill": narrower,
}
LAST = ("int8",)  # methods that follow the fine-tuning, and write a file beside its network


def methods_of(text: str) -> list[str]:
    """Return the methods that `--method` names.

    Arguments:
        text: names with commas.
    Raises: `UserError` if a name is unknown, or one stands where it cannot.

    >>> methods_of("prune,int8")
    ['prune', 'int8']
    """
    names = [name.strip() for name in text.split(",")]
    known = [*METHODS, *LAST]
    for place, name in enumerate(names):
        if name not in known:
            raise UserError(
                f"--method must have names of {', '.join(known)}, with commas, got {name!r}"
            )
        if name in LAST and place < len(names) - 1:
            raise UserError(f"--method must have {name} as its last method, got {text!r}")
        if name == "distill" and place:
            raise UserError(
                f"--method must have distill first, because it makes new weights, got {text!r}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"--method must have each method once, got {text!r}; give --rounds")
    return names
