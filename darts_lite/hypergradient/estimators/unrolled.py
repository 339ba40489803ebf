"""The unrolled hypergradient: exact reverse mode through K training steps.

The adjoints a_t = dL_outer/ds_t of the states s_t = (w_t, moments) run backwards,

    a_K = (v, 0),   u_t = (d update/dg)^T a_{t+1},   a_t = (d update/ds)^T a_{t+1} + (H_t u_t, 0)
    dL_outer/dhyper = direct + sum_t (d update/dhyper)^T a_{t+1} + d/dhyper (grad_w L_t . u_t)

(Maclaurin et al. 2015; Franceschi et al. 2017, reverse-HG). Only states and gradients, vectors of
the parameters' size, are kept of the way forward; each step's graph is made again when its turn
comes, so that memory is that of one graph whatever K is.

With `anneal` the learning rate falls linearly to zero over the window, and the window is only
looked at: the state that comes back is the one that was given. Whether a higher rate would pay is
then measured after its noise has been annealed away, as it will be at the end of the training; that
removes most of the bias that makes short windows ask for ever lower rates (Wu et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import Setting
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


@dataclass(frozen=True)
class Unrolled:
    """Differentiates the outer loss after `steps` inner steps, with every term.

    Arguments: `anneal`, see the module; `product`, how H_t u_t and the mixed term are computed
    (see `products.Method`), exact by default: the differences take two thirds and half of the
    time; `radius`, of the differences.
    """

    steps: int = 5
    _: KW_ONLY
    anneal: bool = False
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
        mixed_in = tuple(n for n in names if kinds[n] != "optimizer")
        shared = mixed_in if self.product == "one_sided" else ()
        begin, trace, first = state, [], None
        for t in range(self.steps):
            new, gradient, loss = self._at(problem, t).advance(state, hyper, t, shared)
            trace.append((state, gradient))
            state, first = new, first or loss
        assert first is not None
        v, total, outer = problem.outer_gradient(state.params, hyper, names)

        adjoint = (*v, *(torch.zeros_like(m) for m in flat(state)[len(v) :]))
        for t in reversed(range(self.steps)):
            old, gradient = trace.pop()
            step = self._at(problem, t)
            adjoint, u, optimal = step.update_product(old, gradient.weights, hyper, names, adjoint)
            derivative = Derivative(
                lambda params, values, t=t: problem.inner_loss(params, values, t),  # type: ignore[misc]
                old.params,
                hyper,
                of=mixed_in,
                weights=t > 0,  # nobody asks for the adjoint of the window's beginning
                known=gradient,
            )
            curved, mixed = derivative.along(u, method=self.product, radius=self.radius)
            if t > 0:
                moved = (a + h for a, h in zip(adjoint, curved))
                adjoint = (*moved, *adjoint[len(curved) :])
            total = _sum(total, optimal, mixed)
        return Lookahead(begin if self.anneal else state, require(total), first, outer)

    def _at(self, problem: Bilevel, t: int) -> Bilevel:
        """The problem with the rate of the window's t-th step."""
        if not self.anneal:
            return problem
        factor = 1 - t / self.steps

        def settings(hyper: Hyper) -> dict[str, Setting]:
            own = dict(problem.settings(hyper))
            lr = own["lr"]
            scalar = isinstance(lr, (float, int, Tensor))
            own["lr"] = lr * factor if scalar else tuple(each * factor for each in lr)  # type: ignore
            return own

        return replace(problem, settings=settings)


def _sum(*parts: Partial) -> Partial:
    return {name: add(*(part.get(name) for part in parts)) for name in parts[0]}
