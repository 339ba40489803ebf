"""Which estimator learns which kind of outer variable, by the names of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darts_lite.errors import UserError
from darts_lite.hypergradient import (
    ConjugateGradient,
    Estimator,
    Forward,
    InnerState,
    LearningRateFinder,
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
from darts_lite.training.problem import Batch, Joint, Phase

CHOICES: dict[str, Estimator] = {  # with the knobs that suit a network in float32
    "one_step": OneStep("one_sided", radius=1e-3),
    "unrolled": Unrolled(25, product="one_sided", radius=1e-3),
    "forward": Forward(0.99, "one_sided", 1e-3),
    "neumann": Neumann(5, damping=0.1, product="finite_difference"),
    "conjugate_gradient": ConjugateGradient(5, damping=0.1, product="finite_difference"),
    "online": Online(),
}
ANNEALED = "annealed"  # optimizer only: `LearningRateFinder` finds the lr, the decay stays
DEFAULT = f"one_step,optimizer={ANNEALED}"
KINDS: tuple[Kind, ...] = ("architecture", "loss", "optimizer")


@dataclass(frozen=True)
class Plan:
    """Who learns what; `kinds` says which variables are learned at each step by `estimator`."""

    estimator: Estimator
    annealed: bool
    loss_carries: bool

    def kinds(self, kinds: Mapping[str, Kind], *, mixed: bool = True) -> dict[str, Kind]:
        """Those of this step; without `mixed`, those that need no pass of their own."""
        # Unrolling has the mixed term for nothing, tangents must not miss a step.
        drop = {"optimizer"} if self.annealed else set()
        if not mixed and self.estimator.steps == 1 and not self.loss_carries:
            drop.add("loss")
        return {name: kind for name, kind in kinds.items() if kind not in drop}

    def caveats(self, kinds: Mapping[str, Kind]) -> list[str]:
        """What is known to go wrong with it; our networks are normalized."""
        return caveats(self.estimator, self.kinds(kinds), normalized=True)


def plan(text: str) -> Plan:
    """Reads "one_step" or "one_step,optimizer=forward": a default, then kinds that differ.

    Raises: UserError if a name is unknown or an estimator does not cover a kind.
    """
    names: dict[str, str] = dict.fromkeys(KINDS, "one_step")
    for part in text.split(","):
        kind, equals, name = (p.strip() for p in part.rpartition("="))
        known = [*CHOICES, ANNEALED]
        if name not in known or (equals and kind not in KINDS):
            raise UserError(
                f"--estimator: {part!r} is neither an estimator ({', '.join(known)}) nor one for a "
                f"kind ({', '.join(KINDS)}) such as optimizer=forward"
            )
        names |= {kind: name} if equals else dict.fromkeys(KINDS, name)
    for kind in ("architecture", "loss"):
        if names[kind] == ANNEALED:
            raise UserError(f"--estimator: {ANNEALED} finds a learning rate; give {kind} another")
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


def look(
    search: LearningRateFinder,
    joint: Joint,
    inner: InnerState,
    variables: HyperParameters,
    train: Sequence[Batch],
    validation: Batch,
    phase: Phase,
) -> None:
    """One look of the search for a learning rate; moves nothing but "lr"."""
    problem = joint.bind(train, validation, phase)
    ahead = search.estimator(problem, inner, variables.leaves(), search.kinds)
    search.update(variables, ahead.hypergradient)
