"""Known weaknesses of an estimator for a hyperparameter, as warnings with a remedy."""

from __future__ import annotations

from collections.abc import Mapping

from darts_lite.hypergradient.estimators.forward import Forward
from darts_lite.hypergradient.estimators.interface import Estimator
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.online import Online
from darts_lite.hypergradient.estimators.per_kind import PerKind


def caveats(estimator: Estimator, names: Mapping[str, str], normalized: bool) -> list[str]:
    """Return one warning per known weakness, each with its remedy.

    Arguments:
        estimator: estimator of the hypergradient.
        names: learned hyperparameters by name; the values are not used.
        normalized: whether the network has normalization layers. Then the loss does not depend on
            the scale of the weights before them.

    >>> from darts_lite.hypergradient import OneStep, Unrolled, caveats
    >>> len(caveats(OneStep(), {"lr": "optimizer"}, normalized=True))
    1
    >>> caveats(Unrolled(25), {"lr": "optimizer"}, normalized=True)
    []
    """
    if isinstance(estimator, PerKind):
        estimator = estimator.optimizer
    greedy = isinstance(estimator, (OneStep, Online)) or (
        isinstance(estimator, Forward) and estimator.discount == 0
    )
    name = type(estimator).__name__
    found = []
    if greedy and "lr" in names:
        found.append(
            f"{name} learns the lr greedily: the lr falls too low (short-horizon bias, Wu et al. "
            "2018); let the lr multiply a schedule, and use Unrolled(anneal=True) to find its scale"
        )
    if greedy and normalized and "weight_decay" in names:
        found.append(
            f"{name} has no information of its own about the weight_decay of layers before a "
            "normalization: one step shows only the effect on the effective lr; learn it with a "
            "long window, or in a parameter group without these layers"
        )
    return found
