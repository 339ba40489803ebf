"""Hypergradients of bilevel problems: one interface, one file an estimator."""

from darts_lite.hypergradient.caveats import caveats
from darts_lite.hypergradient.check import check_hypergradient
from darts_lite.hypergradient.conjugate_gradient import ConjugateGradient
from darts_lite.hypergradient.forward import Forward
from darts_lite.hypergradient.learner import Learner
from darts_lite.hypergradient.neumann import Neumann
from darts_lite.hypergradient.one_step import OneStep
from darts_lite.hypergradient.online import Online
from darts_lite.hypergradient.per_kind import PerKind
from darts_lite.hypergradient.problem import (
    Bilevel,
    Estimator,
    InnerState,
    Lookahead,
    UnsupportedHyperparameter,
    check_supported,
)
from darts_lite.hypergradient.rate_search import RateSearch
from darts_lite.hypergradient.unrolled import Unrolled

ESTIMATORS = {
    "one_step": OneStep,
    "unrolled": Unrolled,
    "forward": Forward,
    "neumann": Neumann,
    "conjugate_gradient": ConjugateGradient,
    "online": Online,
}

__all__ = [
    "ESTIMATORS",
    "Bilevel",
    "ConjugateGradient",
    "Estimator",
    "Forward",
    "InnerState",
    "Learner",
    "Lookahead",
    "Neumann",
    "OneStep",
    "Online",
    "PerKind",
    "RateSearch",
    "Unrolled",
    "UnsupportedHyperparameter",
    "caveats",
    "check_hypergradient",
    "check_supported",
]
