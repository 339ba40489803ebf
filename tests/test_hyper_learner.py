"""Plans of `--estimator` by name, and the variables that each step of a training learns."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from darts_lite.errors import UserError
from darts_lite.hypergradient import (
    ConjugateGradient,
    Estimator,
    Forward,
    LearningRateFinder,
    Neumann,
    OneStep,
    Online,
    PerKind,
    Unrolled,
)
from darts_lite.hypergradient.hyperparameters import HyperParameters, HyperSpec, Interval, Kind
from darts_lite.training.hyper_learner import ANNEALED, CHOICES, KINDS, HyperLearner, plan
from darts_lite.training.options import ESTIMATOR

VARIABLES: dict[str, Kind] = {
    "alpha.cell": "architecture",
    "lr": "optimizer",
    "weight_decay": "optimizer",
    "magnitude.rotate": "loss",
}


EVERY = {"loss": 4}


def parts(estimator: Estimator) -> tuple[type, type, type]:
    """Return the estimator types of architecture, loss and optimizer."""
    if isinstance(estimator, PerKind):
        one, two, three = (getattr(estimator, kind) for kind in KINDS)
        return type(one), type(two), type(three)
    return (type(estimator),) * 3


@pytest.mark.parametrize(
    ("text", "expected", "annealed"),
    [
        (ESTIMATOR, (OneStep, OneStep, OneStep), True),
        ("one_step", (OneStep, OneStep, OneStep), False),
        ("unrolled", (Unrolled, Unrolled, Unrolled), False),
        ("forward", (Forward, Forward, Forward), False),
        ("optimizer=forward", (OneStep, OneStep, Forward), False),
        ("optimizer=annealed", (OneStep, OneStep, OneStep), True),
        ("unrolled,optimizer=annealed", (Unrolled, Unrolled, OneStep), True),
        ("neumann,optimizer=unrolled", (Neumann, Neumann, Unrolled), False),
        ("architecture=neumann,loss=unrolled", (Neumann, Unrolled, OneStep), False),
        (
            "loss=conjugate_gradient , optimizer = online",
            (OneStep, ConjugateGradient, Online),
            False,
        ),
        ("unrolled,one_step", (OneStep, OneStep, OneStep), False),  # the last name counts
        ("optimizer=forward,one_step", (OneStep, OneStep, OneStep), False),
    ],
)
def test_a_text_gives_its_plan(text: str, expected: tuple[type, ...], annealed: bool) -> None:
    """A text is a default, then other estimators by kind; spaces do not matter."""
    found = plan(text)
    assert parts(found.estimator) == expected and found.annealed == annealed
    assert found.loss_carries == (expected[1] in (Forward, Online))


def test_equal_estimators_become_one_estimator() -> None:
    """One estimator for all kinds shares its passes."""
    assert plan("architecture=unrolled,loss=unrolled,optimizer=unrolled") == plan("unrolled")
    assert plan(ESTIMATOR).estimator is CHOICES["one_step"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "guess",
            r"must be an estimator \(one_step, unrolled, .*annealed\) or .*, got 'guess'; for",
        ),
        (
            "one_step,optimiser=forward",
            r"\(architecture, loss, optimizer\), got 'optimiser=forward'",
        ),
        ("optimizer=guess", "'optimizer=guess'; for example optimizer=forward"),
        ("=forward", "'=forward'"),
        ("optimizer=", "'optimizer='"),
        ("one_step,", "''"),
        ("", "''"),
        ("One_Step", "'One_Step'"),
        (ANNEALED, "got architecture=annealed; give architecture another estimator"),
        ("loss=annealed", "must be for the optimizer only, got loss=annealed; give loss another"),
        ("neumann", "Neumann cannot differentiate the optimizer .* use OneStep, Unrolled or For"),
        ("optimizer=conjugate_gradient", "ConjugateGradient .* use OneStep, Unrolled or Forward"),
        ("online", "Online cannot differentiate the architecture .* use OneStep"),
        ("loss=online", "Online cannot differentiate the loss .* use OneStep"),
        ("unrolled,optimizer=forward", "Forward carries .* windows of 1 step, got 25"),
        ("architecture=unrolled,optimizer=online", "Online carries .* windows of 1 step, got 25"),
    ],
)
def test_a_bad_plan_is_refused(text: str, said: str) -> None:
    """The error is one line with the flag and the remedy."""
    with pytest.raises(UserError, match=said) as error:
        plan(text)
    assert str(error.value).startswith("--estimator") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", CHOICES)
def test_every_estimator_can_be_planned(name: str) -> None:
    """The estimator is accepted for each kind that it supports."""
    for i, kind in enumerate(KINDS):
        if kind in CHOICES[name].supports:
            assert parts(plan(f"{kind}={name}").estimator)[i] is type(CHOICES[name])
        else:
            with pytest.raises(UserError):
                plan(f"{kind}={name}")


@pytest.mark.parametrize(
    ("text", "mixed", "kinds"),
    [
        (ESTIMATOR, True, {"architecture", "loss"}),
        (ESTIMATOR, False, {"architecture"}),
        ("one_step", True, {"architecture", "loss", "optimizer"}),
        ("one_step", False, {"architecture", "optimizer"}),
        ("optimizer=forward", False, {"architecture", "optimizer"}),
        ("unrolled", False, {"architecture", "loss", "optimizer"}),
        ("optimizer=unrolled", False, {"architecture", "loss", "optimizer"}),
        ("unrolled,optimizer=annealed", False, {"architecture", "loss"}),
        ("forward", False, {"architecture", "loss", "optimizer"}),
        ("loss=forward", False, {"architecture", "loss", "optimizer"}),
        ("forward,optimizer=annealed", False, {"architecture", "loss"}),
    ],
)
def test_the_variables_that_a_step_learns(text: str, mixed: bool, kinds: set[Kind]) -> None:
    """Loss variables wait for `every` with one-step; windows and tangents learn them always."""
    specs = [
        HyperSpec(
            name, torch.tensor(0.5), Interval(0.0, 1.0), kind, every=4 if kind == "loss" else 1
        )
        for name, kind in VARIABLES.items()
    ]
    learner = HyperLearner(HyperParameters(tuple(specs)), plan(text), LearningRateFinder())
    learner.steps = 4 if mixed else 5
    found = learner.due(0.5)
    assert found == {name: kind for name, kind in VARIABLES.items() if kind in kinds}


@pytest.mark.parametrize(
    ("text", "learned"), [(ESTIMATOR, [3, 7]), ("optimizer=forward", range(8))]
)
def test_plain_steps_lie_between_two_hypergradients(text: str, learned: Iterable[int]) -> None:
    """An estimator that carries tangents has no plain steps, because tangents need every step."""
    spec = HyperSpec("magnitude.rotate", torch.tensor(0.5), Interval(0.0, 1.0), "loss")
    learner = HyperLearner(HyperParameters((spec,)), plan(text), LearningRateFinder(), pause=4)
    for step in range(8):
        learner.steps = step
        assert bool(learner.due(0.5)) == (step in learned)
