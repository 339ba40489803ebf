"""Hypergradients: closed forms × estimators, a smooth network against central differences, misuse.

Notation of the closed forms: outer loss ½‖w_K - c‖², r = w_K - c, inner loss ½wᵀAw - bᵀw, w* its
minimum, K steps of rate η. All in float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import matrix_power as power

from darts_lite.hypergradient import (
    ESTIMATORS,
    Bilevel,
    Estimator,
    InnerState,
    Lookahead,
    OneStep,
    Unrolled,
    UnsupportedHyperparameter,
    check_supported,
)
from darts_lite.hypergradient.problem import Hyper, Loss, Params
from darts_lite.hyperparameters import Kind
from darts_lite.optimizers import SGD, Adam, Optimizer, OptimizerState

EXACT = OneStep("double_backward", second_order=True)
CHEAP = OneStep("finite_difference", second_order=True)
ONE_STEP = {"double_backward": EXACT, "finite_difference": CHEAP}
UNROLLED = {f"unrolled_{k}": Unrolled(k) for k in (1, 2, 5)}
ALL: dict[str, Estimator] = {**ONE_STEP, **UNROLLED}
every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)


class Case(NamedTuple):
    problem: Bilevel
    state: InnerState
    hyper: dict[str, Tensor]
    kinds: dict[str, Kind]
    expected: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple's default, never written to)

    def __call__(self, estimator: Estimator) -> Lookahead:
        return estimator(self.problem, self.state, self.hyper, self.kinds)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def leaf(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).clone().requires_grad_()


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """To `tolerance` of the largest entry."""
    assert got.shape == expected.shape and not got.requires_grad
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


# --- Problems with exact answers -------------------------------------------------------------

N, RATE = 4, 0.13
_ROOT = normal(N, N, seed=1)
A = _ROOT @ _ROOT.T / N + 0.5 * torch.eye(N, dtype=torch.float64)  # positive definite
B, C, START, PUSH = (normal(N, seed=s) for s in (2, 3, 4, 5))
EYE = torch.eye(N, dtype=torch.float64)


def quadratic(params: Params, hyper: Hyper, t: int) -> Loss:
    w = torch.cat(params)
    return 0.5 * w @ A @ w - B @ w, t


def distance(params: Params, hyper: Hyper) -> Loss:
    return 0.5 * (torch.cat(params) - C).square().sum(), "outer"


def still(*params: Tensor) -> InnerState:
    return InnerState(params, SGD().init(params))


def rate(steps: int) -> Case:
    """P1, of the logarithm of the rate."""

    def settings(hyper: Hyper) -> dict[str, Any]:
        return {"lr": hyper["log_lr"].exp(), "weight_decay": (0.0,)}

    best = torch.linalg.solve(A, B)
    step = EYE - RATE * A
    r = best + power(step, steps) @ (START - best) - C
    by_rate = -steps * r @ A @ power(step, steps - 1) @ (START - best)
    return Case(
        Bilevel(quadratic, distance, SGD(0.0), settings),
        still(START),
        {"log_lr": leaf(math.log(RATE))},
        {"log_lr": "optimizer"},
        {"log_lr": RATE * by_rate},
    )


def _decayed(steps: int, decay: float) -> Tensor:
    """P2."""
    M = A + decay * EYE
    step = EYE - RATE * M
    best = torch.linalg.solve(M, B)
    r = best + power(step, steps) @ (START - best) - C
    shift = torch.linalg.solve(M, best)
    moved = -shift + power(step, steps) @ shift
    return r @ (moved - RATE * steps * power(step, steps - 1) @ (START - best))


def decay_of_the_optimizer(steps: int) -> Case:
    def settings(hyper: Hyper) -> dict[str, Any]:
        return {"lr": RATE, "weight_decay": (hyper["decay"],)}

    return Case(
        Bilevel(quadratic, distance, SGD(0.0), settings),
        still(START),
        {"decay": leaf(0.2)},
        {"decay": "optimizer"},
        {"decay": _decayed(steps, 0.2)},
    )


def decay_in_the_loss(steps: int) -> Case:
    """The same number from the mixed second derivative: another path, another kind."""

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        value, report = quadratic(params, hyper, t)
        return value + 0.5 * hyper["decay"] * params[0].square().sum(), report

    return Case(
        Bilevel(inner, distance, SGD(0.0), lambda hyper: {"lr": RATE, "weight_decay": (0.0,)}),
        still(START),
        {"decay": leaf(0.2)},
        {"decay": "loss"},
        {"decay": _decayed(steps, 0.2)},
    )


def decay_that_spares(steps: int) -> Case:
    """P2 with two tensors, coupled by A, of which the second is spared."""
    split, decay = 3, 0.2

    def settings(hyper: Hyper) -> dict[str, Any]:
        return {"lr": RATE, "weight_decay": (hyper["decay"], 0.0)}

    spared = torch.diag(torch.tensor([1.0] * split + [0.0] * (N - split), dtype=torch.float64))
    M = A + decay * spared
    step = EYE - RATE * M
    best = torch.linalg.solve(M, B)
    path = [best + power(step, k) @ (START - best) for k in range(steps + 1)]
    slope = sum(power(step, steps - 1 - j) @ spared @ path[j] for j in range(steps))
    return Case(
        Bilevel(quadratic, distance, SGD(0.0), settings),
        still(START[:split], START[split:]),
        {"decay": leaf(decay)},
        {"decay": "optimizer"},
        {"decay": -RATE * (path[-1] - C) @ slope},
    )


def _momentum(nesterov: bool) -> Callable[[int], Case]:
    """P3 in N dimensions, with a velocity at the start: s = (u, v), s_K = T^K s_0."""

    def build(steps: int) -> Case:
        mu = 0.7

        def block(rows: list[list[Tensor]]) -> Tensor:
            return torch.cat([torch.cat(row, 1) for row in rows])

        if nesterov:
            T = block([[EYE - RATE * (1 + mu) * A, -RATE * mu**2 * EYE], [A, mu * EYE]])
            dT = block([[-(1 + mu) * A, -(mu**2) * EYE], [0 * A, 0 * A]])
        else:
            T = block([[EYE - RATE * A, -RATE * mu * EYE], [A, mu * EYE]])
            dT = block([[-A, -mu * EYE], [0 * A, 0 * A]])
        best = torch.linalg.solve(A, B)
        s = torch.cat([START - best, PUSH])
        slope = sum(power(T, steps - 1 - j) @ dT @ power(T, j) @ s for j in range(steps))
        r = (power(T, steps) @ s)[:N] + best - C
        return Case(
            Bilevel(
                quadratic,
                distance,
                SGD(mu, nesterov),
                lambda hyper: {"lr": hyper["lr"], "weight_decay": (0.0,)},
            ),
            InnerState((START,), OptimizerState(9, ((PUSH,),))),
            {"lr": leaf(RATE)},
            {"lr": "optimizer"},
            {"lr": r @ slope[:N]},  # type: ignore[index]
        )

    return build


def augmentation(steps: int) -> Case:
    """P7: inputs X + mR; the derivative of w_k is carried along."""
    n, m = 12, 0.3
    X, R, y = normal(n, N, seed=6), normal(n, N, seed=7), normal(n, seed=8)
    Xv, yv = normal(9, N, seed=9), normal(9, seed=10)

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        return 0.5 * ((X + hyper["m"] * R) @ params[0] - y).square().mean(), t

    def outer(params: Params, hyper: Hyper) -> Loss:
        return 0.5 * (Xv @ params[0] - yv).square().mean(), "outer"

    Xm, w, dw = X + m * R, START, torch.zeros_like(START)
    for _ in range(steps):
        direct = R.T @ (Xm @ w - y) + Xm.T @ R @ w
        dw = dw - RATE / n * (Xm.T @ Xm @ dw + direct)
        w = w - RATE / n * Xm.T @ (Xm @ w - y)
    return Case(
        Bilevel(inner, outer, SGD(0.0), lambda hyper: {"lr": RATE, "weight_decay": (0.0,)}),
        still(START),
        {"m": leaf(m)},
        {"m": "loss"},
        {"m": (Xv @ w - yv) @ Xv @ dw / 9},
    )


PROBLEMS: dict[str, Callable[[int], Case]] = {
    "rate": rate,
    "decay_of_the_optimizer": decay_of_the_optimizer,
    "decay_in_the_loss": decay_in_the_loss,
    "decay_that_spares": decay_that_spares,
    "momentum": _momentum(False),
    "nesterov": _momentum(True),
    "augmentation": augmentation,
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


@every_problem
@every_estimator
def test_closed_form(problem: str, estimator: Estimator) -> None:
    """The inner losses are quadratic in w, so the central difference has no error of its own."""
    case = PROBLEMS[problem](estimator.steps)
    got = case(estimator).hypergradient
    assert got.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        close(got[name], expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_adam_closed_form(estimator: OneStep, decay: float) -> None:
    """P4, K = 1: a linear inner loss gᵀw, Adam and AdamW."""
    g, eps = normal(N, seed=6), 1e-3
    adam = Adam(eps=eps)
    case = Case(
        Bilevel(
            lambda params, hyper, t: (hyper["scale"].detach() * g @ params[0], None),
            distance,
            adam,
            lambda hyper: {"lr": hyper["lr"], "weight_decay": (hyper["decay"],)},
        ),
        InnerState((START,), adam.init((START,))),
        {"lr": leaf(0.05), "decay": leaf(decay), "scale": leaf(1.0)},
        {"lr": "optimizer", "decay": "optimizer"},
    )
    s = g / (g.abs() + eps)
    r = START * (1 - 0.05 * decay) - 0.05 * s - C
    got = case(estimator).hypergradient
    close(got["lr"], r @ (-decay * START - s))
    close(got["decay"], r @ (-0.05 * START))


# --- The finite difference: its error is known, and it scales ---------------------------------


def quartic(rate: float = RATE) -> Case:
    """Inner loss h Σw⁴/4: the central difference along u errs by radius² Σ w u³ / ‖u‖² exactly."""
    case = Case(
        Bilevel(
            lambda params, hyper, t: (hyper["h"] * params[0].pow(4).sum() / 4, None),
            distance,
            SGD(0.0),
            lambda hyper: {"lr": rate, "weight_decay": (0.0,)},
        ),
        still(START),
        {"h": leaf(0.8)},
        {"h": "loss"},
    )
    u = -rate * (START - rate * 0.8 * START**3 - C)
    exact = (START**3) @ u
    excess = (START * u**3).sum() / u.square().sum()
    return case._replace(expected={"h": exact, "excess": excess})


@pytest.mark.parametrize("radius", [1.0, 0.1, 0.01, 0.001])
def test_error_of_the_finite_difference(radius: float) -> None:
    case = quartic()
    close(case(EXACT).hypergradient["h"], case.expected["h"])
    got = case(replace(CHEAP, radius=radius)).hypergradient["h"]
    close(got, case.expected["h"] + radius**2 * case.expected["excess"])


@pytest.mark.parametrize("make", [quartic, lambda: network(SGD(0.9, True))])
def test_second_order_term_does_not_scale_with_the_radius(make: Callable[[], Case]) -> None:
    """`(p - n) / 2.*eps` multiplies by the radius, and the term vanishes with it."""
    case = make()
    exact = case(EXACT).hypergradient
    plain = case(replace(EXACT, second_order=False)).hypergradient
    for radius in (0.1, 0.01, 0.001):
        got = case(replace(CHEAP, radius=radius)).hypergradient
        for name, kind in case.kinds.items():
            if kind == "optimizer":
                continue
            first = plain[name] if kind == "architecture" else torch.zeros_like(exact[name])
            second = exact[name] - first
            assert second.norm() > 0  # neither pass has overwritten the other
            assert (got[name] - exact[name]).norm() < radius * second.norm()


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_second_order_term_scales_with_the_rate(estimator: OneStep) -> None:
    """To first order in a small rate it is proportional to it."""
    one, two = (quartic(r)(estimator).hypergradient["h"] for r in (1e-6, 2e-6))
    assert (two / one).item() == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_validation_at_its_minimum(estimator: OneStep) -> None:
    """A zero direction: the radius is divided by a norm of zero, the mixed term is zero."""
    case = quartic()
    ahead = case.problem.inner_step(case.state, case.hyper)[0].params
    problem = replace(
        case.problem,
        outer_loss=lambda params, hyper: ((params[0] - ahead[0]).square().sum(), None),
    )
    assert case._replace(problem=problem)(estimator).hypergradient["h"] == 0


# --- A smooth network against central differences of the whole look-ahead ---------------------


def network(optimizer: Optimizer, steps: int = 6) -> Case:
    """Two layers, SiLU and tanh mixed by `alpha`, train-mode BatchNorm, another batch each step."""
    inputs, hidden, classes, batch = 5, 6, 3, 8
    x = normal(steps, batch, inputs, seed=20)
    shift = normal(steps, 2, batch, inputs, seed=21)
    labels = (torch.arange(steps * batch) * 7 % 11 % classes).view(steps, batch)
    held, answers = normal(batch, inputs, seed=22), torch.arange(batch) % classes

    def logits(params: Params, images: Tensor, alpha: Tensor) -> Tensor:
        first, second, bias = params
        h = F.batch_norm(images @ first, None, None, training=True)
        silu, tanh = alpha.softmax(0)
        h = F.batch_norm(silu * F.silu(h) + tanh * h.tanh(), None, None, training=True)
        return h @ second + bias

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        images = x[t] + torch.tensordot(hyper["magnitude"], shift[t], 1)
        scores = logits(params, images, hyper["alpha"])
        smooth = hyper["smoothing"].sigmoid()
        log = scores.log_softmax(1)
        hit = log.gather(1, labels[t, :, None])[:, 0]
        return -((1 - smooth) * hit + smooth * log.mean(1)).mean(), t

    def outer(params: Params, hyper: Hyper) -> Loss:
        return F.cross_entropy(logits(params, held, hyper["alpha"]), answers), "outer"

    def settings(hyper: Hyper) -> dict[str, Any]:
        decay = hyper["log_decay"].exp()
        return {"lr": hyper["log_lr"].exp(), "weight_decay": (decay, decay, 0.0)}

    params = (normal(inputs, hidden, seed=23), normal(hidden, classes, seed=24), normal(classes))
    count = len(optimizer.init(params).moments)  # velocity; or first and second moment
    first = tuple(0.3 * normal(*p.shape, seed=25) for p in params)
    second = tuple(torch.full_like(p, 0.1) for p in params)
    state = OptimizerState(4, (first, second)[:count])
    return Case(
        Bilevel(inner, outer, optimizer, settings),
        InnerState(params, state),
        {
            "alpha": leaf([0.3, -0.4]),
            "smoothing": leaf(-1.5),
            "magnitude": leaf([0.5, 0.2]),
            "log_lr": leaf(math.log(0.2)),
            "log_decay": leaf(math.log(0.05)),
        },
        {
            "alpha": "architecture",
            "smoothing": "loss",
            "magnitude": "loss",
            "log_lr": "optimizer",
            "log_decay": "optimizer",
        },
    )


def walk(case: Case, hyper: Hyper, steps: int) -> InnerState:
    """`steps` plain training steps."""
    state = case.state
    for t in range(steps):
        state, _ = case.problem.inner_step(state, hyper, t)
    return state


def difference(case: Case, name: str, steps: int, *, direct: bool = False) -> Tensor:
    """Central difference of outer(w_K(hyper), hyper), or with w_K held fixed if `direct`."""
    value = case.hyper[name].detach()
    fixed = {n: h.detach() for n, h in case.hyper.items()}
    result = torch.zeros_like(value)
    for i in range(value.numel()):
        sides = []
        for h in (1e-5, -1e-5):
            moved = value.clone()
            moved.view(-1)[i] += h
            hyper = {**fixed, name: moved}
            params = walk(case, fixed if direct else hyper, steps).params
            sides.append(case.problem.outer_loss(params, hyper)[0])
        result.view(-1)[i] = (sides[0] - sides[1]) / 2e-5
    return result


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.0),
    "momentum": SGD(0.9),
    "nesterov": SGD(0.9, True),
    "adam": Adam(decoupled=False),
    "adamw": Adam(),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_sgd = pytest.mark.parametrize(
    "optimizer", list(OPTIMIZERS.values())[:3], ids=list(OPTIMIZERS)[:3]
)


@every_optimizer
def test_one_step_on_a_network(optimizer: Optimizer) -> None:
    case = network(optimizer)
    second = case(EXACT).hypergradient
    first = case(replace(EXACT, second_order=False)).hypergradient
    assert list(second) == list(first) == list(case.kinds)
    for name, kind in case.kinds.items():
        close(second[name], difference(case, name, 1), 1e-7)
        direct = kind == "architecture"
        close(first[name], difference(case, name, 1, direct=direct), 1e-7)
        assert second[name].abs().min() > 1e-4  # something to get right
    assert (second["alpha"] - first["alpha"]).norm() > 1e-3 * first["alpha"].norm()


@every_optimizer
@pytest.mark.parametrize("second_order", [False, True])
def test_finite_difference_on_a_network(optimizer: Optimizer, second_order: bool) -> None:
    """Half the radius, a quarter of the error; nothing but the mixed term has any."""
    case = network(optimizer)
    exact = case(replace(EXACT, second_order=second_order)).hypergradient
    wide, narrow = (
        case(OneStep(second_order=second_order, radius=radius)).hypergradient
        for radius in (0.02, 0.01)
    )
    for name, kind in case.kinds.items():
        if kind == "loss" or (kind == "architecture" and second_order):
            errors = [(got[name] - exact[name]).norm() for got in (wide, narrow)]
            assert errors[1] < 2e-3 * exact[name].norm()
            assert (errors[0] / errors[1]).item() == pytest.approx(4, rel=0.05)
        else:
            close(wide[name], exact[name], 1e-13)


@every_sgd
@pytest.mark.parametrize("steps", [1, 3])
def test_unrolled_on_a_network(optimizer: Optimizer, steps: int) -> None:
    case = network(optimizer)
    got = case(Unrolled(steps)).hypergradient
    for name in case.kinds:
        close(got[name], difference(case, name, steps), 1e-7)


@every_sgd
def test_one_unrolled_step_is_one_step(optimizer: Optimizer) -> None:
    case = network(optimizer)
    one, unrolled = case(EXACT), case(Unrolled(1))
    for name in case.kinds:
        close(unrolled.hypergradient[name], one.hypergradient[name], 1e-10)
    close(unrolled.outer[0], one.outer[0], 1e-13)


@every_sgd
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unrolled_has_an_obvious_twin(optimizer: Optimizer, steps: int) -> None:
    """Plain autograd through `inner_step`, without `higher`."""
    case = network(optimizer)
    state = InnerState(tuple(leaf(p) for p in case.state.params), case.state.optimizer)
    for t in range(steps):
        state, _ = case.problem.inner_step(state, case.hyper, t, create_graph=True)
    outer, _ = case.problem.outer_loss(state.params, case.hyper)
    twin = torch.autograd.grad(outer, list(case.hyper.values()))
    got = case(Unrolled(steps)).hypergradient
    for name, expected in zip(case.hyper, twin):
        close(got[name], expected, 1e-10)


# --- What else comes back ---------------------------------------------------------------------


def tensors(state: InnerState) -> list[Tensor]:
    return [*state.params, *(t for moment in state.optimizer.moments for t in moment)]


@every_optimizer
@pytest.mark.parametrize("mixed", ["finite_difference", "double_backward"])
@pytest.mark.parametrize("second_order", [False, True])
def test_one_step_is_the_training_step(
    optimizer: Optimizer, mixed: Any, second_order: bool
) -> None:
    """Three times over: the step that is looked ahead is not lost."""
    case = network(optimizer)
    state = case.state
    for t in range(3):
        expected, loss = case.problem.inner_step(state, case.hyper)
        ahead = case._replace(state=state)(OneStep(mixed, second_order))
        assert ahead.state.optimizer.step == expected.optimizer.step == 5 + t
        for got, value in zip(tensors(ahead.state), tensors(expected)):
            # a gradient that records its own takes other kernels of BatchNorm: the last bit
            close(got, value, 1e-15 if mixed == "double_backward" else 0.0)
        assert torch.equal(ahead.inner[0], loss[0]) and ahead.inner[1] == 0
        state = ahead.state


@every_sgd
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_unrolled_is_the_training_steps(optimizer: SGD, steps: int) -> None:
    """Without momentum `higher` leaves the velocity as it was; nothing reads it either."""
    case = network(optimizer)
    expected = walk(case, case.hyper, steps)
    ahead = case(Unrolled(steps))
    assert ahead.state.optimizer.step == expected.optimizer.step == 4 + steps
    read = tensors if optimizer.momentum else lambda state: state.params
    for got, value in zip(read(ahead.state), read(expected), strict=True):
        close(got, value, 1e-12)
    assert not any(t.requires_grad for t in tensors(ahead.state))


@every_estimator
def test_reported_losses(estimator: Estimator) -> None:
    """The training loss of the window's first step, the validation loss after its last."""
    case = network(SGD())
    ahead = case(estimator)
    inner, _ = case.problem.inner_loss(case.state.params, case.hyper, 0)
    params = walk(case, case.hyper, estimator.steps).params
    outer, _ = case.problem.outer_loss(params, case.hyper)
    close(ahead.inner[0], inner.detach(), 1e-13)
    close(ahead.outer[0], outer.detach(), 1e-12)
    assert ahead.inner[1] == 0 and ahead.outer[1] == "outer"


@every_optimizer
def test_a_plain_step_carries_no_graph(optimizer: Optimizer) -> None:
    """Not even of the settings: a training would chain its whole past, and OneStep follow it."""
    case = network(optimizer)
    state, loss = case.problem.inner_step(case.state, case.hyper)
    assert not any(t.requires_grad for t in (*tensors(state), loss[0]))


@every_estimator
def test_only_what_is_asked_for(estimator: Estimator) -> None:
    case = network(SGD())
    everything = case(estimator).hypergradient
    for name, kind in case.kinds.items():
        got = case._replace(kinds={name: kind})(estimator).hypergradient
        assert list(got) == [name]
        close(got[name], everything[name], 1e-13)


# --- Nothing is touched -----------------------------------------------------------------------


def snapshot(case: Case) -> list[tuple[Tensor, Tensor, int, bool]]:
    watched = [*tensors(case.state), *case.hyper.values()]
    return [(t, t.detach().clone(), t._version, t.requires_grad) for t in watched]


def untouched(before: list[tuple[Tensor, Tensor, int, bool]]) -> None:
    """Neither changed nor changed and put back."""
    for tensor, value, version, requires_grad in before:
        assert torch.equal(tensor, value)
        assert tensor._version == version
        assert tensor.requires_grad == requires_grad and tensor.grad is None


ON_NETWORKS = [
    *((name, SGD(0.9, True)) for name in ALL),
    *((name, Adam()) for name in ONE_STEP),
]


@pytest.mark.parametrize(("name", "optimizer"), ON_NETWORKS)
def test_estimators_touch_nothing(name: str, optimizer: Optimizer) -> None:
    case = network(optimizer)
    before, randomness = snapshot(case), torch.get_rng_state()
    first = case(ALL[name])
    untouched(before)
    assert torch.equal(torch.get_rng_state(), randomness)
    second = case(ALL[name])
    for key, value in first.hypergradient.items():
        assert torch.equal(value, second.hypergradient[key])
    # and what comes back is not the same memory
    live = {t.data_ptr() for t in tensors(case.state)}
    assert live.isdisjoint(t.data_ptr() for t in tensors(first.state))


@every_estimator
@pytest.mark.parametrize("calls", range(1, 4))
def test_a_failure_touches_nothing(estimator: Estimator, calls: int) -> None:
    """In the middle of a finite difference, say: no weights are left perturbed."""
    case = network(SGD())
    count = 0

    def failing(function: Callable) -> Callable:
        def call(*arguments: Any) -> Loss:
            nonlocal count
            count += 1
            if count > calls:
                raise ZeroDivisionError
            return function(*arguments)

        return call

    inner, outer = failing(case.problem.inner_loss), failing(case.problem.outer_loss)
    problem = replace(case.problem, inner_loss=inner, outer_loss=outer)
    before = snapshot(case)
    with contextlib.suppress(ZeroDivisionError):
        case._replace(problem=problem)(estimator)
    untouched(before)


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [Adam(), Adam(decoupled=False)])
def test_unrolled_refuses_adam(optimizer: Adam) -> None:
    with pytest.raises(UnsupportedHyperparameter, match="SGD, not Adam; use OneStep"):
        network(optimizer)(Unrolled(2))


@pytest.mark.parametrize("kind", ["architecture", "loss", "optimizer"])
@pytest.mark.parametrize("alone", [False, True])
@every_estimator
def test_a_variable_that_nothing_depends_on(estimator: Estimator, alone: bool, kind: Kind) -> None:
    """An error, not a zero that nobody computed; also where no loss depends on any variable."""
    case = rate(1)
    ghost = case._replace(
        hyper={**case.hyper, "ghost": leaf(0.0)},
        kinds={"ghost": kind} if alone else {**case.kinds, "ghost": kind},
    )
    with pytest.raises(UnsupportedHyperparameter, match="'ghost'"):
        ghost(estimator)


@every_estimator
def test_a_decay_of_zero_is_never_a_silent_zero(estimator: Estimator) -> None:
    """`higher` skips a decay that compares equal to 0: then it has to be an error."""
    case = decay_of_the_optimizer(estimator.steps)
    case = case._replace(hyper={"decay": leaf(0.0)})
    try:
        got = case(estimator).hypergradient["decay"]
    except UnsupportedHyperparameter:
        assert isinstance(estimator, Unrolled)
    else:
        close(got, _decayed(estimator.steps, 0.0))


@every_estimator
def test_a_learned_momentum_is_never_a_silent_zero(estimator: Estimator) -> None:
    case = network(SGD())
    momentum = leaf(0.9)
    case = case._replace(
        problem=replace(case.problem, optimizer=SGD(momentum)),
        hyper={**case.hyper, "momentum": momentum},
        kinds={"momentum": "optimizer"},
    )
    expected = []
    for value in (0.9 + 1e-5, 0.9 - 1e-5):
        moved = case._replace(problem=replace(case.problem, optimizer=SGD(value)))
        params = walk(moved, case.hyper, estimator.steps).params
        expected.append(case.problem.outer_loss(params, case.hyper)[0].detach())
    close(case(estimator).hypergradient["momentum"], (expected[0] - expected[1]) / 2e-5, 1e-7)


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_an_outer_loss_that_ignores_weights(estimator: OneStep) -> None:
    case = decay_that_spares(1)
    problem = replace(case.problem, outer_loss=lambda p, h: (p[0].square().sum(), None))
    with pytest.raises(ValueError, match="every parameter tensor"):
        case._replace(problem=problem)(estimator)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_window(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {steps}"):
        Unrolled(steps)


def test_check_supported() -> None:
    kinds: Mapping[str, Kind] = {"alpha": "architecture", "lr": "optimizer"}
    check_supported("Neumann", frozenset({"architecture", "optimizer"}), kinds)
    with pytest.raises(UnsupportedHyperparameter) as error:
        check_supported("Neumann", frozenset({"architecture", "loss"}), kinds)
    for word in ("Neumann", "optimizer", "'lr'", "architecture, loss"):
        assert word in str(error.value)
    assert "alpha" not in str(error.value)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_of_the_registry(name: str) -> None:
    estimator = ESTIMATORS[name]()
    check_supported(name, estimator.supports, network(SGD()).kinds)
    assert estimator.steps >= 1
    hash(estimator)  # nothing but knobs
