"""Unrolled estimator: exact reverse mode through K training steps.

The adjoints a_t = dL_outer/ds_t of the states s_t = (w_t, moments) run backwards,

    a_K = (v, 0),   u_t = (d update/dg)^T a_{t+1},   a_t = (d update/ds)^T a_{t+1} + (H_t u_t, 0)
    dL_outer/dhyper = direct + sum_t (d update/dhyper)^T a_{t+1} + d/dhyper (grad_w L_t . u_t)

(Maclaurin et al. 2015; Franceschi et al. 2017, algorithm 1, reverse-HG). The forward pass keeps
states and gradients, which are vectors of the size of the parameters, and the graphs of the last
`graphs` steps. The graph of every other step is computed again on the way back, when the kept ones
are used up. So the memory is that of 1 or `graphs` graphs whatever K is, and each kept graph saves
one gradient.

With `anneal` the learning rate falls linearly to zero over the window, and the estimator only looks
ahead: it returns the state that it was given. A higher learning rate is then judged after its noise
has been annealed away, as at the end of the training. That removes most of the bias by which short
windows ask for ever lower learning rates (Wu et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import (
    Derivative,
    Graph,
    Method,
    recorded_gradient_at,
)
from darts_lite.hypergradient.estimators.interface import (
    EVERY_KIND,
    UNKNOWN_KIND,
    Lookahead,
    check_supported,
    require,
)
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import Setting
from darts_lite.hypergradient.problem import (
    Bilevel,
    Gradient,
    Hyper,
    InnerState,
    Loss,
    Params,
    Partial,
    add,
    flat,
)


@dataclass(frozen=True)
class Unrolled:
    """Differentiate the validation loss after `steps` training steps, with every term.

    Arguments:
        steps: length of the window in training steps.
        anneal: whether the lr falls linearly to zero in the window and no step is taken.
        product: how H_t u_t and the mixed term are computed, see `Method`. The default is exact;
            "finite_difference" takes two thirds of its time, "one_sided" half.
        radius: step of the differences, see `Method`.
        graphs: number of steps whose graphs are kept at the same time: more memory, less time.
            "sqrt" keeps the square root of `steps` (rounded up), "all" keeps all. Graphs are kept
            for "double_backward" only. A kept graph changes the rounding of its training step; with
            the default, 0, the steps are bit-identical to plain training.
    Raises:
        ValueError: `steps` is below 1, or `graphs` is not one of its values.

    >>> Unrolled(25, product="one_sided", radius=1e-3).steps
    25
    >>> Unrolled(20, graphs="sqrt").kept
    5
    """

    steps: int = 5
    _: KW_ONLY
    anneal: bool = False
    product: Method = "double_backward"
    radius: float = 0.01
    graphs: int | Literal["sqrt", "all"] = 0

    supports: ClassVar[frozenset[Kind]] = EVERY_KIND
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = UNKNOWN_KIND

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}; use 1 for one step")
        number = isinstance(self.graphs, int) and not isinstance(self.graphs, bool)
        if self.graphs not in ("sqrt", "all") and not (number and int(self.graphs) >= 0):
            raise ValueError(
                "graphs must be 'sqrt', 'all' or a number of steps from 0, got "
                f"{self.graphs!r}; use 0 for the least memory"
            )

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        mixed_in = tuple(n for n in names if kinds[n] != "optimizer")
        shared = mixed_in if self.product == "one_sided" else ()
        begin, trace, first = state, [], None
        for t in range(self.steps):
            by = _Recorder(mixed_in) if self._keeps(t, mixed_in) else None
            new, gradient, loss = self._at(problem, t).advance(state, hyper, t, shared, by)
            trace.append((state, gradient, by.graph if by else None))
            state, first = new, first or loss
        assert first is not None
        v, total, outer = problem.outer_gradient(state.params, hyper, names)

        adjoint = (*v, *(torch.zeros_like(m) for m in flat(state)[len(v) :]))
        for t in reversed(range(self.steps)):
            old, gradient, graph = trace.pop()
            step = self._at(problem, t)
            adjoint, u, optimal = step.update_product(old, gradient, hyper, names, adjoint)
            derivative = Derivative(
                lambda params, values, t=t: problem.inner_loss(params, values, t),  # type: ignore[misc]
                old.params,
                hyper,
                of=mixed_in,
                weights=t > 0,  # the adjoint before the window is not needed
                known=gradient,
                graph=graph,
            )
            curved, mixed, _ = derivative.along(u, method=self.product, radius=self.radius)
            if t > 0:
                moved = (a + h for a, h in zip(adjoint, curved))
                adjoint = (*moved, *adjoint[len(curved) :])
            total = _sum(total, optimal, mixed)
        return Lookahead(begin if self.anneal else state, require(total), first, outer)

    @property
    def kept(self) -> int:
        """Number of steps at the end of the window whose graphs are kept."""
        if self.product != "double_backward":
            return 0
        if self.graphs == "sqrt":
            return math.isqrt(self.steps - 1) + 1
        return self.steps if self.graphs == "all" else min(self.graphs, self.steps)

    def _keeps(self, t: int, mixed_in: tuple[str, ...]) -> bool:
        """Whether the graph of a step is kept; the first step may need none."""
        return t >= self.steps - self.kept and bool(t > 0 or mixed_in)

    def _at(self, problem: Bilevel, t: int) -> Bilevel:
        """Problem with the learning rate of the window's t-th step."""
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


@dataclass
class _Recorder:
    """`gradient_at`, keeping the graph of the gradient.

    Arguments:
        mixed_in: hyperparameters that the graph reaches.
        graph: the graph; None before the call, and if the loss has no second derivative.
    """

    mixed_in: tuple[str, ...]
    graph: Graph | None = None

    def __call__(
        self,
        loss: Callable[[Params, Hyper], Loss],
        params: Params,
        hyper: Hyper,
        of: tuple[str, ...],
    ) -> tuple[Gradient, Loss]:
        gradient, value, self.graph = recorded_gradient_at(loss, params, hyper, self.mixed_in)
        return gradient, value


def _sum(*parts: Partial) -> Partial:
    return {name: add(*(part.get(name) for part in parts)) for name in parts[0]}
