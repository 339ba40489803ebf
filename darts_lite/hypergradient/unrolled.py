"""The unrolled hypergradient: exact reverse mode through K training steps.

The adjoints a_t = dL_outer/ds_t of the states s_t = (w_t, moments) run backwards,

    a_K = (v, 0),   u_t = (d update/dg)^T a_{t+1},   a_t = (d update/ds)^T a_{t+1} + (H_t u_t, 0)
    dL_outer/dhyper = direct + sum_t (d update/dhyper)^T a_{t+1} + d/dhyper (grad_w L_t . u_t)

(Maclaurin et al. 2015; Franceschi et al. 2017, reverse-HG). Only states and gradients, vectors of
the parameters' size, are kept of the way forward; each step's graph is made again when its turn
comes, so that memory is that of one graph whatever K is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from darts_lite.hypergradient.problem import (
    EVERY_KIND,
    Bilevel,
    Hyper,
    InnerState,
    Lookahead,
    Partial,
    add,
    check_supported,
    flat,
    require,
)
from darts_lite.hypergradient.products import Derivative, Method
from darts_lite.hyperparameters import Kind


@dataclass(frozen=True)
class Unrolled:
    """Differentiates the outer loss after `steps` inner steps, with every term.

    Arguments: `product`, how H_t u_t and the mixed term are computed (see `products.Method`):
    exact by default; the differences take two thirds and half of the time. `radius`, of the
    differences.
    """

    steps: int = 5
    product: Method = "double_backward"
    radius: float = 0.01

    supports: ClassVar[frozenset[Kind]] = EVERY_KIND
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = "it is of no known kind"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        trace, first = [], None
        for t in range(self.steps):
            new, gradient, loss = problem.advance(state, hyper, t)
            trace.append((state, gradient))
            state, first = new, first or loss
        assert first is not None
        v, total, outer = problem.outer_gradient(state.params, hyper, names)

        mixed_in = tuple(n for n in names if kinds[n] != "optimizer")
        adjoint = (*v, *(torch.zeros_like(m) for m in flat(state)[len(v) :]))
        for t in reversed(range(self.steps)):
            old, gradient = trace.pop()
            adjoint, u, optimal = problem.update_product(old, gradient, hyper, names, adjoint)
            derivative = Derivative(
                lambda params, values, t=t: problem.inner_loss(params, values, t),  # type: ignore[misc]
                old.params,
                hyper,
                of=mixed_in,
                weights=t > 0,  # nobody asks for the adjoint of the window's beginning
                gradient=gradient,
            )
            curved, mixed = derivative.along(u, method=self.product, radius=self.radius)
            if t > 0:
                moved = (a + h for a, h in zip(adjoint, curved))
                adjoint = (*moved, *adjoint[len(curved) :])
            total = _sum(total, optimal, mixed)
        return Lookahead(state, require(total), first, outer)


def _sum(*parts: Partial) -> Partial:
    return {name: add(*(part.get(name) for part in parts)) for name in parts[0]}
