"""Implicit differentiation: ridge regression, networks at their minimum, and failures.

The reference for H x = v is `torch.linalg.solve` with a dense Hessian.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import (
    QUADRATIC,
    Case,
    Quadratic,
    augmentation_at_its_best,
    close,
    correct,
    counted,
    few,
    jacobians,
    leaf,
    network,
    normal,
    quadratic,
    quadratics,
    ridge,
    settled,
    still,
    walk,
)
from torch import Tensor
from torch.linalg import matrix_power as power
from torch.linalg import solve

from darts_lite.hypergradient import (
    SGD,
    Adam,
    Bilevel,
    ConjugateGradient,
    Hyper,
    Loss,
    Method,
    Neumann,
    Nystrom,
    OneStep,
    Params,
    Unrolled,
    UnsupportedHyperparameter,
)
from darts_lite.hypergradient.estimators.neumann import automatic_step_size
from darts_lite.hypergradient.estimators.nystrom import sketch

METHODS: tuple[Method, ...] = ("double_backward", "jvp", "finite_difference", "one_sided")
every_method = pytest.mark.parametrize("method", METHODS)
EVERY = ConjugateGradient(iterations=10, tolerance=0.0)  # more than there are dimensions
RHO = math.log(0.2)


def series(q: Quadratic, rho: float, a: float, terms: int, damping: float = 0.0) -> Tensor:
    """P8: -e^ρ vᵀ H⁻¹[I - (I - aH)^(k+1)] w*, with H + damping in the series."""
    H, best = settled(q, rho)
    H = H + damping * q.eye
    inverse = solve(H, q.eye - power(q.eye - a * H, terms + 1))
    return -math.exp(rho) * (best - q.c) @ inverse @ best


# --- Closed forms ------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("in_settings", [False, True], ids=["in_the_loss", "of_the_optimizer"])
@pytest.mark.parametrize("terms", [0, 1, 5, 12])
def test_neumann_on_ridge(method: Method, in_settings: bool, terms: int) -> None:
    """P8. A coupled weight decay is part of the training loss, wherever it is applied."""
    case = ridge(in_settings=in_settings)
    radius = 1e-7 if method == "one_sided" else 0.01
    got = case(Neumann(terms, 0.3, product=method, radius=radius)).hypergradient["rho"]
    close(got, series(QUADRATIC, RHO, 0.3, terms), 1e-6 if method == "one_sided" else 1e-9)


@every_method
@pytest.mark.parametrize("in_settings", [False, True], ids=["in_the_loss", "of_the_optimizer"])
def test_conjugate_gradients_on_ridge(method: Method, in_settings: bool) -> None:
    """P8, exact after as many products as dimensions."""
    radius = 1e-7 if method == "one_sided" else 0.01
    estimator = ConjugateGradient(4, 0.0, product=method, radius=radius)
    correct(ridge(in_settings=in_settings), estimator, 1e-6 if method == "one_sided" else 1e-9)


@pytest.mark.parametrize("in_settings", [False, True], ids=["in_the_loss", "of_the_optimizer"])
@pytest.mark.parametrize("a", [0.05, 0.4])
def test_one_step_on_ridge(a: float, in_settings: bool) -> None:
    """P8, T1-T2: -a e^ρ vᵀw*, the Neumann series with 0 terms."""
    case = ridge(in_settings=in_settings, lr=a)
    got = case(OneStep("double_backward")).hypergradient["rho"]
    close(got, series(QUADRATIC, RHO, a, 0))
    close(got, case(Neumann(0, a)).hypergradient["rho"])


@pytest.mark.parametrize("terms", [1, 7])
def test_a_series_is_an_unrolled_window_at_the_minimum(terms: int) -> None:
    """k terms with a step size of a equal k + 1 steps with a learning rate of a."""
    case = ridge(lr=0.3)
    unrolled = case(Unrolled(terms + 1)).hypergradient["rho"]
    close(case(Neumann(terms, 0.3)).hypergradient["rho"], unrolled)


@every_method
def test_augmentation_at_the_minimum(method: Method) -> None:
    """P7. The loss is quadratic in w, so only the one-sided difference has an error."""
    case = augmentation_at_its_best()
    radius = 1e-7 if method == "one_sided" else 0.01
    tolerance = 1e-5 if method == "one_sided" else 1e-9
    correct(case, ConjugateGradient(4, 0.0, product=method, radius=radius), tolerance)


def test_the_architecture_keeps_its_direct_term() -> None:
    """Direct minus mixed term; without a part in the training loss, the direct term only."""
    case = ridge()
    plain = case.problem.outer_loss

    def outer(params: Params, hyper: Hyper) -> Loss:
        return plain(params, hyper)[0] + hyper["alpha"].square().sum() + 3 * hyper["rho"], None

    case = case._replace(
        problem=replace(case.problem, outer_loss=outer),
        hyper={**case.hyper, "alpha": leaf([0.5, 1.0])},
        kinds={"alpha": "architecture", "rho": "loss"},
    )
    got = case(EVERY).hypergradient
    close(got["alpha"], leaf([1.0, 2.0]).detach())
    close(got["rho"], ridge().expected["rho"] + 3)


# --- Random problems ---------------------------------------------------------------------------

decays = st.floats(-4.0, 1.0)


@few
@given(quadratics(), decays, st.integers(0, 12), st.floats(0.01, 1.9), st.floats(0.0, 2.0))
def test_random_series(q: Quadratic, rho: float, terms: int, share: float, damping: float) -> None:
    """Step size up to its limit, 2 / (largest curvature of H + damping)."""
    a = share / float(torch.linalg.eigvalsh(settled(q, rho)[0])[-1] + damping)
    got = ridge(q, rho)(Neumann(terms, a, damping)).hypergradient["rho"]
    close(got, series(q, rho, a, terms, damping), floor=1.0)


@few
@given(quadratics(), decays, st.integers(0, 12))
def test_random_automatic_step_size(q: Quadratic, rho: float, terms: int) -> None:
    """The result is the series of the reported step size; the residual is at most 1."""
    ahead = ridge(q, rho)(Neumann(terms))
    a, residual = (float(ahead.diagnostics[n]) for n in ("step_size", "residual"))
    close(ahead.hypergradient["rho"], series(q, rho, a, terms), 1e-5, floor=1.0)
    H, best = settled(q, rho)
    v = best - q.c
    true = float((power(q.eye - a * H, terms) @ v).norm() / v.norm())
    assert residual == pytest.approx(true, rel=1e-4, abs=1e-6)
    assert residual <= 1 + 1e-6


@few
@given(quadratics(), decays)
def test_random_automatic_step_size_converges(q: Quadratic, rho: float) -> None:
    """Below the limit of stability, above a sixteenth of the best, and convergent as expected."""
    H, best = settled(q, rho)
    v = best - q.c
    eigenvalues, basis = torch.linalg.eigh(H)
    assume(bool((basis.T @ v).abs().min() > 1e-6))  # else nothing tells of a direction
    (x,), told = Neumann(terms=200).solve(lambda x: (H @ x[0],), (v,))
    a, largest = float(told["step_size"]), float(eigenvalues[-1])
    assert (1 - 1e-6) / (16 * largest) <= a < 2 / largest
    contraction = float((1 - a * eigenvalues).abs().max())
    left = (contraction + 1e-6) ** 201
    assert contraction < 1 and (x - solve(H, v)).norm() <= left * solve(H, v).norm() + 1e-9


@few
@given(quadratics(), decays, st.floats(0.0, 2.0))
def test_random_conjugate_gradients(q: Quadratic, rho: float, damping: float) -> None:
    """Exact after as many products as dimensions."""
    H, best = settled(q, rho)
    exact = -math.exp(rho) * (best - q.c) @ solve(H + damping * q.eye, best)
    estimator = ConjugateGradient(len(H), 0.0, damping)
    close(ridge(q, rho)(estimator).hypergradient["rho"], exact, floor=1.0)


@few
@given(quadratics(), st.integers(1, 8), st.floats(0.0, 0.5), st.floats(0.0, 2.0))
def test_random_residuals(q: Quadratic, iterations: int, tolerance: float, damping: float) -> None:
    """The reported residual and number of iterations are true, and the iteration stops in time."""
    H, products = q.A + damping * q.eye, 0

    def curved(x: Params) -> Params:
        nonlocal products
        products += 1
        return (H @ x[0],)

    (x,), told = ConjugateGradient(iterations, tolerance).solve(curved, (q.c,))
    true = float((q.c - H @ x).norm() / q.c.norm())
    assert float(told["residual"]) == pytest.approx(true, rel=1e-6, abs=1e-12)
    assert told["iterations"] == products <= iterations
    assert told["negative_curvature"] == 0
    assert true <= tolerance + 1e-12 or products == iterations
    if products > 1 and tolerance > 1e-9:  # the one before was not good enough
        (x,), _ = ConjugateGradient(products - 1, 0.0).solve(lambda x: (H @ x[0],), (q.c,))
        assert float((q.c - H @ x).norm() / q.c.norm()) > tolerance * (1 - 1e-9)


@few
@given(
    st.lists(st.floats(0.1, 3.0), min_size=0, max_size=4), st.floats(-3.0, -0.5), st.integers(0, 99)
)
def test_random_saddles(positive: list[float], negative: float, seed: int) -> None:
    """Negative curvature means no minimum: NaN and a warning."""
    q = quadratic([*positive, negative], seed)
    _, basis = torch.linalg.eigh(q.A)
    assume(bool((basis[:, 0] @ q.c).abs() > 1e-2))  # the validation gradient meets it
    with pytest.warns(RuntimeWarning, match="negative curvature"):
        (x,), told = Neumann(terms=400).solve(lambda x: (q.A @ x[0],), (q.c,))
    assert x.isnan().all() and not told["residual"] <= 1


# --- Conjugate gradients -----------------------------------------------------------------------


def matrix(*diagonal: float) -> Callable[[Params], Params]:
    return lambda x: (torch.tensor(diagonal, dtype=torch.float64) * x[0],)


def vector(*values: float) -> Params:
    return (torch.tensor(values, dtype=torch.float64),)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("iterations", [1, 20])
def test_identity(iterations: int, scale: float) -> None:
    """Exact after one iteration. A known mistake is to return before storing the solution."""
    v = (normal(5),)
    (x,), told = ConjugateGradient(iterations).solve(lambda x: (scale * x[0],), v)
    close(x, v[0] / scale, 1e-14)
    assert told["iterations"] == 1 and told["residual"] < 1e-14


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_as_many_iterations_as_eigenvalues(distinct: int) -> None:
    curved = matrix(*[(1.0, 2.0, 5.0)[i % distinct] for i in range(6)])
    v = (normal(6),)
    (x,), told = ConjugateGradient(20, 1e-9).solve(curved, v)
    assert told["iterations"] == distinct
    close(curved((x,))[0], v[0], 1e-9)


def test_several_tensors_are_one_vector() -> None:
    """Inner products are over all tensors."""
    q = quadratic([0.5, 1.0, 2.0, 4.0, 3.0])

    def curved(x: Params) -> Params:
        return (q.A @ torch.cat(x)).split([2, 3])

    x, _ = ConjugateGradient(5, 0.0).solve(curved, q.c.split([2, 3]))
    close(torch.cat(x), solve(q.A, q.c))
    x, told = Neumann(7, 0.3).solve(curved, q.c.split([2, 3]))
    close(torch.cat(x), solve(q.A, q.c - power(q.eye - 0.3 * q.A, 8) @ q.c))
    left = power(q.eye - 0.3 * q.A, 7) @ q.c
    close(told["residual"], left.norm() / q.c.norm())


@pytest.mark.parametrize(
    "estimator",
    [EVERY, Neumann(), Neumann(tolerance=0.1), Nystrom(2), Nystrom(2, 0, damping=1.0)],
    ids=["conjugate_gradient", "neumann", "neumann_tolerance", "nystrom", "nystrom_alone"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_solve(estimator: Any, dtype: torch.dtype) -> None:
    """v = 0: the quotients are 0/0, the solution is 0."""
    v = (torch.zeros(3, dtype=dtype),)
    (x,), told = estimator.solve(lambda x: (2 * x[0],), v)
    assert torch.equal(x, v[0]) and told.get("residual", 0) == 0
    assert told.get("iterations", 0) == 0 and told.get("negative_curvature", 0) == 0
    case = ridge()
    best = case.state.params[0]
    problem = replace(
        case.problem, outer_loss=lambda p, h: ((p[0] - best).square().sum() * 0, None)
    )
    assert case._replace(problem=problem)(estimator).hypergradient["rho"] == 0


def test_nothing_but_negative_curvature() -> None:
    with pytest.warns(RuntimeWarning, match=r"give damping larger than the most negative"):
        (x,), told = EVERY.solve(matrix(2.0, -1.0), vector(0.0, 1.0))
    assert x.isnan().all()
    assert told["negative_curvature"] == 1 and told["iterations"] == 0 and told["residual"] == 1


def test_negative_curvature_later() -> None:
    """Steihaug 1983: the solution so far is kept, x = v'v/v'Hv v = 5/7 v."""
    curved, v = matrix(2.0, -1.0), vector(2.0, 1.0)
    (x,), told = EVERY.solve(curved, v)
    close(x, 5 / 7 * v[0])
    assert told["negative_curvature"] == 1 and told["iterations"] == 1
    left = v[0] - curved((x,))[0]
    close(told["residual"], left.norm() / v[0].norm())


@pytest.mark.parametrize("estimator", [ConjugateGradient(4, 0.0, 1.5), Neumann(300, 0.2, 1.5)])
def test_damping_lifts_a_saddle(estimator: Any) -> None:
    """The damping is in (H + damping) x = v and nowhere else."""
    q = quadratic([-1.0, 0.5, 2.0])
    best = q.best
    case = Case(
        Bilevel(
            lambda p, h, t: (0.5 * (p[0] - best) @ q.A @ (p[0] - best) + h["m"] @ p[0], None),
            q.outer,
            SGD(0.0),
            lambda hyper: {"lr": 0.0},
        ),
        still(q.start),
        {"m": leaf([0.0, 0.0, 0.0])},
        {"m": "loss"},
    )
    expected = -solve(q.A + 1.5 * q.eye, q.start - q.c)
    close(case(estimator).hypergradient["m"], expected)


# --- Nystrom -----------------------------------------------------------------------------------

WIDE = quadratic([3e3, 1e3, 3e2, 1e2, 3e1, *(1 + 0.1 * i for i in range(15))])


def directions(n: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, rank, generator=generator).double())[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_sketch_equals_its_formula(rank: int, seed: int) -> None:
    """U diag(e) U^T = HW (W^T H W)^-1 (HW)^T, of orthonormal U and falling e."""
    H = WIDE.A
    W = directions(len(H), rank, seed)
    e, U = sketch(lambda x: H @ x, WIDE.c, rank, seed)
    close(U @ torch.diag(e) @ U.T, H @ W @ solve(W.T @ H @ W, W.T @ H), 1e-8)
    close(U.T @ U, torch.eye(rank).double(), 1e-12)
    assert (e.diff() <= 0).all() and (e <= torch.linalg.eigvalsh(H)[-1] * (1 + 1e-9)).all()


@pytest.mark.parametrize("rank", [2, 6, 20, 50])
@pytest.mark.parametrize("damping", [0.1, 10.0])
def test_a_sketch_alone(rank: int, damping: float) -> None:
    """Hataya & Yamada, equation 6: (H_sketch + damping)^-1 v; exact at full rank."""
    H, n = WIDE.A, len(WIDE.A)
    W = directions(n, min(rank, n), 0)
    approximate = H if rank >= n else H @ W @ solve(W.T @ H @ W, W.T @ H)
    products = 0

    def curved(x: Params) -> Params:
        nonlocal products
        products += 1
        return (H @ x[0] + damping * x[0],)

    (x,), told = Nystrom(rank, 0, damping=damping).solve(curved, (WIDE.c,))
    close(x, solve(approximate + damping * WIDE.eye, WIDE.c), 1e-7)
    assert products == told["rank"] == min(rank, n) and "residual" not in told


@every_method
@pytest.mark.parametrize("in_settings", [False, True], ids=["in_the_loss", "of_the_optimizer"])
def test_nystrom_on_ridge(method: Method, in_settings: bool) -> None:
    """P8. A sketch of full rank is the inverse, so one iteration is enough."""
    radius = 1e-7 if method == "one_sided" else 0.01
    estimator = Nystrom(4, 4, 1e-7, product=method, radius=radius)
    case = ridge(in_settings=in_settings)
    correct(case, estimator, 1e-6 if method == "one_sided" else 1e-9)
    assert method == "one_sided" or case(estimator).diagnostics["iterations"] == 1


@few
@given(quadratics(), decays, st.floats(0.0, 2.0), st.integers(1, 8))
def test_random_nystrom(q: Quadratic, rho: float, damping: float, rank: int) -> None:
    """Exact after as many iterations as dimensions, whatever the sketch."""
    H, best = settled(q, rho)
    exact = -math.exp(rho) * (best - q.c) @ solve(H + damping * q.eye, best)
    estimator = Nystrom(rank, 2 * len(H), 1e-12, damping)
    close(ridge(q, rho)(estimator).hypergradient["rho"], exact, 1e-8, floor=1.0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_a_sketch_saves_iterations(tolerance: float) -> None:
    """The residual is true and reached; the iterations are fewer than without a sketch."""
    H, v = WIDE.A, WIDE.c

    def curved(x: Params) -> Params:
        return (H @ x[0],)

    (x,), told = Nystrom(8, 40, tolerance).solve(curved, (v,))
    residual = float((v - H @ x).norm() / v.norm())
    assert residual <= tolerance * (1 + 1e-6)
    assert float(told["residual"]) == pytest.approx(residual, rel=1e-3, abs=1e-12)
    _, plain = ConjugateGradient(40, tolerance).solve(curved, (v,))
    assert plain["residual"] <= tolerance
    assert 0 < told["iterations"] < 0.75 * float(plain["iterations"])


def test_a_sketch_leaves_negative_curvature_out() -> None:
    """Conjugate gradients then meet it, and say so."""
    e, _ = sketch(lambda x: torch.tensor([2.0, -1.0, -3.0]).double() * x, vector(0, 0, 0)[0], 3, 0)
    close(e, torch.tensor([2.0]).double(), 1e-6)
    with pytest.warns(RuntimeWarning, match=r"Nystrom: .* give damping larger"):
        (x,), told = Nystrom(2).solve(matrix(2.0, -1.0), vector(0.0, 1.0))
    assert x.isnan().all() and told["negative_curvature"] == 1


def test_a_sketch_of_nothing() -> None:
    """A Hessian of zero: x = v / damping."""
    for iterations in (0, 3):
        estimator = Nystrom(3, iterations, damping=4.0)
        (x,), told = estimator.solve(matrix(4.0, 4.0), vector(1.0, 2.0))
        close(x, torch.tensor([0.25, 0.5]).double(), 1e-12)
        assert told["rank"] == 0


# --- Number of products by residual --------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-6])
def test_neumann_stops_at_its_tolerance(tolerance: float) -> None:
    """As soon as |(I - aH)^k v| is small enough, and not before; else after all terms."""
    q, products = QUADRATIC, 0

    def curved(x: Params) -> Params:
        nonlocal products
        products += 1
        return (q.A @ x[0],)

    (x,), told = Neumann(1000, 0.3, tolerance=tolerance).solve(curved, (q.c,))
    done = int(told["terms"])
    left = [
        float((power(q.eye - 0.3 * q.A, k) @ q.c).norm() / q.c.norm()) for k in (done - 1, done)
    ]
    assert done == products < 1000 and left[0] > tolerance >= left[1]
    assert float(told["residual"]) == pytest.approx(left[1])
    close(x, solve(q.A, q.c - power(q.eye - 0.3 * q.A, done + 1) @ q.c))
    _, told = Neumann(done - 1, 0.3, tolerance=tolerance).solve(curved, (q.c,))
    assert told["terms"] == done - 1 and told["residual"] > tolerance


# --- Neumann -----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [5, 50])
def test_a_step_size_that_is_too_large(terms: int) -> None:
    """A given step size is not halved: NaN, and a warning with the remedy."""
    problem, calls = counted(ridge().problem)
    case = ridge()._replace(problem=problem)
    with pytest.warns(RuntimeWarning, match=r"diverged \(residual .*step_size is too large"):
        ahead = case(Neumann(terms, step_size=5.0))
    assert ahead.hypergradient["rho"].isnan() and ahead.diagnostics["step_size"] == 5.0
    assert ahead.diagnostics["residual"] > 1
    assert calls["inner"] == 1 + terms + 1  # tried once


def test_the_halving_of_an_automatic_step_size() -> None:
    """v has almost no part in the largest curvature, so power iterations miss it."""
    curved, v = matrix(1.0, 20.0), vector(1.0, 1e-12)
    a = automatic_step_size(curved, v)
    assert a > 2 / 20.0
    (x,), told = Neumann(terms=300).solve(curved, v)
    assert float(told["step_size"]) < 2 / 20.0
    close(x, torch.tensor([1.0, 1e-12 / 20]).double(), 1e-3)


@pytest.mark.parametrize("estimator", [Neumann(), ConjugateGradient(), Nystrom()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_validation_gradient_that_is_not_finite(estimator: Any, bad: float) -> None:
    """The hypergradient is not finite either, so the caller skips and counts it."""
    case = ridge()
    problem = replace(case.problem, outer_loss=lambda p, h: (p[0].sum() * bad, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        got = case._replace(problem=problem)(estimator).hypergradient["rho"]
    assert not got.isfinite()


@pytest.mark.parametrize("estimator", [Neumann(3, 0.1), EVERY, Nystrom()])
def test_a_hessian_that_is_not_finite(estimator: Any) -> None:
    with pytest.warns(RuntimeWarning):
        (x,), _ = estimator.solve(lambda x: (x[0] * float("nan"),), vector(1.0, 2.0))
    assert x.isnan().all()


# --- The network -------------------------------------------------------------------------------

DAMPING = 20.0  # above the most negative curvature
KINDS = {"alpha": "architecture", "smoothing": "loss", "magnitude": "loss", "log_decay": "loss"}


@cache
def dense(optimizer: Any, steps: int, eps: float = 1e-5) -> tuple[Tensor, Tensor, Any, Any]:
    """H of the last batch's loss with weight decay, v, d²L/dw dhyper, direct derivatives."""
    case = network(optimizer, eps=eps)
    state = walk(case, case.hyper, steps)
    hyper = {n: h.detach() for n, h in case.hyper.items()}
    shapes = [p.shape for p in state.params]
    sizes = [s.numel() for s in shapes]

    def gradient(w: Tensor, moving: Hyper) -> tuple[Tensor]:
        def loss(w: Tensor) -> Tensor:
            params = tuple(p.view(s) for p, s in zip(w.split(sizes), shapes))
            values = {**hyper, **moving}
            value = case.problem.inner_loss(params, values, steps - 1)[0]
            spared = params[:2]  # all but the last
            decay = values["log_decay"].exp()
            return value + decay / 2 * torch.stack([p.square().sum() for p in spared]).sum()

        return (torch.func.grad(loss)(w),)

    w = torch.cat([p.reshape(-1) for p in state.params])
    (H,), (mixed,) = jacobians(gradient, w, {n: hyper[n] for n in KINDS})
    v, direct, _ = case.problem.outer_gradient(state.params, case.hyper, tuple(KINDS))
    return H, torch.cat([p.reshape(-1) for p in v]), mixed, direct


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", [SGD(0.9), Adam(decoupled=False)], ids=["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("name", ["neumann", "conjugate_gradient", "nystrom"])
def test_network_equals_its_reference_twin(
    name: str, method: Method, optimizer: Any, steps: int
) -> None:
    """Dense matrices of the window's last batch; train-mode BatchNorm."""
    H, v, mixed, direct = dense(optimizer, steps)
    eye = torch.eye(len(H), dtype=H.dtype)
    H = H + DAMPING * eye
    assert torch.linalg.eigvalsh(H)[0] > 0
    if name == "neumann":
        estimator: Any = Neumann(6, 0.04, DAMPING, steps, method)
        x = solve(H, v - power(eye - 0.04 * H, 7) @ v)
    elif name == "nystrom":
        estimator = Nystrom(9, 60, 1e-13, DAMPING, steps, method)
        x = solve(H, v)
    else:
        estimator = ConjugateGradient(60, 1e-13, DAMPING, steps, method)
        x = solve(H, v)
    case = network(optimizer)._replace(kinds=KINDS)  # type: ignore[arg-type]
    got = case(estimator).hypergradient
    for n, rows in mixed.items():
        term = torch.tensordot(x, rows, 1)
        expected = -term if direct[n] is None else direct[n] - term
        assert term.norm() > 1e-5
        close(got[n], expected, 1e-8)


@pytest.mark.parametrize(("method", "order"), [("finite_difference", 2), ("one_sided", 1)])
@pytest.mark.parametrize("name", ["neumann", "conjugate_gradient"])
def test_order_of_the_differences(name: str, method: Method, order: int) -> None:
    """With half the radius: a quarter of the error, or half if one-sided."""
    case = network(SGD(0.9))._replace(kinds=KINDS)  # type: ignore[arg-type]
    knobs: dict[str, Any] = {"damping": DAMPING}
    knobs |= {"terms": 3, "step_size": 0.04} if name == "neumann" else {"iterations": 3}
    make = Neumann if name == "neumann" else ConjugateGradient
    exact = case(make(**knobs)).hypergradient
    radius = 1e-2 if order == 2 else 1e-4
    wide, narrow = (
        case(make(**knobs, product=method, radius=r)).hypergradient for r in (2 * radius, radius)
    )
    for n in KINDS:
        errors = [(got[n] - exact[n]).norm() for got in (wide, narrow)]
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@cache
def trained(optimizer: Any, moved: tuple[str, int, float] | None = None) -> tuple[Case, Tensor]:
    """The network at the minimum of its first batch's loss, by Newton's method; its outer loss.

    A large `eps` in BatchNorm: otherwise decay drives a layer to zero, which is no minimum.
    """
    case = network(optimizer, eps=1.0)
    hyper = {n: h.detach().clone() for n, h in case.hyper.items()}
    hyper["log_decay"] = torch.tensor(math.log(0.1)).double()
    start = case.state.params
    if moved:
        name, i, h = moved
        hyper[name].view(-1)[i] += h
        start = trained(optimizer)[0].state.params

    def gradient(params: Params, _: Any) -> Params:
        def loss(params: Params) -> Tensor:
            decayed = torch.stack([p.square().sum() for p in params[:2]]).sum()
            value = case.problem.inner_loss(params, hyper, 0)[0]
            return value + hyper["log_decay"].exp() / 2 * decayed

        return torch.func.grad(loss)(params)

    sizes, shapes = [p.numel() for p in start], [p.shape for p in start]
    params, slope = start, None
    for _ in range(60):
        slope = torch.cat([g.detach().reshape(-1) for g in gradient(params, None)])
        if slope.norm() < 1e-13:
            break
        rows, _ = jacobians(gradient, params, slope)
        H = torch.cat([torch.cat([b.reshape(n, -1) for b in r], 1) for n, r in zip(sizes, rows)])
        # the scores' common shift has no curvature, nor any effect; shy steps while far
        lift = float(slope.norm()) * 3 if slope.norm() > 1e-3 else 0.0
        e, basis = torch.linalg.eigh(H)
        e = torch.where(e.abs() < 1e-9, torch.inf, e.abs() + lift)
        step = basis @ ((basis.T @ slope) / e)
        params = tuple(p - s.view(n) for p, s, n in zip(params, step.split(sizes), shapes))
    assert slope is not None and slope.norm() < 1e-12
    state = case.state._replace(params=params)
    case = case._replace(state=state, hyper={n: leaf(h) for n, h in hyper.items()})
    return case, case.problem.outer_loss(params, hyper)[0].detach()


@pytest.mark.parametrize("name", KINDS)
def test_network_at_its_minimum(name: str) -> None:
    """Central differences of the whole training, repeated for every changed value."""
    optimizer = SGD(0.0)
    case, _ = trained(optimizer)
    case = case._replace(kinds=KINDS)  # type: ignore[arg-type]
    got = case(ConjugateGradient(200, 1e-11, steps=1)).hypergradient[name]
    expected = torch.zeros_like(got)
    for i in range(got.numel()):
        above, below = (trained(optimizer, (name, i, h))[1] for h in (1e-4, -1e-4))
        expected.view(-1)[i] = (above - below) / 2e-4
    close(got, expected, 1e-5)


# --- What is refused ---------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("make", [Neumann, ConjugateGradient, Nystrom])
@pytest.mark.parametrize("setting", ["log_lr", "momentum"])
def test_an_optimizer_setting_of_kind_loss_is_an_error(
    make: Any, setting: str, method: Method
) -> None:
    """The minimum depends neither on lr nor on momentum: an error, not zeros."""
    case = network(SGD())._replace(kinds={setting: "loss"})
    with pytest.raises(UnsupportedHyperparameter, match=f"'{setting}'"):
        case(make(product=method, damping=DAMPING))


@pytest.mark.parametrize("make", [Neumann, ConjugateGradient, Nystrom])
@pytest.mark.parametrize("decay", [0.1, (0.1, 0.0, 0.0), torch.tensor(0.1)])
def test_decoupled_weight_decay_is_an_error(make: Any, decay: Any) -> None:
    """AdamW settles neither at the minimum of the training loss nor of a decayed loss."""
    case = network(Adam())._replace(kinds={"smoothing": "loss"})

    def settings(hyper: Hyper) -> dict[str, Any]:
        return {"lr": 0.1, "weight_decay": decay}

    case = case._replace(problem=replace(case.problem, settings=settings))
    with pytest.raises(UnsupportedHyperparameter, match="put the decay into the inner loss"):
        case(make())


@pytest.mark.parametrize("make", [Neumann, ConjugateGradient, Nystrom])
def test_adamw_without_weight_decay_equals_adam(make: Any) -> None:
    case = network(Adam())._replace(kinds={"smoothing": "loss"})
    case = case._replace(
        problem=replace(case.problem, settings=lambda h: {"lr": 0.1, "weight_decay": 0.0})
    )
    coupled = case._replace(problem=replace(case.problem, optimizer=Adam(decoupled=False)))
    estimator = make(damping=DAMPING)
    got, expected = (c(estimator).hypergradient["smoothing"] for c in (case, coupled))
    close(got, expected)
