"""One-step estimator: look one training step ahead (T1-T2, Luketina et al. 2016; DARTS).

With w+ = update(w, g, hyper), g = grad_w L_train(w, hyper) and v = grad_w L_val(w+, hyper),
as Liu et al. 2019 (DARTS), equation 7, for any update rule:

    dL_val/dhyper = d L_val(w+, hyper)/dhyper          direct term: architecture
                  + v . d update/dhyper                 optimizer term: lr, weight decay, momentum
                  + d/dhyper (grad_w L_train . u)       mixed term: augmentation, architecture
    u = (d update/dg)^T v

The validation pass of the direct term also yields v. The optimizer term is a vector-Jacobian
product of the elementwise update. So only the mixed term costs extra passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.estimators.interface import (
    EVERY_KIND,
    UNKNOWN_KIND,
    Lookahead,
    check_supported,
    require,
)
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, add


@dataclass(frozen=True)
class OneStep:
    """Differentiate the validation loss after one training step, which is the step of the training.

    Arguments:
        product: how the mixed term is computed, see `Method`. On a smooth network the central
            difference is as good as the exact methods and a little cheaper. "one_sided" with a
            radius of 1e-3 halves its cost.
        second_order: whether the architecture gets its mixed term too. The default, first order,
            has the direct term only, as is usual in the field.
        radius: step of the differences, see `Method`.

    >>> OneStep("one_sided", radius=1e-3).steps
    1
    """

    product: Method = "finite_difference"
    second_order: bool = False
    radius: float = 0.01

    steps: ClassVar[int] = 1
    supports: ClassVar[frozenset[Kind]] = EVERY_KIND
    carries: ClassVar[bool] = False
    remedy: ClassVar[str] = UNKNOWN_KIND

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        with_mixed = {"loss", "architecture"} if self.second_order else {"loss"}
        of = tuple(n for n in names if kinds[n] in with_mixed)
        shared = of if self.product == "one_sided" else ()
        new, gradient, inner = problem.advance(state, hyper, 0, shared)
        v, direct, outer = problem.outer_gradient(new.params, hyper, names)
        _, u, optimal = problem.update_product(state, gradient, hyper, names, v, only_hyper=not of)
        derivative = Derivative(
            lambda params, values: problem.inner_loss(params, values, 0),
            state.params,
            hyper,
            of=of,
            weights=False,
            known=gradient,
        )
        mixed = derivative.along(u, method=self.product, radius=self.radius).hyper
        total = {n: add(direct[n], optimal[n], mixed.get(n)) for n in names}
        return Lookahead(new, require(total), inner, outer)
