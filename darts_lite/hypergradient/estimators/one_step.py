"""The one-step hypergradient: look one training step ahead (T1-T2, Luketina et al. 2016; DARTS).

With w+ = update(w, g, hyper), g = grad_w L_train(w, hyper) and v = grad_w L_val(w+, hyper):

    dL_val/dhyper = d L_val(w+, hyper)/dhyper          direct: the architecture
                  + v . d update/dhyper                 optimiser: lr, weight decay, momentum
                  + d/dhyper (grad_w L_train . u)       mixed: augmentation, architecture
    u = (d update/dg)^T v

v falls out of the validation pass that the direct term needs anyway, and the middle line is a
vector-Jacobian product of the elementwise update, so only the mixed term costs passes of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import (
    EVERY_KIND,
    Bilevel,
    Hyper,
    InnerState,
    Lookahead,
    add,
    check_supported,
    require,
)


@dataclass(frozen=True)
class OneStep:
    """See the module. The step that is looked ahead is the training step itself: none is lost.

    Arguments: `mixed`, how d/dhyper (grad_w L_train . u) is computed: see `products.Method`. On a
    smooth network the central difference is as good as the exact ways and a little cheaper; the
    one-sided one, with a `radius` of 1e-3, halves its cost.
    `second_order` adds the mixed term to the architecture's direct one; first order is the
    default of the field. `radius`, of the differences.
    """

    mixed: Method = "finite_difference"
    second_order: bool = False
    radius: float = 0.01

    steps: ClassVar[int] = 1
    supports: ClassVar[frozenset[Kind]] = EVERY_KIND
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = "it is of no known kind"

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        with_mixed = {"loss", "architecture"} if self.second_order else {"loss"}
        of = tuple(n for n in names if kinds[n] in with_mixed)
        shared = of if self.mixed == "one_sided" else ()
        new, gradient, inner = problem.advance(state, hyper, 0, shared)
        v, direct, outer = problem.outer_gradient(new.params, hyper, names)
        _, u, optimal = problem.update_product(state, gradient.weights, hyper, names, v)
        derivative = Derivative(
            lambda params, values: problem.inner_loss(params, values, 0),
            state.params,
            hyper,
            of=of,
            weights=False,
            known=gradient,
        )
        _, mixed = derivative.along(u, method=self.mixed, radius=self.radius)
        total = {n: add(direct[n], optimal[n], mixed.get(n)) for n in names}
        return Lookahead(new, require(total), inner, outer)
