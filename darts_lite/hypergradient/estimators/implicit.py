"""Implicit differentiation: the common part of Neumann, ConjugateGradient and Nystrom.

At a minimum w*(hyper) of the training loss with Hessian H, by the implicit function theorem,

    dL_outer/dhyper = direct - d/dhyper (grad_w L_train . x),    H x = v = grad_w L_outer

(Lorraine, Vicol & Duvenaud 2020, theorem 1). The horizon is infinite and the path to the
minimum does not matter. So the optimizer does not matter either, and its settings have no gradient
here. A coupled weight decay is part of the training loss: a hyperparameter that sets it must have
the kind "loss".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.estimators.interface import (
    Lookahead,
    UnsupportedHyperparameter,
    check_supported,
    require,
)
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import per_tensor
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss, Params, add

SUPPORTS: frozenset[Kind] = frozenset({"architecture", "loss"})
REMEDY = "the inner optimum does not depend on it; use OneStep, Unrolled or Forward"


class Implicit(ABC):
    """Take `steps` training steps, then differentiate as if the weights were at their minimum.

    A subclass defines `solve`. The Hessian is the one of the window's last batch.
    """

    supports: ClassVar[frozenset[Kind]] = SUPPORTS
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = REMEDY

    steps: int
    damping: float
    product: Method
    radius: float

    @abstractmethod
    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        """Return x with (H + damping) x = v, and diagnostics.

        Arguments:
            curved: product of (H + damping) with a vector.
            v: right-hand side, one tensor per parameter.
        """

    def check(self) -> None:
        """Check the common settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}; use 1 for one step")
        if self.damping < 0:
            raise ValueError(
                f"damping must be at least 0, got {self.damping}; use 0 for no damping"
            )

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)  # type: ignore[arg-type]
        names, first = tuple(kinds), None
        for t in range(self.steps):
            state, gradient, loss = problem.advance(state, hyper, t)
            first = first or loss
        assert first is not None
        v, direct, outer = problem.outer_gradient(state.params, hyper, names)
        # Training does not move an unused parameter, so no hyperparameter moves it.
        v = tuple(torch.zeros_like(p) if i in gradient.unused else p for i, p in enumerate(v))
        decayed = _with_decay(problem, self.steps - 1)

        def curved(x: Params) -> Params:
            derivative = Derivative(decayed, state.params, hyper)
            hx = derivative.along(x, method=self.product, radius=self.radius).weights
            return tuple(h + self.damping * part for h, part in zip(hx, x))

        x, diagnostics = self.solve(curved, v)
        derivative = Derivative(decayed, state.params, hyper, of=names, weights=False)
        mixed = derivative.along(x, method=self.product, radius=self.radius).hyper
        total = {n: add(direct[n], _negative(mixed[n])) for n in names}
        return Lookahead(state, require(total), first, outer, diagnostics)


def _with_decay(problem: Bilevel, t: int) -> Callable[[Params, Hyper], Loss]:
    """Training loss plus decay/2 |w|^2, whose gradient the optimizer adds by itself."""

    def loss(params: Params, hyper: Hyper) -> Loss:
        value, report = problem.inner_loss(params, hyper, t)
        decay = problem.settings(hyper).get("weight_decay", 0.0)
        for p, each in zip(params, per_tensor(decay, len(params))):
            if isinstance(each, Tensor) or each != 0:
                if problem.optimizer.decoupled:
                    raise UnsupportedHyperparameter(
                        "implicit estimators cannot differentiate a training with AdamW's weight "
                        "decay: it is not part of the training loss, so the weights do not settle "
                        "at the minimum of that loss; put the decay into the inner loss"
                    )
                value = value + 0.5 * each * p.square().sum()
        return value, report

    return loss


def _negative(value: Tensor | None) -> Tensor | None:
    return None if value is None else -value


def norm(x: Params) -> Tensor:
    """Return the Euclidean norm over all tensors, a scalar."""
    return torch.stack([part.square().sum() for part in x]).sum().sqrt()


def failed(v: Params) -> Params:
    """Return NaN in the shape of v, in place of an estimate that would be wrong."""
    return tuple(torch.full_like(part, float("nan")) for part in v)
