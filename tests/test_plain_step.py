"""Plain steps: accumulation, sharpness-aware minimization and clipping, against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.hypergradient import SGD, Bilevel, InnerState
from darts_lite.training.plain_step import PlainStep

RATE, MOMENTUM = 0.3, 0.9


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)).double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(5, 8, 4, generator=seeded(1), dtype=torch.float64)
    y = torch.randint(3, (5, 8), generator=seeded(2))
    return list(zip(x, y))


def problem_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Bilevel:
    names = [n for n, _ in model.named_parameters()]

    def inner(params: Any, hyper: Any, t: int) -> Any:
        out = torch.func.functional_call(model, dict(zip(names, params)), (batches[t][0],))
        loss = F.cross_entropy(out, batches[t][1])
        return loss, torch.stack([loss.detach(), torch.ones_like(loss)])

    return Bilevel(inner, lambda p, h: inner(p, h, 0), SGD(MOMENTUM), lambda hyper: {"lr": RATE})


def begin(model: nn.Module) -> InnerState:
    params = tuple(p.detach().clone() for p in model.parameters())
    return InnerState(params, SGD(MOMENTUM).init(params))


def same(found: InnerState, model: nn.Module) -> None:
    for one, two in zip(found.params, model.parameters()):
        torch.testing.assert_close(one, two.detach(), rtol=1e-11, atol=1e-13)  # rounding


def test_accumulated_batches_equal_one_large_batch(model, batches):
    state = begin(model)
    whole = tuple(torch.cat(part) for part in zip(*batches))
    for _ in range(3):
        state, report = PlainStep(accumulate=5)(problem_of(model, batches), state, {})
    expected = begin(model)
    for _ in range(3):
        expected, large = PlainStep()(problem_of(model, [whole]), expected, {})
    for one, two in zip(state.params, expected.params):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(report, large)


def test_a_step_without_options_is_the_step_of_the_problem(model, batches):
    problem = problem_of(model, batches)
    found, report = PlainStep()(problem, begin(model), {})
    expected, (_, shown) = problem.inner_step(begin(model), {})
    assert all(torch.equal(a, b) for a, b in zip(found.params, expected.params))
    assert torch.equal(report, shown)


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_clipping_is_that_of_torch(model, batches, limit):
    state = begin(model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    for x, y in batches:
        state, _ = PlainStep(clip=limit)(problem_of(model, [(x, y)]), state, {})
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        same(state, model)


def test_the_sharpness_aware_step_takes_the_gradient_at_the_ascended_weights(model, batches):
    """As the reference algorithm does it in place (Foret et al. 2021, algorithm 1)."""
    radius, state = 0.05, begin(model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    for x, y in batches:
        state, _ = PlainStep(sharpness=radius)(problem_of(model, [(x, y)]), state, {})
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        size = torch.sqrt(sum((p.grad.square().sum() for p in model.parameters()), torch.zeros(())))
        moves = [radius * p.grad / (size + 1e-12) for p in model.parameters()]
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves):
                p.add_(move)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves):
                p.sub_(move)
        optimizer.step()
        same(state, model)


def test_the_report_is_of_the_loss_before_the_step(model, batches):
    problem = problem_of(model, batches)
    _, report = PlainStep(accumulate=2, sharpness=0.1, clip=1.0)(problem, begin(model), {})
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y) for x, y in batches[:2]]
    torch.testing.assert_close(report[0], torch.stack(losses).mean())
