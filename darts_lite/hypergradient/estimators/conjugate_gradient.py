"""Conjugate-gradient estimator: implicit differentiation with an iterative solver.

Solver: Hestenes & Stiefel 1952. Hypergradient: Pedregosa 2016, "Hyperparameter optimization with
approximate gradient", algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.estimators.implicit import Implicit, failed, norm
from darts_lite.hypergradient.problem import Params, dot


@dataclass(frozen=True)
class ConjugateGradient(Implicit):
    """Solve (H + damping) x = v by conjugate gradients.

    The solution is exact after as many iterations as H has distinct eigenvalues. Where H + damping
    has negative curvature, the iteration stops at its current solution (Steihaug 1983). If that
    happens in the first iteration, the hypergradient is NaN and a warning says so.

    Diagnostics: "residual" |v - (H + damping) x| / |v|, "iterations", and "negative_curvature",
    which is 1 if negative curvature was met.

    Arguments:
        iterations: largest number of Hessian-vector products.
        tolerance: residual at which the iteration stops.
        damping: multiple of the identity that is added to the Hessian.
        steps: number of training steps before the differentiation.
        product: how Hessian-vector products are computed.
        radius: step of the differences, see `Method`.
    Raises:
        ValueError: a setting is out of its range.

    >>> ConjugateGradient().solve(lambda x: (2 * x[0],), (torch.tensor([1.0, 3.0]),))[0]
    (tensor([0.5000, 1.5000]),)
    """

    iterations: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0
    steps: int = 1
    product: Method = "double_backward"
    radius: float = 0.01

    def __post_init__(self) -> None:
        self.check()
        if self.iterations < 1:
            raise ValueError(
                f"iterations must be at least 1, got {self.iterations}; use OneStep for none"
            )
        if not self.tolerance >= 0:
            raise ValueError(
                f"tolerance must be at least 0, got {self.tolerance}; use 0 for all iterations"
            )

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        return conjugate_gradients(curved, v, self.iterations, self.tolerance, type(self).__name__)


def conjugate_gradients(
    curved: Callable[[Params], Params],
    v: Params,
    iterations: int,
    tolerance: float,
    name: str,
    precondition: Callable[[Params], Params] = lambda r: r,
) -> tuple[Params, dict[str, Tensor]]:
    """Return x with A x = v by preconditioned conjugate gradients, and diagnostics.

    Arguments:
        curved: product of A with a vector.
        v: right-hand side, one tensor per parameter.
        iterations: largest number of products.
        tolerance: residual |v - A x| / |v| at which the iteration stops.
        name: name of the estimator, for the warning.
        precondition: product of the preconditioner, a positive definite approximation of A^-1.

    >>> x, told = conjugate_gradients(
    ...     lambda x: (torch.tensor([1.0, 100.0]) * x[0],), (torch.ones(2),), 9, 1e-6, "CG",
    ...     lambda r: (r[0] / torch.tensor([1.0, 100.0]),))
    >>> x[0], int(told["iterations"])
    (tensor([1.0000, 0.0100]), 1)
    """
    x = tuple(torch.zeros_like(part) for part in v)
    r, p = v, precondition(v)
    length, rr, rz = dot(v, v), dot(v, v), dot(v, p)
    done, down = 0, False
    if not bool(length.isfinite()):
        x = failed(v)
    # Stop at a residual of zero (also if v = 0): the quotients below would be 0/0.
    while done < iterations and float(rr) > tolerance**2 * float(length):
        q = curved(p)
        curvature = dot(p, q)
        down = not float(curvature) > 0
        if down:
            break
        a = rz / curvature
        x = tuple(s + a * d for s, d in zip(x, p))
        r = tuple(s - a * d for s, d in zip(r, q))
        z = precondition(r)
        old, rz, rr = rz, dot(r, z), dot(r, r)
        p = tuple(s + rz / old * d for s, d in zip(z, p))
        done += 1
    if down and done == 0:
        warnings.warn(
            f"{name}: the training loss has negative curvature along the validation "
            "gradient; give damping larger than the most negative curvature",
            RuntimeWarning,
            stacklevel=3,
        )
        x = failed(v)
    tiny = torch.finfo(length.dtype).tiny
    return x, {
        "residual": norm(r) / length.sqrt().clamp(min=tiny),
        "iterations": torch.tensor(done),
        "negative_curvature": torch.tensor(int(down)),
    }
