"""Gates of channels: switches on the outputs of BatchNorms, and gates that hypergradients learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.plain import PlainNetwork
from darts_lite.compression.widths import Group, WidthCost
from darts_lite.hypergradient import HyperSpec, Identity, Learner, OneStep

OPEN = 2.0  # raw value at the start; a gate is open above 0
TRAVEL = 12.0  # distance that a raw value can move
RISE = 0.05  # growth per step of the weight of the cost, in log units of the excess
Batch = tuple[Tensor, Tensor]


class Gated(nn.Module):
    """A network whose channels have gates: `forward(x, gates)`.

    Arguments:
        network: the network; it gets hooks, which `free` removes.
        groups: its groups; gate number j is the j-th channel over all groups.
    """

    def __init__(self, network: PlainNetwork, groups: Sequence[Group]):
        super().__init__()
        self.network = network
        self.count = sum(group.size for group in groups)
        self._gates: Tensor | None = None
        self._hooks = []
        for name, owner in owners(network, groups).items():
            hook = self._hook(owner)
            self._hooks.append(network.get_submodule(name).register_forward_hook(hook))

    def _hook(self, owner: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def gate(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            assert self._gates is not None
            return out * self._gates[owner][:, None, None]

        return gate

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return the logits `[B, classes]`.

        Arguments:
            x: images `[B, C, H, W]` in [0, 1].
            gates: `[count]`; 1 is open, 0 is shut.
        """
        self._gates = torch.cat([gates, gates.new_ones(1)])
        try:
            return self.network(x)
        finally:
            self._gates = None

    def free(self) -> PlainNetwork:
        """Remove the hooks and return the network."""
        for hook in self._hooks:
            hook.remove()
        return self.network


def owners(network: PlainNetwork, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return for every gated BatchNorm the gate of each of its channels, `[C]`.

    A channel without a gate has the number after the last gate.
    """
    found: dict[str, Tensor] = {}
    count = sum(group.size for group in groups)
    first = 0
    for group in groups:
        for cut in group.cuts:
            if cut.name in group.norms:
                module = network.get_submodule(cut.name)
                assert isinstance(module, nn.BatchNorm2d)
                owner = found.setdefault(cut.name, torch.full((module.num_features,), count))
                owner[cut.index] = first + torch.arange(group.size)[:, None].expand_as(cut.index)
        first += group.size
    return found


def learn_gates(
    network: PlainNetwork,
    groups: Sequence[Group],
    cost: WidthCost,
    limit: float,
    kind: int,
    train: Iterator[Batch],
    validation: Iterator[Batch],
    steps: int,
    rate: float,
) -> Tensor:
    """Learn a gate per channel by hypergradient while the weights train; return their raw values.

    The gates are outer variables a; a gate is open, 1, if a > 0, and shut, 0, otherwise. The
    weights follow the training loss of the gated network; the gates follow the one-step
    hypergradient of

        validation loss + price max(0, log(cost / limit)),

    where the cost counts open gates as widths, so that it is exact. The price grows as long as the
    cost is above the limit. The derivative of a gate in a is that of sigmoid(a) (straight-through;
    Bengio et al. 2013), so that shut gates can open again. Gates between 0 and 1 were worse: they
    stay there, and the cut changes the network.

    Arguments:
        network: network to train, in place; it is in evaluation mode afterwards.
        groups: its groups.
        cost: cost of its widths.
        limit: limit of the cost.
        kind: 0 if parameters are limited, 1 for MACs.
        train: training batches: images `[B, C, H, W]` in [0, 1], labels `[B]`.
        validation: validation batches.
        steps: number of training steps.
        rate: learning rate of the weights.

    Returns:
        Raw values `[N]` over all groups; the sign says whether a gate is open.
    """
    gated = Gated(network.train(), groups)
    sizes = [group.size for group in groups]
    price = 1.0

    def excess(gates: Tensor) -> Tensor:
        widths = [part.sum() for part in gates.split(sizes)]
        return F.relu((cost(widths)[kind].clamp(min=1.0) / limit).log())

    def inner(model: nn.Module, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0], binary(learned["gates"])), batch[1])

    def outer(model: nn.Module, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
        gates = binary(learned["gates"])
        return F.cross_entropy(model(batch[0], gates), batch[1]) + price * excess(gates)

    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True)
    start = torch.full((gated.count,), OPEN, device=parameters[0].device)
    spec = HyperSpec("gates", start, Identity(), "architecture", TRAVEL)
    estimator = OneStep("one_sided", radius=1e-3)
    learner = Learner(gated, optimizer, inner, [spec], steps, estimator, outer)
    for _ in range(steps):
        learner.step(next(train), next(validation))
        price += RISE * float(excess(binary(learner.values()["gates"])))
    gated.free().eval()
    return learner.values()["gates"].cpu()


def binary(raw: Tensor) -> Tensor:
    """Return 1 where a value is above 0, else 0, with the derivative of its sigmoid.

    >>> binary(torch.tensor([-2.0, 0.1]))
    tensor([0., 1.])
    """
    soft = raw.sigmoid()
    return (raw > 0).to(soft) + (soft - soft.detach())
