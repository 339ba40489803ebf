"""Exponential moving average of the weights (Polyak and Juditsky 1992; Morales-Brotons 2024)."""

from __future__ import annotations

from typing import Any

import torch

from darts_lite.architecture.flat_network import Params


class WeightAverage:
    """Exponential moving average of the weights of a training.

        average <- d average + (1 - d) weights,   d = min(decay, (1 + n) / (10 + n)) at step n

    The decay grows from 0.1 to its value, so that the first weights are soon forgotten. BatchNorm
    statistics are not averaged: they are calibrated for the averaged weights.

    Arguments:
        params: starting weights.
        decay: decay in [0, 1); 0.999 averages about a thousand steps.

    >>> average = WeightAverage((torch.tensor([1.0]),), decay=0.5)
    >>> average.update((torch.tensor([2.0]),))
    >>> average.params
    (tensor([1.9000]),)
    """

    def __init__(self, params: Params, decay: float):
        self.params = tuple(p.clone() for p in params)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, params: Params) -> None:
        """Move the average toward the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for own, new in zip(self.params, params):
            own.lerp_(new, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"params": self.params, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.params = tuple(p.clone() for p in state["params"])
        self.steps = state["steps"]
