"""The unrolled hypergradient: exact reverse mode through K training steps, on `higher`.

`higher` (Grefenstette et al. 2019) supplies differentiable versions of torch's own optimisers; it
is unmaintained, so it is imported here and nowhere else. A tensor learning rate placed in the
optimiser itself would silently receive no gradient; it must be passed as an override.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import higher
import torch

from darts_lite.hypergradient.problem import (
    Bilevel,
    Hyper,
    InnerState,
    Lookahead,
    Params,
    UnsupportedHyperparameter,
    detach,
    detach_loss,
    require,
)
from darts_lite.hyperparameters import Kind
from darts_lite.optimizers import SGD, OptimizerState


@dataclass(frozen=True)
class Unrolled:
    """Differentiates the outer loss after `steps` inner steps, with every term.

    Memory grows by one training graph a step. Supports SGD with momentum and Nesterov: `higher`'s
    Adam places epsilon before the bias correction and so is not torch's, and it has no AdamW.
    """

    steps: int = 3
    supports: ClassVar[frozenset[Kind]] = frozenset({"architecture", "loss", "optimizer"})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        params: Params = tuple(p.detach().clone().requires_grad_() for p in state.params)
        optimizer = _differentiable(problem, params, state.optimizer)
        first = None
        for t in range(self.steps):
            settings = problem.settings(hyper)
            loss = problem.inner_loss(params, hyper, t)
            first = first or detach_loss(loss)
            override = {
                "lr": [settings.lr],
                "weight_decay": list(settings.weight_decay),
            }
            params = tuple(optimizer.step(loss[0], params=params, override=override))
        outer = problem.outer_loss(params, hyper)
        names = list(kinds)
        gradients = torch.autograd.grad(outer[0], [hyper[n] for n in names], allow_unused=True)
        velocity = tuple(optimizer.state[i][0]["momentum_buffer"] for i in range(len(params)))
        moved = OptimizerState(state.optimizer.step + self.steps, (velocity,))
        assert first is not None
        return Lookahead(
            detach(InnerState(params, moved)),
            require(dict(zip(names, gradients))),
            first,
            detach_loss(outer),
        )


def _differentiable(
    problem: Bilevel, params: Params, state: OptimizerState
) -> higher.optim.DifferentiableSGD:
    """`higher`'s twin of our optimiser, one parameter group a tensor, with its momentum."""
    ours = problem.optimizer
    if not isinstance(ours, SGD):
        raise UnsupportedHyperparameter(
            f"Unrolled supports SGD, not {type(ours).__name__}; use OneStep, or train with SGD"
        )
    torchs = torch.optim.SGD(
        [{"params": [p]} for p in params],
        lr=1.0,
        momentum=1.0,  # like lr: overridden, because torch's own would lose a tensor's gradient
        nesterov=ours.nesterov,
    )
    for p, velocity in zip(params, state.moments[0]):
        torchs.state[p]["momentum_buffer"] = velocity
    return higher.optim.DifferentiableSGD(torchs, params, override={"momentum": [ours.momentum]})
