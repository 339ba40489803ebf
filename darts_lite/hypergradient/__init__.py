"""Hypergradients of bilevel problems: one interface, one file an estimator."""

from darts_lite.hypergradient.one_step import OneStep
from darts_lite.hypergradient.problem import (
    Bilevel,
    Estimator,
    InnerState,
    Lookahead,
    Settings,
    UnsupportedHyperparameter,
    check_supported,
)
from darts_lite.hypergradient.unrolled import Unrolled

ESTIMATORS = {"one_step": OneStep, "unrolled": Unrolled}

__all__ = [
    "ESTIMATORS",
    "Bilevel",
    "Estimator",
    "InnerState",
    "Lookahead",
    "OneStep",
    "Settings",
    "Unrolled",
    "UnsupportedHyperparameter",
    "check_supported",
]
