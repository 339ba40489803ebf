"""Implicit differentiation with conjugate gradients (Hestenes & Stiefel 1952; Pedregosa 2016)."""

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
    """Solves (H + damping) x = v to `tolerance`, in at most `iterations` products.

    Exact after as many as there are distinct eigenvalues. Where H + damping curves down, the
    iteration stops at what it has (Steihaug 1983); if that is nothing, the hypergradient is NaN
    and a warning says so. Diagnostics: "residual" |v - (H + damping) x| / |v|, "iterations", and
    "negative_curvature", 1 if it was met.
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
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        x = tuple(torch.zeros_like(part) for part in v)
        r = p = v
        length = rr = dot(r, r)
        done, down = 0, False
        if not bool(length.isfinite()):
            x = failed(v)
        # a residual of zero, v = 0 included, is the end: the quotients below would be 0/0
        while done < self.iterations and float(rr) > self.tolerance**2 * float(length):
            q = curved(p)
            curvature = dot(p, q)
            down = not float(curvature) > 0
            if down:
                break
            a = rr / curvature
            x = tuple(s + a * d for s, d in zip(x, p))
            r = tuple(s - a * d for s, d in zip(r, q))
            old, rr = rr, dot(r, r)
            p = tuple(s + rr / old * d for s, d in zip(r, p))
            done += 1
        if down and done == 0:
            warnings.warn(
                "ConjugateGradient: the training loss curves down along the validation gradient; "
                "give damping larger than its most negative curvature",
                RuntimeWarning,
                stacklevel=2,
            )
            x = failed(v)
        tiny = torch.finfo(length.dtype).tiny
        return x, {
            "residual": norm(r) / length.sqrt().clamp(min=tiny),
            "iterations": torch.tensor(done),
            "negative_curvature": torch.tensor(int(down)),
        }
