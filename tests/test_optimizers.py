"""Functional optimizers: steps against torch.optim, derivatives by gradcheck and closed forms."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from darts_lite.hypergradient import SGD, Adam, Optimizer, OptimizerState
from darts_lite.hypergradient.optimizers import per_tensor
from darts_lite.hypergradient.torch_optimizers import SETTINGS, read_state, rule_of

DECAY = (0.03, 0.0)  # of the two tensors of every problem here: the second is spared

OPTIMIZERS: dict[str, tuple[Optimizer, Callable[[list], torch.optim.Optimizer]]] = {
    "sgd": (SGD(0.0), lambda g: torch.optim.SGD(g, 0.05)),
    "momentum": (SGD(0.9), lambda g: torch.optim.SGD(g, 0.05, 0.9)),
    "nesterov": (SGD(0.8, True), lambda g: torch.optim.SGD(g, 0.05, 0.8, nesterov=True)),
    "adam": (
        Adam((0.85, 0.98), 1e-6, decoupled=False),
        lambda g: torch.optim.Adam(g, 0.05, (0.85, 0.98), 1e-6),
    ),
    "adamw": (Adam(), lambda g: torch.optim.AdamW(g, 0.05)),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def start() -> tuple[Tensor, ...]:
    return normal(3, 2, seed=1), normal(2, seed=2)


def loss(params: Sequence[Tensor]) -> Tensor:
    """Smooth and far from quadratic."""
    x = normal(7, 3)
    return (x @ params[0] + params[1]).sin().square().mean() + 0.1 * params[1].exp().mean()


def gradients(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = [p.detach().requires_grad_() for p in params]
    return torch.autograd.grad(loss(leaves), leaves)


def advanced(optimizer: Optimizer, steps: int = 3) -> tuple[tuple[Tensor, ...], OptimizerState]:
    """Parameters and state in the middle of a training."""
    params, state = start(), optimizer.init(start())
    for _ in range(steps):
        params, state = optimizer.update(params, gradients(params), state, 0.05, DECAY)
    return params, state


# --- Values ----------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
def test_twenty_steps_of_torch(name: str, tensors: bool) -> None:
    ours, theirs = OPTIMIZERS[name]
    reference = [p.clone().requires_grad_() for p in start()]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(reference, DECAY)]
    torchs = theirs(groups)
    lr = torch.tensor(0.05, dtype=torch.float64) if tensors else 0.05
    decay = [torch.tensor(d, dtype=torch.float64) if tensors else d for d in DECAY]

    params, state = start(), ours.init(start())
    for step in range(20):
        torchs.zero_grad()
        loss(reference).backward()
        torchs.step()
        params, state = ours.update(params, gradients(params), state, lr, decay)
        assert state.step == step + 1
        for p, expected in zip(params, reference):
            torch.testing.assert_close(p, expected.detach(), rtol=1e-12, atol=1e-14)


# the settings of each of the two tensors: every one is a group of its own
GROUPS: dict[str, tuple[Optimizer, dict[str, tuple[float, float]], Callable[[list], Any]]] = {
    "sgd": (SGD(), {"momentum": (0.7, 0.0)}, lambda g: torch.optim.SGD(g, 0.05)),
    "nesterov": (
        SGD(0.1, True),
        {"momentum": (0.7, 0.9)},
        lambda g: torch.optim.SGD(g, 0.05, 0.1, nesterov=True),
    ),
    "adam": (
        Adam(eps=1e-6, decoupled=False),
        {"beta1": (0.8, 0.0), "beta2": (0.99, 0.9)},
        lambda g: torch.optim.Adam(g, 0.05, eps=1e-6),
    ),
    "adamw": (
        Adam(eps=1e-6),
        {"beta1": (0.8, 0.0), "beta2": (0.99, 0.9)},
        lambda g: torch.optim.AdamW(g, 0.05, eps=1e-6),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
def test_every_setting_by_group(name: str, tensors: bool) -> None:
    """Like torch's parameter groups; a given setting replaces the optimizer's attribute."""
    ours, extra, theirs = GROUPS[name]
    settings = {"lr": (0.05, 0.02), "weight_decay": DECAY, **extra}
    reference = [p.clone().requires_grad_() for p in start()]
    groups: list[dict[str, Any]] = []
    for i, p in enumerate(reference):
        group: dict[str, Any] = {"params": [p], **{k: v[i] for k, v in settings.items()}}
        if "beta1" in group:
            group["betas"] = (group.pop("beta1"), group.pop("beta2"))
        groups.append(group)
    torchs = theirs(groups)
    given: dict[str, Any] = dict(settings)
    if tensors:
        given = {k: torch.tensor(v, dtype=torch.float64).unbind() for k, v in settings.items()}
    params, state = start(), ours.init(start())
    for _ in range(5):
        torchs.zero_grad()
        loss(reference).backward()
        torchs.step()
        params, state = ours.update(params, gradients(params), state, **given)
        for p, expected in zip(params, reference):
            torch.testing.assert_close(p, expected.detach(), rtol=1e-12, atol=1e-14)


@every_optimizer
def test_one_value_is_shared_by_all_tensors(name: str) -> None:
    """A number, the same number twice, and the optimizer's attribute are equivalent."""
    optimizer, _ = OPTIMIZERS[name]
    params, state = advanced(optimizer)
    own = (
        {"momentum": optimizer.momentum}
        if isinstance(optimizer, SGD)
        else dict(
            zip(("beta1", "beta2"), optimizer.betas)  # type: ignore[attr-defined]
        )
    )
    shared: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.03}
    expected, after = optimizer.update(params, gradients(params), state, **shared)
    for settings in ({**shared, **own}, {k: [v] * 2 for k, v in {**shared, **own}.items()}):
        got, moved = optimizer.update(params, gradients(params), state, **settings)
        for a, b in zip((*got, *sum(moved.moments, ())), (*expected, *sum(after.moments, ()))):
            assert torch.equal(a, b)


@every_optimizer
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_settings_of_the_wrong_length(name: str, setting: str) -> None:
    optimizer, _ = OPTIMIZERS[name]
    settings: dict[str, Any] = {"lr": 0.1, setting: [0.1, 0.1, 0.1]}
    with pytest.raises(ValueError, match=r"one per parameter tensor \(2\), got 3 values"):
        optimizer.update(start(), start(), optimizer.init(start()), **settings)


def test_per_tensor() -> None:
    tensor = torch.ones(())
    assert per_tensor(0, 2) == (0, 0) and per_tensor([1.0, 2.0], 2) == (1.0, 2.0)
    assert per_tensor(tensor, 3) == (tensor,) * 3
    assert per_tensor((), 0) == () and per_tensor(0.1, 0) == ()


@pytest.mark.parametrize("step", [1, 10, 1000])
def test_bias_corrections_of_floats_are_exact(step: int) -> None:
    """1 - 0.999^t in float32 has an error of 1e-5 at the start; a Python float has not."""
    w, g = torch.tensor([1.0]), torch.tensor([0.3])
    adam, moments = Adam(), ((torch.tensor([0.1]),), (torch.tensor([0.02]),))
    (got,), _ = adam.update((w,), (g,), OptimizerState(step - 1, moments), 1.0)
    m, v = (0.9 * 0.1 + 0.1 * 0.3) / (1 - 0.9**step), (0.999 * 0.02 + 0.001 * 0.09)
    expected = m / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert (1 - got).item() == pytest.approx(expected, rel=1e-6)


@every_optimizer
def test_modifies_nothing(name: str) -> None:
    optimizer, _ = OPTIMIZERS[name]
    params, state = advanced(optimizer)
    grads = gradients(params)
    inputs = [*params, *grads, *(t for m in state.moments for t in m)]
    before = [(t.clone(), t._version) for t in inputs]
    optimizer.update(params, grads, state, 0.05, DECAY)
    for tensor, (value, version) in zip(inputs, before):
        assert torch.equal(tensor, value) and tensor._version == version


@every_optimizer
def test_float32_stays_float32(name: str) -> None:
    optimizer, _ = OPTIMIZERS[name]
    params = tuple(p.float() for p in start())
    new, state = optimizer.update(params, params, optimizer.init(params), 0.05, DECAY)
    assert {t.dtype for t in (*new, *(t for m in state.moments for t in m))} == {torch.float32}


# --- Derivatives -----------------------------------------------------------------------------


def settings_of(optimizer: Optimizer) -> dict[str, tuple[float, float]]:
    """Every setting, with one value per tensor."""
    extra = {"momentum": (0.7, 0.4)}
    if isinstance(optimizer, Adam):
        extra = {"beta1": (0.8, 0.7), "beta2": (0.9, 0.95)}
    return {"lr": (0.05, 0.08), "weight_decay": DECAY, **extra}


@every_optimizer
@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck_of_one_update(name: str, shared: bool) -> None:
    """In settings (shared or per group), parameters, gradients and state; of all results."""
    optimizer, _ = OPTIMIZERS[name]
    params, state = advanced(optimizer)
    count = len(params)
    settings = settings_of(optimizer)
    grads = [normal(*p.shape, seed=3) for p in params]
    moments = [0.5 + normal(*t.shape, seed=4).square() for m in state.moments for t in m]

    def update(*inputs: Tensor) -> tuple:
        values, tensors = inputs[: len(settings)], inputs[len(settings) :]
        p, g, *m = (tensors[i : i + count] for i in range(0, len(tensors), count))
        named = dict(zip(settings, values if shared else (v.unbind() for v in values)))
        before = OptimizerState(state.step, tuple(m))
        new, after = optimizer.update(p, g, before, **named)
        return (*new, *(t for m in after.moments for t in m))

    values = [torch.tensor(v[0] if shared else v, dtype=torch.float64) for v in settings.values()]
    inputs = [t.clone().requires_grad_() for t in (*values, *params, *grads, *moments)]
    assert gradcheck(update, inputs, eps=1e-6, atol=1e-8, rtol=1e-6, check_forward_ad=True)


@every_optimizer
def test_gradcheck_through_three_steps(name: str) -> None:
    """The whole trajectory from a new state, through the gradients."""
    optimizer, _ = OPTIMIZERS[name]
    settings = settings_of(optimizer)

    def trajectory(*values: Tensor) -> tuple[Tensor, ...]:
        params = tuple(p.requires_grad_() for p in start())
        state = optimizer.init(params)
        named = {k: v.unbind() for k, v in zip(settings, values)}
        for _ in range(3):
            grads = torch.autograd.grad(loss(params), params, create_graph=True)
            params, state = optimizer.update(params, grads, state, **named)
        return params

    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in settings.values()]
    assert gradcheck(trajectory, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_has_finite_derivatives(decoupled: bool, dtype: torch.dtype) -> None:
    """Although the root of a zero second moment has an infinite slope."""
    adam = Adam(decoupled=decoupled)
    w = (torch.ones(2, dtype=dtype),)
    g = torch.zeros(2, dtype=dtype, requires_grad=True)
    lr = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    (new,), _ = adam.update(w, (g,), adam.init(w), lr, [0.0])
    for derivative in torch.autograd.grad(new.sum(), (g, lr)):
        assert derivative.isfinite().all()


@pytest.mark.parametrize("optimizer", [SGD(), Adam(), Adam(decoupled=False, eps=0.1)])
def test_weight_decay_of_zero_has_a_derivative(optimizer: Optimizer) -> None:
    """A float 0 is a shortcut; a tensor 0 is a hyperparameter."""
    w, g = (normal(3),), (normal(3, seed=1),)
    decay = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (new,), _ = optimizer.update(w, g, optimizer.init(w), 0.1, [decay])
    (derivative,) = torch.autograd.grad(new.square().sum(), decay)
    assert derivative.abs() > 1e-3


# --- Closed forms, in the names of the derivations: curvature a, u = w - w*, r = w_K - c ------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_momentum_closed_form(nesterov: bool, steps: int) -> None:
    """s = (u, v), s_K = B^K s_0: ds_K = sum_j B^(K-1-j) dB B^j s_0, with a start velocity."""
    a, lr, mu, u0, v0 = 1.3, 0.17, 0.6, 0.8, -0.5
    if nesterov:
        b = [[1 - lr * a * (1 + mu), -lr * mu**2], [a, mu]]
        by_lr = [[-a * (1 + mu), -(mu**2)], [0, 0]]
        by_mu = [[-lr * a, -2 * lr * mu], [0, 1]]
    else:
        b = [[1 - lr * a, -lr * mu], [a, mu]]
        by_lr = [[-a, -mu], [0, 0]]
        by_mu = [[0, -lr], [0, 1]]
    B = torch.tensor(b, dtype=torch.float64)
    dB = [torch.tensor(d, dtype=torch.float64) for d in (by_lr, by_mu)]
    s0 = torch.tensor([u0, v0], dtype=torch.float64)
    power = torch.linalg.matrix_power
    expected = [
        sum(power(B, steps - 1 - j) @ d @ power(B, j) @ s0 for j in range(steps)) for d in dB
    ]

    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (lr, mu)]
    sgd = SGD(nesterov=nesterov)
    u: tuple[Tensor, ...] = (s0[:1],)
    state = OptimizerState(0, ((s0[1:],),))
    for _ in range(steps):
        u, state = sgd.update(u, (a * u[0],), state, leaves[0], momentum=leaves[1])
    end = torch.cat([u[0], state.moments[0][0]])
    torch.testing.assert_close(end.detach(), power(B, steps) @ s0, rtol=1e-12, atol=1e-14)
    rows = [torch.autograd.grad(e, leaves, retain_graph=True) for e in end]
    jacobian = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(jacobian, torch.stack(expected, 1), rtol=1e-12, atol=1e-14)


def test_momentum_by_hand() -> None:
    """Heavy ball, two steps from rest."""
    a, u0 = 1.3, 0.8
    lr, mu = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.17, 0.6))
    u: tuple[Tensor, ...] = (torch.tensor(u0, dtype=torch.float64),)
    state = SGD().init(u)
    for _ in range(2):
        u, state = SGD(mu).update(u, (a * u[0],), state, lr, [0.0])
    by_lr, by_mu = torch.autograd.grad(u[0], (lr, mu))
    torch.testing.assert_close(by_lr, -a * u0 * (2 + mu - 2 * lr * a).detach())
    torch.testing.assert_close(by_mu, (-lr * a * u0).detach())


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_on_a_linear_loss(steps: int, decay: float) -> None:
    """Constant gradient g, s = g / (|g| + eps), any number of steps, Adam and AdamW."""
    eps, lr0 = 1e-3, 0.05
    g, w0, c = normal(4), normal(4, seed=1), normal(4, seed=2)
    lr = torch.tensor(lr0, dtype=torch.float64, requires_grad=True)
    weight_decay = torch.tensor(decay, dtype=torch.float64, requires_grad=True)
    adam = Adam(eps=eps)
    w: tuple[Tensor, ...] = (w0,)
    state = adam.init(w)
    for _ in range(steps):
        w, state = adam.update(w, (g,), state, lr, [weight_decay if decay else 0.0])

    s, q = g / (g.abs() + eps), 1 - lr0 * decay
    if decay:
        wK = q**steps * w0 - s * (1 - q**steps) / decay
        by_lr = -decay * steps * q ** (steps - 1) * w0 - steps * q ** (steps - 1) * s
        by_decay = -lr0 * steps * q ** (steps - 1) * w0 - s * (
            lr0 * steps * q ** (steps - 1) / decay - (1 - q**steps) / decay**2
        )
    else:
        wK, by_lr, by_decay = w0 - lr0 * steps * s, -steps * s, None
    r = wK - c
    torch.testing.assert_close(w[0].detach(), wK, rtol=1e-12, atol=1e-14)
    outer = 0.5 * (w[0] - c).square().sum()
    got = torch.autograd.grad(outer, (lr, weight_decay), allow_unused=True)
    torch.testing.assert_close(got[0], r @ by_lr, rtol=1e-11, atol=1e-13)
    if by_decay is not None:
        torch.testing.assert_close(got[1], r @ by_decay, rtol=1e-11, atol=1e-13)


def test_adam_with_curvature() -> None:
    """Two steps on a u^2 / 2: the second gradient depends on the lr of the first step."""
    a, u0, lr0, b1, b2, eps = 1.7, 0.6, 0.11, 0.8, 0.95, 1e-2
    lr = torch.tensor(lr0, dtype=torch.float64, requires_grad=True)
    adam = Adam((b1, b2), eps)
    u: tuple[Tensor, ...] = (torch.tensor(u0, dtype=torch.float64),)
    state = adam.init(u)
    for _ in range(2):
        u, state = adam.update(u, (a * u[0],), state, lr, [0.0])

    g1 = a * u0
    s1 = g1 / (abs(g1) + eps)
    g2 = a * (u0 - lr0 * s1)
    m = (b1 * g1 + g2) / (1 + b1)
    v = (b2 * g1**2 + g2**2) / (1 + b2)
    D = v**0.5 + eps
    dm, dv = -a * s1 / (1 + b1), -2 * a * g2 * s1 / (1 + b2)
    expected = -s1 - m / D - lr0 * (dm / D - m * dv / (2 * v**0.5 * D**2))
    (got,) = torch.autograd.grad(u[0], lr)
    assert got.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_betas_of_a_constant_gradient(steps: int) -> None:
    """Bias-corrected moments of a constant are that constant, whatever the betas are."""
    b1, b2 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.95))
    g, adam = normal(4), Adam()
    w: tuple[Tensor, ...] = (normal(4, seed=1),)
    state = adam.init(w)
    for _ in range(steps):
        w, state = adam.update(w, (g,), state, 0.05, beta1=b1, beta2=b2)
    for derivative in torch.autograd.grad(w[0].square().sum(), (b1, b2)):
        assert derivative.abs() < 1e-13


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_coupled_decay_almost_cancels_in_adam(eps: float) -> None:
    """The first step has length lr whatever the decay: dw/d decay = -lr eps w / (|g| + eps)^2."""
    adam = Adam(eps=eps, decoupled=False)
    w, g = normal(4), normal(4, seed=1)
    decay = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (new,), _ = adam.update((w,), (g,), adam.init((w,)), 0.05, [decay])
    got = torch.stack([torch.autograd.grad(e, decay, retain_graph=True)[0] for e in new])
    expected = -0.05 * eps * w / (g.abs() + eps) ** 2
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)


# --- Rules of torch.optim, over 50 steps ---------------------------------------------------------

usual: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.03}
RULES: dict[str, tuple[str, dict[str, Any], float]] = {  # class, arguments, tolerance
    "sgd": ("SGD", {**usual, "momentum": 0.9}, 1e-12),
    "nesterov": ("SGD", {**usual, "momentum": 0.9, "nesterov": True}, 1e-12),
    "adam": ("Adam", usual, 1e-10),
    "adamw": ("AdamW", usual, 1e-10),
    "nadam": ("NAdam", {**usual, "momentum_decay": 0.01}, 1e-5),  # a float32 product in torch
    "nadamw": ("NAdam", {**usual, "decoupled_weight_decay": True}, 1e-5),
    "radam": ("RAdam", {**usual, "betas": (0.8, 0.95)}, 1e-10),
    "radamw": ("RAdam", {**usual, "decoupled_weight_decay": True}, 1e-10),
    "adamax": ("Adamax", usual, 1e-10),
    "adagrad": (
        "Adagrad", {**usual, "lr_decay": 0.1, "initial_accumulator_value": 0.5}, 1e-10
    ),
    "rmsprop": ("RMSprop", usual, 1e-10),
    "rmsprop_momentum": ("RMSprop", {**usual, "momentum": 0.5, "centered": True}, 1e-9),
    "muon": ("Muon", {**usual, "nesterov": True}, 1e-10),
    "muon_plain": (
        "Muon", {**usual, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, 1e-10
    ),
    "adadelta": ("Adadelta", {"lr": 0.5, "weight_decay": 0.03}, 1e-10),
}  # fmt: skip
SHAPES = ((3, 2), (2, 4), (4, 4))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("as_tensors", [False, True], ids=["floats", "tensors"])
def test_fifty_steps_equal_those_of_torch(name: str, as_tensors: bool) -> None:
    """Parameters and moments, with settings as numbers and as tensors."""
    kind, arguments, tolerance = RULES[name]
    g = torch.Generator().manual_seed(0)
    own = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in SHAPES]
    optimizer = getattr(torch.optim, kind)(own, **arguments)
    rule = rule_of(optimizer)
    params, state = tuple(p.detach().clone() for p in own), rule.optimizer.init(own)
    group = optimizer.param_groups[0]
    settings = {}
    for setting in rule.settings:
        key, place = SETTINGS[setting]
        value = group[key] if place is None else group[key][place]
        settings[setting] = torch.tensor(value, dtype=torch.float64) if as_tensors else value
    for _ in range(50):
        grads = [torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES]
        for p, grad in zip(own, grads):
            p.grad = grad.clone()
        optimizer.step()
        params, state = rule.optimizer.update(params, grads, state, **settings)
    for got, p in zip(params, own):
        torch.testing.assert_close(got, p.detach(), rtol=tolerance, atol=tolerance)
    there = read_state(optimizer, tuple(own), rule)
    for got, moments in zip(state.moments, there.moments):
        for a, b in zip(got, moments):
            torch.testing.assert_close(a.to(b.dtype), b, rtol=tolerance, atol=tolerance)


def test_derivatives_of_a_step_of_muon() -> None:
    """w' = (1 - lr decay) w - lr u, where the bfloat16 matrix u depends on neither."""
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr, decay = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.2))
    rule = rule_of(torch.optim.Muon([w.clone().requires_grad_()])).optimizer
    (new,), _ = rule.update(
        (w,), (w.sin(),), rule.init((w,)), lr=lr, weight_decay=decay, momentum=0.9
    )
    by_lr, by_decay = torch.autograd.grad(new.sum(), (lr, decay))
    change = ((1 - 0.1 * 0.2) * w - new.detach()) / 0.1
    torch.testing.assert_close(by_lr, -(0.2 * w + change).sum())
    torch.testing.assert_close(by_decay, -0.1 * w.sum())
