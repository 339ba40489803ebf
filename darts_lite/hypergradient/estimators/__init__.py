"""Hypergradient estimators, one file each, and their registry.

A new estimator is one file here, one import, and one entry of `ESTIMATORS`; the tests take their
tables from the registry. An estimator imports only other estimators, `derivatives`, `problem`,
`optimizers` and `hyperparameters`.
"""

from darts_lite.hypergradient.estimators.conjugate_gradient import ConjugateGradient
from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.neumann import Neumann
from darts_lite.hypergradient.estimators.nystrom import Nystrom
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.online import Online
from darts_lite.hypergradient.estimators.unrolled import Unrolled

# Every class can be called without arguments. `PerKind` combines estimators and is none itself.
ESTIMATORS = {
    "one_step": OneStep,
    "unrolled": Unrolled,
    "forward": Forward,
    "neumann": Neumann,
    "conjugate_gradient": ConjugateGradient,
    "nystrom": Nystrom,
    "online": Online,
}
