"""Learning-rate finder: scales the learning rate while a training begins, from any start.

Greedy estimators pull a learning rate down for as long as they act (short-horizon bias, Wu et al.
2018). Two remedies were measured to help (docs/hypergradients.md):

- Compare losses after the learning rate has been annealed to zero. Then the comparison is of
  progress and not of noise.
- Decide early. A network that began with a low learning rate sits where only low ones work.

So the finder looks ahead a few times before the first step and a few times in the first percents
of the training. Each look multiplies the learning rate by a factor, in the direction of the sign
of the hypergradient; its size is dominated by the instability of learning rates that are too high.
The factor shrinks from look to look. Afterwards the learning rate follows its schedule only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_lite.hypergradient.estimators.interface import Estimator
from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.hyperparameters import HyperParameters, Kind


@dataclass
class LearningRateFinder:
    """Find the scale of the hyperparameter "lr" by annealed look-aheads.

    The caller takes a look whenever `due` is true, with the factor of the schedule set to 1 (see
    `Learner.look`). One look costs about twice the plain steps of its window, by default 20.

    Arguments:
        looks: number of looks in total.
        before: number of looks before the first step.
        until: fraction of the training at which the last look is due.
        share: fraction of the training after which no look is due. Looks count as training time,
            so a short training may reach it early.
        stride: change of log lr by the first look; it falls linearly to zero.
        estimator: look-ahead; its default unrolls 10 steps with an annealed lr.
        done: number of looks already taken.
        kinds: hyperparameters that a look differentiates.

    >>> from darts_lite.hypergradient import HyperSpec, LogInterval
    >>> lr = HyperSpec("lr", torch.tensor(0.1), LogInterval(1e-4, 10.0), "optimizer")
    >>> variables, finder = HyperParameters((lr,)), LearningRateFinder()
    >>> finder.due(0.0)
    True
    >>> finder.update(variables, {"lr": torch.tensor(-3.0)})  # a higher lr lowers the loss
    >>> f"{float(variables.values()['lr']):.3f}"
    '0.223'
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
        """Return whether it is time for a look.

        Arguments:
            fraction: fraction of the training that has passed, in [0, 1].
        """
        if self.done >= self.looks or fraction > self.share:
            return False
        if self.done < self.before:
            return True
        after = self.looks - self.before
        return fraction >= self.until * (self.done - self.before + 1) / after

    def update(self, variables: HyperParameters, hypergradient: Mapping[str, Tensor]) -> None:
        """Scale "lr" after a look.

        A non-finite hypergradient means that the learning rate is too high, so it lowers "lr".

        Arguments:
            variables: hyperparameters with "lr" among them.
            hypergradient: derivative of the annealed validation loss in the raw "lr".
        """
        gradient = hypergradient["lr"]
        sign = torch.where(gradient.isfinite(), gradient.sign(), torch.ones_like(gradient))
        stride = self.stride * (1 - self.done / self.looks)
        variables.multiply("lr", torch.exp(-stride * sign))
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of looks already taken."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.done = int(state["done"])
