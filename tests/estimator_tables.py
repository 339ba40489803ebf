"""Estimators under test, taken from the registry: a new estimator is tested by being registered.

- `SETTINGS`: settings with which a registered estimator suits the small test networks. Without an
  entry, its defaults are used.
- `REGISTERED`: every registered estimator, with every method of second-order products it accepts.
- `EXACT`, `LONG`, `SMALL`, `PATHS`: estimators that differentiate the path of the training. They
  are held to the closed forms of `problems.PROBLEMS` and to central differences.
- `ALL`: estimators that are held to the invariants: they touch nothing, refuse what they cannot do.

A registered estimator is held to the closed forms of the path unless `OTHER_CLOSED_FORMS` names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from problems import Repeated

from darts_lite.hypergradient import (
    ESTIMATORS,
    ConjugateGradient,
    Estimator,
    Forward,
    Method,
    Neumann,
    Nystrom,
    OneStep,
    Online,
    PerKind,
    Unrolled,
)

METHODS: tuple[Method, ...] = get_args(Method)
DAMPED: dict[str, Any] = {"damping": 20.0}  # H + damping is positive definite in all test networks
SETTINGS: dict[str, dict[str, Any]] = {
    "one_step": {"second_order": True},
    "unrolled": {"steps": 3},
    "neumann": {"terms": 3, **DAMPED},
    "conjugate_gradient": {"iterations": 3, **DAMPED},
    "nystrom": {"rank": 3, "iterations": 2, **DAMPED},
}
OTHER_CLOSED_FORMS = {  # estimators that do not differentiate the path, and where they are tested
    "neumann": "test_implicit.py",
    "conjugate_gradient": "test_implicit.py",
    "nystrom": "test_implicit.py",
    "online": "test_estimators.py",
}
RADIUS: dict[Method, float] = {"finite_difference": 1e-4, "one_sided": 1e-6}


def build(name: str, **settings: Any) -> Estimator:
    """A registered estimator for the test networks."""
    return ESTIMATORS[name](**{**SETTINGS.get(name, {}), **settings})


def methods(name: str) -> tuple[Method, ...]:
    """Methods of second-order products that a registered estimator accepts."""
    if "product" not in {f.name for f in fields(ESTIMATORS[name])}:
        return ()
    return tuple(m for m in METHODS if _accepts(name, m))


def _accepts(name: str, method: Method) -> bool:
    try:
        build(name, product=method)
    except ValueError:
        return False
    return True


def repeated(estimator: Estimator, steps: int = 2) -> Estimator:
    """An estimator that carries tangents is called at several steps."""
    return Repeated(estimator, steps) if estimator.carries else estimator


def on_the_path(*accepted: Method, radius: bool = False) -> Iterator[tuple[str, Estimator]]:
    """Registered estimators that differentiate the path, by name and method."""
    for name in ESTIMATORS:
        if name in OTHER_CLOSED_FORMS:
            continue
        for method in methods(name):
            if method in accepted:
                more = {"radius": RADIUS[method]} if radius else {}
                yield f"{name}_{method}", repeated(build(name, product=method, **more))
        if not methods(name) and not radius:
            yield name, repeated(build(name))


REGISTERED: dict[str, Estimator] = {
    "_".join((name, *method)): repeated(build(name, **({"product": method[0]} if method else {})))
    for name in ESTIMATORS
    for method in ([(m,) for m in methods(name)] or [()])
}
EXACT: dict[str, Estimator] = {  # exact but for rounding
    **dict(on_the_path("double_backward", "jvp")),
    "unrolled_1": Unrolled(1),
    "unrolled_jvp_2": Unrolled(2, product="jvp"),
    "unrolled_graphs_1": Unrolled(3, graphs=1),
    "unrolled_graphs_sqrt": Unrolled(3, graphs="sqrt"),
    "unrolled_graphs_all": Unrolled(3, graphs="all"),
    "forward_1": Repeated(Forward(), 1),
}
LONG: dict[str, Estimator] = {  # exact if the training loss is quadratic in w
    "one_step_central": OneStep(second_order=True),
    "unrolled_central_3": Unrolled(3, product="finite_difference"),
    "unrolled_5": Unrolled(5),
    "forward_5": Repeated(Forward(), 5),
}
# One-sided differences have an error of first order in their radius. Forward moves the
# hyperparameter too, so its central difference has an error of second order.
SMALL: dict[str, Estimator] = dict(on_the_path("finite_difference", "one_sided", radius=True))
PATHS = {**EXACT, **LONG, **SMALL}
ALL: dict[str, Estimator] = {
    **REGISTERED,
    "one_step_first_order": OneStep(),
    "unrolled_1": Unrolled(1),
    "unrolled_annealed_3": Unrolled(3, anneal=True),
    "forward_fading": Repeated(Forward(0.5, product="one_sided"), 2),
    "forward_forgetful": Repeated(Forward(0.0, product="one_sided"), 2),
    "neumann_2_steps": Neumann(steps=2, **DAMPED),
    "conjugate_gradient_2_steps": ConjugateGradient(steps=2, **DAMPED),
    "nystrom_alone": Nystrom(3, 0, **DAMPED),
    "per_kind": PerKind(ConjugateGradient(**DAMPED), OneStep("jvp"), Unrolled(3)),
    "per_kind_carrying": Repeated(PerKind(OneStep(), Neumann(**DAMPED), Forward()), 2),
    "per_kind_online": Repeated(PerKind(OneStep("jvp", True), OneStep(), Online()), 2),
}
