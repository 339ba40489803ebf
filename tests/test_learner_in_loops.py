"""Learner in loops as people write them: it trains as plain torch does, bit for bit.

The learning rates are powers of two, so that no product of one is rounded.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from darts_lite.hypergradient import (
    ConjugateGradient,
    Estimator,
    Forward,
    HyperSpec,
    Identity,
    Interval,
    Learner,
    LogInterval,
    Neumann,
    OneStep,
    Online,
    PerKind,
    Unrolled,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* learns the lr greedily")

Batch = tuple[Tensor, Tensor]
LR = 0.125


def batches(count: int, seed: int = 0, channels: tuple[int, ...] = (5,)) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, *channels, generator=g, dtype=torch.float64),
            torch.randint(3, (8,), generator=g),
        )
        for _ in range(count)
    ]


def loss(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, scaled by a value that is learned."""
    return learned.get("scale", 1.0) * F.cross_entropy(model(batch[0]), batch[1])


LEARNED = (
    HyperSpec("lr", torch.tensor(LR, dtype=torch.float64), LogInterval(1e-6, 1e2), "optimizer"),
    HyperSpec("scale", torch.tensor(1.0, dtype=torch.float64), Identity(), "loss"),
)


def learned_by(estimator: Estimator) -> list[HyperSpec]:
    return [s for s in LEARNED if s.kind in estimator.supports]


def sgd(model: nn.Module, **arguments: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), LR, **{"momentum": 0.5, "weight_decay": 0.25, **arguments})


def adam(model: nn.Module) -> optim.Optimizer:
    """With an eps that gives a gradient of 1e-17, as of a bias before BatchNorm, no direction."""
    return optim.AdamW(model.parameters(), LR, weight_decay=0.25, eps=1e-3)


def torch_step(model: nn.Module, optimizer: optim.Optimizer, batch: Batch, loss: Any) -> None:
    optimizer.zero_grad()
    loss(model, batch, {}).backward()
    optimizer.step()


def everything(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a training passes from step to step."""
    found = {**model.state_dict(), "random": torch.get_rng_state()}
    for n, p in model.named_parameters():
        for k, v in optimizer.state.get(p, {}).items():
            found |= {f"{n}/{k}": torch.as_tensor(v)} if v is not None else {}
    return {n: v.detach().clone() for n, v in found.items()}


def both(
    make: Callable[[], nn.Module],
    data: list[Batch],
    loss: Any = loss,
    rule: Callable[[nn.Module], optim.Optimizer] = sgd,
    between: Callable[[nn.Module, optim.Optimizer, int], None] = lambda *_: None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What torch and the Learner reach; `between` is called before every step."""
    ends = []
    for learning in (False, True):
        torch.manual_seed(0)
        model = make().double()
        optimizer = rule(model)
        learner = Learner(model, optimizer, loss, [], 100) if learning else None
        for i, batch in enumerate(data):
            between(model, optimizer, i)
            if learner:
                learner.step(batch)
            else:
                torch_step(model, optimizer, batch, loss)
        ends.append(everything(model, optimizer))
    return ends[0], ends[1]


def equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 0) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=name)


def right(learner: Learner, data: list[Batch], estimators: Mapping[str, Estimator]) -> None:
    """Hypergradients against central differences of real training steps."""
    table = learner.check(data, batches(1, 99, data[0][0].shape[1:])[0], estimators)
    assert table.rows
    for row in table.rows:
        assert row.truth.abs().max() > 1e-6, row.name
        assert row.error < 1e-6, f"{row.estimator} {row.name}"


# --- Modules and tensors that occur several times ------------------------------------------------


class Shared(nn.Module):
    """One activation and one normalization at two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.norm = self.norm_again = nn.BatchNorm1d(5)
        self.act = self.act_again = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.one(x)))
        return self.head(self.act_again(self.norm_again(self.two(x))))


class Siamese(nn.Module):
    """One tower for two inputs, in a list and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.SiLU(), nn.Dropout(0.25))
        self.towers = nn.ModuleList([self.tower, self.tower])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([t(y) for t, y in zip(self.towers, (x, -x))], 1))


class Tied(nn.Module):
    """One tensor in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).sigmoid()))


REPEATED = (Shared, Siamese, Tied)


@pytest.mark.parametrize("make", REPEATED)
@pytest.mark.parametrize("rule", [sgd, adam])
def test_a_module_used_twice(make: Callable[[], nn.Module], rule: Any) -> None:
    plain, learned = both(make, batches(4), rule=rule)
    equal(learned, plain, 0 if rule is sgd else 1e-12)


def test_derivatives_of_a_module_used_twice() -> None:
    torch.manual_seed(0)
    model = Siamese().double()
    learner = Learner(model, sgd(model), loss, LEARNED, 100, Unrolled(2))
    learner.step(batches(2), batches(1)[0])
    right(learner, batches(3), {"unrolled": Unrolled(3), "forward": Forward()})


def test_a_loss_may_use_parts_and_methods_of_the_model() -> None:
    """It gets the module itself, not only its call."""

    def of_parts(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(model, Tied) and model.training
        return F.cross_entropy(model.head(model.one(batch[0])), batch[1])

    plain, learned = both(Tied, batches(3), of_parts)
    equal(learned, plain)


# --- Parameters without a gradient ---------------------------------------------------------------


class Auxiliary(nn.Module):
    """Has a layer that nothing uses, one that is dropped at random, and a head for training."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.dropped = nn.Linear(2, 2), nn.Linear(5, 5)
        self.head, self.auxiliary = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.dropped(x).sigmoid()
        return x


def with_auxiliary(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    x = model(batch[0])
    value = F.cross_entropy(model.head(x), batch[1])
    return learned.get("scale", 1.0) * value + F.cross_entropy(model.auxiliary(x), batch[1])


def without_auxiliary(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(model.head(model(batch[0])), batch[1])


@pytest.mark.parametrize("rule", [sgd, adam])
def test_a_parameter_without_a_gradient_is_left_alone(rule: Any) -> None:
    """No step, no decay, no moments; Adam counts the steps of every tensor by itself."""
    plain, learned = both(Auxiliary, batches(8), with_auxiliary, rule)
    equal(learned, plain, 0 if rule is sgd else 1e-12)
    assert not any(name.startswith("unused.") and "/" in name for name in plain)
    if rule is adam:
        assert 0 < plain["dropped.weight/step"] < plain["head.weight/step"] == 8


@pytest.mark.parametrize("rule", [sgd, adam])
def test_derivatives_with_parameters_without_a_gradient(rule: Any) -> None:
    """The outer loss does not use the auxiliary head, and the inner loss not always a layer."""
    torch.manual_seed(0)
    model = Auxiliary().double()
    learner = Learner(model, rule(model), with_auxiliary, LEARNED, 100, None, without_auxiliary)
    for batch in batches(3):
        learner.step(batch, batch)
    right(learner, batches(5), {"unrolled": Unrolled(5), "forward": Forward()})


@pytest.mark.parametrize("estimator", [Neumann(3, damping=5.0), ConjugateGradient(30, damping=5.0)])
def test_implicit_estimators_leave_out_what_training_does_not_move(estimator: Any) -> None:
    """A layer that only the validation loss uses is as good as frozen."""
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"net": nn.Linear(5, 3), "outer": nn.Linear(5, 3)}).double()
        model["outer"].requires_grad_(not frozen)

        def inner(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
            return loss(model["net"], batch, learned)

        def outer(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
            return F.cross_entropy(model["net"](batch[0]) + model["outer"](batch[0]), batch[1])

        learner = Learner(model, sgd(model), inner, LEARNED[1:], 100, estimator, outer)
        found.append(learner.hypergradient(batches(1)[0], batches(1, 9)[0])["scale"])
    assert found[0] != 0
    torch.testing.assert_close(found[0], found[1])


# --- Parameters that come, go, or are the optimizer's only ----------------------------------------


def unfreeze(model: Any, optimizer: optim.Optimizer, i: int) -> None:
    model.one.requires_grad_(i not in (0, 1, 4))


def unfreeze_into_a_new_group(model: Any, optimizer: optim.Optimizer, i: int) -> None:
    if i == 2:
        model.one.requires_grad_(True)
        optimizer.add_param_group({"params": model.one.parameters(), "lr": LR / 2})


def half_frozen(model: Any) -> optim.Optimizer:
    model.one.requires_grad_(False)
    return optim.SGD([p for p in model.parameters() if p.requires_grad], LR, momentum=0.5)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x).sigmoid())


@pytest.mark.parametrize(
    ("between", "rule"),
    [(unfreeze, sgd), (unfreeze, adam), (unfreeze_into_a_new_group, half_frozen)],
)
def test_parameters_are_frozen_and_unfrozen_in_a_training(between: Any, rule: Any) -> None:
    plain, learned = both(Plain, batches(6), rule=rule, between=between)
    equal(learned, plain, 1e-12 if rule is adam else 0)


@pytest.mark.parametrize("estimator", [OneStep(), Unrolled(1), Forward(), Online()])
def test_learning_goes_on_when_parameters_are_unfrozen(estimator: Estimator) -> None:
    torch.manual_seed(0)
    model = Plain().double()
    optimizer = half_frozen(model)
    learner = Learner(model, optimizer, loss, learned_by(estimator), 100, estimator)
    data, held_out = batches(4), batches(1, 9)[0]
    learner.step(data[0], held_out)
    before = model.one.weight.clone()
    unfreeze_into_a_new_group(model, optimizer, 2)
    for batch in data[1:]:
        learner.step(batch, held_out)
    assert not torch.equal(model.one.weight, before)
    right(learner, data[:2], {"forward": Forward()})


def test_a_vector_of_another_number_of_groups_is_an_error_at_the_next_step() -> None:
    model = Plain().double()
    optimizer = half_frozen(model)
    two = HyperSpec("lr", torch.tensor([LR]).double(), Interval(), "optimizer")
    learner = Learner(model, optimizer, loss, [two], 100)
    unfreeze_into_a_new_group(model, optimizer, 2)
    with pytest.raises(ValueError, match=r"one value per parameter group \(2\), got 1 values"):
        learner.step(batches(1)[0])


def test_a_new_parameter_without_a_group_is_an_error_at_the_next_step() -> None:
    model = Plain().double()
    learner = Learner(model, sgd(model), loss, [], 100)
    model.head = nn.Linear(5, 3).double()
    with pytest.raises(ValueError, match=r"must be in the optimizer, got none for 'head.weight'"):
        learner.step(batches(1)[0])


def test_a_parameter_of_the_optimizer_only_is_an_error() -> None:
    model, head = Plain(), nn.Linear(7, 2)
    both_of = optim.SGD([{"params": model.parameters()}, {"params": head.parameters()}], LR)
    with pytest.raises(ValueError, match=r"shape \(2, 7\) in parameter group 1 .* nn.ModuleDict"):
        Learner(model, both_of, loss, [], 100)


def of_several(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    logits = F.normalize(model["net"](batch[0])) @ model["arc"].weight.T
    return F.cross_entropy(logits * model["own"]["temperature"].exp(), batch[1])


def test_several_modules_and_a_single_parameter() -> None:
    def make() -> nn.Module:
        own = nn.ParameterDict({"temperature": nn.Parameter(torch.zeros(()))})
        return nn.ModuleDict({"net": Plain(), "arc": nn.Linear(3, 3, bias=False), "own": own})

    plain, learned = both(make, batches(4), of_several)
    equal(learned, plain)
    assert plain["own.temperature"] != 0


def test_data_parallel_is_an_error() -> None:
    model = nn.DataParallel(Plain())
    with pytest.raises(ValueError, match=r"got DataParallel; give its `.module`"):
        Learner(model, sgd(model), loss, [], 100)


# --- A loss that draws ---------------------------------------------------------------------------


def drawing(*own: Any) -> Any:
    """A loss that draws noise from a generator, or from the global state of a library."""

    def draw(like: Tensor) -> Tensor:
        source = own[0]
        if isinstance(source, torch.Generator):
            return torch.randn(like.shape, generator=source, dtype=like.dtype)
        if isinstance(source, numpy.random.Generator) or source is numpy.random:
            return torch.from_numpy(source.standard_normal(tuple(like.shape)))
        return torch.tensor([source.gauss(0, 1) for _ in like.flatten()]).view_as(like).to(like)

    def noisy(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
        scale = learned.get("noise", torch.ones((), dtype=torch.float64))
        return F.cross_entropy(model(batch[0] + scale * draw(batch[0])), batch[1])

    return noisy


SOURCES: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "numpy": lambda: numpy.random.default_rng(0),
    "python": lambda: random.Random(0),
}
NOISE = HyperSpec("noise", torch.tensor(0.5).double(), Interval(), "loss")


@pytest.mark.parametrize("source", SOURCES)
def test_a_loss_that_draws_from_a_named_generator(source: str) -> None:
    """A step draws what torch's step draws; a hypergradient draws nothing of its own."""
    ends = []
    for learning in (False, True):
        own = SOURCES[source]()
        noisy = drawing(own)
        torch.manual_seed(0)
        model = Plain().double()
        optimizer = sgd(model)
        learner = Learner(model, optimizer, noisy, [], 100, generators=[own])
        for batch in batches(4):
            if not learning:
                torch_step(model, optimizer, batch, noisy)
                continue
            one, two = (learner.hypergradient(batch, batch, kinds=None) for _ in range(2))
            assert one == two
            learner.step(batch)
        ends.append(everything(model, optimizer))
    equal(ends[1], ends[0])


@pytest.mark.parametrize("source", [*SOURCES, "global numpy", "global python"])
def test_derivatives_of_a_loss_that_draws(source: str) -> None:
    """Every evaluation of a step sees the same noise, and another step sees other noise."""
    known = {"global numpy": numpy.random, "global python": random}
    own = known.get(source) or SOURCES[source]()
    model = Plain().double()
    generators = [] if source in known else [own]
    learner = Learner(
        model, sgd(model), drawing(own), [NOISE], 100, OneStep(), generators=generators
    )
    data = batches(3)
    learner.step(data[0], data[1])
    first, again = (learner.hypergradient(data[1], data[2])["noise"] for _ in range(2))
    assert torch.equal(first, again)
    right(learner, data, {"unrolled": Unrolled(3)})
    model_before, optimizer_before = (
        copy.deepcopy(model.state_dict()),
        learner.optimizer.state_dict(),
    )
    state = copy.deepcopy(optimizer_before)
    learner.step(data[0])  # draws
    model.load_state_dict(model_before)
    learner.optimizer.load_state_dict(state)
    assert not torch.equal(learner.hypergradient(data[1], data[2])["noise"], first)


@pytest.mark.parametrize("source", SOURCES)
def test_a_generator_that_is_not_named_is_an_error(source: str) -> None:
    """At the first hypergradient, for the training loss and for the validation loss."""
    noisy = drawing(SOURCES[source]())
    model = Plain().double()
    for losses, name in (((noisy, loss), "loss"), ((loss, noisy), "outer_loss")):
        learner = Learner(model, sgd(model), losses[0], ["lr"], 100, outer_loss=losses[1])
        before = everything(model, learner.optimizer)
        learner.step(batches(1)[0])  # a plain step is not differentiated
        model.load_state_dict({n: before[n] for n in model.state_dict()})
        with pytest.raises(ValueError, match=rf"^{name} must return one value .*`generators="):
            learner.step(batches(1)[0], batches(1)[0])
        for n, v in model.state_dict().items():
            assert torch.equal(v, before[n])


# --- Batches of loaders --------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["step", "hypergradient"])
def test_one_batch_of_a_loader_is_no_window(call: str) -> None:
    """`[x, y]` has as many entries as the window has steps."""
    model = Plain().double()
    learner = Learner(model, sgd(model), loss, ["lr"], 100, Unrolled(2))
    x, y = batches(1)[0]
    said = "a list of 2 batches for Unrolled, got a list of tensors that differ"
    for batch in ([x, y], [x, x[:, :1]], [x, {"labels": y}]):
        with pytest.raises(ValueError, match=said):
            getattr(learner, call)(batch, [x, y])
    window = [[x, y], [x[:4], y[:4]]]
    assert learner.hypergradient(window, [x, y])["lr"] != 0
    learner.step(window, [x, y])


# --- What `step` replaces: clipping, accumulation, hooks -----------------------------------------


def clipped(model: nn.Module, clip: float | None, max_grad: float | None) -> None:
    if max_grad is not None:
        nn.utils.clip_grad_value_(model.parameters(), max_grad)
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)


@pytest.mark.parametrize(("clip", "max_grad"), [(0.25, None), (None, 0.0625), (0.125, 0.0625)])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make", [Siamese, Auxiliary])
def test_clipped_and_accumulated_steps(
    make: Any, clip: float | None, max_grad: float | None, accumulate: int
) -> None:
    """With BatchNorm, dropout and unused layers: as torch, where every batch has its own draws."""
    data, ends, loss_of = batches(8), [], with_auxiliary if make is Auxiliary else loss
    for learning in (False, True):
        torch.manual_seed(0)
        model = make().double()
        optimizer = sgd(model)
        learner = Learner(
            model, optimizer, loss_of, [], 9,
            clip=clip, max_grad=max_grad, accumulate=accumulate,
        )  # fmt: skip
        for i in range(0, 8, accumulate):
            group = data[i : i + accumulate]
            if learning:
                learner.step(group if accumulate > 1 else group[0])
                continue
            optimizer.zero_grad()
            for batch in group:
                (loss_of(model, batch, {}) / accumulate).backward()
            clipped(model, clip, max_grad)
            optimizer.step()
        ends.append(everything(model, optimizer))
    equal(ends[1], ends[0], 1e-13)


@pytest.mark.parametrize("limits", [{"clip": 0.25}, {"max_grad": 0.0625}, {"clip": 100.0}])
def test_derivatives_through_clipping_and_accumulation(limits: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = Siamese().double()
    learner = Learner(
        model, sgd(model), loss, LEARNED, 100, Unrolled(2), accumulate=2, **limits
    )  # fmt: skip
    data = batches(8)
    learner.step(data[:4], data[0])
    assert learner.hypergradient(data[:4], data[4]).keys() == {"lr", "scale"}
    right(learner, data, {"unrolled": Unrolled(4), "forward": Forward()})


def test_the_hypergradient_of_a_clipped_step_in_closed_form() -> None:
    """Loss g w, validation loss w: w' = w - lr g c/(|g| + 1e-6), so dL/dlr = -g c/(|g| + 1e-6)."""
    model = nn.Linear(1, 1, bias=False).double()
    learner = Learner(
        model, optim.SGD(model.parameters(), LR), lambda m, b, learned: b * m.weight.sum(),
        LEARNED[:1], 10, OneStep(), clip=0.5,
    )  # fmt: skip
    found = learner.hypergradient(torch.tensor(3.0).double(), torch.tensor(1.0).double())["lr"]
    raw = learner.variables.raw["lr"].requires_grad_()
    (slope,) = torch.autograd.grad(
        learner.variables.constrain(
            {
                "lr": raw,
            }
        )["lr"],
        raw,
    )
    torch.testing.assert_close(found, -slope * 3 * 0.5 / (3 + 1e-6))


def test_hooks_of_the_optimizer_are_called() -> None:
    """For example an average of the weights, which is right after every step."""
    torch.manual_seed(0)
    model = Plain().double()
    optimizer, seen = sgd(model), []
    average = optim.swa_utils.AveragedModel(model, avg_fn=lambda a, new, n: 0.5 * a + 0.5 * new)
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.one.weight.clone()))
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    learner = Learner(model, optimizer, loss, ["lr"], 100)
    expected = None
    for i, batch in enumerate(batches(3)):
        before = model.one.weight.clone()
        learner.step(batch, batch if i else None)
        assert len(seen) == i + 1 and torch.equal(seen[-1], before)
        new = model.one.weight.detach()
        expected = new.clone() if expected is None else 0.5 * expected + 0.5 * new
    torch.testing.assert_close(average.module.one.weight.detach(), expected)


@pytest.mark.parametrize(
    ("arguments", "batch", "said"),
    [
        ({"clip": 0.0}, None, "clip must be above 0, got 0.0; leave it out"),
        ({"max_grad": -1.0}, None, "max_grad must be above 0, got -1.0"),
        ({"accumulate": 0}, None, "accumulate must be above 0, got 0"),
        ({"accumulate": 2}, batches(3), r"a multiple of accumulate \(2\), got 3; collect"),
        ({"accumulate": 2}, batches(4), "a list of 2 batches for OneStep, got 4"),
        ({"accumulate": 2}, list(batches(1)[0]), "a list of 2 batches for OneStep, got a list of"),
    ],
)
def test_errors_of_clipping_and_accumulation(arguments: Any, batch: Any, said: str) -> None:
    model = Plain().double()
    with pytest.raises(ValueError, match=said):
        Learner(model, sgd(model), loss, ["lr"], 100, **arguments).step(batch, batches(1)[0])


# --- Losses without second derivatives -----------------------------------------------------------


class Attention(nn.Module):
    """Self-attention over three tokens; torch chooses a fused kernel for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 24), nn.Linear(8, 3)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation=F.silu, batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).unflatten(1, (3, 8))).mean(1))


class Compiled(nn.Module):
    """A part is compiled; its backward pass has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3))
        self.body = torch.compile(body, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


SECOND: dict[str, Estimator] = {
    "unrolled": Unrolled(2),
    "kept graphs": Unrolled(2, graphs="all"),
    "jvp": Unrolled(2, product="jvp"),
    "forward": Forward(),
}


@pytest.mark.parametrize("make", [Attention, Compiled])
@pytest.mark.parametrize("estimator", SECOND)
@pytest.mark.filterwarnings("ignore:.*TransformerEncoder")
def test_attention_and_compiled_modules(make: Any, estimator: str) -> None:
    """Exactly, and without a warning."""
    torch.manual_seed(0)
    model = make().double()
    learner = Learner(model, sgd(model), loss, LEARNED, 100, OneStep())
    learner.step(batches(1)[0], batches(1)[0])
    right(learner, batches(2), {estimator: SECOND[estimator]})


@pytest.mark.parametrize(
    "estimator", [Neumann(2, damping=5.0), ConjugateGradient(2, damping=5.0)], ids=["neumann", "cg"]
)
def test_implicit_estimators_with_attention(estimator: Any) -> None:
    """As with attention that is written out."""
    found = []
    for written_out in (False, True):
        torch.manual_seed(0)
        model = Attention().double()
        with torch.nn.attention.sdpa_kernel(
            [torch.nn.attention.SDPBackend.MATH] if written_out
            else list(torch.nn.attention.SDPBackend.__members__.values())[:3]
        ):  # fmt: skip
            learner = Learner(model, sgd(model), loss, LEARNED[1:], 100, estimator)
            found.append(learner.hypergradient(batches(1)[0], batches(1, 9)[0])["scale"])
    assert found[0] != 0
    torch.testing.assert_close(found[0], found[1])


class Once(torch.autograd.Function):
    """The square, whose backward pass has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def of_once(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    return learned.get("scale", 1.0) * F.cross_entropy(Once.apply(model(batch[0])), batch[1])


def of_square(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    return learned.get("scale", 1.0) * F.cross_entropy(model(batch[0]).square(), batch[1])


def ends_once(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    """The gradient that enters `Once` is a constant, so torch would not raise by itself."""
    return Once.apply(model(batch[0])).mean()


@pytest.mark.parametrize(
    "estimator",
    [Unrolled(2, radius=1e-4), Unrolled(2, radius=1e-4, graphs="all"), Forward(radius=1e-4)],
    ids=["unrolled", "kept graphs", "forward"],
)
def test_a_loss_without_second_derivatives_gets_differences_and_a_warning(estimator: Any) -> None:
    found = []
    for used in (of_square, of_once):
        torch.manual_seed(0)
        model = Plain().double()
        learner = Learner(model, sgd(model), used, LEARNED, 100, estimator)
        data = batches(estimator.steps)
        window = data if estimator.steps > 1 else data[0]
        if used is of_square:
            found.append(learner.hypergradient(window, data[0]))
            continue
        said = r"cannot differentiate this loss twice.*product='finite_difference'"
        with pytest.warns(RuntimeWarning, match=said):
            found.append(learner.hypergradient(window, data[0]))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-8)


def test_a_second_derivative_that_torch_would_miss_in_silence() -> None:
    torch.manual_seed(0)
    model = Plain().double()
    learner = Learner(model, sgd(model), ends_once, LEARNED[:1], 100)
    with pytest.warns(RuntimeWarning, match="Once is marked with @once_differentiable"):
        right(learner, batches(2), {"unrolled": Unrolled(2, radius=1e-5)})


def test_an_error_in_the_loss_is_no_missing_derivative() -> None:
    model = Plain().double()

    def wrong(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
        return loss(model, (batch[0][:, :-1], batch[1]), learned)

    learner = Learner(model, sgd(model), wrong, LEARNED, 100, Unrolled(2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.step(batches(2), batches(1)[0])


# --- Half precision ------------------------------------------------------------------------------


def shifted(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0] + learned["shift"]).float(), batch[1])


def inside(model: Any, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return shifted(model, batch, learned)


ROUNDED: dict[str, Estimator] = {
    "one_step": OneStep(),
    "one_sided": OneStep("one_sided", radius=1e-3),
    "unrolled": Unrolled(2, product="finite_difference"),
    "neumann": Neumann(2, damping=5.0, product="one_sided"),
    "per_kind": PerKind(OneStep(), OneStep(), Unrolled(2)),
    "forward": Forward(product="one_sided"),
}


@pytest.mark.parametrize("estimator", ROUNDED.values(), ids=ROUNDED)
@pytest.mark.parametrize("around", [False, True], ids=["inside", "around"])
def test_a_loss_in_bfloat16_is_not_differenced(estimator: Any, around: bool) -> None:
    """Hypergradients agree with those of float32 to 3 %; differences are off by 5 to 140 %."""
    data = [(x.float(), y) for x, y in batches(estimator.steps)]
    window, held_out = data if estimator.steps > 1 else data[0], batches(1, 9)[0]
    held_out = (held_out[0].float(), held_out[1])
    shift = HyperSpec("shift", torch.zeros(5), Identity(), "loss")

    def learner(inner: Any) -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 3))
        return Learner(model, sgd(model), inner, [shift], 100, estimator, loss)

    exact = learner(shifted).hypergradient(window, held_out)["shift"]
    rounded = learner(shifted if around else inside)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=around),
        pytest.warns(UserWarning, match="computes in half precision.*product='double_backward'"),
    ):
        found = rounded.hypergradient(window, held_out)["shift"]
    assert (found - exact).norm() < 0.03 * exact.norm()
