"""What a search and a final training share: weights, hyperparameters, and the step of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import Params
from darts_lite.hypergradient import Bilevel, InnerState
from darts_lite.training import checkpoint
from darts_lite.training.feed import Feed
from darts_lite.training.hyper_learner import HyperLearner, Window
from darts_lite.training.plain_step import PLAIN, PlainStep
from darts_lite.training.problem import Batch, NetworkProblem
from darts_lite.training.replay import Replay

CHARTS = {
    "learned": {
        "learning rate": [r"lr$", r"(learned|used)/lr$"],
        "magnitudes": [r"(learned|used)/magnitude\."],
        "probabilities": [r"(learned|used)/probability\."],
        "others": [r"(learned|used)/(?!lr$|magnitude\.|probability\.)"],
    },
    "training": {"loss": [r"loss/"], "accuracy": [r"(balanced_)?accuracy/"]},
    "hypergradients": {
        "magnitudes": [r"hypergradient/magnitude\."],
        "probabilities": [r"hypergradient/probability\."],
        "others": [r"hypergradient/(?!magnitude\.|probability\.)"],
    },
}
"""Charts of TensorBoard: patterns of the names of what `report` and `evaluate` of a task return."""


class JointTask:
    """Weights and hyperparameters of a training, and one step of both.

    A subclass gives `bind`, and what `training.loop` asks of a task beside its step and its state.

    Arguments:
        plain: problem of the network without mixing weights; gives optimizer and augmentation.
        hyper: hyperparameters, which are learned or follow schedules.
        feed: batches of training and validation images.
        device: device of the training.
        params: starting weights; None for the weights of the network.
        plain_step: the step of the weights where nothing is learned.
    """

    def __init__(
        self,
        plain: NetworkProblem,
        hyper: HyperLearner | Replay,
        feed: Feed,
        device: torch.device,
        params: Params | None = None,
        plain_step: PlainStep = PLAIN,
    ):
        self.plain_step = plain_step
        self.plain, self.hyper, self.feed, self.device = plain, hyper, feed, device
        self.network = plain.network
        params = self.network.params if params is None else params
        self.inner = InnerState(params, plain.optimizer.init(params))
        self.fraction = 0.0  # fraction of the budget at the latest step
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def bind(
        self, train: Sequence[Batch], validation: Batch | None, lr_factor: float = 1.0
    ) -> Bilevel:
        """Return the bilevel problem of a window, as `NetworkProblem.bind`."""
        return self.plain.bind(train, validation, lr_factor)

    @property
    def finished(self) -> bool:
        """Whether the training ends before its budget."""
        return False

    def lr_factor(self, fraction: float) -> float:
        """Return the factor of the learning rate at a fraction of the budget."""
        return self.plain.lr_factor(fraction)

    def doing(self, fraction: float) -> str:
        """Return what makes the next step slow; "" for a usual step."""
        return "finding the learning rate" if self.hyper.looks(fraction) else ""

    def step(self, fraction: float) -> int:
        """Train the weights and learn the hyperparameters that are due; return the weight steps.

        Arguments:
            fraction: fraction of the budget.
        """
        hyper, factor = self.hyper, self.lr_factor(fraction)
        hyper.begin_step(fraction, self.fraction)
        self.fraction = fraction
        hyper.find_rate(fraction, self.inner, self._window, self.bind)
        kinds = hyper.due(fraction)
        hyper.steps += 1
        if not kinds:
            batches = [self.batch() for _ in range(self.plain_step.accumulate)]
            problem = self.bind(batches, None, factor)
            self.inner, report = self.plain_step(problem, self.inner, hyper.raw)
            self._record("train", report)
            return 1
        ahead = hyper.learn(
            kinds, fraction, self.inner, self._window, lambda t, v: self.bind(t, v, factor)
        )
        self.inner = ahead.state
        self._record("train", ahead.inner[1])
        if ahead.outer is not None:
            self._record("validation", ahead.outer[1])
        return hyper.window

    def augmenting(self) -> dict[str, Tensor]:
        """Return the current values of the augmentation by name."""
        values = self.hyper.values()
        return {n: values[n] for n in self.plain.augment.names if n in values}

    def batch(self) -> Batch:
        """Return the next training batch, with the draws of its augmentation."""
        return self.feed.batch(self.augmenting(), self.fraction)

    def _window(self, steps: int, turn: bool) -> Window:
        return self.feed.window(steps, turn, self.augmenting(), self.fraction)

    def _record(self, split: str, report: Tensor) -> None:
        total, count = self._sums.get(split, (torch.zeros_like(report), 0))
        self._sums[split] = (total + report, count + 1)

    def means(self) -> dict[str, Tensor]:
        """Return mean loss and accuracy of each split since the last call, on the device."""
        found: dict[str, Tensor] = {}
        for split, (total, count) in self._sums.items():
            found[f"loss/{split}"], found[f"accuracy/{split}"] = (total / count).unbind()
        self._sums.clear()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            **checkpoint.inner_state(self.inner),
            "hyper": self.hyper.state_dict(),
            "feed": self.feed.state_dict(),
            "fraction": self.fraction,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = checkpoint.move(state, self.device)
        self.inner = checkpoint.restored(self.inner, state)
        self.hyper.load_state_dict(state["hyper"])
        self.feed.load_state_dict(state["feed"])
        self.fraction = state["fraction"]
