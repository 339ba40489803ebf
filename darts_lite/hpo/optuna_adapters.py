"""Adapters to Optuna: samplers, pruners, and choosers for the space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

import darts_lite.hpo.requirements  # noqa: F401  a clear error first
from darts_lite.hpo.records import Job
from darts_lite.hpo.space import Value

STARTUP = 10  # random configurations before TPE starts to model


def sampler(kind: str, seed: int) -> BaseSampler:
    """Return the sampler "random" or "tpe", with a seed."""
    if kind == "random":
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TPESampler(
            seed=seed,
            n_startup_trials=STARTUP,
            multivariate=True,
            group=True,
            constraints_func=_violation,
        )


def _violation(trial: FrozenTrial) -> tuple[float]:
    """Return the excess over the parameter limit, relative to it; positive means too large."""
    return (float(trial.user_attrs.get("record", {}).get("excess", 0.0)),)


def pruner(prunes: bool, first: Job | None) -> BasePruner:
    """Return Hyperband over the fidelities of `first`, or no pruning."""
    if not prunes or first is None:
        return NopPruner()
    top = round(1 / first.fidelities[0])
    return HyperbandPruner(min_resource=1, max_resource=top, reduction_factor=3)


@dataclass(frozen=True)
class Suggest:
    """Chooser that asks the sampler of an Optuna trial."""

    trial: optuna.trial.Trial

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self.trial.suggest_categorical(name, list(choices))

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        return self.trial.suggest_int(name, low, high, step=step)

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        return self.trial.suggest_float(name, low, high, log=log)


@dataclass(frozen=True)
class Distributions:
    """Chooser of known values that records the distribution of every dimension for Optuna."""

    values: dict[str, Value]
    found: dict[str, Any] = field(default_factory=dict)

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        self.found[name] = optuna.distributions.CategoricalDistribution(list(choices))
        return self.values[name]

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        self.found[name] = optuna.distributions.IntDistribution(low, high, step=step)
        return int(self.values[name])

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        self.found[name] = optuna.distributions.FloatDistribution(low, high, log=log)
        return float(self.values[name])
