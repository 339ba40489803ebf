"""Implicit differentiation with a Neumann series: H^-1 v = a sum_j (I - a H)^j v."""

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

POWER_ITERATIONS = 5
RETRIES = 5


@dataclass(frozen=True)
class Neumann(Implicit):
    """`terms` Hessian-vector products of the series (Lorraine et al. 2020, equation 5).

    Truncation regularises: after k terms only curvatures above 1/(a k) have been inverted, the
    same as unrolling k steps of gradient descent at the minimum.

    Arguments: `step_size`, a < 2/(largest eigenvalue); None finds it, by a few power iterations
    and, should the series still grow, by halving. Diagnostics: "step_size", and "residual", the
    norm of (I - a H)^k v over that of v. If the series diverges (negative curvature, or a given
    step size that is too large) the hypergradient is NaN and a warning says what to do. A series
    that is cut before a slight negative curvature shows is not caught.
    """

    terms: int = 10
    step_size: float | None = None
    damping: float = 0.0
    steps: int = 1
    product: Method = "double_backward"
    radius: float = 0.01

    def __post_init__(self) -> None:
        self.check()
        if self.terms < 0:
            raise ValueError(f"terms must not be negative, but is {self.terms}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, not {self.step_size}")

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        a = self.step_size or self._automatic(curved, v)
        for _ in range(1 if self.step_size else RETRIES):
            total, part = v, v
            for _ in range(self.terms):
                part = tuple(p - a * h for p, h in zip(part, curved(part)))
                total = tuple(s + p for s, p in zip(total, part))
            residual = norm(part) / norm(v).clamp(min=torch.finfo(v[0].dtype).tiny)
            diagnostics = {"residual": residual, "step_size": v[0].new_tensor(a)}
            if float(residual) <= 1 + 1e-6:  # false if it is not a number
                return tuple(a * s for s in total), diagnostics
            a /= 2
        warnings.warn(
            f"Neumann diverged (residual {float(residual):.3g}): the training loss curves down "
            "somewhere or step_size is too large; give damping, fewer terms or no step_size",
            RuntimeWarning,
            stacklevel=2,
        )
        return failed(v), diagnostics

    @staticmethod
    def _automatic(curved: Callable[[Params], Params], v: Params) -> float:
        """The reciprocal of the largest curvature that power iterations from v find."""
        largest, part = 0.0, v
        for _ in range(POWER_ITERATIONS):
            length = norm(part)
            if not float(length) > 0 or not math.isfinite(float(length)):
                break
            unit = tuple(p / length for p in part)
            part = curved(unit)
            largest = max(largest, float(norm(part)), abs(float(dot(unit, part))))
        return 1.0 / largest if largest > 0 else 1.0
