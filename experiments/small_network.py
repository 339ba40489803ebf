"""A fixed small network on 10 000 images of Fashion-MNIST: does a learned value need tuning?

`rate` starts the learning rate at {1/30, 1/10, 1, 10} times the best of a grid of constants times
a cosine and trains once with each way of learning it. `magnitude` starts augmentation magnitudes at
zero and compares with a grid of one global magnitude. Accuracy is that of the 10 000 test images,
which no training and no hypergradient sees: the 2 000 validation images that the hypergradients use
would be a biased and noisier measure.

    python experiments/small_network.py rate
    python experiments/small_network.py magnitude

Results are kept in --out as they come; the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.augment import LearnedMagnitudes
from darts_lite.data import load, split
from darts_lite.hypergradient import (
    Estimator,
    Forward,
    Learner,
    OneStep,
    Online,
    RateSearch,
    Unrolled,
)
from darts_lite.hyperparameters import HyperSpec, Interval, LogInterval
from darts_lite.joint import cosine

BATCH = 64
HELD_OUT = 128  # images in a validation batch
DECAY = 5e-4


class Split(NamedTuple):
    images: Tensor
    labels: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.labels), (count,), generator=generator)
        return self.images[chosen], self.labels[chosen]


@cache
def data() -> tuple[Split, Split, Split]:
    """Training (8 000), validation (2 000) and test (10 000) images."""
    dataset = load("fashion-mnist", Path("data"), download=False, image_size=None)
    parts = split(dataset, subset=10_000, seed=0)
    return tuple(Split(p.pixels.float() / 255, p.labels.long()) for p in parts)  # type: ignore


def network(seed: int) -> nn.Sequential:
    """Three convolutions, SiLU, BatchNorm: 24 000 parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.SiLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 49, 10))


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    chunks = zip(split.images.split(500), split.labels.split(500))
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in chunks) / len(split.labels)


class Run(NamedTuple):
    accuracy: float
    seconds: float
    learned: dict[str, float]  # at the end


def fit(
    seed: int,
    steps: int,
    lr: float,
    estimator: Estimator | None = None,
    *,
    search: RateSearch | None = None,
    augment: LearnedMagnitudes | None = None,
    magnitudes: dict[str, float] | None = None,
    every: int = 1,
    learn_lr: bool = True,
) -> Run:
    """One training: SGD with Nesterov momentum, cosine, and what is learned on the way."""
    train, validation, test = data()
    generator = torch.Generator().manual_seed(seed)
    model = network(seed).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=DECAY
    )
    specs = []
    if learn_lr:
        specs.append(
            HyperSpec("lr", torch.tensor(lr), LogInterval(1e-6, 1e2), "optimizer", travel=6.0)
        )
    start = magnitudes or {}
    if augment is not None and estimator is not None:
        specs += [
            HyperSpec(name, torch.tensor(max(start[name], 0.01)), Interval(), "loss", travel=20.0)
            for name in augment.names
        ]

    def loss(model: Callable, batch: Any, learned: Any) -> Tensor:
        x, y, draws = batch
        if draws is not None and augment is not None:
            values = learned if estimator is not None else start
            x = augment.apply(x, draws, {n: torch.as_tensor(values[n]) for n in augment.names})
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    def batch() -> tuple:
        x, y = train.draw(BATCH, generator)
        return x, y, augment.sample(BATCH, (28, 28), generator) if augment else None

    def held_out() -> tuple:
        return *validation.draw(HELD_OUT, generator), None

    warnings.simplefilter("ignore")  # the caveats are what is being measured
    learner = Learner(model, optimizer, loss, specs, steps, estimator or OneStep())
    window = learner.estimator.steps
    clock = time.perf_counter()
    done = 0
    while done < steps:
        while search is not None and search.due(done / steps):
            looking = [batch() for _ in range(search.estimator.steps)]
            learner.look(search, looking, held_out())
        optimizer.param_groups[0]["lr"] = lr * cosine(done / steps)
        looks = estimator is not None and (done // window) % every == 0
        batches = [batch() for _ in range(window)]
        learner.step(batches if window > 1 else batches[0], held_out() if looks else None)
        done += window
    seconds = time.perf_counter() - clock
    final = {n: float(v) for n, v in learner.values().items()}
    calibrate(model, train)
    return Run(accuracy(model, test), seconds, final)


@torch.no_grad()
def calibrate(model: nn.Module, split: Split) -> None:
    """Exact BatchNorm statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # type: ignore[assignment]
    model.train()
    for x in split.images.split(500):
        model(x)


# --- studies -----------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "not learned": {},
    "annealed look-ahead (RateSearch)": {"search": True},
    "online (Baydin)": {"estimator": Online()},
    "one step": {"estimator": OneStep()},
    "unrolled, 5 steps": {"estimator": Unrolled(5, product="one_sided", radius=1e-3)},
    "forward, real time (RTHO)": {"estimator": Forward(1.0, "one_sided", 1e-3)},
}


def work(job: tuple[str, dict[str, Any]]) -> tuple[str, dict]:
    """A training in a process of its own, one thread."""
    torch.set_num_threads(1)
    key, arguments = job
    if arguments.get("search"):
        arguments = {**arguments, "search": RateSearch()}
    return key, fit(**arguments)._asdict()


def collect(out: Path, jobs: dict[str, dict[str, Any]], workers: int) -> dict[str, dict]:
    """Runs what the file does not hold yet; every result is written when it comes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.read_text().splitlines() if out.exists() else []
    found = dict(json.loads(line) for line in lines)
    left = [(k, a) for k, a in jobs.items() if k not in found]
    with ProcessPoolExecutor(workers) as pool:
        for key, result in pool.map(work, left):
            found[key] = result
            with out.open("a") as file:
                file.write(json.dumps([key, result]) + "\n")
            click.echo(f"{key}: {result['accuracy']:.2%}, {result['seconds']:.0f} s", err=True)
    return {k: found[k] for k in jobs}


def mean(found: dict[str, dict], keys: Iterable[str], name: str = "accuracy") -> float:
    return statistics.mean(found[k][name] for k in keys)


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.option("--out", default="out-small/rate.jsonl", show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of batches of 64: 8 epochs.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def rate(out: str, steps: int, seeds: int, workers: int) -> None:
    """The learning rate, from four starts."""
    grid = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 1.0)
    jobs = {f"grid {lr} {s}": {"seed": s, "steps": steps, "lr": lr} for lr in grid
            for s in range(seeds)}  # fmt: skip
    found = collect(Path(out), jobs, workers)
    table = {lr: mean(found, (f"grid {lr} {s}" for s in range(seeds))) for lr in grid}
    best = max(table, key=table.__getitem__)
    seconds = statistics.median(r["seconds"] for r in found.values())
    print("| constant lr × cosine | " + " | ".join(f"{lr:g}" for lr in grid) + " |")
    print("|---" * (len(grid) + 1) + "|")
    print("| test accuracy | " + " | ".join(f"{a:.2%}" for a in table.values()) + " |\n")

    starts = {"1/30": best / 30, "1/10": best / 10, "1": best, "10": best * 10}
    jobs = {
        f"{method} {factor} {s}": {"seed": s, "steps": steps, "lr": lr, **arguments}
        for method, arguments in METHODS.items()
        for factor, lr in starts.items()
        for s in range(seeds)
    }
    found = collect(Path(out), jobs, workers)
    print(f"Starts in units of the best of the grid, {best:g}; mean of {seeds} seeds, in points of")
    print(f"difference to the grid's best, {table[best]:.2%}; learned lr at the end in brackets.\n")
    print("| learned by | " + " | ".join(starts) + " | worst | cost, plain trainings |")
    print("|---" * (len(starts) + 3) + "|")
    for method in METHODS:
        cells, differences, times = [], [], []
        for factor in starts:
            keys = [f"{method} {factor} {s}" for s in range(seeds)]
            differences.append(100 * (mean(found, keys) - table[best]))
            rates = [found[k]["learned"].get("lr", 0.0) for k in keys]
            cells.append(f"{differences[-1]:+.2f} ({statistics.median(rates):.2g})")
            times += [found[k]["seconds"] for k in keys]
        cost = statistics.median(times) / seconds
        print(f"| {method} | {' | '.join(cells)} | {min(differences):+.2f} | {cost:.2f} |")


MAGNITUDE_LR = 0.1  # the best of the grid of `rate`


@main.command()
@click.option("--out", default="out-small/magnitude.jsonl", show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of batches of 64: 8 epochs.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def magnitude(out: str, steps: int, seeds: int, workers: int) -> None:
    """Augmentation magnitudes, from zero."""
    augment = LearnedMagnitudes(1, flips=True, crop=2)
    grid = (0.0, 0.1, 0.2, 0.35, 0.5)
    common = {"steps": steps, "lr": MAGNITUDE_LR, "augment": augment, "learn_lr": False}
    estimators: dict[str, dict[str, Any]] = {
        "one step": {"estimator": OneStep(), "every": 2},
        "unrolled, 5 steps": {
            "estimator": Unrolled(5, product="one_sided", radius=1e-3), "every": 4,
        },
    }  # fmt: skip
    jobs: dict[str, dict[str, Any]] = {}
    for s in range(seeds):
        for m in grid:
            jobs[f"grid {m} {s}"] = {
                **common, "seed": s, "magnitudes": dict.fromkeys(augment.names, m),
            }  # fmt: skip
        for label, arguments in estimators.items():
            zero = dict.fromkeys(augment.names, 0.0)
            jobs[f"{label} {s}"] = {**common, "seed": s, "magnitudes": zero, **arguments}
    found = collect(Path(out), jobs, workers)
    rows = {f"global magnitude {m:g}": [f"grid {m} {s}" for s in range(seeds)] for m in grid}
    rows |= {f"learned, {n}": [f"{n} {s}" for s in range(seeds)] for n in estimators}
    whole = sum(found[k]["seconds"] for k in jobs if k.startswith("grid")) / seeds
    print("| augmentation | test accuracy | time, of the grid's | magnitudes at the end |")
    print("|---|---|---|---|")
    for label, keys in rows.items():
        share = mean(found, keys, "seconds") / whole
        last = found[keys[0]]["learned"]
        shown = ", ".join(f"{n} {v:.2f}" for n, v in last.items())
        print(f"| {label} | {mean(found, keys):.2%} | {share:.0%} | {shown} |")


if __name__ == "__main__":
    main()
