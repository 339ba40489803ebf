"""Hyperparameters: bijections by gradcheck, and the rules of the outer update."""

import io
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from darts_lite.hypergradient import (
    Bijection,
    HyperParameters,
    HyperSpec,
    Identity,
    Interval,
    Log,
    LogInterval,
    Softplus,
)
from darts_lite.hypergradient.hyperparameters import LARGEST_STEP, select

BIJECTIONS: dict[str, tuple[Bijection, float, float]] = {
    "identity": (Identity(), -math.inf, math.inf),
    "unit": (Interval(), 0.0, 1.0),
    "signed": (Interval(-0.3, 0.7), -0.3, 0.7),
    "log": (LogInterval(1e-4, 0.3), 1e-4, 0.3),
    "log_decades": (LogInterval(1e-6, 1e2), 1e-6, 1e2),
    "exp": (Log(), 0.0, math.inf),
    "softplus": (Softplus(), 0.0, math.inf),
}
every_bijection = pytest.mark.parametrize("name", BIJECTIONS)
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])  # 1e30 squared: inf


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def variables(dtype: torch.dtype = torch.float32, travel: float = 4.0) -> HyperParameters:
    return HyperParameters(
        (
            HyperSpec("alpha", torch.zeros(2, 3, dtype=dtype), Identity(), "architecture", travel),
            HyperSpec("shift", torch.full((3,), 0.2, dtype=dtype), Interval(), "loss", travel),
            HyperSpec(
                "lr", torch.tensor(0.1, dtype=dtype), LogInterval(1e-3, 1.0), "optimizer", travel
            ),
        )
    )


def noise(hyper: HyperParameters, seed: int) -> dict[str, Tensor]:
    return {
        name: normal(*raw.shape, seed=seed + i, dtype=raw.dtype)
        for i, (name, raw) in enumerate(hyper.raw.items())
    }


# --- Bijections ------------------------------------------------------------------------------


@every_bijection
def test_round_trip(name: str) -> None:
    bijection, low, high = BIJECTIONS[name]
    raw = torch.linspace(-5, 5, 21, dtype=torch.float64)
    value = bijection.forward(raw)
    assert ((low < value) & (value < high)).all()
    assert (value.diff() > 0).all()
    torch.testing.assert_close(bijection.inverse(value), raw, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        bijection.forward(bijection.inverse(value)), value, rtol=1e-12, atol=0
    )


@every_bijection
def test_derivatives(name: str) -> None:
    bijection, _, _ = BIJECTIONS[name]
    raw = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert gradcheck(bijection.forward, raw.clone().requires_grad_(), eps=1e-6, rtol=1e-6)
    assert (torch.func.vmap(torch.func.grad(bijection.forward))(raw) > 0).all()


@every_bijection
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_away_is_still_in_range(name: str, dtype: torch.dtype) -> None:
    """Up to the rounding of the bound. (exp has no bound but the one of the number format.)"""
    bijection, low, high = BIJECTIONS[name]
    far = 80.0 if name == "exp" else 1e4
    value = bijection.forward(torch.tensor([-far, -40.0, 40.0, far], dtype=dtype))
    rounding = 1 + 32 * torch.finfo(dtype).eps
    assert value.isfinite().all() and value.dtype == dtype
    if math.isfinite(low):
        assert (value >= (low / rounding if low > 0 else low * rounding)).all()
        assert (value <= high * rounding).all()


@pytest.mark.parametrize(
    ("bijection", "value"),
    [
        (Interval(), 0.0),
        (Interval(), 1.0),
        (Interval(0.1, 0.9), 2.0),
        (LogInterval(1e-3, 1.0), 1e-3),
        (LogInterval(1e-3, 1.0), -0.1),
        (Identity(), math.nan),
        (Log(), 0.0),
        (Log(), -1.0),
        (Softplus(), 0.0),
        (Softplus(), -1.0),
    ],
)
def test_a_start_at_a_bound_or_beyond_is_an_error(bijection: Bijection, value: float) -> None:
    """The raw value would be infinite or NaN and could never change."""
    with pytest.raises(ValueError, match=r"'shift'.*strictly inside"):
        HyperParameters((HyperSpec("shift", torch.tensor(value), bijection, "loss"),))


# --- Views -----------------------------------------------------------------------------------


def test_values_and_leaves() -> None:
    hyper = variables()
    assert hyper.kinds == {"alpha": "architecture", "shift": "loss", "lr": "optimizer"}
    values, leaves = hyper.values(), hyper.leaves()
    torch.testing.assert_close(values["lr"], torch.tensor(0.1))
    torch.testing.assert_close(values["shift"], torch.full((3,), 0.2))
    for name in hyper.kinds:
        assert not values[name].requires_grad and not hyper.raw[name].requires_grad
        assert leaves[name].requires_grad and leaves[name].is_leaf
        assert torch.equal(leaves[name].detach(), hyper.raw[name])
    torch.autograd.backward([v.sum() for v in hyper.constrain(leaves).values()])
    assert all(leaf.grad is not None and (leaf.grad > 0).all() for leaf in leaves.values())


def test_every_tells_how_often_a_value_is_learned() -> None:
    specs = (
        HyperSpec("lr", torch.tensor(0.1), Log(), "optimizer"),
        HyperSpec("magnitude", torch.tensor(0.1), Interval(), "loss", every=4),
    )
    assert HyperParameters(specs).every == {"lr": 1, "magnitude": 4}


@pytest.mark.parametrize("every", [0, -3])
def test_every_below_one_is_an_error(every: int) -> None:
    with pytest.raises(ValueError, match=f"every of 'lr' must be at least 1, got {every}; use 1"):
        HyperSpec("lr", torch.tensor(0.1), Log(), "optimizer", every=every)


def test_the_start_is_copied() -> None:
    start = torch.zeros(2)
    hyper = HyperParameters((HyperSpec("alpha", start, Identity(), "architecture"),))
    start.add_(1)
    assert torch.equal(hyper.raw["alpha"], torch.zeros(2))


def test_select() -> None:
    values = {"alpha.a": torch.ones(1), "alphabet": torch.ones(1), "lr": torch.ones(1)}
    assert list(select(values, "alpha.")) == ["a"]


# --- The update ------------------------------------------------------------------------------


def test_moves_against_the_gradient() -> None:
    hyper = variables()
    before, gradient = dict(hyper.raw), noise(hyper, 1)
    hyper.update(gradient, 0.01)
    for name, g in gradient.items():
        # Adam's first step: the sign of the gradient, whatever its size
        expected = before[name] - 4.0 * 0.01 * g.sign()
        torch.testing.assert_close(hyper.raw[name], expected)


def test_finds_a_minimum() -> None:
    hyper = variables(torch.float64)
    for _ in range(400):
        leaves = hyper.leaves()
        values = hyper.constrain(leaves)
        loss = (values["lr"].log() - math.log(0.02)).square() + (
            values["shift"] - 0.6
        ).square().sum()
        loss = loss + (values["alpha"] - 0.5).square().sum()
        loss.backward()
        hyper.update(
            {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, 1 / 400
        )
    values = hyper.values()
    assert values["lr"].item() == pytest.approx(0.02, rel=0.02)
    assert (values["shift"] - 0.6).abs().max() < 0.02
    assert (values["alpha"] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_never_leaves_the_range(dtype: torch.dtype, sign: float) -> None:
    hyper = variables(dtype, travel=30.0)
    for step in range(200):
        gradient = noise(hyper, step)
        hyper.update(
            {n: sign * 10.0 ** (step % 15) * (g.abs() + 1) for n, g in gradient.items()}, 0.05
        )
        values = hyper.values()
        assert all(v.isfinite().all() for v in values.values())
        assert ((values["shift"] >= 0) & (values["shift"] <= 1)).all()
        assert 1e-3 * (1 - 1e-6) <= values["lr"] <= 1 + 1e-6


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
@pytest.mark.parametrize("gradients", ["constant", "growing", "noise", "impulse"])
def test_travel_bounds_the_movement(steps: int, gradients: str) -> None:
    """Over a whole training (progress 1) no raw value changes by more than `travel`."""
    hyper = variables(torch.float64, travel=2.5)
    before = dict(hyper.raw)
    path = {name: torch.zeros_like(raw) for name, raw in before.items()}
    for step in range(steps):
        gradient = {name: torch.full_like(raw, 3.0) for name, raw in hyper.raw.items()}
        if gradients == "growing":
            gradient = {name: g * 1.05**step for name, g in gradient.items()}
        elif gradients == "noise":
            gradient = noise(hyper, step)
        elif gradients == "impulse":
            gradient = {name: g * (1e6 if step % 50 == 2 else 1e-6) for name, g in gradient.items()}
        last = dict(hyper.raw)
        hyper.update(gradient, 1 / steps)
        path = {name: p + (hyper.raw[name] - last[name]).abs() for name, p in path.items()}
    for length in path.values():
        assert (length <= 2.5 * (1 + 1e-9)).all()
    if gradients == "constant" and steps >= 10:
        for name, raw in hyper.raw.items():  # and with a steady gradient it goes all the way
            torch.testing.assert_close(raw, before[name] - 2.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("travel", "step"), [(1.0, 0.1), (2.0, 0.2), (4.0, LARGEST_STEP)])
def test_a_jump_of_the_clock_is_capped(travel: float, step: float) -> None:
    hyper = variables(travel=travel)
    before = dict(hyper.raw)
    hyper.update(noise(hyper, 0), 1.0)
    for name, raw in hyper.raw.items():
        torch.testing.assert_close((raw - before[name]).abs(), torch.full_like(raw, step))


def test_a_few_updates_cannot_decide() -> None:
    """Five updates in a whole training are five largest steps, not the whole travel."""
    hyper = variables(torch.float64, travel=8.0)
    before = dict(hyper.raw)
    for _ in range(5):
        hyper.update({name: torch.ones_like(raw) for name, raw in hyper.raw.items()}, 1 / 5)
    for name, raw in hyper.raw.items():
        torch.testing.assert_close(raw, before[name] - 5 * LARGEST_STEP)


def test_an_absent_hyperparameter_keeps_its_progress() -> None:
    """An update at every third call equals one call with three times the progress."""
    often, rarely = variables(torch.float64), variables(torch.float64)
    for step in range(6):
        gradient = noise(often, step)
        often.update({} if step % 3 < 2 else gradient, 0.01)
        if step % 3 == 2:
            rarely.update(gradient, 0.03)
    for name, raw in often.raw.items():
        torch.testing.assert_close(raw, rarely.raw[name], rtol=1e-12, atol=0)
        assert not torch.equal(raw, variables(torch.float64).raw[name])


def test_an_absent_hyperparameter_stays_bit_identical() -> None:
    hyper = variables()
    before = dict(hyper.raw)
    gradient = noise(hyper, 0)
    del gradient["shift"]
    hyper.update(gradient, 0.01)
    assert torch.equal(hyper.raw["shift"], before["shift"])
    assert not torch.equal(hyper.raw["alpha"], before["alpha"])
    assert hyper.skipped == 0


@BAD
def test_a_non_finite_hypergradient_is_skipped_and_counted(bad: float) -> None:
    """Also if only its square overflows: the second moment would stay infinite forever."""
    hyper = variables()
    for step in range(3):
        hyper.update(noise(hyper, step), 0.01)
    before = {name: raw.clone() for name, raw in hyper.raw.items()}
    gradient = noise(hyper, 7)
    gradient["alpha"][1, 2] = bad
    hyper.update(gradient, 0.01)
    assert hyper.skipped == 1
    assert torch.equal(hyper.raw["alpha"], before["alpha"])
    assert not torch.equal(hyper.raw["shift"], before["shift"])  # the others move on
    assert not torch.equal(hyper.raw["lr"], before["lr"])

    hyper.update(noise(hyper, 8), 0.01)  # and it recovers
    assert hyper.skipped == 1
    moved = (hyper.raw["alpha"] - before["alpha"]).abs()
    assert hyper.raw["alpha"].isfinite().all() and (moved > 1e-4).all()


@BAD
def test_a_bad_first_hypergradient_does_no_harm(bad: float) -> None:
    hyper = variables()
    start = dict(hyper.raw)
    hyper.update({name: torch.full_like(raw, bad) for name, raw in hyper.raw.items()}, 0.01)
    assert hyper.skipped == 3
    assert all(torch.equal(raw, start[name]) for name, raw in hyper.raw.items())
    hyper.update(noise(hyper, 1), 0.01)
    for name, raw in hyper.raw.items():
        moved = (raw - start[name]).abs()
        assert ((moved > 0.02) & (moved < 0.0401)).all()


def test_tiny_and_zero_hypergradients() -> None:
    """Adam ignores the scale, and a zero hypergradient gives no NaN."""
    hyper = variables(torch.float64)
    start = dict(hyper.raw)
    hyper.update({"alpha": torch.full((2, 3), 1e-8).double(), "lr": torch.zeros(()).double()}, 0.01)
    torch.testing.assert_close(hyper.raw["alpha"], start["alpha"] - 0.04, rtol=1e-3, atol=0)
    assert torch.equal(hyper.raw["lr"], start["lr"]) and hyper.skipped == 0


def test_the_result_records_no_gradient() -> None:
    hyper = variables()
    gradient = {n: g.requires_grad_() for n, g in noise(hyper, 0).items()}
    hyper.update(hyper.constrain(gradient), 0.01)
    assert not any(raw.requires_grad for raw in hyper.raw.values())


# --- Multiplication --------------------------------------------------------------------------

POSITIVE: dict[str, tuple[Bijection, float]] = {
    "interval": (Interval(0.0, 0.4), 0.1),
    "log_interval": (LogInterval(1e-3, 1.0), 0.1),
    "log": (Log(), 0.1),
    "softplus": (Softplus(), 0.1),
}


def single(bijection: Bijection, start: float) -> HyperParameters:
    value = torch.tensor(start, dtype=torch.float64)
    return HyperParameters((HyperSpec("lr", value, bijection, "optimizer"),))


@pytest.mark.parametrize("name", POSITIVE)
def test_multiply_scales_the_value_and_back(name: str) -> None:
    """Exact inside the range; a tensor has one factor per entry."""
    hyper = single(*POSITIVE[name])
    hyper.multiply("lr", 2.5)
    assert float(hyper.values()["lr"]) == pytest.approx(0.25, rel=1e-12)
    hyper.multiply("lr", torch.tensor(1 / 2.5, dtype=torch.float64))
    assert float(hyper.values()["lr"]) == pytest.approx(0.1, rel=1e-12)
    many = HyperParameters((HyperSpec("x", torch.tensor([0.1, 0.2]), Log(), "loss"),))
    many.multiply("x", torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(many.values()["x"], torch.tensor([0.2, 0.1]))
    assert not many.raw["x"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.5, 1e6, math.inf])
def test_multiply_stays_in_the_range_and_leaves_its_ends(factor: float, dtype: torch.dtype) -> None:
    """Up and down: at an end it stays, and the first factor back moves it."""
    for forth, back in ((factor, 0.5), (1 / factor, 2.0)):
        hyper = variables(dtype)
        for _ in range(20):
            hyper.multiply("lr", forth)
            value = float(hyper.values()["lr"])
            assert 1e-3 < value < 1.0 and hyper.raw["lr"].dtype == dtype
        assert value > 0.9 if forth > 1 else value < 1.1e-3
        hyper.multiply("lr", back)
        assert float(hyper.values()["lr"]) == pytest.approx(back * value, rel=1e-4)


@pytest.mark.parametrize("factor", [0.97, 1.03])
@pytest.mark.parametrize(
    ("bijection", "start"),
    [
        (LogInterval(1e-4, 10.0), 1.01e-4),
        (LogInterval(1e-4, 10.0), 9.9),
        (Log(), 1e-3),
        (Softplus(), 1e-3),
        (Log(), 1e3),
    ],
)
def test_multiply_never_moves_backwards_nor_far(
    bijection: Bijection, start: float, factor: float
) -> None:
    """Wherever it starts: at a small lr, or at one that an earlier run moved to an end."""
    hyper = single(bijection, start)
    hyper.multiply("lr", factor)
    value = float(hyper.values()["lr"])
    assert (value >= start * (1 - 1e-9)) if factor > 1 else (value <= start * (1 + 1e-9))
    assert value == pytest.approx(start, rel=0.031)


# --- Checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("through_file", [False, True])
def test_resumes_bit_exactly(through_file: bool) -> None:
    """Including waiting progress, counts and skipped updates."""
    hyper = variables()
    for step in range(5):
        gradient = noise(hyper, step)
        if step % 2:
            del gradient["shift"]
        if step == 3:
            gradient["lr"] = gradient["lr"] * math.nan
        hyper.update(gradient, 0.013)
    state: object = hyper.state_dict()
    if through_file:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    resumed = variables()
    resumed.load_state_dict(state)  # type: ignore[arg-type]
    for step in range(5, 9):
        for one in (hyper, resumed):
            one.update(noise(one, step), 0.017)
    assert torch.equal(hyper.skipped, resumed.skipped) and resumed.skipped == 1
    for name, raw in hyper.raw.items():
        assert torch.equal(raw, resumed.raw[name])


def test_a_state_is_a_snapshot() -> None:
    """A later update, also of a resumed training, does not change it."""
    hyper, resumed = variables(), variables()
    hyper.update(noise(hyper, 0), 0.01)
    state = hyper.state_dict()
    raw = {name: value.clone() for name, value in hyper.raw.items()}
    resumed.load_state_dict(state)
    for step in range(1, 4):
        hyper.update(noise(hyper, step), 0.01)
        resumed.update(noise(hyper, -step), 0.01)
    again = variables()
    again.load_state_dict(state)
    for name, value in raw.items():
        assert torch.equal(again.raw[name], value)
    for one in (again, resumed):
        one.load_state_dict(state)
        one.update(noise(one, 9), 0.01)
    for name, value in again.raw.items():
        assert torch.equal(resumed.raw[name], value)


def test_to_a_device() -> None:
    hyper = variables()
    hyper.update(noise(hyper, 0), 0.01)
    assert hyper.to(torch.device("cpu")) is hyper
    moved = variables().to(torch.device("meta"))
    tensors = [
        *moved.raw.values(),
        moved.skipped,
        *(t for m in moved.state_dict()["moments"].values() for t in m[:2]),  # type: ignore
    ]
    assert {t.device.type for t in tensors} == {"meta"}
