"""Hypergradients of bilevel problems: one interface, one file an estimator."""

from darts_lite.hypergradient.caveats import caveats
from darts_lite.hypergradient.check import check_hypergradient
from darts_lite.hypergradient.estimators.conjugate_gradient import ConjugateGradient
from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.neumann import Neumann
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.online import Online
from darts_lite.hypergradient.estimators.per_kind import PerKind
from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.learner import Learner
from darts_lite.hypergradient.lr_finder import LearningRateFinder
from darts_lite.hypergradient.problem import (
    Bilevel,
    Estimator,
    InnerState,
    Lookahead,
    UnsupportedHyperparameter,
    check_supported,
)

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
    "LearningRateFinder",
    "Lookahead",
    "Neumann",
    "OneStep",
    "Online",
    "PerKind",
    "Unrolled",
    "UnsupportedHyperparameter",
    "caveats",
    "check_hypergradient",
    "check_supported",
]
