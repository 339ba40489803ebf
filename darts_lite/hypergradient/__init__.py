"""Hypergradients of bilevel problems: learned hyperparameters for any model.

Everything public is imported from here. The package imports nothing else of darts_lite.
"""

from darts_lite.hypergradient.caveats import caveats
from darts_lite.hypergradient.check import Row, Table, check_hypergradient
from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.estimators import ESTIMATORS
from darts_lite.hypergradient.estimators.conjugate_gradient import ConjugateGradient
from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.interface import (
    Estimator,
    Lookahead,
    UnsupportedHyperparameter,
    check_supported,
)
from darts_lite.hypergradient.estimators.neumann import Neumann
from darts_lite.hypergradient.estimators.nystrom import Nystrom
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.online import Online
from darts_lite.hypergradient.estimators.per_kind import PerKind
from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.hyperparameters import (
    Bijection,
    HyperParameters,
    HyperSpec,
    Identity,
    Interval,
    Kind,
    Log,
    LogInterval,
    Softplus,
)
from darts_lite.hypergradient.learner import Learner
from darts_lite.hypergradient.lr_finder import LearningRateFinder
from darts_lite.hypergradient.optimizers import SGD, Adam, Optimizer, OptimizerState, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss, Params
from darts_lite.hypergradient.torch_optimizers import UnsupportedOptimizer

__all__ = [
    "ESTIMATORS",
    "SGD",
    "Adam",
    "Bijection",
    "Bilevel",
    "ConjugateGradient",
    "Estimator",
    "Forward",
    "Hyper",
    "HyperParameters",
    "HyperSpec",
    "Identity",
    "InnerState",
    "Interval",
    "Kind",
    "Learner",
    "LearningRateFinder",
    "Log",
    "LogInterval",
    "Lookahead",
    "Loss",
    "Method",
    "Neumann",
    "Nystrom",
    "OneStep",
    "Online",
    "Optimizer",
    "OptimizerState",
    "Params",
    "PerKind",
    "Row",
    "Setting",
    "Softplus",
    "Table",
    "Unrolled",
    "UnsupportedHyperparameter",
    "UnsupportedOptimizer",
    "caveats",
    "check_hypergradient",
    "check_supported",
]
