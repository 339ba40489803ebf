"""Plateau: lower the learning rate when a metric stops improving. Imports no torch.

It depends on the metric, so it is no function of the budget's fraction and has only its warm-up in
`darts_lite.schedules`. Multiply the factor of that schedule by `Plateau.value`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from darts_lite.errors import UserError

SMALLEST_CHANGE = 1e-8  # a smaller change of the factor is not made, as `eps` of torch


class Plateau:
    """Factor that falls when a metric stops improving, as `ReduceLROnPlateau` of torch.

    A metric improves if it is better than the best one by the share `threshold`. The share assumes
    metrics of 0 or more, such as an accuracy or a loss.

    Arguments:
        factor: multiplies the value when the metric stopped improving; above 0, below 1.
        patience: updates in a row without improvement that are accepted, 0 or more.
        threshold: smallest improvement, as a share of the best metric, 0 or more.
        larger_is_better: True for an accuracy, False for a loss.
    Raises: `UserError` if an argument is out of range.

    >>> plateau = Plateau(patience=1)
    >>> for accuracy in (0.5, 0.6, 0.6, 0.6):
    ...     plateau.update(accuracy)
    >>> plateau.value
    0.1
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 2,
        threshold: float = 1e-4,
        larger_is_better: bool = True,
    ) -> None:
        for what, value, fits, known in (
            ("factor", factor, 0 < factor < 1, "above 0 and below 1"),
            ("patience", patience, patience >= 0, "0 updates or more"),
            ("threshold", threshold, 0 <= threshold < math.inf, "0 or more"),
        ):
            if not fits:
                raise UserError(f"plateau: {what} must be {known}, got {value}; change it")
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.larger_is_better = larger_is_better
        self._value = 1.0
        self._best = -math.inf if larger_is_better else math.inf
        self._waited = 0  # updates in a row without improvement

    @property
    def value(self) -> float:
        """The current factor of the learning rate; 1 at the start."""
        return self._value

    def update(self, metric: float) -> None:
        """Take the next metric into account. A metric that is NaN is no improvement."""
        if self._improves(metric):
            self._best, self._waited = metric, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._waited = 0
            lower = self._value * self.factor
            if self._value - lower > SMALLEST_CHANGE:
                self._value = lower

    def _improves(self, metric: float) -> bool:
        if self.larger_is_better:
            return metric > self._best * (1 + self.threshold)
        return metric < self._best * (1 - self.threshold)

    def state_dict(self) -> dict[str, float]:
        """Return the factor, the best metric and the updates without improvement."""
        return {"value": self._value, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        self._value, self._best = float(state["value"]), float(state["best"])
        self._waited = int(state["waited"])
