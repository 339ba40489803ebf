"""What Neumann series and conjugate gradients share: the implicit function theorem.

At a minimum w*(hyper) of the training loss, with H its Hessian there,

    dL_outer/dhyper = direct - d/dhyper (grad_w L_train . x),    H x = v = grad_w L_outer

(Lorraine, Vicol & Duvenaud 2020). The horizon is infinite and the path does not matter; so neither
does the optimiser, whose settings have no gradient here. A coupled weight decay is part of the
training loss: declare a variable that sets it as "loss".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import Adam, per_tensor
from darts_lite.hypergradient.problem import (
    Bilevel,
    Hyper,
    InnerState,
    Lookahead,
    Loss,
    Params,
    UnsupportedHyperparameter,
    add,
    check_supported,
    require,
)

Solve = Callable[[Callable[[Params], Params], Params], tuple[Params, dict[str, Tensor]]]
SUPPORTS: frozenset[Kind] = frozenset({"architecture", "loss"})
REMEDY = "the inner optimum does not depend on it; use OneStep, Unrolled or Forward"


class Implicit:
    """Steps `steps` times, then differentiates as if the weights were at their minimum.

    A subclass says how H x = v is solved. The Hessian is that of the window's last batch.
    """

    supports: ClassVar[frozenset[Kind]] = SUPPORTS
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = REMEDY

    steps: int
    damping: float
    product: Method
    radius: float

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        """x with (H + damping) x = v, and figures that say how well."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises: ValueError if a knob is out of its range."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.damping < 0:
            raise ValueError(f"damping must not be negative, but is {self.damping}")

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)  # type: ignore[arg-type]
        names, first = tuple(kinds), None
        for t in range(self.steps):
            state, _, loss = problem.advance(state, hyper, t)
            first = first or loss
        assert first is not None
        v, direct, outer = problem.outer_gradient(state.params, hyper, names)
        decayed = _with_decay(problem, self.steps - 1)

        def curved(x: Params) -> Params:
            derivative = Derivative(decayed, state.params, hyper)
            hx, _ = derivative.along(x, method=self.product, radius=self.radius)
            return tuple(h + self.damping * part for h, part in zip(hx, x))

        x, diagnostics = self.solve(curved, v)
        derivative = Derivative(decayed, state.params, hyper, of=names, weights=False)
        _, mixed = derivative.along(x, method=self.product, radius=self.radius)
        total = {n: add(direct[n], _negative(mixed[n])) for n in names}
        return Lookahead(state, require(total), first, outer, diagnostics)


def _with_decay(problem: Bilevel, t: int) -> Callable[[Params, Hyper], Loss]:
    """The training loss plus decay/2 |w|^2, which the optimiser adds to its gradient."""

    def loss(params: Params, hyper: Hyper) -> Loss:
        value, report = problem.inner_loss(params, hyper, t)
        decay = problem.settings(hyper).get("weight_decay", 0.0)
        for p, each in zip(params, per_tensor(decay, len(params))):
            if isinstance(each, Tensor) or each != 0:
                if isinstance(problem.optimizer, Adam) and problem.optimizer.decoupled:
                    raise UnsupportedHyperparameter(
                        "AdamW's decay is not part of the training loss, so the weights do not "
                        "settle at its minimum: put the decay into the inner loss"
                    )
                value = value + 0.5 * each * p.square().sum()
        return value, report

    return loss


def _negative(value: Tensor | None) -> Tensor | None:
    return None if value is None else -value


def norm(x: Params) -> Tensor:
    return torch.stack([part.square().sum() for part in x]).sum().sqrt()


def failed(v: Params) -> Params:
    """Not a number: an estimate that would be wrong is not given."""
    return tuple(torch.full_like(part, float("nan")) for part in v)
