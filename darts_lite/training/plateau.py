"""Divide the learning rate when a metric no longer improves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Plateau:
    """Factor of the learning rate, as `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Arguments:
        factor: what the learning rate is multiplied by on a plateau.
        patience: evaluations without a better metric that are accepted.
        threshold: relative improvement that counts as better.
        larger_is_better: direction of the metric.
        value: the current factor.
        best: the best metric so far; NaN before the first.
        waited: evaluations since the best metric or the last fall.

    >>> plateau = Plateau(patience=0)
    >>> for accuracy in (0.5, 0.6, 0.6):
    ...     plateau.update(accuracy)
    >>> plateau.value
    0.1
    """

    factor: float = 0.1
    patience: int = 2
    threshold: float = 1e-4
    larger_is_better: bool = True
    value: float = 1.0
    best: float = field(default=math.nan)
    waited: int = 0

    def update(self, metric: float) -> None:
        """Take the next value of the metric; NaN is no improvement."""
        if self.larger_is_better:
            better = metric > self.best * (1 + self.threshold)
        else:
            better = metric < self.best * (1 - self.threshold)
        if better or math.isnan(self.best):
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.value, self.waited = self.value * self.factor, 0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.best, self.waited = state["value"], state["best"], int(state["waited"])
