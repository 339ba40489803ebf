"""Learn hyperparameters while the weights are trained: in a search, and in derive with online.

- `plan` reads which estimator learns which kind of hyperparameter.
- `HyperLearner` owns the values, the learning-rate finder, the history and their state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_lite.errors import UserError
from darts_lite.hypergradient import (
    Bilevel,
    ConjugateGradient,
    Estimator,
    Forward,
    InnerState,
    LearningRateFinder,
    Lookahead,
    Neumann,
    OneStep,
    Online,
    PerKind,
    Unrolled,
    UnsupportedHyperparameter,
    caveats,
    check_supported,
)
from darts_lite.hypergradient.hyperparameters import HyperParameters, Kind
from darts_lite.hypergradient.problem import Hyper
from darts_lite.schedules import Schedule
from darts_lite.training import checkpoint

CHOICES: dict[str, Estimator] = {  # with settings for a network in float32
    "one_step": OneStep("one_sided", radius=1e-3),
    "unrolled": Unrolled(25, product="one_sided", radius=1e-3),
    "forward": Forward(0.99, "one_sided", 1e-3),
    "neumann": Neumann(5, damping=0.1, product="finite_difference"),
    "conjugate_gradient": ConjugateGradient(5, damping=0.1, product="finite_difference"),
    "online": Online(),
}
ANNEALED = "annealed"  # optimizer only: `LearningRateFinder` finds the lr; the decay is constant
KINDS: tuple[Kind, ...] = ("architecture", "loss", "optimizer")


Window = tuple[list[Any], Any]  # one training batch per step, and one validation batch


@dataclass(frozen=True)
class Plan:
    """The estimator of each kind of hyperparameter.

    Attributes:
        estimator: one estimator for all kinds, or a `PerKind`.
        annealed: whether the learning-rate finder sets the learning rate; the other values of the
            optimizer are then constant.
        loss_carries: whether the estimator of the loss variables carries tangents between steps.
        constant: kinds that no hypergradient changes.
    """

    estimator: Estimator
    annealed: bool
    loss_carries: bool
    constant: frozenset[Kind] = frozenset()

    def kinds(self, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
        """Return the variables that the estimator learns, from the kinds of all variables."""
        drop = self.constant | ({"optimizer"} if self.annealed else set())
        return {name: kind for name, kind in kinds.items() if kind not in drop}

    def caveats(self, kinds: Mapping[str, Kind]) -> list[str]:
        """Return known problems of the estimator with these variables, for normalized networks."""
        return caveats(self.estimator, self.kinds(kinds), normalized=True)


def plan(text: str) -> Plan:
    """Return the plan that a text names: a default estimator, then other estimators by kind.

    Arguments:
        text: such as "one_step" or "one_step,optimizer=forward".
    Raises: UserError if a name is unknown or an estimator does not support a kind.
    """
    names: dict[str, str] = dict.fromkeys(KINDS, "one_step")
    for part in text.split(","):
        kind, equals, name = (p.strip() for p in part.rpartition("="))
        known = [*CHOICES, ANNEALED]
        if name not in known or (equals and kind not in KINDS):
            raise UserError(
                f"--estimator must be an estimator ({', '.join(known)}) or KIND=ESTIMATOR with a "
                f"kind ({', '.join(KINDS)}), got {part!r}; for example optimizer=forward"
            )
        names |= {kind: name} if equals else dict.fromkeys(KINDS, name)
    for kind in ("architecture", "loss"):
        if names[kind] == ANNEALED:
            raise UserError(
                f"--estimator: {ANNEALED} must be for the optimizer only, got {kind}={ANNEALED}; "
                f"give {kind} another estimator"
            )
    annealed = names["optimizer"] == ANNEALED
    chosen = {k: CHOICES.get(n, CHOICES["one_step"]) for k, n in names.items()}
    try:
        for kind in KINDS:
            check_supported(chosen[kind], {kind: kind})
        estimator: Estimator = chosen["loss"]
        if len(set(chosen.values())) > 1:
            estimator = PerKind(**chosen)
    except UnsupportedHyperparameter as error:
        raise UserError(f"--estimator {text}: {error}") from None
    return Plan(estimator, annealed, chosen["loss"].carries)


KNOTS = 50  # knots of a learned schedule
LOOK = 1.0  # steps per step of a look-ahead: it costs two plain steps, and so does a joint step


@dataclass
class HyperLearner:
    """The outer variables of a training, and everything that updates them.

    Arguments:
        variables: the values; `HyperSpec.every` gives the steps between two updates of each.
        plan: the estimator of each kind.
        finder: the learning-rate finder, used if the plan is annealed.
        begin: fraction of the budget at which learning begins.
        pause: steps from one hypergradient to the next; the steps between them are plain steps.
        steps: steps so far.
        learned: fraction of the budget at which the values were last learned.
        history: knots of the learned schedules: fraction and values.
        hypergradient: latest hypergradient by name, for reports.
    """

    variables: HyperParameters
    plan: Plan
    finder: LearningRateFinder
    begin: float = 0.0
    pause: int = 1
    steps: int = 0
    learned: float = 0.0
    history: list[tuple[float, dict[str, Tensor]]] = field(default_factory=list)
    hypergradient: dict[str, Tensor] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """Return the learned values by name, without the architecture logits."""
        kinds = self.variables.kinds
        found = self.variables.values()
        return {name: v for name, v in found.items() if kinds[name] != "architecture"}

    def at(self, fraction: float) -> dict[str, float]:
        """Return the current values by name, whatever the fraction."""
        values = self.values()
        return dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist()))

    @property
    def raw(self) -> Hyper:
        """The raw values by name."""
        return self.variables.raw

    def constrain(self, raw: Hyper) -> Hyper:
        """Return the values of raw values."""
        return self.variables.constrain(raw)

    @property
    def window(self) -> int:
        """Weight steps of one call of `learn`."""
        return self.plan.estimator.steps

    def caveats(self) -> list[str]:
        """Return known problems of the estimator with the variables, for normalized networks."""
        return self.plan.caveats(self.variables.kinds)

    def begin_step(self, fraction: float, before: float) -> None:
        """Add the current values to the history, if a knot lies between two steps.

        Arguments:
            fraction: fraction of the budget at this step.
            before: fraction of the budget at the step before.
        """
        if int(fraction * KNOTS) > int(before * KNOTS) or not self.history:
            self.history.append((fraction, self.values()))

    def find_rate(
        self,
        fraction: float,
        inner: InnerState,
        window: Callable[[int, bool], Window],
        bind: Callable[[list[Any], Any], Bilevel],
    ) -> None:
        """Take one look-ahead of the learning-rate finder if one is due; change only the lr.

        There is at most one look-ahead per step, and none that would take all of them above their
        share of the training. In a budget of steps the fraction does not see their time, so their
        cost is counted in steps.

        Arguments:
            fraction: fraction of the budget.
            inner: state of the weights.
            window: returns the batches of a window, from (steps, whether coins are turned).
            bind: returns the bilevel problem of a window, without the learning-rate schedule.
        """
        if self.looks(fraction):
            estimator = self.finder.estimator
            problem = bind(*window(estimator.steps, False))
            ahead = estimator(problem, inner, self.variables.leaves(), self.finder.kinds)
            self.finder.update(self.variables, ahead.hypergradient)

    def looks(self, fraction: float) -> bool:
        """Tell whether the learning-rate finder takes a look-ahead at a fraction of the budget."""
        return self.plan.annealed and self.finder.due(fraction) and self._affordable(fraction)

    def _affordable(self, fraction: float) -> bool:
        """Tell whether one more look-ahead keeps all of them within their share of all steps."""
        cost = (self.finder.done + 1) * LOOK * self.finder.estimator.steps
        return self.steps > 0 and cost * fraction <= self.finder.share * self.steps * (1 + 1e-9)

    def due(self, fraction: float) -> dict[str, Kind]:
        """Return the variables to learn in this step; empty for a plain step.

        `HyperSpec.every` does not count in two cases: an estimator that unrolls gets the
        hypergradients of the loss variables at no cost, and tangents must not miss a step.
        """
        estimator, plan = self.plan.estimator, self.plan
        if fraction < self.begin:
            return {}
        if self.pause > 1 and not estimator.carries and (self.steps + 1) % self.pause:
            return {}
        always = estimator.steps > 1 or plan.loss_carries
        every = self.variables.every
        kinds = plan.kinds(self.variables.kinds)
        return {n: k for n, k in kinds.items() if always or self.steps % every[n] == 0}

    def learn(
        self,
        kinds: Mapping[str, Kind],
        fraction: float,
        inner: InnerState,
        window: Callable[[int, bool], Window],
        bind: Callable[[list[Any], Any], Bilevel],
    ) -> Lookahead:
        """Step the weights and update variables; return the look-ahead of the estimator.

        Arguments:
            kinds: variables to learn, from `due`.
            fraction: fraction of the budget.
            inner: state of the weights.
            window: returns the batches of a window, from (steps, whether coins are turned);
                the probabilities of the augmentation need batches with turned coins.
            bind: returns the bilevel problem of a window.
        """
        estimator = self.plan.estimator
        turn = any(name.startswith("probability.") for name in kinds)
        problem = bind(*window(estimator.steps, turn))
        ahead = estimator(problem, inner, self.variables.leaves(), kinds)
        progress = (fraction - max(self.learned, self.begin)) / (1 - self.begin)
        self.variables.update(ahead.hypergradient, progress)
        self.learned = fraction
        self.hypergradient.update(ahead.hypergradient)
        return ahead

    def schedules(self) -> dict[str, Schedule]:
        """Return the learned schedules by name: pairs (fraction of the budget, value)."""
        history = [*self.history, (1.0, self.values())]
        return {n: tuple((f, float(v[n])) for f, v in history) for n in history[-1][1]}

    def state_dict(self) -> dict[str, Any]:
        return {
            "variables": self.variables.state_dict(),
            "rate_search": self.finder.state_dict(),
            "progress": (self.steps, self.learned, self.begin),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = self.variables.state_dict()["raw"]
        checkpoint.require_like(mine, state["variables"]["raw"], "variables")
        self.variables.load_state_dict(state["variables"])
        self.finder.load_state_dict(state["rate_search"])
        self.steps, self.learned, self.begin = state["progress"]
        self.history = state["history"]
