"""Structured pruning: channels that are needed least go, until the network is within a target."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from darts_lite.architecture.cost import Cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.plain import PlainNetwork
from darts_lite.compression import criteria
from darts_lite.compression.gates import Batch, learn_gates
from darts_lite.compression.layers import Small, Trained, small_of
from darts_lite.compression.options import CriterionName, ScopeName
from darts_lite.compression.target import Target, largest_within, milliseconds
from darts_lite.compression.widths import (
    Group,
    WidthCost,
    coupled_groups,
    inner_groups,
    narrowed,
)
from darts_lite.data import Batches, Images
from darts_lite.errors import UserError
from darts_lite.training.metrics import sample

LEAST = 0.125  # share of the channels that each group keeps if the target allows it
TAYLOR_IMAGES, TAYLOR_BATCH = 2000, 32
GATE_BATCH, GATE_RATE = 128, 0.01


@dataclass(frozen=True)
class Pruning:
    """Knobs of the pruning.

    Arguments:
        criterion: how needed a channel is.
        scope: inner widths, or all channels.
        multiple: widths stay multiples of this number where they can be.
        gate_steps: training steps of learned gates.
        gate_rate: learning rate of the weights in these steps.
    """

    criterion: CriterionName = "taylor"
    scope: ScopeName = "all"
    multiple: int = 1
    gate_steps: int = 400
    gate_rate: float = GATE_RATE


def prune(trained: Trained, target: Target, knobs: Pruning) -> Small:
    """Return the network with the channels that are needed most, within a target.

    Arguments:
        trained: the trained network, which is not changed, and images.
        target: the target.
        knobs: criterion, scope and others.
    Raises: `UserError` if the target is impossible; it names the smallest possible network.
    """
    genotype, network = trained.genotype, trained.network
    groups = groups_of(network, knobs.scope)
    cost = WidthCost(network, groups, genotype.image)
    _require_possible(trained, groups, cost, target, knobs)
    before = cost(cost.sizes)
    if target.kind != "ms" and target.of(before) <= target.limit:
        return small_of(genotype, copy.deepcopy(network))
    if knobs.criterion == "magnitude":
        scores = criteria.magnitude(network, groups)
    elif knobs.criterion == "norm":
        scores = criteria.norm(network, groups)
    elif knobs.criterion == "taylor":
        batches = _in_order(sample(trained.train, TAYLOR_IMAGES), trained.generator)
        scores = criteria.taylor(network, groups, batches)
    else:
        trained = replace(trained, network=copy.deepcopy(network))
        network = trained.network
        scores = _gates(trained, groups, cost, target, knobs)

    def cut(limit: float, kind: int) -> Small:
        per_cost = knobs.criterion == "taylor"
        widths = widths_within(groups, cost, scores, limit, kind, knobs.multiple, per_cost)
        assert widths is not None
        return small_of(genotype, narrowed(network, groups, _kept(groups, scores, widths)))

    if target.kind != "ms":
        return cut(target.limit, 0 if target.kind == "params" else 1)

    def time(small: Small) -> float:
        assert small.network is not None
        return milliseconds(small.network, genotype.image)

    sizes = float(cost(_least(groups))[1]), float(before[1])
    return largest_within(lambda macs: cut(macs, 1), time, target, sizes, "prune")


def groups_of(network: PlainNetwork, scope: ScopeName) -> list[Group]:
    """Return the groups of channels that may go.

    Arguments:
        network: the network.
        scope: inner widths, or all channels.
    Raises: `UserError` if there is no inner width.
    """
    if scope == "all":
        return coupled_groups(network)
    groups = inner_groups(network)
    if not groups:
        raise UserError(
            "--scope inner needs bottlenecks or inverted residuals, got a network without them; "
            "use --scope all"
        )
    return groups


def widths_within(
    groups: Sequence[Group],
    cost: WidthCost,
    scores: Tensor,
    limit: float,
    kind: int,
    multiple: int = 1,
    per_cost: bool = False,
) -> list[int] | None:
    """Return the width of each group within a limit; None if that is impossible.

    Greedy: the channel with the smallest score goes first, or the one with the smallest score per
    saved cost. Each group keeps an eighth of its channels if the limit allows it.

    Arguments:
        groups: the groups.
        cost: cost of their widths.
        scores: `[N]` over all groups.
        limit: limit of the cost.
        kind: 0 if parameters are limited, 1 for MACs.
        multiple: widths stay multiples of this number where they can be.
        per_cost: whether scores are compared per saved cost.
    """
    for share in (LEAST, 0.0):
        widths = _greedy(groups, cost, scores, limit, kind, multiple, per_cost, share)
        if widths is not None:
            return widths
    return None


def _greedy(
    groups: Sequence[Group],
    cost: WidthCost,
    scores: Tensor,
    limit: float,
    kind: int,
    multiple: int,
    per_cost: bool,
    share: float,
) -> list[int] | None:
    """Return the widths with at least a share of each group; None if the limit is not reached."""
    ordered = [part.sort().values.tolist() for part in scores.split([g.size for g in groups])]
    sums = [[0.0, *itertools.accumulate(part)] for part in ordered]
    widths = [group.size for group in groups]
    least = [max(1, round(share * group.size)) for group in groups]
    now = float(cost(widths)[kind])
    while now > limit:
        best: tuple[float, int, int, int] | None = None
        for i, (group, width) in enumerate(zip(groups, widths)):
            step = (width - 1) // multiple * multiple
            step = step if step >= 1 and width > multiple else width - 1
            if step < least[i]:
                continue
            gone = group.size - step
            price = sums[i][gone] - sums[i][group.size - width]
            saved = cost.saving(widths, i, step)[kind]
            value = price / saved if per_cost else price / (width - step)
            if best is None or value < best[0]:
                best = value, i, step, saved
        if best is None:
            return None
        _, chosen, step, saved = best
        widths[chosen] = step
        now -= saved
    return widths


def _kept(groups: Sequence[Group], scores: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Return for each group the mask `[n]` of the channels with the largest scores."""
    found = []
    for group, mine, width in zip(groups, scores.split([g.size for g in groups]), widths):
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[mine.argsort(descending=True, stable=True)[:width]] = True
        found.append(mask)
    return found


def _least(groups: Sequence[Group]) -> list[int]:
    return [1 for _ in groups]


def smallest_cost(genotype: Genotype, network: PlainNetwork, scope: ScopeName) -> Cost:
    """Return the cost of the smallest network that pruning can make.

    Arguments:
        genotype: genotype of the network.
        network: the network.
        scope: inner widths, or all channels.
    """
    groups = groups_of(network, scope)
    return Cost(*WidthCost(network, groups, genotype.image)(_least(groups)))


def _require_possible(
    trained: Trained, groups: Sequence[Group], cost: WidthCost, target: Target, knobs: Pruning
) -> None:
    """Raise `UserError` if even one channel per group is too many."""
    if target.kind == "ms":
        ones = [torch.arange(group.size) == 0 for group in groups]
        smallest: float = milliseconds(
            narrowed(trained.network, groups, ones), trained.genotype.image
        )
    else:
        smallest = target.of(cost(_least(groups)))
    if smallest > target.limit:
        raise target.impossible(smallest, f"prune --scope {knobs.scope}")


def _gates(
    trained: Trained, groups: Sequence[Group], cost: WidthCost, target: Target, knobs: Pruning
) -> Tensor:
    """Return learned gates as scores; the weights of the network are trained in place.

    For a target in milliseconds, the time is taken as proportional to MACs.
    """
    kind, limit = int(target.kind != "params"), target.limit
    if target.kind == "ms":
        now = milliseconds(trained.network, trained.genotype.image)
        share = min(1.0, target.limit / now)
        limit = max(share * cost(cost.sizes)[1], cost(_least(groups))[1])
    train, validation = (
        Batches(images, min(GATE_BATCH, images.count), trained.generator)
        for images in (trained.train, trained.validation)
    )
    return learn_gates(
        trained.network,
        groups,
        cost,
        limit,
        kind,
        train,
        validation,
        knobs.gate_steps,
        knobs.gate_rate,
    )


def _in_order(images: Images, generator: torch.Generator) -> Iterator[Batch]:
    """Yield all images once, in random order; batches of sorted images have one class."""
    size = min(TAYLOR_BATCH, images.count)
    return itertools.islice(Batches(images, size, generator), images.count // size)
