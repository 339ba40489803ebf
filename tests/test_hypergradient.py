"""Every estimator through one table of invariants: closed forms, networks, `higher`, misuse.

Properties of single estimators are tested in test_estimators.py and test_implicit.py.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import higher
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from estimator_tables import ALL, EXACT, METHODS, OTHER_CLOSED_FORMS, PATHS, REGISTERED, SMALL
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    OPTIMIZERS,
    PROBLEMS,
    QUADRATIC,
    Case,
    Quadratic,
    Repeated,
    adam_with_curvature,
    close,
    correct,
    decay_of_the_optimizer,
    difference,
    few,
    flat,
    groups,
    leaf,
    momentum,
    network,
    normal,
    plain,
    quadratics,
    rate,
    ridge,
    still,
    walk,
)
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite import hypergradient
from darts_lite.hypergradient import (
    ESTIMATORS,
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
    Nystrom,
    OneStep,
    Online,
    Optimizer,
    OptimizerState,
    Params,
    PerKind,
    Unrolled,
    UnsupportedHyperparameter,
    check_supported,
)

KINDS: tuple[Kind, ...] = ("architecture", "loss", "optimizer")


def second(product: Method, radius: float = 0.01) -> OneStep:
    return OneStep(product, second_order=True, radius=radius)


every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


# --- Closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_closed_form(problem: str, name: str) -> None:
    """P1 to P4, P6 and P7, over the window of the estimator."""
    estimator = PATHS[name]
    tolerance = 1e-5 if name in SMALL else 1e-9
    correct(PROBLEMS[problem](estimator.steps), estimator, tolerance, floor=1e-2)


@pytest.mark.parametrize("product", METHODS)
def test_adam_with_curvature(product: Any) -> None:
    """P5. The differences are exact because the loss is quadratic."""
    correct(adam_with_curvature(), Unrolled(2, product=product))
    if product != "double_backward":
        correct(adam_with_curvature(), Repeated(Forward(product=product), 2))


@pytest.mark.parametrize("name", ["one_step_double_backward", "unrolled_1", "forward_1"])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_coupled_decay_almost_cancels_in_adam(name: str, eps: float) -> None:
    """The first step has length lr whatever the decay: dw/d decay = -lr eps w / (|g| + eps)^2."""
    rule, lr, decay, w = Adam(eps=eps, decoupled=False), 0.05, 0.2, QUADRATIC.start
    g = normal(len(w), seed=6)
    total = g + decay * w
    case = Case(
        Bilevel(
            lambda params, hyper, t: (g @ params[0], t),
            QUADRATIC.outer,
            rule,
            lambda hyper: {"lr": lr, "weight_decay": hyper["decay"]},
        ),
        InnerState((w,), rule.init((w,))),
        {"decay": leaf(decay)},
        {"decay": "optimizer"},
    )
    r = w - lr * total / (total.abs() + eps) - QUADRATIC.c
    expected = r @ (-lr * eps * w / (total.abs() + eps) ** 2)
    close(case(EXACT[name]).hypergradient["decay"], expected, 1e-9 if eps > 1e-4 else 1e-7)


def test_a_shared_rate_is_the_sum_of_its_schedule() -> None:
    """Two closed forms, two kinds, one number (P1)."""
    q, steps = QUADRATIC, 4

    def case(rates: Callable[[Hyper, int], Tensor], hyper: Tensor) -> Case:
        def inner(params: Params, hyper: Hyper, t: int) -> Loss:
            return rates(hyper, t) * q.inner(params, hyper, t)[0], t

        return Case(
            Bilevel(inner, q.outer, SGD(0.0), lambda hyper: {"lr": 1.0}),
            still(q.start),
            {"rate": hyper},
            {"rate": "loss"},
        )

    each = case(lambda hyper, t: hyper["rate"][t], leaf([0.13] * steps))
    shared = case(lambda hyper, t: hyper["rate"], leaf(0.13))
    for estimator in (Unrolled(steps), Repeated(Forward(), steps)):
        got = shared(estimator).hypergradient["rate"]
        close(got, each(estimator).hypergradient["rate"].sum())
        close(got * 0.13, rate(steps, lr=0.13).expected["log_lr"])


# --- Random problems ---------------------------------------------------------------------------

windows = st.integers(1, 6)


def exact(case: Case, steps: int) -> None:
    correct(case, Unrolled(steps), floor=1.0)
    correct(case, Repeated(Forward(), steps), floor=1.0)
    if steps == 1:
        correct(case, second("double_backward"), floor=1.0)


@few
@given(quadratics(), windows, st.floats(0.05, 1.9))
def test_random_rate(q: Quadratic, steps: int, share: float) -> None:
    """`share` of the inverse of the largest curvature, up to the limit of stability at 2."""
    exact(rate(steps, q, share / float(torch.linalg.eigvalsh(q.A)[-1])), steps)


@few
@given(quadratics(), windows, st.floats(0.0, 0.95), st.floats(0.05, 1.0), st.booleans())
def test_random_momentum(q: Quadratic, steps: int, mu: float, share: float, nesterov: bool) -> None:
    lr = share / float(torch.linalg.eigvalsh(q.A)[-1])
    exact(momentum(steps, q, lr, mu, nesterov), steps)


@few
@given(
    quadratics().filter(lambda q: len(q.A) > 1),
    windows,
    st.tuples(st.floats(0.01, 0.3), st.floats(0.01, 0.3)),
    st.data(),
)
def test_random_groups(
    q: Quadratic, steps: int, rates: tuple[float, float], data: st.DataObject
) -> None:
    split = data.draw(st.integers(1, len(q.A) - 1))
    exact(groups(steps, q, rates, split), steps)


# --- A smooth network against central differences of the whole look-ahead ---------------------


@cache
def truth(optimizer: str, steps: int) -> dict[str, Tensor]:
    case = network(OPTIMIZERS[optimizer])
    return {name: difference(case, name, steps) for name in case.kinds}


@every_optimizer
@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
def test_network(name: str, estimator: Estimator) -> None:
    """Architecture, loss, and every setting of every optimizer."""
    case = network(OPTIMIZERS[name])
    got = case(estimator).hypergradient
    assert list(got) == list(case.kinds)
    for variable, expected in truth(name, estimator.steps).items():
        assert expected.abs().min() > 1e-5  # something to get right
        close(got[variable], expected, 1e-6)


@every_optimizer
@pytest.mark.parametrize("method", ["double_backward", "jvp"])
def test_first_order_on_a_network(name: str, method: Any) -> None:
    """First order leaves out the mixed term of the architecture only."""
    case = network(OPTIMIZERS[name])
    first, whole = case(OneStep(method)).hypergradient, case(second(method)).hypergradient
    close(first["alpha"], difference(case, "alpha", 1, direct=True), 1e-7)
    assert (whole["alpha"] - first["alpha"]).norm() > 1e-3 * first["alpha"].norm()
    for variable in case.kinds.keys() - {"alpha"}:
        assert torch.equal(first[variable], whole[variable])


@pytest.mark.parametrize("name", ["nesterov", "adam"])
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda radius: second("finite_difference", radius), 2),
        (lambda radius: second("one_sided", radius), 1),
        (lambda radius: Unrolled(2, product="finite_difference", radius=radius), 2),
        (lambda radius: Unrolled(2, product="one_sided", radius=radius), 1),
        (lambda radius: Repeated(Forward(product="finite_difference", radius=radius), 2), 2),
        (lambda radius: Repeated(Forward(product="one_sided", radius=radius), 2), 1),
    ],
    ids=["one_step_2", "one_step_1", "unrolled_2", "unrolled_1", "forward_2", "forward_1"],
)
def test_order_of_the_differences(
    name: str, make: Callable[[float], Estimator], order: int
) -> None:
    """Half the radius gives a quarter of the error, or half if one-sided, and never zero."""
    case = network(OPTIMIZERS[name])
    radius = 1e-3 if order == 2 else 1e-5
    wide, narrow = (case(make(r)).hypergradient for r in (2 * radius, radius))
    reference = case(Unrolled(make(radius).steps)).hypergradient
    for variable, kind in case.kinds.items():
        errors = [(got[variable] - reference[variable]).norm() for got in (wide, narrow)]
        if isinstance(make(radius), OneStep) and kind == "optimizer":
            assert errors == [0, 0]
        else:
            assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
            assert errors[1] < 1e-2 * reference[variable].norm()


@every_optimizer
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unrolled_equals_its_reference_twin(name: str, steps: int) -> None:
    """Reference twin: plain autograd through all steps in one graph."""
    case = network(OPTIMIZERS[name])
    state = InnerState(tuple(leaf(p) for p in case.state.params), case.state.optimizer)
    for t in range(steps):
        state, _ = case.problem.inner_step(state, case.hyper, t, create_graph=True)
    outer, _ = case.problem.outer_loss(state.params, case.hyper)
    twin = torch.autograd.grad(outer, list(case.hyper.values()))
    got = case(Unrolled(steps)).hypergradient
    for variable, expected in zip(case.hyper, twin):
        close(got[variable], expected, 1e-10)


# --- An independent implementation, on a module with buffers -----------------------------------


class Module(NamedTuple):
    """A network of torch.nn, in the middle of its training by torch.optim."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    case: Case


def module(nesterov: bool = False) -> Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Dropout(0.0), nn.Linear(6, 3)
        ).double()
    x, y = normal(6, 8, 5, seed=30), (torch.arange(48) * 7 % 11 % 3).view(6, 8)
    settings = {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.05}
    optimizer = torch.optim.SGD(model.parameters(), nesterov=nesterov, **settings)
    for t in (4, 5):  # so that the velocity and the running statistics are not zero
        optimizer.zero_grad()
        F.cross_entropy(model(x[t]), y[t]).backward()
        optimizer.step()
    optimizer.zero_grad()
    names = [n for n, _ in model.named_parameters()]

    def loss(params: Params, t: int) -> Tensor:
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        scores = functional_call(model, {**dict(zip(names, params)), **buffers}, (x[t],))
        return F.cross_entropy(scores, y[t])

    velocity = tuple(optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters())
    case = Case(
        Bilevel(
            lambda params, hyper, t: (loss(params, t), t),
            lambda params, hyper: (loss(params, 3), "outer"),
            SGD(nesterov=nesterov),
            dict,
        ),
        InnerState(tuple(p.detach() for p in model.parameters()), OptimizerState(2, (velocity,))),
        {n: leaf(v) for n, v in settings.items()},
        dict.fromkeys(settings, "optimizer"),
    )
    return Module(model, optimizer, x, y, case)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_agrees_with_higher(steps: int, nesterov: bool) -> None:
    """Grefenstette et al. 2019: the torch optimizer, unrolled by monkey-patching."""
    model, optimizer, x, y, case = module(nesterov)
    override = {n: [v] for n, v in case.hyper.items()}
    with higher.innerloop_ctx(model, optimizer, override=override) as (net, unrolled):
        for t in range(steps):
            unrolled.step(F.cross_entropy(net(x[t]), y[t]))
        outer = F.cross_entropy(net(x[3]), y[3])
        expected = torch.autograd.grad(outer, list(case.hyper.values()))
    for estimator in (Unrolled(steps), Unrolled(steps, product="jvp"), Repeated(Forward(), steps)):
        ahead = case(estimator)
        close(ahead.outer[0], outer.detach(), 1e-12)
        for variable, value in zip(case.hyper, expected):
            close(ahead.hypergradient[variable], value)


# --- What else comes back ----------------------------------------------------------------------


def of_each_kind(estimator: Estimator, optimizer: Optimizer) -> Case:
    """The network with a variable of each kind that the estimator supports."""
    case = network(optimizer)
    kinds = {n: case.kinds[n] for n in ("alpha", "smoothing", "log_lr")}
    return case._replace(kinds=kinds).within(estimator)


@pytest.mark.parametrize("name", ["nesterov", "adam"])
@every_estimator
def test_the_state_is_that_of_plain_training(name: str, estimator: Estimator) -> None:
    """Bit-identical: the window of an estimator is the training itself, unless it is annealed."""
    case = of_each_kind(estimator, OPTIMIZERS[name])
    steps = 0 if getattr(estimator, "anneal", False) else estimator.steps
    ahead, expected = case(estimator), walk(case, case.hyper, steps)
    assert ahead.state.optimizer.step == expected.optimizer.step == 4 + steps
    for got, value in zip(flat(ahead.state), flat(expected), strict=True):
        assert torch.equal(got, value)
    carried = [t for z in ahead.state.carried.values() for t in z]
    assert bool(carried) == isinstance(estimator, Repeated)
    reported = [ahead.inner[0], *(ahead.outer or ())[:1], *ahead.diagnostics.values()]
    for tensor in (*flat(ahead.state), *carried, *ahead.hypergradient.values(), *reported):
        assert not tensor.requires_grad


@every_estimator
def test_reported_losses(estimator: Estimator) -> None:
    """Training loss of the window's first step, and validation loss after its last step."""
    case = of_each_kind(estimator, SGD())
    ahead = case(estimator)
    inner, _ = case.problem.inner_loss(case.state.params, case.hyper, 0)
    assert torch.equal(ahead.inner[0], inner.detach()) and ahead.inner[1] == 0
    if isinstance(getattr(estimator, "estimator", None), Online):
        assert ahead.outer is None
    elif not getattr(estimator, "anneal", False):
        params = walk(case, case.hyper, estimator.steps).params
        outer, _ = case.problem.outer_loss(params, case.hyper)
        assert ahead.outer is not None and ahead.outer[1] == "outer"
        assert torch.equal(ahead.outer[0], outer.detach())


@every_optimizer
def test_a_plain_step_carries_no_graph(name: str) -> None:
    """Not even of the settings; otherwise OneStep would follow a graph of the whole training."""
    case = network(OPTIMIZERS[name])
    state, loss = case.problem.inner_step(case.state, case.hyper)
    assert not any(t.requires_grad for t in (*flat(state), loss[0]))


@every_estimator
def test_only_requested_hyperparameters_are_differentiated(estimator: Estimator) -> None:
    case = of_each_kind(estimator, SGD())
    everything = case(estimator).hypergradient
    assert everything.keys() == case.kinds.keys()
    for name, kind in case.kinds.items():
        got = case._replace(kinds={name: kind})(estimator).hypergradient
        assert list(got) == [name] and got[name].shape == case.hyper[name].shape
        close(got[name], everything[name], 1e-13)


@every_estimator
def test_no_requested_hyperparameter_is_plain_training(estimator: Estimator) -> None:
    """As in the warm-up of a search."""
    case = network(SGD())._replace(kinds={})
    ahead = case(estimator)
    assert ahead.hypergradient == {}
    steps = 0 if getattr(estimator, "anneal", False) else estimator.steps
    for got, value in zip(flat(ahead.state), flat(walk(case, case.hyper, steps))):
        assert torch.equal(got, value)


# --- Nothing is touched ------------------------------------------------------------------------

Snapshot = list[tuple[Tensor, Tensor, int, bool, Tensor | None]]


def snapshot(*tensors: Tensor) -> Snapshot:
    return [(t, t.detach().clone(), t._version, t.requires_grad, t.grad) for t in tensors]


def untouched(before: Snapshot) -> None:
    """Check that no tensor was written, not even temporarily."""
    for tensor, value, version, requires_grad, grad in before:
        assert torch.equal(tensor, value)
        assert tensor._version == version
        assert tensor.requires_grad == requires_grad and tensor.grad is grad


def watched(case: Case) -> list[Tensor]:
    carried = [t for z in case.state.carried.values() for t in z]
    return [*flat(case.state), *case.hyper.values(), *carried]


def draws() -> list[bytes]:
    """State of every random generator that an estimator could advance."""
    return [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode(),
            np.random.get_state()[1].tobytes()]  # fmt: skip


@pytest.mark.parametrize("optimizer", [SGD(0.9, True), Adam(decoupled=False)], ids=["sgd", "adam"])
@every_estimator
def test_estimators_touch_nothing(estimator: Estimator, optimizer: Optimizer) -> None:
    """Nor the tangents that they are given."""
    case = of_each_kind(estimator, optimizer)
    if isinstance(estimator, Repeated):
        estimator = estimator.estimator
        case = case._replace(state=case(estimator).state)
    before, randomness = snapshot(*watched(case)), draws()
    first = case(estimator)
    untouched(before)
    assert draws() == randomness
    again = case(estimator)
    for key, value in first.hypergradient.items():
        assert torch.equal(value, again.hypergradient[key])
    if getattr(estimator, "anneal", False):
        return  # it gives back what it was given
    # and what comes back is not the same memory
    live = {t.data_ptr() for t in watched(case)}
    assert live.isdisjoint(t.data_ptr() for t in watched(Case(case.problem, first.state, {}, {})))


@every_estimator
def test_estimators_touch_no_module(estimator: Estimator) -> None:
    """Parameters, running statistics, their counters and the optimizer of a module."""
    model, optimizer, *_, case = module()
    case = case.within(estimator)
    if not case.kinds:  # an implicit estimator: the decay is one of the loss
        case = case._replace(kinds={"weight_decay": "loss"})
    memory = [t for s in optimizer.state.values() for t in s.values()]
    before = snapshot(*model.parameters(), *model.buffers(), *memory)
    training, groups = model.training, repr(optimizer.param_groups)
    case(estimator)
    untouched(before)
    assert model.training == training and repr(optimizer.param_groups) == groups


@every_estimator
def test_parameters_that_record_gradients(estimator: Estimator) -> None:
    """Parameters of a module, which record gradients, give the same result."""
    case = network(SGD()).within(estimator)
    kind: Kind = "optimizer" if "optimizer" in estimator.supports else "loss"
    case = case._replace(kinds={n: k for n, k in case.kinds.items() if k == kind})
    recording = case.state._replace(params=tuple(leaf(p) for p in case.state.params))
    got = case._replace(state=recording)(estimator).hypergradient
    for variable, expected in case(estimator).hypergradient.items():
        assert torch.equal(got[variable], expected)


@every_estimator
@pytest.mark.parametrize("calls", range(1, 5))
def test_a_failure_touches_nothing(estimator: Estimator, calls: int) -> None:
    """For example in the middle of a finite difference: no weights stay perturbed."""
    case = network(SGD()).within(estimator)
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
    before = snapshot(*watched(case))
    with contextlib.suppress(ZeroDivisionError):
        case._replace(problem=problem)(estimator)
    untouched(before)


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True])
@every_estimator
def test_a_hyperparameter_without_effect_is_an_error(
    estimator: Estimator, alone: bool, kind: Kind
) -> None:
    """Not a zero, also if no loss depends on any hyperparameter.

    If the kind is not supported, that is the error. It names the hyperparameter too.
    """
    case = of_each_kind(estimator, SGD())
    case = case._replace(kinds={n: k for n, k in case.kinds.items() if n != "alpha"})
    if alone:
        case = decay_of_the_optimizer(1)._replace(kinds={})
    ghost = case._replace(
        hyper={**case.hyper, "ghost": leaf([0.0, 1.0])}, kinds={**case.kinds, "ghost": kind}
    )
    with pytest.raises(UnsupportedHyperparameter, match="'ghost'"):
        ghost(estimator)


@pytest.mark.parametrize("name", PATHS)
def test_a_decay_of_zero_is_never_a_silent_zero(name: str) -> None:
    """A float 0 is a shortcut; a tensor 0 is a hyperparameter."""
    case = decay_of_the_optimizer(PATHS[name].steps, decay=0.0)
    assert case.expected["decay"].abs() > 1e-3
    correct(case, PATHS[name], 1e-5 if name in SMALL else 1e-9)


@pytest.mark.parametrize("name", [n for n, e in ALL.items() if "optimizer" in e.supports])
def test_a_momentum_inside_the_optimizer_is_right_or_an_error(name: str) -> None:
    """The pure functions do not see a setting that is an attribute of the optimizer."""
    case, estimator = network(SGD()), ALL[name]
    mu = leaf(0.8)
    held = case._replace(
        problem=replace(
            case.problem,
            optimizer=SGD(mu),
            settings=lambda hyper: {"lr": 0.2, "weight_decay": 0.05},
        ),
        hyper={**case.hyper, "mu": mu},
        kinds={"mu": "optimizer"},
    )
    argument = held._replace(
        problem=replace(
            held.problem,
            optimizer=SGD(),
            settings=lambda hyper: {"lr": 0.2, "weight_decay": 0.05, "momentum": hyper["mu"]},
        )
    )
    expected = argument(estimator).hypergradient["mu"]
    assert expected.abs() > 1e-5
    try:
        got = held(estimator).hypergradient["mu"]
    except UnsupportedHyperparameter as error:
        assert "'mu'" in str(error)
    else:
        close(got, expected)


@pytest.mark.parametrize("name", [n for n in ALL if "online" not in n])
def test_an_outer_loss_without_some_weights_has_no_gradient_there(name: str) -> None:
    """As if it multiplied them by zero."""
    case, found = network(SGD()).within(ALL[name]), []
    for unused in (True, False):

        def outer(p: Any, h: Any, unused: bool = unused) -> Any:
            loss = p[0].square().sum() + sum(v.sum() for v in h.values())
            return loss if unused else loss + 0 * sum(w.sum() for w in p[1:]), None

        problem = replace(case.problem, outer_loss=outer)
        found.append(case._replace(problem=problem)(ALL[name]).hypergradient)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("steps", [0, -1])
@pytest.mark.parametrize("estimator", [Unrolled, Neumann, ConjugateGradient, Nystrom])
def test_a_window_without_steps_is_an_error(
    estimator: Callable[..., Estimator], steps: int
) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
        estimator(steps=steps)


@pytest.mark.parametrize(
    ("estimator", "kind", "remedy"),
    [
        (Neumann(), "optimizer", "use OneStep, Unrolled or Forward"),
        (ConjugateGradient(), "optimizer", "use OneStep, Unrolled or Forward"),
        (Nystrom(), "optimizer", "use OneStep, Unrolled or Forward"),
        (Online(), "loss", "use OneStep, Unrolled or Forward"),
        (Online(), "architecture", "use OneStep, Unrolled or Forward"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_unsupported_kind_is_an_error(estimator: Estimator, kind: Kind, remedy: str) -> None:
    """At start-up, in a call, and in PerKind. It names estimator, hyperparameter and remedy."""
    case, calls = network(SGD()), 0

    def inner(*_: Any) -> Loss:
        nonlocal calls
        calls += 1
        raise AssertionError

    case = case._replace(problem=replace(case.problem, inner_loss=inner))
    name = next(n for n, k in case.kinds.items() if k == kind)
    parts: dict[str, Any] = {k: OneStep() for k in KINDS}
    for call in (
        lambda: check_supported(estimator, {"log_lr" if kind == "optimizer" else name: kind}),
        lambda: case._replace(kinds={**case.kinds})(estimator),
        lambda: PerKind(**{**parts, kind: estimator}),
    ):
        with pytest.raises(UnsupportedHyperparameter) as error:
            call()
        message = str(error.value)
        assert message.startswith(f"{type(estimator).__name__} cannot differentiate the ")
        assert remedy in message
    assert kind in message and calls == 0


def test_check_supported_names_the_unsupported_hyperparameter() -> None:
    kinds: dict[str, Kind] = {"alpha": "architecture", "lr": "optimizer"}
    check_supported(OneStep(), kinds)
    with pytest.raises(UnsupportedHyperparameter) as error:
        check_supported(Neumann(), kinds)
    assert str(error.value) == (
        "Neumann cannot differentiate the optimizer hyperparameter 'lr': the inner optimum does "
        "not depend on it; use OneStep, Unrolled or Forward"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Forward(product="double_backward"),
            "got 'double_backward', which cannot; use 'jvp'",
        ),
        (lambda: Forward(discount=1.5), r"\[0, 1\], got 1.5"),
        (lambda: Forward(discount=-0.1), r"\[0, 1\], got -0.1"),
        (lambda: Neumann(terms=-1), "terms must be at least 0, got -1"),
        (lambda: Neumann(step_size=0.0), "step_size must be above 0, got 0.0"),
        (lambda: Neumann(step_size=float("nan")), "step_size must be above 0, got nan"),
        (lambda: Neumann(damping=-1.0), "damping must be at least 0, got -1.0"),
        (lambda: ConjugateGradient(damping=-1.0), "damping must be at least 0, got -1.0"),
        (lambda: ConjugateGradient(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: ConjugateGradient(tolerance=-1.0), "tolerance must be at least 0, got -1.0"),
        (lambda: Neumann(tolerance=float("nan")), "tolerance must be at least 0, got nan"),
        (lambda: Nystrom(0), "rank must be at least 1, got 0; use ConjugateGradient"),
        (lambda: Nystrom(iterations=-1), "iterations must be at least 0, got -1"),
        (lambda: Nystrom(tolerance=-0.1), "tolerance must be at least 0, got -0.1"),
        (lambda: Nystrom(iterations=0), "damping must be above 0 without iterations, got 0.0"),
        (lambda: Nystrom(damping=-1.0), "damping must be at least 0, got -1.0"),
    ],
)
def test_a_setting_out_of_its_range_is_an_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "estimator",
    [
        OneStep("central"),  # type: ignore[arg-type]
        Unrolled(2, product="central"),  # type: ignore[arg-type]
        Forward(product="central"),  # type: ignore[arg-type]
        Neumann(product="central"),  # type: ignore[arg-type]
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_unknown_method_is_an_error(estimator: Estimator) -> None:
    with pytest.raises(ValueError, match="central"):
        network(SGD()).within(estimator)(estimator)


def test_every_public_estimator_is_registered() -> None:
    """Except PerKind, which combines estimators."""
    public = [getattr(hypergradient, name) for name in hypergradient.__all__]
    found = {c for c in public if is_dataclass(c) and hasattr(c, "remedy")}
    assert found - {PerKind} == set(ESTIMATORS.values())


def test_every_registered_estimator_is_in_the_tables() -> None:
    """By being registered, without an entry anywhere in the tests."""
    for name, kind in ESTIMATORS.items():
        assert any(isinstance(e, kind) for e in unwrapped(REGISTERED))
        assert any(isinstance(e, kind) for e in unwrapped(PATHS)) != (name in OTHER_CLOSED_FORMS)
    assert OTHER_CLOSED_FORMS.keys() <= ESTIMATORS.keys() and REGISTERED.keys() <= ALL.keys()


def unwrapped(table: dict[str, Estimator]) -> list[Estimator]:
    return [e.estimator if isinstance(e, Repeated) else e for e in table.values()]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_registered_estimators_run_with_their_defaults(name: str) -> None:
    """On a problem that the estimator supports."""
    estimator = ESTIMATORS[name]()
    case = (ridge() if "optimizer" not in estimator.supports else rate(1)).within(estimator)
    assert case(estimator).hypergradient.keys() <= case.kinds.keys() != set()
    assert estimator.steps >= 1 and estimator.remedy
    assert hash(estimator) == hash(ESTIMATORS[name]())  # nothing but knobs


def test_only_lr_is_required_in_settings() -> None:
    """The other settings fall back to the attributes of the optimizer."""
    case = rate(1)
    problem = replace(case.problem, settings=plain)
    state, _ = problem.inner_step(case.state, case.hyper)
    q = QUADRATIC
    close(state.params[0], q.start - 0.13 * q.A @ (q.start - q.best), 1e-14)
