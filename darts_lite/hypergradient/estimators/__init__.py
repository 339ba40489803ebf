"""Hypergradient estimators, one file each, and their registry.

A new estimator is one file here, one import, and one entry of `ESTIMATORS`. The tests draw their
tables from the registry. It must not import anything above `darts_lite.hypergradient.derivatives`.
"""

from darts_lite.hypergradient.estimators.conjugate_gradient import ConjugateGradient
from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.neumann import Neumann
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
    "online": Online,
}
