"""Online estimator: hypergradient descent (Baydin et al. 2018), a baseline.

    dL/dhyper = grad_w L_train(w_t, batch t) . d update_{t-1}/dhyper

The training gradient of the next batch replaces the validation gradient. That costs nothing, but it
does not measure generalization. So it supports optimizer settings only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from darts_lite.hypergradient.estimators.forward import update_tangent
from darts_lite.hypergradient.estimators.interface import Lookahead, check_supported, require
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, dot


@dataclass(frozen=True)
class Online:
    """Differentiate the next training loss in the settings of the last update.

    The derivative of the last update is in `InnerState.carried`. The first step has no update
    before it, so its hypergradient is empty.

    >>> sorted(Online().supports)
    ['optimizer']
    """

    steps: ClassVar[int] = 1
    supports: ClassVar[frozenset[Kind]] = frozenset({"optimizer"})
    carries: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "it follows the training loss, which is right for optimizer settings only; use OneStep, "
        "Unrolled or Forward"
    )

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        new, gradient, inner = problem.advance(state, hyper, 0)
        found = {
            n: torch.stack([dot(gradient.weights, row) for row in zip(*state.carried[n])]).view_as(
                hyper[n]
            )
            for n in names
            if n in state.carried
        }
        if not found:  # check that the rule depends on each one, which zeros would not tell
            along = gradient.weights
            require(problem.update_product(state, gradient, hyper, names, along, True)[2])
        still = tuple(torch.zeros_like(s) for s in (*state.params, *_moments(state)))
        turned = tuple(torch.zeros_like(g) for g in gradient.weights)
        carried = {}
        for name in names:
            units = torch.eye(hyper[name].numel(), dtype=hyper[name].dtype).to(hyper[name].device)
            rows = [
                update_tangent(
                    problem, state, gradient, hyper, still, turned, {name: u.view_as(hyper[name])}
                )[: len(gradient.weights)]
                for u in units
            ]
            carried[name] = tuple(torch.stack(parts) for parts in zip(*rows))
        return Lookahead(new._replace(carried=carried), found, inner, None)


def _moments(state: InnerState) -> list[torch.Tensor]:
    return [t for moment in state.optimizer.moments for t in moment]
