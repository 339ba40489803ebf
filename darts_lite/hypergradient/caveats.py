"""What is known to go wrong with a combination of estimator and hyperparameter."""

from __future__ import annotations

from collections.abc import Mapping

from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.online import Online
from darts_lite.hypergradient.estimators.per_kind import PerKind
from darts_lite.hypergradient.problem import Estimator


def caveats(estimator: Estimator, names: Mapping[str, str], normalised: bool) -> list[str]:
    """One line for each, in plain words, with the remedy.

    Arguments: `names`, the learned hyperparameters; `normalised`, whether the network has
    normalisation layers, so that the scale of the weights before them does not matter.
    """
    if isinstance(estimator, PerKind):
        estimator = estimator.optimizer
    greedy = isinstance(estimator, (OneStep, Online)) or (
        isinstance(estimator, Forward) and estimator.discount == 0
    )
    found = []
    if greedy and any(n == "lr" for n in names):
        found.append(
            f"{type(estimator).__name__} learns the lr greedily: it falls too low (short-horizon "
            "bias, Wu et al. 2018); let it multiply a schedule, and use Unrolled(anneal=True) to "
            "find its scale"
        )
    if greedy and normalised and any(n == "weight_decay" for n in names):
        found.append(
            f"{type(estimator).__name__} says nothing of its own about the weight_decay of layers "
            "before a normalisation: one step shows only its effect on the effective lr; learn it "
            "with a long window, or on a parameter group without them"
        )
    return found
