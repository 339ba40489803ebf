"""Bilevel problems with exact solutions, a smooth network, and tools of the hypergradient tests.

Notation of the closed forms: outer loss ½‖w_K - c‖², r = w_K - c, inner loss ½wᵀAw - bᵀw, w* its
minimum, δ = w_0 - w*, K steps of rate η. All in float64. P1 to P8 are the names of the derivations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import hypothesis
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.linalg import matrix_power as power
from torch.linalg import solve
from torch.utils._pytree import tree_map

from darts_lite.hypergradient import (
    SGD,
    Adam,
    Bilevel,
    Estimator,
    Hyper,
    InnerState,
    Kind,
    Lookahead,
    Loss,
    Optimizer,
    OptimizerState,
    Params,
)

N, RATE, DECAY = 4, 0.13, 0.2
few = hypothesis.settings(deadline=None, derandomize=True, max_examples=25, database=None)


class Case(NamedTuple):
    """A problem, its start, and the right hypergradients."""

    problem: Bilevel
    state: InnerState
    hyper: dict[str, Tensor]
    kinds: dict[str, Kind]
    expected: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple's default, never written to)

    def __call__(self, estimator: Estimator) -> Lookahead:
        return estimator(self.problem, self.state, self.hyper, self.kinds)

    def within(self, estimator: Estimator) -> Case:
        """With only those variables that the estimator supports."""
        supported = {n: k for n, k in self.kinds.items() if k in estimator.supports}
        return self._replace(kinds=supported)


@dataclass(frozen=True)
class Repeated:
    """Call an estimator of one step `steps` times, and pass its tangents on."""

    estimator: Estimator
    steps: int

    remedy: ClassVar[str] = ""
    carries: ClassVar[bool] = True

    @property
    def supports(self) -> frozenset[Kind]:
        return self.estimator.supports

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        first = ahead = self.estimator(problem, state, hyper, kinds)
        for t in range(1, self.steps):
            ahead = self.estimator(problem.after(t), ahead.state, hyper, kinds)
        return ahead._replace(inner=first.inner)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def leaf(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().clone().requires_grad_()


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9, floor: float = 0.0) -> None:
    """Compare to `tolerance` of the largest entry, or of `floor` if derivatives may cancel."""
    assert got.shape == expected.shape and not got.requires_grad
    scale = max(float(expected.abs().max()), floor)
    assert (got - expected).abs().max() <= tolerance * scale


def correct(case: Case, estimator: Estimator, tolerance: float = 1e-9, floor: float = 0.0) -> None:
    """Check that the estimator finds the expected hypergradients, and no others."""
    got = case(estimator).hypergradient
    assert got.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        close(got[name], expected, tolerance, floor)


def flat(state: InnerState) -> list[Tensor]:
    return [*state.params, *(t for moment in state.optimizer.moments for t in moment)]


def walk(case: Case, hyper: Hyper, steps: int) -> InnerState:
    """Take `steps` plain training steps by hand; only the update rule is the library's."""
    params, memory = case.state.params, case.state.optimizer
    settings = case.problem.settings({n: h.detach() for n, h in hyper.items()})
    for t in range(steps):
        leaves = tuple(p.detach().requires_grad_() for p in params)
        gradient = torch.autograd.grad(case.problem.inner_loss(leaves, hyper, t)[0], leaves)
        params, memory = case.problem.optimizer.update(params, gradient, memory, **settings)
    return InnerState(params, memory)


def counted(problem: Bilevel) -> tuple[Bilevel, Counter[str]]:
    """Return the same problem, and a counter of its loss evaluations."""
    calls: Counter[str] = Counter()

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        calls["inner"] += 1
        return problem.inner_loss(params, hyper, t)

    def outer(params: Params, hyper: Hyper) -> Loss:
        calls["outer"] += 1
        return problem.outer_loss(params, hyper)

    return replace(problem, inner_loss=inner, outer_loss=outer), calls


def jacobians(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """Return dense derivatives of a tuple in the first two arguments, by row.

    (Reverse over reverse; torch leaves a graph behind BatchNorm's second derivative.)
    """
    blocks = torch.func.jacrev(function, (0, 1))(*arguments)
    by_first, by_second = zip(*tree_map(Tensor.detach, blocks))
    return by_first, by_second


# --- The quadratic -----------------------------------------------------------------------------


class Quadratic(NamedTuple):
    A: Tensor
    best: Tensor
    c: Tensor
    start: Tensor
    push: Tensor  # the velocity at the start, where there is one

    @property
    def b(self) -> Tensor:
        return self.A @ self.best

    @property
    def eye(self) -> Tensor:
        return torch.eye(len(self.A), dtype=torch.float64)

    def inner(self, params: Params, hyper: Hyper, t: int) -> Loss:
        w = torch.cat(params)
        return 0.5 * w @ self.A @ w - self.b @ w, t

    def outer(self, params: Params, hyper: Hyper) -> Loss:
        return 0.5 * (torch.cat(params) - self.c).square().sum(), "outer"


def quadratic(spectrum: list[float], seed: int = 0) -> Quadratic:
    """Return a random quadratic whose A has the given eigenvalues."""
    n = len(spectrum)
    basis = torch.linalg.qr(normal(n, n, seed=seed)).Q
    A = basis @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ basis.T
    return Quadratic(A, *(normal(n, seed=seed + i) for i in (1, 2, 3, 4)))


QUADRATIC = quadratic([0.6, 0.9, 1.7, 3.1])


@st.composite
def quadratics(draw: st.DrawFn) -> Quadratic:
    """Dimension 1 to 6, any spectrum with a condition up to 100."""
    spectrum = draw(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=6))
    return quadratic(spectrum, draw(st.integers(0, 2**16)))


def still(*params: Tensor) -> InnerState:
    return InnerState(params, SGD().init(params))


def plain(hyper: Hyper) -> dict[str, Any]:
    return {"lr": RATE}


# --- P1 to P7: what K steps do -----------------------------------------------------------------


def rate(steps: int, q: Quadratic = QUADRATIC, lr: float = RATE) -> Case:
    """P1, in the logarithm of the learning rate."""
    step = q.eye - lr * q.A
    delta = q.start - q.best
    r = q.best + power(step, steps) @ delta - q.c
    by_rate = -steps * r @ q.A @ power(step, steps - 1) @ delta
    return Case(
        Bilevel(q.inner, q.outer, SGD(0.0), lambda hyper: {"lr": hyper["log_lr"].exp()}),
        still(q.start),
        {"log_lr": leaf(math.log(lr))},
        {"log_lr": "optimizer"},
        {"log_lr": lr * by_rate},
    )


def schedule(steps: int) -> Case:
    """P1, one rate per step: the optimizer has lr 1, and the rates scale the training loss."""
    q, rates = QUADRATIC, torch.tensor([0.13, 0.05, 0.21, 0.08, 0.11][:steps], dtype=torch.float64)
    factors = [q.eye - r * q.A for r in rates]
    delta = q.start - q.best

    def product(left_out: int) -> Tensor:
        result = delta
        for t, factor in enumerate(factors):
            result = result if t == left_out else factor @ result
        return result

    r = q.best + product(-1) - q.c

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        value, report = q.inner(params, hyper, t)
        return hyper["rates"][t] * value, report

    return Case(
        Bilevel(inner, q.outer, SGD(0.0), lambda hyper: {"lr": 1.0}),
        still(q.start),
        {"rates": leaf(rates)},
        {"rates": "loss"},
        {"rates": torch.stack([-r @ q.A @ product(s) for s in range(steps)])},
    )


def _decayed(steps: int, q: Quadratic, decay: float) -> tuple[Tensor, Tensor]:
    """P2: the derivatives in the weight decay and, by P1 with its matrix, in the lr."""
    M = q.A + decay * q.eye
    step = q.eye - RATE * M
    best = solve(M, q.b)
    r = best + power(step, steps) @ (q.start - best) - q.c
    shift = solve(M, best)
    slope = steps * power(step, steps - 1) @ (q.start - best)
    by_decay = r @ (-shift + power(step, steps) @ shift - RATE * slope)
    return by_decay, -r @ M @ slope


def decay_of_the_optimizer(steps: int, decay: float = DECAY) -> Case:
    by_decay, by_rate = _decayed(steps, QUADRATIC, decay)
    return Case(
        Bilevel(
            QUADRATIC.inner,
            QUADRATIC.outer,
            SGD(0.0),
            lambda hyper: {"lr": hyper["lr"], "weight_decay": hyper["decay"]},
        ),
        still(QUADRATIC.start),
        {"decay": leaf(decay), "lr": leaf(RATE)},
        {"decay": "optimizer", "lr": "optimizer"},
        {"decay": by_decay, "lr": by_rate},
    )


def decay_in_the_loss(steps: int, decay: float = DECAY) -> Case:
    """P2 as a hyperparameter of the loss, by the mixed second derivative."""

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        value, report = QUADRATIC.inner(params, hyper, t)
        return value + 0.5 * hyper["decay"] * params[0].square().sum(), report

    return Case(
        Bilevel(inner, QUADRATIC.outer, SGD(0.0), plain),
        still(QUADRATIC.start),
        {"decay": leaf(decay)},
        {"decay": "loss"},
        {"decay": _decayed(steps, QUADRATIC, decay)[0]},
    )


def decay_that_spares(steps: int) -> Case:
    """P2 with two tensors, coupled by A; the second has no weight decay."""
    q, split = QUADRATIC, 3
    spared = torch.diag(torch.tensor([1.0] * split + [0.0] * (N - split), dtype=torch.float64))
    M = q.A + DECAY * spared
    step = q.eye - RATE * M
    best = solve(M, q.b)
    path = [best + power(step, k) @ (q.start - best) for k in range(steps + 1)]
    slope = sum(power(step, steps - 1 - j) @ spared @ path[j] for j in range(steps))
    return Case(
        Bilevel(
            q.inner,
            q.outer,
            SGD(0.0),
            lambda hyper: {"lr": RATE, "weight_decay": (hyper["decay"], 0.0)},
        ),
        still(q.start[:split], q.start[split:]),
        {"decay": leaf(DECAY)},
        {"decay": "optimizer"},
        {"decay": -RATE * (path[-1] - q.c) @ slope},
    )


def block(rows: list[list[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(row, 1) for row in rows])


def momentum(
    steps: int,
    q: Quadratic = QUADRATIC,
    lr: float = RATE,
    mu: float = 0.7,
    nesterov: bool = False,
    moving: bool = True,
) -> Case:
    """P3 in several dimensions: s = (u, v), s_K = T^K s_0."""
    A, eye, none = q.A, q.eye, 0 * q.A
    if nesterov:
        T = block([[eye - lr * (1 + mu) * A, -lr * mu**2 * eye], [A, mu * eye]])
        by_lr = block([[-(1 + mu) * A, -(mu**2) * eye], [none, none]])
        by_mu = block([[-lr * A, -2 * lr * mu * eye], [none, eye]])
    else:
        T = block([[eye - lr * A, -lr * mu * eye], [A, mu * eye]])
        by_lr = block([[-A, -mu * eye], [none, none]])
        by_mu = block([[none, -lr * eye], [none, eye]])
    push = q.push if moving else torch.zeros_like(q.push)
    s = torch.cat([q.start - q.best, push])
    r = (power(T, steps) @ s)[: len(A)] + q.best - q.c

    def along(dT: Tensor) -> Tensor:
        ends = [power(T, steps - 1 - j) @ dT @ power(T, j) @ s for j in range(steps)]
        return r @ torch.stack(ends).sum(0)[: len(A)]

    return Case(
        Bilevel(
            q.inner,
            q.outer,
            SGD(nesterov=nesterov),
            lambda hyper: {"lr": hyper["lr"], "momentum": hyper["mu"]},
        ),
        InnerState((q.start,), OptimizerState(9, ((push,),))),
        {"lr": leaf(lr), "mu": leaf(mu)},
        {"lr": "optimizer", "mu": "optimizer"},
        {"lr": along(by_lr), "mu": along(by_mu)},
    )


def adam(steps: int, decay: float = 0.3) -> Case:
    """P4: inner loss gᵀw. The bias-corrected moments of a constant do not depend on the betas."""
    g, lr, eps, c, w0 = normal(N, seed=6), 0.05, 1e-3, QUADRATIC.c, QUADRATIC.start
    s, q, k = g / (g.abs() + eps), 1 - lr * decay, steps
    slope = k * q ** (k - 1)
    if decay:
        end = q**k * w0 - s * (1 - q**k) / decay
        by_decay = -lr * slope * w0 - s * (lr * slope / decay - (1 - q**k) / decay**2)
    else:  # the limit
        end = w0 - lr * k * s
        by_decay = -lr * k * w0 + s * lr**2 * k * (k - 1) / 2
    r = end - c
    rule = Adam(eps=eps)
    zero = torch.zeros((), dtype=torch.float64)
    return Case(
        Bilevel(
            lambda params, hyper, t: (g @ params[0], t),
            QUADRATIC.outer,
            rule,
            lambda hyper: {
                "lr": hyper["lr"],
                "weight_decay": hyper["decay"],
                "beta1": hyper["beta1"],
                "beta2": hyper["beta2"],
            },
        ),
        InnerState((w0,), rule.init((w0,))),
        {"lr": leaf(lr), "decay": leaf(decay), "beta1": leaf(0.9), "beta2": leaf(0.99)},
        dict.fromkeys(("lr", "decay", "beta1", "beta2"), "optimizer"),
        {
            "lr": r @ (-decay * slope * w0 - slope * s),
            "decay": r @ by_decay,
            "beta1": zero,
            "beta2": zero,
        },
    )


def adam_with_curvature(steps: int = 2) -> Case:
    """P5, two steps on Σ a u²/2: the second gradient depends on the lr of the first step."""
    assert steps == 2
    a, u0 = torch.tensor([1.7, 0.4], dtype=torch.float64), torch.tensor([0.6, -1.1]).double()
    lr, b1, b2, eps = 0.11, 0.8, 0.95, 1e-2
    g1 = a * u0
    s1 = g1 / (g1.abs() + eps)
    g2 = a * (u0 - lr * s1)
    m, v = (b1 * g1 + g2) / (1 + b1), (b2 * g1**2 + g2**2) / (1 + b2)
    D = v.sqrt() + eps
    dm, dv = -a * s1 / (1 + b1), -2 * a * g2 * s1 / (1 + b2)
    by_rate = -s1 - m / D - lr * (dm / D - m * dv / (2 * v.sqrt() * D**2))
    r = u0 - lr * s1 - lr * m / D - 0.3
    rule = Adam((b1, b2), eps)
    return Case(
        Bilevel(
            lambda params, hyper, t: (0.5 * (a * params[0].square()).sum(), t),
            lambda params, hyper: (0.5 * (params[0] - 0.3).square().sum(), "outer"),
            rule,
            lambda hyper: {"lr": hyper["lr"]},
        ),
        InnerState((u0,), rule.init((u0,))),
        {"lr": leaf(lr)},
        {"lr": "optimizer"},
        {"lr": r @ by_rate},
    )


def groups(
    steps: int,
    q: Quadratic = QUADRATIC,
    rates: tuple[float, ...] = (0.13, 0.05, 0.2),
    split: int = 0,
) -> Case:
    """P6: one lr per parameter tensor; A couples them."""
    sizes = [2, 1, 1] if not split else [split, len(q.A) - split]
    selectors = []
    for i in range(len(sizes)):
        kept = [1.0 if j == i else 0.0 for j, size in enumerate(sizes) for _ in range(size)]
        selectors.append(torch.diag(torch.tensor(kept, dtype=torch.float64)))
    S = torch.stack([r * E for r, E in zip(rates, selectors)]).sum(0)
    G = q.eye - S @ q.A
    delta = q.start - q.best
    r = q.best + power(G, steps) @ delta - q.c

    def along(E: Tensor) -> Tensor:
        ends = [power(G, steps - 1 - j) @ E @ q.A @ power(G, j) @ delta for j in range(steps)]
        return -r @ torch.stack(ends).sum(0)

    return Case(
        Bilevel(q.inner, q.outer, SGD(0.0), lambda hyper: {"lr": hyper["rates"].unbind()}),
        still(*q.start.split(sizes)),
        {"rates": leaf(rates[: len(sizes)])},
        {"rates": "optimizer"},
        {"rates": torch.stack([along(E) for E in selectors])},
    )


def augmentation(steps: int) -> Case:
    """P7: inputs X + mR, with the derivative of w_k in forward mode."""
    n, m = 12, 0.3
    X, R, y = normal(n, N, seed=6), normal(n, N, seed=7), normal(n, seed=8)
    Xv, yv = normal(9, N, seed=9), normal(9, seed=10)

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        return 0.5 * ((X + hyper["m"] * R) @ params[0] - y).square().mean(), t

    def outer(params: Params, hyper: Hyper) -> Loss:
        return 0.5 * (Xv @ params[0] - yv).square().mean(), "outer"

    Xm, w = X + m * R, QUADRATIC.start
    dw = torch.zeros_like(w)
    for _ in range(steps):
        direct = R.T @ (Xm @ w - y) + Xm.T @ R @ w
        dw = dw - RATE / n * (Xm.T @ Xm @ dw + direct)
        w = w - RATE / n * Xm.T @ (Xm @ w - y)
    return Case(
        Bilevel(inner, outer, SGD(0.0), plain),
        still(QUADRATIC.start),
        {"m": leaf(m)},
        {"m": "loss"},
        {"m": (Xv @ w - yv) @ Xv @ dw / 9},
    )


def augmentation_at_its_best() -> Case:
    """P7 at the minimum: -vᵀ(XᵀX)⁻¹[Rᵀ(Xw* - y) + XᵀRw*]."""
    n, m = 12, 0.3
    X, R, y = normal(n, N, seed=6), normal(n, N, seed=7), normal(n, seed=8)
    Xv, yv = normal(9, N, seed=9), normal(9, seed=10)
    Xm = X + m * R
    best = solve(Xm.T @ Xm, Xm.T @ y)
    v = Xv.T @ (Xv @ best - yv) / 9
    expected = -v @ solve(Xm.T @ Xm, R.T @ (Xm @ best - y) + Xm.T @ R @ best)
    case = augmentation(1)
    return case._replace(state=still(best), expected={"m": expected})


PROBLEMS: dict[str, Callable[[int], Case]] = {
    "rate": rate,
    "schedule": schedule,
    "decay_of_the_optimizer": decay_of_the_optimizer,
    "decay_in_the_loss": decay_in_the_loss,
    "decay_that_spares": decay_that_spares,
    "momentum": momentum,
    "momentum_from_rest": lambda steps: momentum(steps, moving=False),
    "nesterov": lambda steps: momentum(steps, nesterov=True),
    "nesterov_from_rest": lambda steps: momentum(steps, nesterov=True, moving=False),
    "adam": lambda steps: adam(steps, 0.0),
    "adamw": adam,
    "groups": groups,
    "augmentation": augmentation,
}


# --- P8: where the training ends ---------------------------------------------------------------


def ridge(
    q: Quadratic = QUADRATIC,
    rho: float = math.log(DECAY),
    in_settings: bool = False,
    lr: float = RATE,
) -> Case:
    """P8: weight decay e^ρ/2 |w|², in the loss or in the optimizer; it starts at the minimum.

    Expected: the exact dL/dρ = -e^ρ vᵀ H⁻¹ w*.
    """

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        value, report = q.inner(params, hyper, t)
        if in_settings:
            return value, report
        return value + 0.5 * hyper["rho"].exp() * params[0].square().sum(), report

    def settings(hyper: Hyper) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": hyper["rho"].exp() if in_settings else 0.0}

    H, best = settled(q, rho)
    exact = -math.exp(rho) * (best - q.c) @ solve(H, best)
    return Case(
        Bilevel(inner, q.outer, SGD(0.0), settings),
        still(best),
        {"rho": leaf(rho)},
        {"rho": "loss"},
        {"rho": exact},
    )


def settled(q: Quadratic, rho: float) -> tuple[Tensor, Tensor]:
    """Return H and w* of `ridge`."""
    H = q.A + math.exp(rho) * q.eye
    return H, solve(H, q.b)


# --- A smooth network --------------------------------------------------------------------------


def network(optimizer: Optimizer, steps: int = 6, eps: float = 1e-5) -> Case:
    """Two layers, SiLU and tanh mixed by `alpha`, train-mode BatchNorm, another batch each step.

    Every setting of the optimizer is learned, and its moments are not zero. `eps` belongs to
    BatchNorm.
    """
    inputs, hidden, classes, batch = 5, 6, 3, 8
    x = normal(steps, batch, inputs, seed=20)
    shift = normal(steps, 2, batch, inputs, seed=21)
    labels = (torch.arange(steps * batch) * 7 % 11 % classes).view(steps, batch)
    held, answers = normal(batch, inputs, seed=22), torch.arange(batch) % classes

    def logits(params: Params, images: Tensor, alpha: Tensor) -> Tensor:
        first, second, bias = params
        h = F.batch_norm(images @ first, None, None, training=True, eps=eps)
        silu, tanh = alpha.softmax(1).prod(0)
        h = silu * F.silu(h) + tanh * h.tanh()
        return F.batch_norm(h, None, None, training=True, eps=eps) @ second + bias

    def inner(params: Params, hyper: Hyper, t: int) -> Loss:
        images = x[t] + torch.tensordot(hyper["magnitude"], shift[t], 1)
        scores = logits(params, images, hyper["alpha"])
        smooth = hyper["smoothing"].sigmoid()
        log = scores.log_softmax(1)
        hit = log.gather(1, labels[t, :, None])[:, 0]
        return -((1 - smooth) * hit + smooth * log.mean(1)).mean(), t

    def outer(params: Params, hyper: Hyper) -> Loss:
        return F.cross_entropy(logits(params, held, hyper["alpha"]), answers), "outer"

    extra = {
        SGD: {"momentum": 0.8},
        Adam: {"beta1": 0.8, "beta2": 0.9},
    }[type(optimizer)]  # type: ignore[index]
    if isinstance(optimizer, SGD) and not optimizer.momentum:
        extra = {}

    def settings(hyper: Hyper) -> dict[str, Any]:
        decay = hyper["log_decay"].exp()
        shares = {name: hyper[name].sigmoid() for name in extra}
        return {"lr": hyper["log_lr"].exp(), "weight_decay": (decay, decay, 0.0), **shares}

    params = (normal(inputs, hidden, seed=23), normal(hidden, classes, seed=24), normal(classes))
    count = len(optimizer.init(params).moments)  # velocity; or first and second moment
    first = tuple(0.3 * normal(*p.shape, seed=25) for p in params)
    second = tuple(0.1 + 0.1 * normal(*p.shape, seed=26).square() for p in params)
    state = OptimizerState(4, (first, second)[:count])
    return Case(
        Bilevel(inner, outer, optimizer, settings),
        InnerState(params, state),
        {
            "alpha": leaf([[0.3, -0.4], [0.1, 0.2]]),
            "smoothing": leaf(-1.5),
            "magnitude": leaf([0.5, 0.2]),
            "log_lr": leaf(math.log(0.2)),
            "log_decay": leaf(math.log(0.05)),
            **{name: leaf(math.log(value / (1 - value))) for name, value in extra.items()},
        },
        {
            "alpha": "architecture",
            "smoothing": "loss",
            "magnitude": "loss",
            "log_lr": "optimizer",
            "log_decay": "optimizer",
            **dict.fromkeys(extra, "optimizer"),
        },
    )


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.0),
    "momentum": SGD(0.9),
    "nesterov": SGD(0.9, True),
    "adam": Adam(decoupled=False),
    "adamw": Adam(),
}


def difference(case: Case, name: str, steps: int, *, direct: bool = False) -> Tensor:
    """Central difference of outer(w_K(hyper), hyper), or with w_K held fixed if `direct`."""
    value = case.hyper[name].detach()
    fixed = {n: h.detach() for n, h in case.hyper.items()}
    result = torch.zeros_like(value)
    for i in range(value.numel()):
        sides = []
        for h in (1e-5, -1e-5):
            moved = value.clone()
            moved.view(-1)[i] += h
            hyper = {**fixed, name: moved}
            params = walk(case, fixed if direct else hyper, steps).params
            sides.append(case.problem.outer_loss(params, hyper)[0])
        result.view(-1)[i] = (sides[0] - sides[1]) / 2e-5
    return result
