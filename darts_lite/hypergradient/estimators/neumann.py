"""Neumann estimator: implicit differentiation with H^-1 v = a sum_j (I - a H)^j v."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.estimators.implicit import Implicit, failed, norm
from darts_lite.hypergradient.problem import Params, dot

POWER_ITERATIONS = 5  # for the automatic step size
ATTEMPTS = 5  # with an automatic step size, halved each time


@dataclass(frozen=True)
class Neumann(Implicit):
    """Approximate (H + damping)^-1 v by a truncated Neumann series (Lorraine et al. 2020, eq. 5).

    Truncation regularizes: k terms invert only curvatures above 1/(a k), the same as unrolling
    k steps of gradient descent at the minimum.

    If the series diverges (negative curvature, or a given step size that is too large), the
    hypergradient is NaN and a warning names the remedy. A slight negative curvature that has no
    effect within `terms` is not detected.

    Diagnostics: "step_size", "terms" (products of the series), and "residual", which is
    |(I - a H)^k v| / |v| after k terms: |v - (H + damping) x| / |v| of one term before.

    Arguments:
        terms: largest number of Hessian-vector products.
        step_size: a, below 2 / (largest eigenvalue of H). None finds it by a few power iterations
            and, if the series still grows, by halving.
        damping: multiple of the identity that is added to the Hessian.
        steps: number of training steps before the differentiation.
        product: how Hessian-vector products are computed.
        radius: step of the differences, see `Method`.
        tolerance: residual at which the series ends; 0 for all terms.
    Raises:
        ValueError: a setting is out of its range.

    >>> x, _ = Neumann(50).solve(lambda x: (2 * x[0],), (torch.tensor([1.0, 3.0]),))
    >>> x
    (tensor([0.5000, 1.5000]),)
    """

    terms: int = 10
    step_size: float | None = None
    damping: float = 0.0
    steps: int = 1
    product: Method = "double_backward"
    radius: float = 0.01
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        self.check()
        if self.terms < 0:
            raise ValueError(f"terms must be at least 0, got {self.terms}; use 10 for the default")
        if not self.tolerance >= 0:
            raise ValueError(
                f"tolerance must be at least 0, got {self.tolerance}; use 0 for all terms"
            )
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(
                f"step_size must be above 0, got {self.step_size}; use None to find it"
            )

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        a = self.step_size or automatic_step_size(curved, v)
        for _ in range(1 if self.step_size else ATTEMPTS):
            total, part, done = v, v, 0
            enough = self.tolerance * norm(v) if self.tolerance else None
            while done < self.terms and (enough is None or bool(norm(part) > enough)):
                part = tuple(p - a * h for p, h in zip(part, curved(part)))
                total = tuple(s + p for s, p in zip(total, part))
                done += 1
            residual = norm(part) / norm(v).clamp(min=torch.finfo(v[0].dtype).tiny)
            diagnostics = {
                "residual": residual,
                "step_size": v[0].new_tensor(a),
                "terms": torch.tensor(done),
            }
            if float(residual) <= 1 + 1e-6:  # false for NaN
                return tuple(a * s for s in total), diagnostics
            a /= 2
        warnings.warn(
            f"Neumann diverged (residual {float(residual):.3g}): the training loss has negative "
            "curvature or step_size is too large; give damping, fewer terms or no step_size",
            RuntimeWarning,
            stacklevel=2,
        )
        return failed(v), diagnostics


def automatic_step_size(curved: Callable[[Params], Params], v: Params) -> float:
    """Return the reciprocal of the largest curvature that power iterations from v find.

    Arguments:
        curved: product of the Hessian with a vector.
        v: start of the iterations, one tensor per parameter.

    >>> automatic_step_size(lambda x: (4 * x[0],), (torch.tensor([1.0, 0.0]),))
    0.25
    """
    largest, part = 0.0, v
    for _ in range(POWER_ITERATIONS):
        length = norm(part)
        if not float(length) > 0 or not math.isfinite(float(length)):
            break
        unit = tuple(p / length for p in part)
        part = curved(unit)
        largest = max(largest, float(norm(part)), abs(float(dot(unit, part))))
    return 1.0 / largest if largest > 0 else 1.0
