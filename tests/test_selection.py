"""The best weights, patience and the plateau."""

from __future__ import annotations

import math

import torch

from darts_lite.training.plateau import Plateau
from darts_lite.training.selection import Selection


def weights(value: float) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([value]),)


def test_the_best_weights_are_kept_in_order_whatever_happens_to_the_tensors() -> None:
    for larger in (True, False):
        selection = Selection(larger, keep=2)
        for value in (0.3, 0.9, math.nan, 0.1, 0.9, 0.5):
            tensors = weights(value)
            selection.add(value, tensors)
            tensors[0].zero_()
        expected = [0.9, 0.9] if larger else [0.1, 0.3]
        assert [v for v, _ in selection.best] == expected
        assert [float(p[0]) for _, p in selection.best] == [
            float(torch.tensor(v)) for v in expected
        ]


def test_patience_counts_evaluations_without_a_better_value() -> None:
    selection = Selection(False, patience=2)
    stopped = []
    for value in (1.0, 0.5, 0.5, 0.4, 0.6, math.nan):
        selection.add(value, weights(value))
        stopped.append(selection.stopped)
    assert stopped == [False, False, False, False, False, True]
    assert not Selection(True).stopped


def test_a_state_is_restored() -> None:
    one = Selection(True, keep=3, patience=4, plateau=Plateau(patience=0))
    for value in (0.5, 0.4, 0.4, 0.3):
        one.add(value, weights(value))
    two = Selection(True, keep=3, patience=4, plateau=Plateau(patience=0))
    two.load_state_dict(one.state_dict())
    assert one.factor < 1
    for each in (one, two):
        each.add(0.2, weights(0.2))
    assert two.factor == one.factor and two.stopped is one.stopped is True
    assert two.best == one.best
