"""Estimators of probability gradients on instances so small that everything can be enumerated."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

P = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
UNBIASED = (
    "score function",
    "score function, batch baseline",
    "score function, regression",
    "pairs",
    "antithetic pairs (DisARM)",
    "1 flip",
    "2 flips",
    "all flips",
    "switches",
    "MuProp",
)
BIASED = (
    "mean field",
    "mean field, sizes",
    "concrete 0.5",
    "concrete 1",
    "straight-through 0.5",
    "straight-through 1",
    "straight-through",
    "straight-through, sizes",
    "straight-through, trapezoid",
)
UNCLEAR = ("regression", "concrete 0.1", "straight-through 0.1")  # biased, but less than noisy


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """The experiment as a module, its training cut short."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "experiments"))
        module = importlib.import_module("probability_gradients")
        patch.setattr(module, "STATES", {"early": 20})
        yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def free(study: ModuleType) -> tuple[Any, Tensor]:
    """12 images that are not coupled, three operations; and the table of all their coins."""
    problem = next(study.problems(("translate_x", "contrast", "cutout"), True, False, 12))
    return problem, problem.table()


@pytest.fixture(scope="module")
def coupled(study: ModuleType) -> Any:
    """Three images in one BatchNorm, two operations."""
    return next(study.problems(("rotate", "brightness"), True, True, 3))


def draw(trials: int, images: int, number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(trials, images, 2, number, generator=generator, dtype=torch.float64)
    return torch.arange(images).expand(trials, -1), uniform


def test_every_estimator_is_judged(study: ModuleType) -> None:
    assert set(study.ESTIMATORS) == {*UNBIASED, *BIASED, *UNCLEAR}


def test_the_truth_is_the_derivative_of_the_enumerated_mean(
    study: ModuleType, free: tuple[Any, Tensor]
) -> None:
    problem, table = free
    p = P.clone().requires_grad_()
    chance = torch.where(problem.patterns() > 0, p, 1 - p).prod(1)
    (expected,) = torch.autograd.grad((table @ chance).mean(), p)
    torch.testing.assert_close(problem.exact(table, P).mean(0), expected)


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED])
def test_labels_are_right(study: ModuleType, free: tuple[Any, Tensor], name: str) -> None:
    """The mean is the truth within its standard error if unbiased, and is not if biased."""
    problem, table = free
    row = study.ESTIMATORS[name]
    index, uniform = draw(500 if row.path else 10_000, 12, 3)
    found, _ = study.estimate(row, problem, P, index, uniform, table)
    error = found.mean(0) - problem.exact(table, P).mean(0)
    off = (error.abs() / (found.std(0) / len(found) ** 0.5 + 1e-9)).max()
    assert row.unbiased == (name in UNBIASED)
    assert off < 4 if row.unbiased else off > 5


@pytest.mark.parametrize("name", UNCLEAR)
def test_these_are_labelled_as_biased(study: ModuleType, name: str) -> None:
    assert not study.ESTIMATORS[name].unbiased


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED, *UNCLEAR])
def test_a_surrogate_of_losses_has_the_estimate_as_mixed_derivative(
    study: ModuleType, free: tuple[Any, Tensor], name: str
) -> None:
    """What a library does with it, by double backward, and what the study does give one number."""
    problem, table = free
    row = study.ESTIMATORS[name]
    index, uniform = draw(1, 12, 3)
    weights = [w.detach().requires_grad_() for w in problem.weights]
    p = P[None].clone().requires_grad_()

    def loss(coins: Tensor) -> Tensor:
        return problem.losses(weights, index, coins, row.path, None)

    surrogate = row.surrogate(loss, p, uniform).sum()
    gradient = torch.autograd.grad(surrogate, weights, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(gradient, problem.along))
    (mixed,) = torch.autograd.grad(along, p)
    found, _ = study.estimate(row, problem, P, index, uniform, table)
    torch.testing.assert_close(mixed, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["score function, batch baseline", "1 flip", "all flips"])
def test_a_surrogate_trains_as_the_plain_loss(
    study: ModuleType, free: tuple[Any, Tensor], name: str
) -> None:
    problem, _ = free
    index, uniform = draw(1, 12, 3)
    weights = [w.detach().requires_grad_() for w in problem.weights]

    def loss(coins: Tensor) -> Tensor:
        return problem.losses(weights, index, coins, "", None)

    surrogate = study.ESTIMATORS[name].surrogate(loss, P[None], uniform).sum()
    plain = loss(study.toss(P[None], uniform)).mean()
    for a, b in zip(torch.autograd.grad(surrogate, weights), torch.autograd.grad(plain, weights)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["1 flip", "2 flips", "all flips", "switches", "pairs"])
def test_passes_are_counted(study: ModuleType, free: tuple[Any, Tensor], name: str) -> None:
    problem, table = free
    _, passes = study.estimate(study.ESTIMATORS[name], problem, P, *draw(1, 12, 3), table)
    assert passes == {"1 flip": 2, "pairs": 2, "2 flips": 3}.get(name, 4)


def test_with_batchnorm_the_truth_needs_whole_batches(study: ModuleType, coupled: Any) -> None:
    """All coins of a batch enumerated: flipping each coin is exact, its image's own loss is not."""
    coins = (torch.arange(64)[:, None] >> torch.arange(6) & 1).double().unflatten(1, (3, 2))
    index = torch.arange(3).expand(64, -1)
    p = P[:2].clone().requires_grad_()
    chance = torch.where(coins > 0, p, 1 - p).prod(2).prod(1)
    means = coupled.slopes(index, coins).mean(1)
    (truth,) = torch.autograd.grad((means * chance).sum(), p)
    everything, own = (x.T @ chance.detach() for x in study.flip_each(coupled, index, coins))
    torch.testing.assert_close(everything, truth)
    assert (own - truth).norm() > 0.05 * truth.norm()

    index, uniform = draw(1000, 3, 2)
    row = study.COUPLED["score function of batches"]
    found, _ = study.estimate(row, coupled, P[:2], index, uniform, None)
    error = (found.mean(0) - truth).abs() / (found.std(0) / len(found) ** 0.5)
    assert error.max() < 4
