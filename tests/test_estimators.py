"""Properties of single estimators, and the second-order products that they share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from problems import (
    OPTIMIZERS,
    QUADRATIC,
    RATE,
    Case,
    Repeated,
    close,
    counted,
    flat,
    jacobians,
    leaf,
    network,
    normal,
    rate,
    ridge,
    still,
    walk,
)
from torch import Tensor

from darts_lite.hypergradient import (
    SGD,
    Adam,
    Bilevel,
    ConjugateGradient,
    Estimator,
    Forward,
    Hyper,
    InnerState,
    Kind,
    Loss,
    Method,
    Neumann,
    OneStep,
    Online,
    OptimizerState,
    Params,
    PerKind,
    Unrolled,
    UnsupportedHyperparameter,
)
from darts_lite.hypergradient.derivatives import Derivative
from darts_lite.hypergradient.problem import dot

METHODS: tuple[Method, ...] = ("double_backward", "jvp", "finite_difference", "one_sided")
EXACT = OneStep("double_backward", second_order=True)
CHEAP = OneStep("finite_difference", second_order=True)
every_method = pytest.mark.parametrize("method", METHODS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

# --- The second-order product, in four ways ----------------------------------------------------

VARIABLES = ("alpha", "smoothing", "magnitude")


@cache
def hessian() -> tuple[Case, Params, dict[str, Tensor], Sequence[Params], Sequence[Hyper]]:
    """Network, direction, and dense second derivatives d²L/dw² and d²L/dhyper dw."""
    case = network(SGD())
    hyper = {n: case.hyper[n].detach() for n in VARIABLES}
    along = tuple(normal(*p.shape, seed=40) for p in case.state.params)
    moving = {n: normal(*h.shape, seed=41) for n, h in hyper.items()}

    def gradient(params: Params, hyper: Hyper) -> Params:
        return torch.func.grad(lambda p: case.problem.inner_loss(p, hyper, 0)[0])(params)

    ww, wh = jacobians(gradient, case.state.params, hyper)
    return case, along, moving, ww, wh


def applied(rows: Sequence[Params], along: Params) -> Params:
    """Multiply a matrix of blocks by a vector of blocks."""
    return tuple(
        torch.stack([torch.tensordot(b, a, a.dim()) for b, a in zip(row, along)]).sum(0)
        for row in rows
    )


def derivative(case: Case, of: tuple[str, ...] = (), weights: bool = True) -> Derivative:
    return Derivative(
        lambda params, hyper: case.problem.inner_loss(params, hyper, 0),
        case.state.params,
        case.hyper,
        of,
        weights,
    )


TOLERANCE = {"double_backward": 1e-12, "jvp": 1e-12, "finite_difference": 1e-7, "one_sided": 1e-3}


@every_method
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("of", [(), ("magnitude",), VARIABLES])
def test_hessian_products(method: Method, weights: bool, of: tuple[str, ...]) -> None:
    """H dw and d/dhyper (grad_w L . dw), together and apart."""
    case, along, _, ww, wh = hessian()
    got, mixed, _ = derivative(case, of, weights).along(along, method=method, radius=1e-4)
    assert len(got) == (3 if weights else 0) and tuple(mixed) == of
    for part, expected in zip(got, applied(ww, along)):
        close(part, expected, TOLERANCE[method])
    for name in of:
        expected = torch.stack(
            [torch.tensordot(a, row[name], a.dim()) for a, row in zip(along, wh)]
        )
        value = mixed[name]
        assert value is not None
        close(value, expected.sum(0), TOLERANCE[method])


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("names", [("smoothing",), VARIABLES])
@pytest.mark.parametrize("still", [False, True])
def test_tangent_of_the_gradient(method: Method, names: tuple[str, ...], still: bool) -> None:
    """H dw + d²L/dw dhyper . dhyper, computed with the known gradient."""
    case, along, moving, ww, wh = hessian()
    if still:
        along = tuple(torch.zeros_like(a) for a in along)
    problem, calls = counted(case.problem)
    _, gradient, _ = case.problem.advance(case.state, case.hyper, 0)
    product = replace(derivative(case._replace(problem=problem)), known=gradient)
    got, mixed, _ = product.along(along, {n: moving[n] for n in names}, method=method, radius=1e-4)
    for part, row, turned in zip(got, wh, applied(ww, along)):
        moved = [torch.tensordot(row[n], moving[n], moving[n].dim()) for n in names]
        close(part, turned + torch.stack(moved).sum(0), TOLERANCE[method])
    assert mixed == {}
    assert calls["inner"] == (2 if method == "finite_difference" else 1)


def test_double_backward_with_a_direction_in_hyper_is_an_error() -> None:
    case, along, moving, *_ = hessian()
    with pytest.raises(ValueError, match="use jvp"):
        derivative(case).along(along, moving, method="double_backward", radius=1e-4)


def toy(loss: Callable[[Tensor, Tensor], Tensor], h: Any = 0.5) -> Derivative:
    return Derivative(
        lambda params, hyper: (loss(params[0], hyper["h"]), None),
        (normal(3),),
        {"h": leaf(h), "other": leaf(1.0)},
        of=("h", "other"),
    )


@every_method
def test_none_is_not_zero(method: Method) -> None:
    """A derivative that is zero at this point is a value; no dependence is None."""
    product = toy(lambda w, h: (h**2 * w).sum() + w.pow(4).sum(), 0.0)
    for weights in (True, False):
        one = replace(product, weights=weights)
        _, mixed, _ = one.along((normal(3, seed=1),), method=method, radius=1e-3)
        assert mixed["other"] is None
        assert mixed["h"] is not None and float(mixed["h"].abs()) < 1e-15


@every_method
@pytest.mark.parametrize("of", [("h",), ("other",), ("h", "other")])
def test_a_linear_loss(method: Method, of: tuple[str, ...]) -> None:
    """The gradient is constant in w and has no graph: zero, or None without dependence."""
    product = replace(toy(lambda w, h: (h * w).sum()), of=of)
    (curved,), mixed, _ = product.along((normal(3, seed=1),), method=method, radius=1e-3)
    assert torch.equal(curved, torch.zeros(3, dtype=torch.float64))
    if "h" in of:
        assert mixed["h"] is not None
        close(mixed["h"], normal(3, seed=1).sum(), 1e-11)
    if "other" in of:
        assert mixed["other"] is None


@every_method
def test_an_additive_hyperparameter_has_no_mixed_derivative(method: Method) -> None:
    """L = f(w) + g(h): None or zero."""
    _, mixed, _ = toy(lambda w, h: w.pow(4).sum() + h**2).along(
        (normal(3, seed=1),), method=method, radius=1e-3
    )
    assert mixed["h"] is None or mixed["h"] == 0


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_derivative_along_zero_is_zero(method: Method, dtype: torch.dtype) -> None:
    """Although the radius is divided by the norm of the direction."""
    w, h = normal(3).to(dtype), leaf(0.5).detach().to(dtype)
    product = Derivative(
        lambda params, hyper: ((hyper["h"] * params[0] ** 4).sum(), None), (w,), {"h": h}, ("h",)
    )
    (curved,), mixed, _ = product.along((torch.zeros_like(w),), method=method, radius=0.01)
    assert torch.equal(curved, torch.zeros_like(w)) and mixed["h"] == 0


@every_method
@pytest.mark.parametrize("length", [1e-30, 1e-15, 1e15])
def test_a_direction_of_any_length(method: Method, length: float) -> None:
    """Also in float32, where squares below 1e-38 underflow, as near the end of a schedule."""
    w, u = normal(3).float(), normal(3, seed=1).float()
    product = Derivative(
        lambda params, hyper: ((hyper["h"] * params[0] ** 4).sum(), None),
        (w,),
        {"h": torch.tensor(0.5)},
        ("h",),
    )
    (curved,), mixed, _ = product.along((length * u,), method=method, radius=0.01)
    tolerance = 0.05 if method in METHODS[2:] else 1e-5
    close(curved / length, 6 * w**2 * u, tolerance)
    assert mixed["h"] is not None
    close(mixed["h"] / length, (4 * w**3 * u).sum(), tolerance)


# --- The errors of the differences are known ---------------------------------------------------


def quartic(rate: float = RATE) -> Case:
    """Inner loss h Σw⁴/4: the error along u is a polynomial in the radius divided by |u|.

    Expected: the exact derivative, and the coefficients of that polynomial.
    """
    start = QUADRATIC.start
    case = Case(
        Bilevel(
            lambda params, hyper, t: (hyper["h"] * params[0].pow(4).sum() / 4, None),
            QUADRATIC.outer,
            SGD(0.0),
            lambda hyper: {"lr": rate},
        ),
        still(start),
        {"h": leaf(0.8)},
        {"h": "loss"},
    )
    u = -rate * (start - rate * 0.8 * start**3 - QUADRATIC.c)
    length = u.norm()
    return case._replace(
        expected={
            "h": start**3 @ u,
            "first": 1.5 * (start**2 * u**2).sum() / length,
            "second": (start * u**3).sum() / length**2,
            "third": u.pow(4).sum() / 4 / length**3,
        }
    )


@pytest.mark.parametrize("radius", [1.0, 0.1, 0.01, 0.001])
def test_error_of_the_finite_difference(radius: float) -> None:
    """Error O(radius²), with its constant."""
    case = quartic()
    close(case(EXACT).hypergradient["h"], case.expected["h"])
    got = case(replace(CHEAP, radius=radius)).hypergradient["h"]
    close(got, case.expected["h"] + radius**2 * case.expected["second"])


@pytest.mark.parametrize("radius", [1.0, 0.1, 0.01, 0.001])
def test_error_of_the_one_sided_difference(radius: float) -> None:
    """Error O(radius), with all constants."""
    exact, first, second, third = quartic().expected.values()
    got = quartic()(replace(CHEAP, product="one_sided", radius=radius)).hypergradient["h"]
    close(got, exact + radius * first + radius**2 * second + radius**3 * third)


@pytest.mark.parametrize("make", [quartic, lambda: network(SGD(0.9, True))])
def test_second_order_term_does_not_scale_with_the_radius(make: Callable[[], Case]) -> None:
    """A known mistake: `(p - n) / 2.*eps` multiplies by the radius, and the term vanishes."""
    case = make()
    exact = case(EXACT).hypergradient
    first = case(replace(EXACT, second_order=False)).hypergradient
    for radius in (0.1, 0.01, 0.001):
        got = case(replace(CHEAP, radius=radius)).hypergradient
        for name, kind in case.kinds.items():
            if kind == "optimizer":
                continue
            term = exact[name] - (first[name] if kind == "architecture" else 0)
            assert term.norm() > 0  # neither pass has overwritten the other
            assert (got[name] - exact[name]).norm() < radius * term.norm()


@every_method
def test_second_order_term_scales_with_the_rate(method: Method) -> None:
    """The term is proportional to a small learning rate, to first order."""
    one, two = (quartic(r)(OneStep(method)).hypergradient["h"] for r in (1e-6, 2e-6))
    assert (two / one).item() == pytest.approx(2, rel=1e-3)


@every_method
def test_validation_at_its_minimum(method: Method) -> None:
    """The direction of the mixed term is zero there."""
    case = quartic()
    ahead = walk(case, case.hyper, 1).params
    problem = replace(
        case.problem,
        outer_loss=lambda params, hyper: ((params[0] - ahead[0]).square().sum(), None),
    )
    for estimator in (OneStep(method), Unrolled(1, product=method)):
        assert case._replace(problem=problem)(estimator).hypergradient["h"] == 0


# --- What an estimate costs --------------------------------------------------------------------

OPTIMIZER: tuple[Kind, ...] = ("optimizer",)
ANY: tuple[Kind, ...] = ("architecture", "loss", "optimizer")


@pytest.mark.parametrize(
    ("estimator", "kinds", "inner"),
    [
        (OneStep(), OPTIMIZER, 1),  # dot products with what is there
        (OneStep(), ("architecture", "optimizer"), 1),
        (OneStep(), ANY, 3),
        (OneStep("double_backward"), ANY, 2),
        (Unrolled(1), OPTIMIZER, 1),
        (Unrolled(4), OPTIMIZER, 4 + 3),  # the window's beginning needs no adjoint
        (Unrolled(4), ANY, 4 + 4),
        (Unrolled(4, graphs=1), OPTIMIZER, 4 + 2),
        (Unrolled(4, graphs="sqrt"), OPTIMIZER, 4 + 1),
        (Unrolled(4, graphs="sqrt"), ANY, 4 + 2),
        (Unrolled(4, graphs="all"), ANY, 4),
        (Unrolled(4, graphs=9), OPTIMIZER, 4),
        (Unrolled(4, graphs="all", product="one_sided"), OPTIMIZER, 4 + 3),  # has no graphs
        (Unrolled(4, product="finite_difference"), OPTIMIZER, 4 + 2 * 3),
        (Unrolled(4, product="one_sided"), OPTIMIZER, 4 + 3),
        (Neumann(3, 0.02, 20.0), ("loss",), 1 + 3 + 1),
        (ConjugateGradient(3, 0.0, 20.0), ("loss",), 1 + 3 + 1),
        (ConjugateGradient(3, 0.0, 20.0, steps=4), ("loss",), 4 + 3 + 1),
    ],
)
def test_number_of_loss_evaluations(
    estimator: Estimator, kinds: tuple[Kind, ...], inner: int
) -> None:
    """Documented number of training losses, and one validation loss."""
    case = network(SGD())
    problem, calls = counted(case.problem)
    case = case._replace(problem=problem, kinds={n: k for n, k in case.kinds.items() if k in kinds})
    case(estimator)
    assert calls == {"inner": inner, "outer": 1}


@pytest.mark.parametrize(
    ("product", "each"), [("jvp", 1), ("finite_difference", 2), ("one_sided", 1)]
)
def test_number_of_loss_evaluations_of_forward(product: Any, each: int) -> None:
    """One derivative of the training gradient per scalar with a tangent."""
    case = network(SGD())
    problem, calls = counted(case.problem)
    case = case._replace(problem=problem)
    scalars = sum(case.hyper[n].numel() for n in case.kinds)
    of_the_optimizer = sum(case.hyper[n].numel() for n, k in case.kinds.items() if k == "optimizer")
    ahead = case(Forward(product=product))
    asked = 1  # whether anything depends on what is new
    assert calls == {"inner": 1 + asked + each * (scalars - of_the_optimizer), "outer": 1}
    calls.clear()
    case._replace(state=ahead.state)(Forward(product=product))
    assert calls == {"inner": 1 + each * scalars, "outer": 1}


def test_online_needs_no_extra_evaluation() -> None:
    case = network(SGD())
    problem, calls = counted(case.problem)
    case = case._replace(problem=problem).within(Online())
    case(Repeated(Online(), 3))
    assert calls == {"inner": 3}


def test_online_checks_the_dependence_at_its_first_step_only() -> None:
    """The check costs one update."""
    case = network(SGD()).within(Online())
    updates = []
    for steps in (1, 2, 3):
        asked = 0

        def settings(hyper: Hyper) -> Any:
            nonlocal asked
            asked += 1
            return case.problem.settings(hyper)

        problem = replace(case.problem, settings=settings)
        case._replace(problem=problem)(Repeated(Online(), steps))
        updates.append(asked)
    assert updates[2] - updates[1] == updates[1] - updates[0] == updates[0] - 1


# --- Unrolled with kept graphs -----------------------------------------------------------------

KEPT: tuple[Any, ...] = (1, 2, "sqrt", "all")


@every_optimizer
@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize("graphs", KEPT)
def test_kept_graphs_change_rounding_only(name: str, graphs: Any, anneal: bool) -> None:
    case = network(OPTIMIZERS[name])
    expected, ahead = (
        case(Unrolled(5, anneal=anneal)),
        case(Unrolled(5, anneal=anneal, graphs=graphs)),
    )
    for variable, value in expected.hypergradient.items():
        close(ahead.hypergradient[variable], value, 1e-11)
    for got, tensor in zip(flat(ahead.state), flat(expected.state), strict=True):
        close(got, tensor, 1e-13)


@pytest.mark.parametrize(
    ("steps", "graphs", "kept"),
    [(5, 0, 0), (5, 2, 2), (5, 9, 5), (5, "all", 5), (1, "sqrt", 1), (16, "sqrt", 4)],
)
def test_number_of_kept_graphs(steps: int, graphs: Any, kept: int) -> None:
    assert Unrolled(steps, graphs=graphs).kept == kept


def largest_graph(estimator: Estimator) -> int:
    """Largest number of elements that the graphs of an estimate save at the same time."""
    live = most = 0

    def freed(size: int) -> None:
        nonlocal live
        live -= size

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal live, most
            self.tensor = tensor
            live += tensor.numel()
            most = max(most, live)
            weakref.finalize(self, freed, tensor.numel())

    case = network(SGD())
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        case(estimator)
    assert live == 0
    return most


def test_memory_of_kept_graphs() -> None:
    """One graph whatever K is; each kept one adds as much; all are freed."""
    none, long = (largest_graph(Unrolled(steps)) for steps in (3, 6))
    assert none == long
    sizes = [largest_graph(Unrolled(6, graphs=g)) for g in (2, 3, 4, 6)]
    one = sizes[1] - sizes[0]
    assert 0.5 * none < one < none
    assert sizes[2] - sizes[1] == one and sizes[3] - sizes[2] == 2 * one
    assert largest_graph(Unrolled(6, graphs="sqrt")) == sizes[1]


@pytest.mark.parametrize("graphs", [-1, 1.5, True, "none", None])
def test_what_graphs_may_be(graphs: Any) -> None:
    with pytest.raises(ValueError) as error:
        Unrolled(3, graphs=graphs)
    assert str(error.value) == (
        f"graphs must be 'sqrt', 'all' or a number of steps from 0, got {graphs!r}; use 0 for the "
        "least memory"
    )


def test_per_kind_keeps_graphs_of_steps_that_it_takes_first() -> None:
    """A step that another window has taken is computed again."""
    case = network(SGD())
    problem, calls = counted(case.problem)
    mixture = PerKind(OneStep(), Unrolled(2, graphs="all"), Unrolled(4, graphs="all"))
    ahead = case._replace(problem=problem)(mixture)
    assert calls == {"inner": 4 + 2, "outer": 1}
    plain = case(PerKind(OneStep(), Unrolled(2), Unrolled(4)))
    for variable, expected in plain.hypergradient.items():
        close(ahead.hypergradient[variable], expected, 1e-11)


# --- Unrolled with an annealed rate ------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_annealed_closed_form(steps: int, shared: bool) -> None:
    """P1 of a schedule: the lr of step t is (1 - t/K) times the learned lr."""
    q, shares = QUADRATIC, [1 - t / steps for t in range(steps)]
    factors = [q.eye - RATE * share * q.A for share in shares]
    delta = q.start - q.best

    def product(left_out: int) -> Tensor:
        result = delta
        for t, factor in enumerate(factors):
            result = result if t == left_out else factor @ result
        return result

    r = q.best + product(-1) - q.c
    by_rate = sum(-share * r @ q.A @ product(t) for t, share in enumerate(shares))
    case = Case(
        Bilevel(
            q.inner,
            q.outer,
            SGD(0.0),
            lambda hyper: {"lr": hyper["lr"] if shared else (hyper["lr"], hyper["lr"])},
        ),
        still(*q.start.split([2, 2])),
        {"lr": leaf(RATE)},
        {"lr": "optimizer"},
    )
    ahead = case(Unrolled(steps, anneal=True))
    assert ahead.outer is not None
    close(ahead.hypergradient["lr"], by_rate)  # type: ignore[arg-type]
    close(ahead.outer[0], 0.5 * r.square().sum())


@pytest.mark.parametrize("product", METHODS[:2])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_annealed_equals_its_reference_twin(name: str, product: Method) -> None:
    """Plain autograd through all steps, for every hyperparameter; no step is taken."""
    case = network(OPTIMIZERS[name])
    state = InnerState(tuple(leaf(p) for p in case.state.params), case.state.optimizer)
    for t in range(4):

        def settings(hyper: Hyper, t: int = t) -> dict[str, Any]:
            own = dict(case.problem.settings(hyper))
            return {**own, "lr": own["lr"] * (1 - t / 4)}

        problem = replace(case.problem, settings=settings)
        state, _ = problem.inner_step(state, case.hyper, t, create_graph=True)
    outer, _ = case.problem.outer_loss(state.params, case.hyper)
    twin = torch.autograd.grad(outer, list(case.hyper.values()))
    ahead = case(Unrolled(4, anneal=True, product=product))
    for variable, expected in zip(case.hyper, twin):
        close(ahead.hypergradient[variable], expected, 1e-10)
    assert ahead.state is case.state


def test_annealed_over_one_step_is_plain() -> None:
    """The first step has the whole lr."""
    case = network(SGD())
    plain = case(Unrolled(1)).hypergradient
    for name, got in case(Unrolled(1, anneal=True)).hypergradient.items():
        assert torch.equal(got, plain[name])


# --- Forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_forward_equals_its_reference_twin(name: str, discount: float) -> None:
    """Z <- discount (d step/ds) Z + d step/dhyper with dense Jacobians of the whole step."""
    case = network(OPTIMIZERS[name])
    case = case._replace(kinds={n: k for n, k in case.kinds.items() if n != "magnitude"})
    hyper = {n: h.detach() for n, h in case.hyper.items()}
    moving = {n: hyper[n] for n in case.kinds}

    def step(tensors: list[Tensor], moving: Hyper, number: int, t: int) -> list[Tensor]:
        n = len(case.state.params)
        parts = [tuple(tensors[i : i + n]) for i in range(0, len(tensors), n)]
        values = {**hyper, **moving}
        gradient = torch.func.grad(lambda p: case.problem.inner_loss(p, values, t)[0])(parts[0])
        return flat(
            InnerState(
                *case.problem.optimizer.update(
                    parts[0],
                    gradient,
                    OptimizerState(number, tuple(parts[1:])),
                    **case.problem.settings(values),
                )
            )
        )

    estimator, state = Forward(discount), case.state
    Z: dict[str, list[Tensor]] = {
        n: [torch.zeros(*s.shape, h.numel(), dtype=s.dtype) for s in flat(state)]
        for n, h in moving.items()
    }
    for t in range(2 if discount in (0, 1) else 3):
        by_state, by_hyper = jacobians(step, flat(state), moving, state.optimizer.step, t)
        for n, h in moving.items():
            Z[n] = [
                sum(discount * torch.tensordot(J, z, z.dim() - 1) for J, z in zip(row, Z[n]))
                + direct[n].reshape(*direct[n].shape[: direct[n].dim() - h.dim()], -1)
                for row, direct in zip(by_state, by_hyper)
            ]
        ahead = estimator(case.problem.after(t), state, case.hyper, case.kinds)
        state = ahead.state
        v, direct, _ = case.problem.outer_gradient(state.params, case.hyper, tuple(case.kinds))
        for n, h in moving.items():
            for got, z in zip(state.carried[n], Z[n], strict=True):
                close(got, z.movedim(-1, 0), 1e-9, floor=1e-3)
            expected = sum(torch.tensordot(a, z, a.dim()) for a, z in zip(v, Z[n])).view(h.shape)
            if direct[n] is not None:
                expected = expected + direct[n]
            close(ahead.hypergradient[n], expected)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_forward_with_discount_one_equals_unrolled(name: str) -> None:
    """Forward and reverse mode of the same product of Jacobians."""
    case = network(OPTIMIZERS[name])
    reverse = case(Unrolled(3)).hypergradient
    for variable, got in case(Repeated(Forward(), 3)).hypergradient.items():
        close(got, reverse[variable])


def test_forward_with_discount_zero_equals_one_step() -> None:
    """Whatever tangents are carried."""
    case = network(SGD())
    first = case(Forward())
    rest = case._replace(problem=case.problem.after(1), state=first.state)
    one = rest(EXACT).hypergradient
    for name, value in rest(Forward(0.0)).hypergradient.items():
        close(value, one[name])
    for name, value in rest(Forward(1.0)).hypergradient.items():
        assert (value - one[name]).norm() > 1e-3 * one[name].norm()


def test_forward_accepts_a_new_hyperparameter() -> None:
    """The new tangent starts at zero, and the other tangents continue."""
    case = network(SGD())
    lr = case._replace(kinds={"log_lr": "optimizer"})
    ahead = lr(Forward())
    both = lr._replace(
        problem=case.problem.after(1),
        state=ahead.state,
        kinds={"log_lr": "optimizer", "log_decay": "optimizer"},
    )
    got = both(Forward()).hypergradient
    close(got["log_lr"], lr(Unrolled(2)).hypergradient["log_lr"])
    close(got["log_decay"], both(EXACT).hypergradient["log_decay"])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_forward_recovers_from_an_overflow(bad: float) -> None:
    """The estimate is not finite; the tangent restarts, and the other tangents continue."""
    case = network(SGD()).within(Online())
    state = case(Forward()).state
    broken = {**state.carried, "log_lr": tuple(z * bad for z in state.carried["log_lr"])}
    case = case._replace(problem=case.problem.after(1))
    ahead = case._replace(state=state._replace(carried=broken))(Forward())
    healthy = case._replace(state=state)(Forward())
    assert not ahead.hypergradient["log_lr"].isfinite()
    assert not any(z.any() for z in ahead.state.carried["log_lr"])
    assert torch.equal(ahead.hypergradient["log_decay"], healthy.hypergradient["log_decay"])
    after = case._replace(problem=case.problem.after(1), state=ahead.state)
    own = after(EXACT).hypergradient["log_lr"]
    close(after(Forward()).hypergradient["log_lr"], own)


def test_forward_drops_tangents_that_are_not_requested() -> None:
    case = network(SGD())
    state = case(Forward()).state
    assert set(state.carried) == set(case.kinds)
    case = case._replace(state=state, kinds={"log_lr": "optimizer"})
    assert set(case(Forward()).state.carried) == {"log_lr"}


def test_forward_returns_the_direct_term_without_a_tangent() -> None:
    """For an architecture on which only the validation loss depends, at every step."""
    case = rate(1)

    def outer(params: Params, hyper: Hyper) -> Loss:
        return QUADRATIC.outer(params, hyper)[0] + hyper["alpha"].square().sum(), None

    case = case._replace(
        problem=replace(case.problem, outer_loss=outer),
        hyper={**case.hyper, "alpha": leaf([0.3, 0.5])},
        kinds={**case.kinds, "alpha": "architecture"},
    )
    for steps in (1, 2):
        close(case(Repeated(Forward(), steps)).hypergradient["alpha"], leaf([0.6, 1.0]).detach())


# --- Online ------------------------------------------------------------------------------------


def online(rule: Any, hyper: dict[str, float], moments: tuple[Tensor, ...], step: int) -> Case:
    """A quadratic with different batches, from the middle of a training."""
    shifts = normal(3, 4, seed=50)

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        w = params[0]
        return 0.5 * w @ QUADRATIC.A @ w + shifts[t] @ w, t

    return Case(
        Bilevel(inner, QUADRATIC.outer, rule, dict),
        InnerState((QUADRATIC.start,), OptimizerState(step, tuple((m,) for m in moments))),
        {n: leaf(v) for n, v in hyper.items()},
        dict.fromkeys(hyper, "optimizer"),
    )


def follow(
    case: Case, rows: Callable[[Tensor, Tensor, list[Tensor], int], dict[str, Tensor]]
) -> None:
    """Check three steps of Online; `rows(w, g, moments, step)` is d update/dhyper by hand."""
    state, before = case.state, None
    for t in range(3):
        ahead = Online()(case.problem.after(t), state, case.hyper, case.kinds)
        w = state.params[0].clone().requires_grad_()
        (g,) = torch.autograd.grad(case.problem.inner_loss((w,), case.hyper, t)[0], w)
        if before is None:
            assert ahead.hypergradient == {} and ahead.outer is None
        else:
            assert list(ahead.hypergradient) == list(case.kinds)
            for name, row in before.items():
                close(ahead.hypergradient[name], g @ row)
        moments = [m[0] for m in state.optimizer.moments]
        before = rows(w.detach(), g, moments, state.optimizer.step + 1)
        state = ahead.state


@pytest.mark.parametrize("nesterov", [False, True])
def test_online_by_hand(nesterov: bool) -> None:
    """grad L(w_t, batch t) . d update_{t-1}/dhyper, with a fixed velocity."""
    lr, decay, mu = 0.1, 0.05, 0.7

    def rows(w: Tensor, g: Tensor, moments: list[Tensor], step: int) -> dict[str, Tensor]:
        g, old = g + decay * w, moments[0]
        v = mu * old + g
        if nesterov:
            return {
                "lr": -(g + mu * v),
                "weight_decay": -lr * (1 + mu) * w,
                "momentum": -lr * (v + mu * old),
            }
        return {"lr": -v, "weight_decay": -lr * w, "momentum": -lr * old}

    hyper = {"lr": lr, "weight_decay": decay, "momentum": mu}
    follow(online(SGD(nesterov=nesterov), hyper, (QUADRATIC.push,), 3), rows)


def test_online_by_hand_with_adamw() -> None:
    lr, decay, b1, b2, eps = 0.1, 0.05, 0.8, 0.9, 1e-3

    def rows(w: Tensor, g: Tensor, moments: list[Tensor], step: int) -> dict[str, Tensor]:
        m0, v0 = moments
        m, v = b1 * m0 + (1 - b1) * g, b2 * v0 + (1 - b2) * g * g
        c1, c2 = 1 - b1**step, 1 - b2**step
        mean, root = m / c1, (v / c2).sqrt()
        by_b1 = (m0 - g) / c1 + m * step * b1 ** (step - 1) / c1**2
        square = (v0 - g * g) / c2 + v * step * b2 ** (step - 1) / c2**2
        return {
            "lr": -decay * w - mean / (root + eps),
            "weight_decay": -lr * w,
            "beta1": -lr * by_b1 / (root + eps),
            "beta2": lr * mean / (root + eps) ** 2 * square / (2 * root),
        }

    hyper = {"lr": lr, "weight_decay": decay, "beta1": b1, "beta2": b2}
    moments = (QUADRATIC.push, 0.1 + normal(4, seed=51).square())
    follow(online(Adam(eps=eps), hyper, moments, 3), rows)


def test_online_with_one_lr_per_group() -> None:
    """The dot product of the group's tensors."""
    case = network(SGD(0.9))
    problem = replace(case.problem, settings=lambda hyper: {"lr": hyper["rates"].unbind()})
    case = Case(problem, case.state, {**case.hyper, "rates": leaf([0.1, 0.2, 0.3])}, {})
    case = case._replace(kinds={"rates": "optimizer"})
    got = case(Repeated(Online(), 2)).hypergradient["rates"]
    state = walk(case, case.hyper, 1)
    _, (gradient, *_), _ = case.problem.advance(state, case.hyper, 1)
    velocity = state.optimizer.moments[0]
    close(got, torch.stack([-dot((g,), (v,)) for g, v in zip(gradient, velocity)]))


# --- PerKind -----------------------------------------------------------------------------------

CENTRAL = OneStep(second_order=True)
SIDED = OneStep("one_sided", second_order=True)
MIXTURES: dict[str, tuple[PerKind, int]] = {  # and how many training losses it may evaluate
    "one_step": (PerKind(CENTRAL, CENTRAL, CENTRAL), 1 + 2),
    "cheapest": (PerKind(OneStep(), OneStep("double_backward"), OneStep()), 1 + 1),
    "first_and_second_order": (PerKind(EXACT, OneStep(), OneStep()), 1 + 1 + 2),
    "windows": (PerKind(EXACT, Unrolled(2), Unrolled(4)), 4 + 1 + 2 + 3),
    "long_architecture": (PerKind(Unrolled(4), OneStep(), OneStep()), 4 + 4 + 2),
    "implicit": (
        PerKind(ConjugateGradient(3, 0.0, 20.0), Neumann(3, 0.02, 20.0), Unrolled(3)),
        3 + (3 + 1) + (3 + 1) + 2,
    ),
    "implicit_windows": (
        PerKind(Neumann(2, 0.02, 20.0, steps=3), Neumann(2, 0.02, 20.0, steps=2), OneStep()),
        3 + (2 + 1) + (2 + 1),
    ),
    "one_sided": (PerKind(SIDED, Unrolled(3, product="one_sided"), OneStep()), 3 + 3 + 1 + 1),
    "forward": (PerKind(OneStep(), OneStep(), Forward()), 1 + 2 + 1),
    "online": (PerKind(EXACT, EXACT, Online()), 1 + 1),
}


@pytest.mark.parametrize("steps", [2, 3])
def test_per_kind_with_an_annealed_window(steps: int) -> None:
    """It shares no step with the training, because its lr differs."""
    case = network(SGD())
    part = Unrolled(steps, anneal=True)
    expected = case.within(Online())(part)
    ahead = case(PerKind(OneStep(), OneStep(), part))
    for variable, value in expected.hypergradient.items():
        close(ahead.hypergradient[variable], value)


@pytest.mark.parametrize("optimizer", [SGD(0.9), Adam(decoupled=False)], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", MIXTURES)
def test_per_kind_equals_its_estimators(name: str, optimizer: Any) -> None:
    """Bit-identical to each estimator alone, at the end of the longest window."""
    estimator, _ = MIXTURES[name]
    case = network(optimizer)
    ahead = case(estimator)
    assert ahead.hypergradient.keys() == (
        case.kinds.keys() if name != "online" else {"alpha", "smoothing", "magnitude"}
    )
    for part in {estimator.architecture, estimator.loss, estimator.optimizer}:
        own = [k for k in ANY if getattr(estimator, k) == part]
        start = estimator.steps - part.steps
        alone = case._replace(
            problem=case.problem.after(start),
            state=walk(case, case.hyper, start),
            kinds={n: k for n, k in case.kinds.items() if k in own},
        )(part)
        for variable, expected in alone.hypergradient.items():
            assert torch.equal(ahead.hypergradient[variable], expected)
        for got, value in zip(flat(ahead.state), flat(alone.state), strict=True):
            assert torch.equal(got, value)
        prefix = type(part).__name__
        for figure, expected in alone.diagnostics.items():
            assert torch.equal(ahead.diagnostics[f"{prefix}.{figure}"], expected)
    inner, _ = case.problem.inner_loss(case.state.params, case.hyper, 0)
    assert torch.equal(ahead.inner[0], inner.detach()) and ahead.inner[1] == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_per_kind_shares_its_passes(name: str) -> None:
    """Every training step and the validation loss once, plus what each estimator adds."""
    estimator, expected = MIXTURES[name]
    case = network(SGD())
    problem, calls = counted(case.problem)
    case._replace(problem=problem)(estimator)
    assert calls["inner"] <= expected and calls["outer"] == 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_sided_differences_start_from_the_training_gradient(steps: int) -> None:
    """One more gradient per step, in weights and hyperparameters at once."""
    case = network(SGD())
    problem, calls = counted(case.problem)
    case = case._replace(problem=problem)
    ahead = case(SIDED if steps == 1 else Unrolled(steps, product="one_sided"))
    assert ahead.hypergradient.keys() == case.kinds.keys()
    assert calls == {"inner": 2 * steps, "outer": 1}


@pytest.mark.parametrize("carrying", [Forward(), Forward(0.5), Online()])
def test_per_kind_passes_tangents_on(carrying: Estimator) -> None:
    """Only to the estimator that carries them."""
    case = network(SGD())
    mixture = Repeated(PerKind(EXACT, OneStep(), carrying), 3)
    ahead = case(mixture)
    alone = case.within(Online())(Repeated(carrying, 3))
    assert (
        ahead.state.carried.keys()
        == alone.state.carried.keys()
        == {n for n, k in case.kinds.items() if k == "optimizer"}
    )
    for name, expected in alone.hypergradient.items():
        assert torch.equal(ahead.hypergradient[name], expected)


@pytest.mark.parametrize("carrying", [Forward(), Online()], ids=["Forward", "Online"])
@pytest.mark.parametrize("long", [Unrolled(2), Neumann(steps=2), ConjugateGradient(steps=3)])
def test_per_kind_refuses_to_carry_over_a_window(carrying: Estimator, long: Estimator) -> None:
    """At construction, with the remedy."""
    name = type(carrying).__name__
    with pytest.raises(UnsupportedHyperparameter) as error:
        PerKind(architecture=long, loss=OneStep(), optimizer=carrying)
    assert str(error.value) == (
        f"{name} carries tangents through every step, so the other estimators must have windows "
        f"of 1 step, got {long.steps}; use OneStep"
    )


def test_per_kind_reports_the_diagnostics_of_its_estimators() -> None:
    """With the name of the estimator, since two estimators may have a residual."""
    case = ridge()
    case = case._replace(
        problem=replace(case.problem, outer_loss=_plus_alpha(case.problem.outer_loss)),
        hyper={**case.hyper, "alpha": leaf(0.5)},
        kinds={**case.kinds, "alpha": "architecture"},
    )
    ahead = case(PerKind(Neumann(3), ConjugateGradient(2), OneStep()))
    assert ahead.diagnostics.keys() == {
        *(f"Neumann.{name}" for name in ("residual", "step_size", "terms")),
        *(f"ConjugateGradient.{n}" for n in ("residual", "iterations", "negative_curvature")),
    }
    assert ahead.diagnostics["Neumann.residual"] > ahead.diagnostics["ConjugateGradient.residual"]


def _plus_alpha(outer: Callable[..., Loss]) -> Callable[..., Loss]:
    return lambda params, hyper: (outer(params, hyper)[0] + hyper["alpha"].square(), None)


@pytest.mark.parametrize(
    ("estimator", "carries"),
    [
        (PerKind(OneStep(), OneStep(), OneStep()), False),
        (PerKind(Neumann(), Unrolled(3), Unrolled(3, anneal=True)), False),
        (PerKind(OneStep(), OneStep(), Forward()), True),
        (PerKind(OneStep(), OneStep(), Online()), True),
        (PerKind(Forward(), OneStep(), OneStep()), True),
    ],
)
def test_per_kind_carries_if_one_estimator_does(estimator: PerKind, carries: bool) -> None:
    assert estimator.carries == carries
