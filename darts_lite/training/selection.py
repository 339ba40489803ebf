"""What a training keeps by a validation metric: best weights, patience, plateau of the rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from darts_lite.architecture.flat_network import Params
from darts_lite.training.metrics import METRICS
from darts_lite.training.options import StepOptions
from darts_lite.training.plateau import Plateau


def selection_of(options: StepOptions, best: bool, plateau: bool) -> Selection | None:
    """Return what the options ask to watch; None if nothing depends on the validation metric.

    Arguments:
        options: options of the training.
        best: whether the best weights are the result.
        plateau: whether the schedule is a plateau.
    """
    if not (best or options.keep or options.patience or plateau):
        return None
    larger = METRICS[options.select_by].larger_is_better
    return Selection(
        larger,
        max(options.keep, 1),
        options.patience,
        Plateau(larger_is_better=larger) if plateau else None,
    )


@dataclass
class Selection:
    """The best weights so far, and how long ago they were found.

    Arguments:
        larger_is_better: direction of the metric.
        keep: number of the best weights to keep, 1 or more.
        patience: evaluations without a better value until the training stops; None for never.
        plateau: factor of the learning rate that falls on a plateau of the metric; None for none.
        best: the kept (metric, weights), the best first.
        waited: evaluations since the best value.

    >>> import torch
    >>> selection = Selection(larger_is_better=True, patience=2)
    >>> for accuracy in (0.5, 0.7, 0.6, 0.7):
    ...     selection.add(accuracy, (torch.tensor([accuracy]),))
    >>> selection.best, selection.stopped
    ([(0.7, (tensor([0.7000]),))], True)
    """

    larger_is_better: bool
    keep: int = 1
    patience: int | None = None
    plateau: Plateau | None = None
    best: list[tuple[float, Params]] = field(default_factory=list)
    waited: int = 0

    def add(self, value: float, params: Params) -> None:
        """Take a value of the metric and the weights that have it.

        Arguments:
            value: value of the metric; NaN is worse than every other value.
            params: the weights; they are copied if they are kept.
        """
        first = not self.best or self._score(value) > self._score(self.best[0][0])
        self.waited = 0 if first else self.waited + 1
        if self.plateau is not None:
            self.plateau.update(value)
        ranked = sorted([*self.best, (value, params)], key=lambda b: -self._score(b[0]))
        self.best = [
            (v, tuple(p.clone() for p in w) if w is params else w) for v, w in ranked[: self.keep]
        ]

    def _score(self, value: float) -> float:
        if value != value:
            return float("-inf")
        return value if self.larger_is_better else -value

    @property
    def stopped(self) -> bool:
        """Whether the patience is exhausted."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def factor(self) -> float:
        """Factor of the learning rate."""
        return 1.0 if self.plateau is None else self.plateau.value

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "waited": self.waited,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = [tuple(b) for b in state["best"]], state["waited"]
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
