"""Learner: its training equals torch's own training, and its hypergradients are right.

The model has BatchNorm and Dropout, so its loss is not a pure function by itself. Torch's own
training loop is the reference twin.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from estimator_tables import build
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from darts_lite.hypergradient import (
    ESTIMATORS,
    ConjugateGradient,
    Estimator,
    Forward,
    HyperSpec,
    Interval,
    Learner,
    LearningRateFinder,
    Log,
    LogInterval,
    Neumann,
    OneStep,
    Online,
    PerKind,
    Unrolled,
    UnsupportedHyperparameter,
    UnsupportedOptimizer,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* learns the lr greedily",
    "ignore:.* has no information of its own about the weight_decay",
    "ignore:Differentiable RMSprop suffers",
    "ignore:Detected call of `lr_scheduler.step",
)

Batch = tuple[Tensor, Tensor]


class Rule(NamedTuple):
    """A torch optimizer, its arguments, and the tolerance of the comparison."""

    kind: type[optim.Optimizer]
    arguments: dict[str, Any]
    learnable: tuple[str, ...]
    tolerance: float = 1e-12


SGD = ("lr", "weight_decay", "momentum")
ADAM = ("lr", "weight_decay", "beta1", "beta2")
slow: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.03}
OPTIMIZERS = {
    "momentum": Rule(optim.SGD, {"lr": 0.1, "weight_decay": 0.03, "momentum": 0.9}, SGD),
    "nesterov": Rule(
        optim.SGD, {"lr": 0.1, "weight_decay": 0.03, "momentum": 0.8, "nesterov": True}, SGD
    ),
    "adam": Rule(optim.Adam, {**slow, "betas": (0.8, 0.95), "eps": 1e-6}, ADAM),
    "adamw": Rule(optim.AdamW, {**slow, "betas": (0.8, 0.95)}, ADAM),
    "rmsprop": Rule(optim.RMSprop, {**slow, "momentum": 0.5}, SGD),
    "rmsprop_centered": Rule(
        optim.RMSprop, {**slow, "centered": True}, ("lr", "weight_decay"), 1e-11
    ),
    "adagrad": Rule(optim.Adagrad, {**slow, "lr_decay": 0.1}, ("lr", "weight_decay")),
    "adamax": Rule(optim.Adamax, slow, ADAM),
    # torch keeps the product of NAdam's momenta in float32
    "nadam": Rule(optim.NAdam, {**slow, "betas": (0.8, 0.95), "eps": 1e-6}, ADAM, 1e-6),
    "nadamw": Rule(optim.NAdam, {**slow, "decoupled_weight_decay": True}, ADAM, 1e-6),
    "radam": Rule(optim.RAdam, {**slow, "betas": (0.8, 0.97), "eps": 1e-6}, ADAM),
    "radamw": Rule(
        optim.RAdam, {**slow, "betas": (0.8, 0.95), "decoupled_weight_decay": True}, ADAM
    ),
    "adadelta": Rule(optim.Adadelta, {"lr": 0.5, "weight_decay": 0.03}, ("lr", "weight_decay")),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.SiLU(),
            nn.Dropout(0.25),
            nn.Linear(6, 3),
        ).double()


def batches(count: int, seed: int = 0) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 5, generator=g, dtype=torch.float64), torch.randint(3, (8,), generator=g))
        for _ in range(count)
    ]


def window(found: list[Any]) -> Any:
    """The argument of `Learner.step` for this number of batches."""
    return found if len(found) > 1 else found[0]


HELD_OUT = batches(1, seed=99)[0]
TENTH = torch.tensor(0.1, dtype=torch.float64)


def loss(model: Callable[..., Tensor], batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, with label smoothing if it is learned."""
    x, y = batch
    log = model(x).log_softmax(1)
    smooth = learned.get("smoothing", torch.zeros((), dtype=x.dtype))
    return -(1 - smooth) * log.gather(1, y[:, None]).mean() - smooth * log.mean()


def spec(name: str, value: Any) -> HyperSpec:
    """HyperSpec in float64; a setting that is learned by name is in float32."""
    start = torch.as_tensor(value, dtype=torch.float64)
    if name in ("lr", "weight_decay"):
        return HyperSpec(name, start, LogInterval(1e-6, 1e2), "optimizer")
    return HyperSpec(name, start, Interval(), "loss" if name == "smoothing" else "optimizer")


def sgd(model: nn.Module, lr: float = 0.1, **arguments: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), lr, **arguments)


def made(name: str) -> tuple[nn.Sequential, optim.Optimizer]:
    model, rule = network(), OPTIMIZERS[name]
    return model, rule.kind(model.parameters(), **rule.arguments)  # type: ignore[call-arg]


def specs_of(name: str) -> list[HyperSpec]:
    """Every setting of the optimizer at its value, and a hyperparameter of the loss."""
    rule = OPTIMIZERS[name]
    betas = rule.arguments.get("betas", (0.9, 0.999))
    values = {**rule.arguments, "beta1": betas[0], "beta2": betas[1], "smoothing": 0.1}
    return [spec(n, values[n]) for n in (*rule.learnable, "smoothing")]


def torch_step(model: nn.Module, optimizer: optim.Optimizer, batch: Batch, **learned: Any) -> float:
    optimizer.zero_grad()
    value = loss(model, batch, learned)
    value.backward()
    optimizer.step()
    return float(value.detach())


def everything(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a training passes from step to step."""
    found = {**model.state_dict(), "random": torch.get_rng_state()}
    for n, p in model.named_parameters():
        state = optimizer.state[p].items()
        found |= {f"{n}/{k}": torch.as_tensor(v) for k, v in state if v is not None}
    return {n: v.detach().clone() for n, v in found.items()}


def agree(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=name)


# --- Plain training is torch's own -------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("own", [(), (1, 3), (0, 1, 4)], ids=["never", "between", "first"])
def test_plain_steps_equal_steps_of_torch(name: str, own: tuple[int, ...]) -> None:
    """Also if some steps, `own`, are torch's: parameters, buffers, optimizer and random state."""
    data, ends = batches(6), []
    for learning in (False, True):
        model, optimizer = made(name)
        learner = Learner(model, optimizer, loss, [], 100)
        torch.manual_seed(1)
        for i, batch in enumerate(data):
            if not learning or i in own:
                torch_step(model, optimizer, batch)
            else:
                learner.step(batch)
        ends.append(everything(model, optimizer))
    agree(ends[1], ends[0], OPTIMIZERS[name].tolerance)


@every_optimizer
def test_learned_settings_replace_those_of_the_optimizer(name: str) -> None:
    """Settings of the parameter groups are not used."""
    ends = []
    for specs in ([], specs_of(name)):
        model, optimizer = made(name)
        for group in optimizer.param_groups if specs else ():
            changed = {"lr": 7.0, "weight_decay": 7.0, "momentum": 0.1, "betas": (0.1, 0.2)}
            group.update({n: v for n, v in changed.items() if group.get(n)})
        learner = Learner(
            model,
            optimizer,
            lambda m, b, learned: loss(m, b, {"smoothing": TENTH}),
            specs,
            100,
        )
        torch.manual_seed(1)
        for batch in batches(4):
            learner.step(batch)
        ends.append(everything(model, optimizer))
    agree(ends[1], ends[0], max(1e-9, OPTIMIZERS[name].tolerance))


LEARNING: dict[str, Estimator] = {
    **{name: build(name) for name in ESTIMATORS},
    "one_step_jvp": OneStep("jvp"),
    "unrolled_one_sided": Unrolled(2, product="one_sided"),
    "forward_central": Forward(product="finite_difference"),
    "conjugate_gradient_2_steps": ConjugateGradient(3, 0.0, 20.0, steps=2),
    "per_kind": PerKind(OneStep(), OneStep(), Forward()),
    "per_kind_windows": PerKind(OneStep(), OneStep("double_backward"), Unrolled(3)),
    "per_kind_annealed": PerKind(OneStep(), OneStep(), Unrolled(3, anneal=True)),
}
every_estimator = pytest.mark.parametrize("estimator", LEARNING.values(), ids=LEARNING)


def learner_with(estimator: Estimator, total: int = 100) -> tuple[Learner, optim.Optimizer]:
    """SGD with lr and label smoothing, as far as the estimator supports them."""
    model = network()
    optimizer = sgd(model, momentum=0.9)
    specs = [s for s in (spec("lr", 0.1), spec("smoothing", 0.1)) if s.kind in estimator.supports]
    return Learner(model, optimizer, loss, specs, total, estimator), optimizer


@every_estimator
def test_a_learning_step_is_a_training_step(estimator: Estimator) -> None:
    """Buffers change once per step, however often the loss is evaluated."""
    learner, optimizer = learner_with(estimator)
    data = batches(estimator.steps)
    torch.manual_seed(1)
    value = learner.step(window(data), HELD_OUT)
    got = everything(learner.model, optimizer)
    model = network()
    optimizer = sgd(model, momentum=0.9)
    torch.manual_seed(1)
    smooth = {"smoothing": TENTH} if "loss" in estimator.supports else {}
    values = [torch_step(model, optimizer, batch, **smooth) for batch in data]
    agree(got, everything(model, optimizer), 1e-12)
    assert got["1.num_batches_tracked"] == estimator.steps
    assert float(value) == pytest.approx(values[0], rel=1e-12) and not value.requires_grad


@pytest.mark.parametrize("steps", [1, 3])
def test_a_window_counts_as_its_share_of_the_training(steps: int) -> None:
    """The first Adam step is `travel` times the share of the window in all steps."""
    learner, _ = learner_with(Unrolled(steps), total=50)
    before = dict(learner.variables.raw)
    learner.step(window(batches(steps)), HELD_OUT)
    for name, raw in learner.variables.raw.items():
        assert float((raw - before[name]).abs()) == pytest.approx(4.0 * steps / 50)


# --- What must not change ----------------------------------------------------------------------


def test_plain_steps_between_two_hypergradients_count() -> None:
    """Learned at every fourth step, a value travels as far as learned at each step."""
    moved = []
    for every in (1, 4):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = optim.SGD(model.parameters(), lr=1e-4)
        batch = (torch.randn(16, 3), torch.randn(16, 1))

        def loss(model: Callable[..., Tensor], batch: Any, learned: Any) -> Tensor:
            return (model(batch[0]) - batch[1]).square().mean()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner = Learner(model, optimizer, loss, ["lr"], steps=101)
        start = learner.variables.raw["lr"].clone()
        for i in range(101):
            learner.step(batch, batch if i % every == 0 else None)
        moved.append(float(learner.variables.raw["lr"] - start))
    assert moved[0] > 1 and moved[1] == pytest.approx(moved[0], rel=0.2)


@every_estimator
def test_hypergradient_and_check_change_nothing(estimator: Estimator) -> None:
    """Model, optimizer, tangents, values and random state stay bit-identical."""
    learner, optimizer = learner_with(estimator)
    data = batches(2 * estimator.steps)
    torch.manual_seed(1)
    learner.step(window(data[: estimator.steps]), HELD_OUT)
    tensors = [*learner.model.parameters(), *learner.model.buffers()]
    before = everything(learner.model, optimizer), [t._version for t in tensors]
    groups, own = repr(optimizer.param_groups), copy.deepcopy(learner.state_dict())
    torch.manual_seed(5)
    before[0]["random"] = torch.get_rng_state()
    later = window(data[estimator.steps :])
    found, again = (learner.hypergradient(later, HELD_OUT) for _ in range(2))
    assert found.keys() == learner.variables.raw.keys()
    assert all(torch.equal(found[n], again[n]) and found[n] != 0 for n in found)
    learner.check(data[: estimator.steps], HELD_OUT, {"one": OneStep()})
    agree(everything(learner.model, optimizer), before[0], 0.0)
    assert [t._version for t in tensors] == before[1]
    assert repr(optimizer.param_groups) == groups
    assert not any(p.grad is not None for p in learner.model.parameters())
    torch.testing.assert_close(learner.state_dict(), own, rtol=0, atol=0)
    assert bool(own["carried"]) == estimator.carries


def test_a_look_changes_only_lr_and_ignores_its_schedule() -> None:
    """The schedule is restored, also after an error."""
    ends = []
    for factor in (1.0, 0.01):
        learner, optimizer = learner_with(OneStep())
        found = learner.hypergradient(
            batches(10), HELD_OUT, LearningRateFinder().estimator, {"lr": "optimizer"}
        )
        optimizer.param_groups[0]["lr"] *= factor
        scheduled, before = optimizer.param_groups[0]["lr"], everything(learner.model, optimizer)
        raw = dict(learner.variables.raw)
        search = LearningRateFinder()
        learner.look(search, batches(10), HELD_OUT)
        agree(everything(learner.model, optimizer), before, 0.0)
        assert search.done == 1 and optimizer.param_groups[0]["lr"] == scheduled
        assert torch.equal(learner.variables.raw["smoothing"], raw["smoothing"])
        ends.append(learner.values()["lr"])
        assert float(ends[-1]) == pytest.approx(0.1 * math.exp(-0.8 * found["lr"].sign()))
        with pytest.raises(ValueError, match="a list of 10 batches for Unrolled, got 3"):
            learner.look(search, batches(3), HELD_OUT)
        assert search.done == 1 and optimizer.param_groups[0]["lr"] == scheduled
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("held", [True, False], ids=["in_the_optimizer", "left_out"])
def test_a_frozen_parameter_stays(held: bool) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    moving = [p for p in model.parameters() if held or p.requires_grad]
    optimizer = optim.SGD(moving, 0.1, momentum=0.9, weight_decay=0.1)
    learner = Learner(model, optimizer, loss, ["lr"], 100)
    before = everything(model, optimizer)
    for batch in batches(2):
        learner.step(batch, HELD_OUT)
    after = everything(model, optimizer)
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["4.weight"], before["4.weight"])


def test_a_model_in_evaluation_mode_stays_in_it() -> None:
    """BatchNorm statistics do not change, and dropout draws nothing."""
    learner, optimizer = learner_with(OneStep())
    learner.model.eval()
    before = everything(learner.model, optimizer)
    learner.step(batches(1)[0], HELD_OUT)
    after = everything(learner.model, optimizer)
    for name in ("1.running_mean", "1.num_batches_tracked", "random"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["4.weight"], before["4.weight"])


# --- Hypergradients are right ------------------------------------------------------------------


@every_optimizer
def test_the_derivative_of_every_setting(name: str) -> None:
    """Against central differences in the middle of a training with dropout."""
    model, optimizer = made(name)
    learner = Learner(model, optimizer, loss, specs_of(name), 100, Unrolled(3))
    torch.manual_seed(2)
    data = batches(7)
    for batch in data[:4]:
        learner.step(batch)
    table = learner.check(data[4:], HELD_OUT, {"unrolled": Unrolled(3), "forward": Forward(1.0)})
    assert len(table.rows) == 2 * (len(OPTIMIZERS[name].learnable) + 1)
    for row in table.rows:
        assert row.truth.abs() > 1e-9  # something to get right
        assert row.error < 1e-6, f"{row.estimator} {row.name}"


def test_the_validation_loss_may_differ() -> None:
    model = network()
    arguments = model, sgd(model), loss, [spec("lr", 0.1)], 100, OneStep()
    plain = Learner(*arguments).hypergradient(batches(1)[0], HELD_OUT)["lr"]
    twice = Learner(*arguments, outer_loss=lambda *a: 2 * loss(*a))
    torch.testing.assert_close(twice.hypergradient(batches(1)[0], HELD_OUT)["lr"], 2 * plain)


@pytest.mark.parametrize("estimator", [Forward(), Online()], ids=["forward", "online"])
def test_a_check_ignores_earlier_tangents(estimator: Estimator) -> None:
    """The central differences start now, so the estimates must too."""
    learner, _ = learner_with(estimator)
    data = batches(6)
    for batch in data[:3]:
        learner.step(batch, HELD_OUT)
    table = learner.check(data[3:], HELD_OUT, {"forward": Forward(1.0)})
    assert all(row.error < 1e-6 for row in table.rows)


# --- Parameter groups and schedules ------------------------------------------------------------


def two_groups(model: nn.Sequential, *rates: float, **arguments: Any) -> optim.Optimizer:
    """One group for the first layer, with weight decay, and one for the rest."""
    first, rest = list(model[0].parameters()), [*model[1].parameters(), *model[4].parameters()]
    groups = [{"params": first, "weight_decay": 0.1}, {"params": rest}]
    for group, rate in zip(groups, rates):
        group["lr"] = rate  # type: ignore[assignment]
    return optim.SGD(groups, 0.3, **arguments)


@pytest.mark.parametrize(
    "specs", [[], [spec("lr", [0.2, 0.01])], [spec("momentum", [0.9, 0.9])]], ids=lambda s: len(s)
)
def test_groups_have_their_own_settings(specs: list[HyperSpec]) -> None:
    """One learned value per group, and the group's own value otherwise."""
    ends = []
    for learning in (False, True):
        model = network()
        optimizer = two_groups(model, 0.2, 0.01, momentum=0.9)
        learner = Learner(model, optimizer, loss, specs, 100)
        torch.manual_seed(1)
        for batch in batches(3):
            learner.step(batch) if learning else torch_step(model, optimizer, batch)
        ends.append(everything(model, optimizer))
    agree(ends[1], ends[0], 1e-10)


def test_the_derivative_of_a_shared_lr_is_the_sum_over_groups() -> None:
    found = []
    for start in (0.1, [0.1, 0.1]):
        model = network()
        learner = Learner(model, two_groups(model), loss, [spec("lr", start)], 100, Unrolled(2))
        torch.manual_seed(1)
        found.append(learner.hypergradient(batches(2), HELD_OUT)["lr"])
    assert found[1].shape == (2,) and (found[1].abs() > 1e-6).all()
    torch.testing.assert_close(found[1].sum(), found[0])


SCHEDULES: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "warm_up": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=3),
    "chain": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.2, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


@pytest.mark.parametrize("factor", [1.0, 0.4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_multiplies_the_learned_lr(schedule: str, factor: float) -> None:
    """Per group, and in addition to what has been learned."""
    ends = []
    for learning in (False, True):
        model = network()
        one = factor if not learning else 1.0
        optimizer = two_groups(model, 0.2 * one, 0.01 * one, momentum=0.9)
        learner = Learner(model, optimizer, loss, [spec("lr", [0.2, 0.01])], 100)
        learner.variables.multiply("lr", factor)
        scheduler = SCHEDULES[schedule](optimizer)
        torch.manual_seed(1)
        for batch in batches(6):
            learner.step(batch) if learning else torch_step(model, optimizer, batch)
            scheduler.step()
        ends.append(everything(model, optimizer))
    agree(ends[1], ends[0], 1e-10)


def test_a_scheduler_does_not_complain() -> None:
    model = network()
    optimizer = sgd(model)
    learner, scheduler = Learner(model, optimizer, loss, [], 9), lr_scheduler.StepLR(optimizer, 1)
    learner.step(batches(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


# --- It learns, and resumes --------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [OneStep(), Unrolled(5), Forward(1.0), Online()])
def test_an_lr_that_is_far_too_low_rises(estimator: Estimator) -> None:
    """A regression whose best constant lr is 30 times the start."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    y = x @ torch.randn(8, 1, generator=generator)

    def squares(model: Callable[..., Tensor], rows: Tensor, _: Any) -> Tensor:
        return (model(x[rows]) - y[rows]).square().mean()

    ends = []
    for learning in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(8, 1)
        start = HyperSpec("lr", torch.tensor(0.3 / 30), Log(), "optimizer", travel=6.0)
        learner = Learner(model, sgd(model, 0.3 / 30), squares, [start], 100, estimator)
        drawn = torch.randint(192, (100, 32), generator=torch.Generator().manual_seed(1))
        held = torch.arange(192, 256)
        for rows in drawn.split(estimator.steps):
            learner.step(window(list(rows)), held if learning else None)
        ends.append(float(squares(model, held, {}).detach()))
    assert learner.values()["lr"] > 3 * 0.3 / 30
    assert ends[1] < 0.3 * ends[0]


def saved(learner: Learner, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Save to a file and load it, as a user does."""
    buffer = io.BytesIO()
    state = {
        "learner": learner.state_dict(),
        "model": learner.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def restored(state: dict[str, Any], learner: Learner) -> None:
    learner.load_state_dict(state["learner"])
    learner.model.load_state_dict(state["model"])
    torch.set_rng_state(state["random"])


@every_estimator
def test_a_resumed_training_is_bit_identical(estimator: Estimator) -> None:
    data = batches(6 * estimator.steps)
    steps = estimator.steps
    windows = [window(data[i : i + steps]) for i in range(0, len(data), steps)]
    whole, optimizer = learner_with(estimator)
    torch.manual_seed(1)
    for each in windows[:3]:
        whole.step(each, HELD_OUT)
    state = saved(whole, optimizer)
    again, other = learner_with(estimator)
    other.load_state_dict(state["optimizer"])
    ends = []
    for learner, rule in ((whole, optimizer), (again, other)):
        if learner is again:
            restored(state, again)
        for each in windows[3:]:
            learner.step(each, HELD_OUT)
        ends.append({**everything(learner.model, rule), **learner.variables.raw})
    agree(ends[1], ends[0], 0.0)
    assert any(v != w for v, w in zip(whole.values().values(), (0.1, 0.1)))


@pytest.mark.parametrize(
    "late",
    [
        False,
        True,
    ],
)
def test_a_training_resumes_in_the_middle_of_a_schedule(late: bool) -> None:
    """Whether the learner is created before or after the optimizer's state is loaded."""
    data, ends, state = batches(6), [], {}
    for resuming in (False, True):
        model = network()
        optimizer = sgd(model)
        scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
        if resuming and late:
            optimizer.load_state_dict(state["optimizer"])
        learner = Learner(model, optimizer, loss, ["lr"], 100)
        if resuming:
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            restored(state, learner)
        torch.manual_seed(1)
        for i, batch in enumerate(data):
            if i == 3:
                state = state or {
                    **saved(learner, optimizer),
                    "scheduler": scheduler.state_dict(),
                }
            if i >= 3 or not resuming:
                torch.manual_seed(i)
                learner.step(batch, HELD_OUT)
                scheduler.step()
        ends.append(everything(model, optimizer))
    agree(ends[1], ends[0], 0.0)


# --- Errors and warnings -------------------------------------------------------------------------


def one(
    learn: list[Any],
    make: Callable[[nn.Sequential], optim.Optimizer] = sgd,
    estimator: Estimator | None = None,
) -> Learner:
    model = network()
    return Learner(model, make(model), loss, learn, 100, estimator)


annealing = Unrolled(3, anneal=True)
extra = HyperSpec("speed", torch.tensor(0.5), Interval(), "optimizer")


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda: one(["speed"]),
            ValueError,
            "must name a setting of SGD .*, got 'speed'; give a HyperSpec",
        ),
        (
            lambda: one(["beta1"]),
            ValueError,
            "must name a setting of SGD .*, got 'beta1'; leave it out",
        ),
        (
            lambda: one([extra]),
            ValueError,
            r"setting of SGD \(lr, weight_decay, momentum\), got 'speed'",
        ),
        (
            lambda: one(["lr"], lambda m: sgd(m, 0.0)),
            ValueError,
            "lr must start above 0 .* got 0.0; set it",
        ),
        (
            lambda: one(["weight_decay"]),
            ValueError,
            "weight_decay must start above 0 .* got 0.0; set it",
        ),
        (lambda: one(["momentum"]), ValueError, "'momentum' must start strictly inside"),
        (
            lambda: one([spec("lr", [0.1, 0.2])]),
            ValueError,
            r"one value per parameter group \(1\), got 2 values",
        ),
        (
            lambda: one([], lambda m: sgd(m[4])),
            ValueError,
            "got none for '0.weight'; add it to a parameter group or freeze it",
        ),
        (
            lambda: one([], lambda m: optim.Adam(m.parameters(), amsgrad=True)),
            UnsupportedOptimizer,
            "amsgrad of Adam must be off, .* without amsgrad",
        ),
        (
            lambda: one([], lambda m: sgd(m, maximize=True)),
            UnsupportedOptimizer,
            "build the optimizer without maximize",
        ),
        (
            lambda: one([], lambda m: sgd(m, momentum=0.9, dampening=0.1)),
            UnsupportedOptimizer,
            "build the optimizer without dampening",
        ),
        (
            lambda: one(
                [],
                lambda m: optim.SGD(
                    [{"params": m[:3].parameters(), "nesterov": True}, {"params": m[4].weight}],
                    0.1,
                    momentum=0.9,
                ),
            ),
            UnsupportedOptimizer,
            "nesterov of SGD must be the same in all .* give all groups one value",
        ),
        (
            lambda: one(
                [],
                lambda m: optim.Adadelta([{"params": p} for p in m.parameters()]),
            ),
            UnsupportedOptimizer,
            "Adadelta must have one parameter group, got 5",
        ),
        (
            lambda: one([], lambda m: optim.LBFGS(m.parameters())),
            UnsupportedOptimizer,
            "one of SGD, Adam, AdamW, NAdam, .*RMSprop, .*got LBFGS, which has no derivative",
        ),
        (
            lambda: one(["lr"], estimator=annealing),
            ValueError,
            r"got Unrolled\(anneal=True\), which only looks ahead; .* another estimator here",
        ),
        (
            lambda: one(["lr"], estimator=Neumann()),
            UnsupportedHyperparameter,
            "Neumann cannot differentiate the optimizer .* 'lr': .* use OneStep",
        ),
        (
            lambda: one([spec("smoothing", 0.1)], estimator=Online()),
            UnsupportedHyperparameter,
            "Online cannot differentiate the loss .* 'smoothing'",
        ),
        (
            lambda: one(["lr"], estimator=Unrolled(3)).step(batches(2), HELD_OUT),
            ValueError,
            "a list of 3 batches for Unrolled, got 2; collect a window",
        ),
        (
            lambda: one(["lr"]).hypergradient(batches(1)[0], HELD_OUT, annealing),
            ValueError,
            "a list of 3 batches for Unrolled, got 1",
        ),
        (
            lambda: one(["lr"]).check(batches(2), HELD_OUT, {"long": Unrolled(3)}),
            ValueError,
            "at least the 3 steps of Unrolled, got 2",
        ),
    ],
)
def test_error_messages_name_the_remedy(
    make: Callable[[], object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize("kind", [optim.ASGD, optim.Rprop])
@pytest.mark.filterwarnings("ignore:Differentiable Rprop")
def test_optimizers_without_a_derivative_are_an_error(kind: type[optim.Optimizer]) -> None:
    """The state of ASGD holds Python numbers, and Rprop uses the sign of the gradient."""
    with pytest.raises(UnsupportedOptimizer, match=kind.__name__):
        one([], lambda m: kind(m.parameters()))  # type: ignore[call-arg]


def test_rmsprop_does_not_warn() -> None:
    """A test above checks its derivatives."""
    learner = one([], lambda m: optim.RMSprop(m.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.step(batches(1)[0])


def test_a_group_with_lr_zero_is_an_error() -> None:
    """The factor of a schedule is relative to it."""
    with pytest.raises(ValueError, match="lr of every parameter group must be above 0"):
        one([spec("lr", 0.1)], lambda m: sgd(m, 0.0)).step(batches(1)[0])


def test_a_batch_of_a_data_loader_is_one_batch() -> None:
    """Torch's loader yields lists, so for an estimator of one step a list is no window."""
    x, y = batches(1)[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    learner = one(["lr"])
    for batch in loader:
        learner.step(batch)
        learner.step(batch, HELD_OUT)


class Counting(nn.Module):
    """A module that replaces its buffer instead of writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3).double()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + len(x)
        return self.layer(x)


def test_a_replaced_buffer_is_kept() -> None:
    model = Counting()
    learner = Learner(model, sgd(model), loss, ["lr"], 100)
    for batch in batches(2):
        learner.step(batch, HELD_OUT)
    assert model.seen == 16


@pytest.mark.parametrize("estimator", [OneStep(), Online(), Forward(0.0)])
def test_a_greedy_estimator_gives_a_warning(estimator: Estimator) -> None:
    """At start-up, with the remedy."""
    with pytest.warns(UserWarning, match=r"learns the lr greedily.*Unrolled\(anneal=True\)"):
        one(["lr"], estimator=estimator)
    decayed = {"weight_decay": 0.1}
    with pytest.warns(UserWarning, match=r"weight_decay of layers before a normalization.*window"):
        one(["weight_decay"], lambda m: sgd(m, **decayed), estimator)
    with pytest.warns(UserWarning, match="greedily"):
        one(["lr"], estimator=PerKind(Unrolled(1), Unrolled(1), estimator))


@pytest.mark.parametrize(
    ("learn", "estimator", "normalized"),
    [
        (["lr", "weight_decay"], Forward(1.0), True),
        (["lr", "weight_decay"], Unrolled(5), True),
        (["weight_decay"], OneStep(), False),
        ([spec("smoothing", 0.1)], OneStep(), True),
        (["lr"], PerKind(OneStep(), OneStep(), Forward()), True),
    ],
)
def test_a_suitable_estimator_gives_no_warning(
    learn: list[Any], estimator: Estimator, normalized: bool
) -> None:
    model = network() if normalized else nn.Sequential(nn.Linear(5, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Learner(model, sgd(model, weight_decay=0.1), loss, learn, 100, estimator)
