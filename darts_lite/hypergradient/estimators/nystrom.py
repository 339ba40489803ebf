"""Nystrom estimator: implicit differentiation with a low-rank sketch of the Hessian.

Sketch for hypergradients: Hataya & Yamada 2023, "Nystrom method for accurate and scalable implicit
differentiation", equation 6. Sketch as a preconditioner of conjugate gradients: Frangella, Tropp &
Udell 2023, "Randomized Nystrom preconditioning", algorithms 2.1 and 5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.estimators.conjugate_gradient import conjugate_gradients
from darts_lite.hypergradient.estimators.implicit import Implicit
from darts_lite.hypergradient.problem import Params


@dataclass(frozen=True)
class Nystrom(Implicit):
    """Solve (H + damping) x = v with a sketch of H of low rank, U diag(e) U^T.

        H ~ (H W) (W^T H W)^+ (H W)^T,   W: `rank` random orthonormal directions

    - With `iterations`, the sketch is the preconditioner of conjugate gradients, which stop at a
      residual of `tolerance`. Their number then depends on the curvatures that the sketch has
      missed, not on the largest ones.
    - With `iterations=0`, x = (U diag(e) U^T + damping)^-1 v, as Hataya & Yamada do; the columns of
      H are replaced by random mixtures of them. No product depends on another, and nothing can
      diverge; the error is that of the sketch.

    The memory is `rank` vectors of the size of the parameters. A sketch costs `rank` products. For
    one solution, plain `ConjugateGradient` often needs fewer products in total.

    Diagnostics: "rank" of the sketch (curvatures that are not positive are left out) and, with
    `iterations`, "residual", "iterations" and "negative_curvature" as `ConjugateGradient`.

    Arguments:
        rank: number of products for the sketch.
        iterations: largest number of products after it.
        tolerance: residual |v - (H + damping) x| / |v| at which the iteration stops.
        damping: multiple of the identity that is added to the Hessian; above 0 without iterations.
        steps: number of training steps before the differentiation.
        product: how Hessian-vector products are computed.
        radius: step of the differences, see `Method`.
        seed: seed of the random directions.
    Raises:
        ValueError: a setting is out of its range.

    >>> x, told = Nystrom(2).solve(lambda x: (2 * x[0],), (torch.tensor([1.0, 3.0]),))
    >>> x, int(told["iterations"])
    ((tensor([0.5000, 1.5000]),), 1)
    """

    rank: int = 10
    iterations: int = 10
    tolerance: float = 1e-6
    damping: float = 0.0
    steps: int = 1
    product: Method = "double_backward"
    radius: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        self.check()
        if self.rank < 1:
            raise ValueError(
                f"rank must be at least 1, got {self.rank}; use ConjugateGradient for no sketch"
            )
        if self.iterations < 0:
            raise ValueError(
                f"iterations must be at least 0, got {self.iterations}; use 0 for the sketch alone"
            )
        if not self.tolerance >= 0:
            raise ValueError(
                f"tolerance must be at least 0, got {self.tolerance}; use 0 for all iterations"
            )
        if self.iterations == 0 and not self.damping > 0:
            raise ValueError(
                f"damping must be above 0 without iterations, got {self.damping}; give damping or "
                "iterations"
            )

    def solve(
        self, curved: Callable[[Params], Params], v: Params
    ) -> tuple[Params, dict[str, Tensor]]:
        sizes = [part.numel() for part in v]

        def split(x: Tensor) -> Params:
            return tuple(s.view_as(part) for s, part in zip(x.split(sizes), v))

        def product(x: Tensor) -> Tensor:
            return _joined(curved(split(x))) - self.damping * x

        e, U = sketch(product, _joined(v), self.rank, self.seed)
        rank = {"rank": torch.tensor(len(e))}
        if self.iterations == 0:
            flat = _joined(v)
            along = U.T @ flat
            inside, outside = U @ (along / (e + self.damping)), flat - U @ along
            return split(inside + outside / self.damping), rank
        # Outside of the sketch, curvatures are about the smallest one in it.
        rest = e.min() + self.damping if len(e) else None

        def precondition(r: Params) -> Params:
            if rest is None:
                return r
            flat = _joined(r)
            along = U.T @ flat
            return split(flat + U @ ((rest / (e + self.damping) - 1) * along))

        name = type(self).__name__
        x, told = conjugate_gradients(
            curved, v, self.iterations, self.tolerance, name, precondition
        )
        return x, {**told, **rank}


def sketch(
    product: Callable[[Tensor], Tensor], like: Tensor, rank: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues e and eigenvectors U of a low-rank approximation of H.

    Curvatures are left out if they are not positive, or so small that rounding decides them.

    Arguments:
        product: product of H with a vector of shape [n].
        like: a vector [n]; its device and dtype are used.
        rank: number of products.
        seed: seed of the random directions.
    Returns:
        e [k] and U [n, k], with k at most `rank` and n.

    >>> H = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    >>> e, U = sketch(lambda x: H @ x, torch.zeros(3), 3, 0)
    >>> torch.allclose(e, torch.tensor([4.0, 1.0]), atol=1e-5)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(like), min(rank, len(like)))
    W = torch.linalg.qr(torch.randn(shape, generator=generator).to(like))[0]
    HW = torch.stack([product(w) for w in W.unbind(1)], 1)
    core = W.T @ HW
    if not bool(core.isfinite().all()):  # nothing to learn; conjugate gradients report it
        return like.new_zeros(0), like.new_zeros(len(like), 0)
    c, Q = torch.linalg.eigh((core + core.T) / 2)
    limit = torch.finfo(c.dtype).eps ** 0.5 * float(c.abs().max())
    kept = c > limit
    B = HW @ (Q[:, kept] / c[kept].sqrt())
    U, s, _ = torch.linalg.svd(B, full_matrices=False)
    found = s.square()
    kept = found > limit
    return found[kept], U[:, kept]


def _joined(tensors: Params) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
