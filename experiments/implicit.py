"""Error of implicit hypergradients against their cost, at a real minimum.

Softmax regression on digits with one learned weight decay per pixel (64 hyperparameters, 650
weights), trained by Newton's method until the gradient is below 1e-12, in float64. The exact
hypergradient comes from a dense linear solve. The error is the distance to it, relative to its
Euclidean norm. A product is one Hessian-vector product. Times are medians over rounds in which all
estimators take turns, and contain the training gradient and the validation gradient.

    python experiments/implicit.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import click
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from darts_lite.hypergradient import (
    SGD,
    Bilevel,
    ConjugateGradient,
    Estimator,
    Hyper,
    InnerState,
    Loss,
    Neumann,
    Nystrom,
    Params,
)

TRAIN, HELD_OUT, CLASSES, PIXELS = 1000, 400, 10, 64
BIAS_DECAY = 1e-3  # it also removes the common shift of all scores, which has no curvature
DAMPINGS = (1e-1, 1e-2)  # of a sketch without iterations
CONDITIONS = (1e-2, 1e-4)  # weight decay of all pixels


def estimators() -> dict[str, Estimator]:
    """Return the estimators of the table by name."""
    found: dict[str, Estimator] = {}
    for k in (5, 20, 80, 320):
        found[f"Neumann({k})"] = Neumann(k)
    for k in (5, 20, 80):
        found[f"ConjugateGradient({k}), no tolerance"] = ConjugateGradient(k, 0.0)
    for k in (20, 80):
        for damping in DAMPINGS:
            alone = Nystrom(k, 0, damping=damping)
            found[f"Nystrom({k}), the sketch alone, damping {damping:g}"] = alone
    found["Neumann, residual 0.01"] = Neumann(20_000, tolerance=1e-2)
    for tolerance in (1e-2, 1e-4):
        found[f"ConjugateGradient, residual {tolerance:g}"] = ConjugateGradient(1000, tolerance)
        for rank in (10, 40):
            found[f"Nystrom({rank}), residual {tolerance:g}"] = Nystrom(rank, 1000, tolerance)
    return found


class Task:
    """Regression at its minimum for one weight decay, as a bilevel problem.

    Arguments:
        decay: weight decay of every pixel.
    """

    def __init__(self, decay: float) -> None:
        inputs, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        inputs, labels = inputs[order].double() / 16, labels[order]
        self.train = inputs[:TRAIN], labels[:TRAIN]
        self.held_out = inputs[TRAIN:][:HELD_OUT], labels[TRAIN:][:HELD_OUT]
        self.evaluations = 0  # of the training loss
        log_decay = torch.full((PIXELS,), decay).double().log()
        self.hyper = {"log_decay": log_decay.requires_grad_()}
        sgd = SGD(0.0)
        self.problem = Bilevel(self.inner, self.outer, sgd, lambda hyper: {"lr": 0.0})
        self.vector = self.minimum()
        self.state = InnerState(self.split(self.vector), sgd.init(self.split(self.vector)))

    @staticmethod
    def split(vector: Tensor) -> Params:
        weights, bias = vector.split([PIXELS * CLASSES, CLASSES])
        return weights.view(PIXELS, CLASSES), bias

    def inner(self, params: Params, hyper: Hyper, t: int = 0) -> Loss:
        self.evaluations += 1
        weights, bias = params
        loss = F.cross_entropy(self.train[0] @ weights + bias, self.train[1])
        decay = (hyper["log_decay"].exp()[:, None] * weights.square()).sum()
        return loss + 0.5 * (decay + BIAS_DECAY * bias.square().sum()), None

    def outer(self, params: Params, hyper: Mapping[str, Tensor]) -> Loss:
        weights, bias = params
        return F.cross_entropy(self.held_out[0] @ weights + bias, self.held_out[1]), None

    def of_vector(self, vector: Tensor) -> Tensor:
        return self.inner(self.split(vector), {"log_decay": self.hyper["log_decay"].detach()})[0]

    def minimum(self) -> Tensor:
        """Return all weights where the gradient vanishes, by damped Newton steps."""
        vector = torch.zeros(PIXELS * CLASSES + CLASSES).double()
        for _ in range(100):
            slope = torch.func.grad(self.of_vector)(vector)
            if float(slope.norm()) < 1e-12:
                return vector
            step = torch.linalg.solve(torch.func.hessian(self.of_vector)(vector), slope)
            share = 1.0
            while self.of_vector(vector - share * step) > self.of_vector(vector) and share > 1e-3:
                share /= 2
            vector = vector - share * step
        raise RuntimeError(f"Newton's method stopped at a gradient of {float(slope.norm()):.1e}")

    def exact(self) -> tuple[Tensor, float]:
        """Return the hypergradient by a dense solve, and the condition number of the Hessian."""
        H = torch.func.hessian(self.of_vector)(self.vector)
        v = torch.func.grad(lambda w: self.outer(self.split(w), self.hyper)[0])(self.vector)
        x = self.split(torch.linalg.solve(H, v.detach()))[0]
        eigenvalues = torch.linalg.eigvalsh(H)
        decay = self.hyper["log_decay"].detach().exp()
        found = -decay * (self.state.params[0] * x).sum(1)
        return found, float(eigenvalues[-1] / eigenvalues[0])

    def estimate(self, estimator: Estimator) -> tuple[Tensor, int, float]:
        """Return the hypergradient, the number of products, and the seconds."""
        before, start = self.evaluations, time.perf_counter()
        ahead = estimator(self.problem, self.state, self.hyper, {"log_decay": "loss"})
        seconds = time.perf_counter() - start
        products = self.evaluations - before - 2  # training gradient and mixed derivative
        return ahead.hypergradient["log_decay"], products, seconds


@click.command()
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    """Print the table; see the docstring of the module."""
    table: dict[str, list[str]] = {name: [] for name in estimators()}
    conditions = []
    for decay in CONDITIONS:
        task = Task(decay)
        exact, condition = task.exact()
        conditions.append(condition)
        times: dict[str, list[float]] = {name: [] for name in table}
        told: dict[str, tuple[float, int]] = {}
        for _ in range(rounds):
            for name, estimator in estimators().items():
                found, products, seconds = task.estimate(estimator)
                times[name].append(seconds)
                told[name] = float((found - exact).norm() / exact.norm()), products
        for name, (error, products) in told.items():
            milliseconds = 1000 * statistics.median(times[name])
            table[name].append(f"{error:.1e} / {products} / {milliseconds:.0f} ms")
    heads = [f"decay {d:g}, condition {c:.0f}" for d, c in zip(CONDITIONS, conditions)]
    click.echo(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds\n")
    click.echo(f"| error / products / time | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, cells in table.items():
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
