"""Finds the scale of a learning rate while a training begins, from any start.

Greedy estimators pull a learning rate down for as long as they are let (short-horizon bias, Wu et
al. 2018). Two things are measured to help (docs/results.md): looking at the loss *after* the rate
has been annealed, so that what is compared is progress and not noise; and deciding early, since a
network that began with a low rate sits where only low rates work. So: a few annealed look-aheads
before the first step and a few in the first percents, each moving the rate by a factor in the
direction of its hypergradient's sign (the magnitude is dominated by the instability of rates that
are too high), by less each time; then the rate stays, times its schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.hyperparameters import HyperParameters, Kind
from darts_lite.hypergradient.problem import Estimator


@dataclass
class LearningRateFinder:
    """See the module. The caller looks whenever `due`, with the schedule's factor set to one.

    A look costs about two plain steps for each of the window's: 20 in all by default.

    Arguments: `looks`, in all; `before`, before the first step; `until`, the fraction of the
    training at which the last is due; `share`, the fraction after which none is, because looks
    count as training time; `stride`, the largest change of log lr in one look.
    """

    looks: int = 16
    before: int = 6
    until: float = 0.06
    share: float = 0.1
    stride: float = 0.8
    estimator: Estimator = field(
        default_factory=lambda: Unrolled(10, anneal=True, product="one_sided", radius=1e-3)
    )
    done: int = 0

    kinds: Mapping[str, Kind] = field(default_factory=lambda: {"lr": "optimizer"})

    def due(self, fraction: float) -> bool:
        """Whether it is time for a look."""
        if self.done >= self.looks or fraction > self.share:
            return False
        if self.done < self.before:
            return True
        after = self.looks - self.before
        return fraction >= self.until * (self.done - self.before + 1) / after

    def update(self, variables: HyperParameters, hypergradient: Mapping[str, Tensor]) -> None:
        """Moves "lr"; a hypergradient that is not finite is the mark of a rate too high."""
        gradient = hypergradient["lr"]
        sign = torch.where(gradient.isfinite(), gradient.sign(), torch.ones_like(gradient))
        stride = self.stride * (1 - self.done / self.looks)
        variables.multiply("lr", torch.exp(-stride * sign))
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["done"])
