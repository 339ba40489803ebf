"""Learned values against tuned values, with a fixed small network on 10 000 Fashion-MNIST images.

- `rate` starts the learning rate at {1/30, 1/10, 1, 10} times the best rate of a grid (constants
  times a cosine), and trains once with each way to learn it.
- `magnitude` starts augmentation magnitudes at zero, and compares with a grid of one global
  magnitude.
- `augment` compares whole policies, also on color images (`color_fashion.py`).

The accuracy is measured on the 10 000 test images, which no training and no hypergradient uses. The
2 000 validation images of the hypergradients would give a biased and noisier accuracy.

    python experiments/small_network.py rate
    python experiments/small_network.py magnitude
    python experiments/small_network.py augment --data fashion-mnist
    python experiments/color_fashion.py
    python experiments/small_network.py augment --data cifar10

Results are written to --out at once; a stopped command continues where it stopped.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.augment import (
    CLASSIC,
    Augmentation,
    Learned,
    Nothing,
    Policy,
    RandAugment,
    TrivialAugment,
)
from darts_lite.data import load, split
from darts_lite.hypergradient import (
    Estimator,
    Forward,
    Learner,
    LearningRateFinder,
    OneStep,
    Online,
    Unrolled,
)
from darts_lite.hypergradient.hyperparameters import HyperSpec, Interval, LogInterval
from darts_lite.schedules import cosine
from darts_lite.training.losses import cross_entropy

BATCH = 64
HELD_OUT = 128  # images in a validation batch
DECAY = 5e-4
COLOUR = Path("out-small/colour")  # of `color_fashion.py`
AUGMENT: dict[str, tuple[Any, Any, float]] = {  # range, kind and travel of what is learned
    "magnitude": (Interval(), "loss", 20.0),
    "probability": (Interval(0.02, 0.98), "loss", 8.0),
}


class Split(NamedTuple):
    images: Tensor
    labels: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.labels), (count,), generator=generator)
        return self.images[chosen], self.labels[chosen]


@cache
def data(name: str = "fashion-mnist") -> tuple[Split, Split, Split]:
    """Return training (8 000), validation (2 000) and test (10 000) images."""
    folder = Path("data") if name == "fashion-mnist" else COLOUR
    dataset = load(name, folder, download=False, image_size=None)
    parts = split(dataset, subset=10_000, seed=0)
    return tuple(Split(p.pixels.float() / 255, p.labels.long()) for p in parts)  # type: ignore


def network(seed: int, channels: int = 1, side: int = 28) -> nn.Sequential:
    """Return a network of three convolutions with SiLU and BatchNorm: 24 000 parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after, stride in ((channels, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.SiLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10))


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
    search: LearningRateFinder | None = None,
    augment: Augmentation | None = None,
    every: int = 1,
    learn_lr: bool = True,
    dataset: str = "fashion-mnist",
) -> Run:
    """One training: SGD with Nesterov momentum, cosine, and what is learned on the way.

    With an estimator the values of the augmentation are learned, else they are what it has set.
    """
    train, validation, test = data(dataset)
    channels, side = train.images.shape[1:3]
    generator = torch.Generator().manual_seed(seed)
    model = network(seed, channels, side).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=DECAY
    )
    specs = []
    if learn_lr:
        specs.append(
            HyperSpec("lr", torch.tensor(lr), LogInterval(1e-6, 1e2), "optimizer", travel=6.0)
        )
    if augment is not None and estimator is not None:
        specs += [
            HyperSpec(name, torch.tensor(start), *AUGMENT[name.partition(".")[0]])
            for name, start in augment.starts.items()
        ]

    def loss(model: Callable, batch: Any, learned: Any) -> Tensor:
        x, y, choices = batch
        if choices is None or augment is None:
            return F.cross_entropy(model(x), y, label_smoothing=0.1)
        own = {n: learned[n] for n in augment.names if n in learned}
        criterion = partial(cross_entropy, label_smoothing=0.1)
        return augment.loss(model, criterion, x, y, choices, own)[0]

    def batch(turn: bool = False) -> tuple:
        x, y = train.draw(BATCH, generator)
        if augment is None:
            return x, y, None
        own = {n: v for n, v in learner.values().items() if n in augment.names}
        choices = augment.sample(
            BATCH, (side, side), generator, values=own, fraction=done / steps, turn=turn
        )
        return x, y, choices

    def held_out() -> tuple:
        return *validation.draw(HELD_OUT, generator), None

    warnings.simplefilter("ignore")  # the caveats are what is being measured
    learner = Learner(model, optimizer, loss, specs, steps, estimator or OneStep())
    window = learner.estimator.steps
    clock = time.perf_counter()
    done = 0  # read by `batch`
    while done < steps:
        while search is not None and search.due(done / steps):
            looking = [batch() for _ in range(search.estimator.steps)]
            learner.look(search, looking, held_out())
        optimizer.param_groups[0]["lr"] = lr * cosine(done / steps)
        looks = estimator is not None and (done // window) % every == 0
        batches = [batch(turn=looks) for _ in range(window)]
        learner.step(batches if window > 1 else batches[0], held_out() if looks else None)
        done += window
    seconds = time.perf_counter() - clock
    final = {n: float(v) for n, v in learner.values().items()}
    calibrate(model, train)
    return Run(accuracy(model, test), seconds, final)


@torch.no_grad()
def calibrate(model: nn.Module, split: Split) -> None:
    """Compute exact BatchNorm statistics."""
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
    "annealed look-ahead (LearningRateFinder)": {"search": True},
    "online (Baydin)": {"estimator": Online()},
    "one step": {"estimator": OneStep()},
    "unrolled, 5 steps": {"estimator": Unrolled(5, product="one_sided", radius=1e-3)},
    "forward, real time (RTHO)": {"estimator": Forward(1.0, "one_sided", 1e-3)},
}


def work(job: tuple[str, dict[str, Any]]) -> tuple[str, dict]:
    """Run one training in a separate process with one thread."""
    torch.set_num_threads(1)
    key, arguments = job
    if arguments.get("search"):
        arguments = {**arguments, "search": LearningRateFinder()}
    return key, fit(**arguments)._asdict()


def collect(out: Path, jobs: dict[str, dict[str, Any]], workers: int) -> dict[str, dict]:
    """Run the trainings that the file lacks; write every result at once."""
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
    """Run the experiment; see the docstring of the module."""


@main.command()
@click.option("--out", default="out-small/rate.jsonl", show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of batches of 64: 8 epochs.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def rate(out: str, steps: int, seeds: int, workers: int) -> None:
    """Learn the learning rate from four starting values."""
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


class Low(Learned):
    """Policy whose magnitudes start close to zero."""

    @property
    def starts(self) -> dict[str, float]:
        return dict.fromkeys(self.names, 0.01)


@main.command()
@click.option("--out", default="out-small/magnitude.jsonl", show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of batches of 64: 8 epochs.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def magnitude(out: str, steps: int, seeds: int, workers: int) -> None:
    """Learn augmentation magnitudes, starting at zero."""
    policy = Learned(channels=1, crop=2, probabilities=False, operations=CLASSIC)
    zero = Augmentation(Low(channels=1, crop=2, probabilities=False, operations=CLASSIC))
    grid = (0.0, 0.1, 0.2, 0.35, 0.5)
    common = {"steps": steps, "lr": MAGNITUDE_LR, "learn_lr": False}
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
                **common, "seed": s,
                "augment": Augmentation(policy.replayed(dict.fromkeys(policy.names, ((0.0, m),)))),
            }  # fmt: skip
        for label, arguments in estimators.items():
            jobs[f"{label} {s}"] = {**common, "seed": s, "augment": zero, **arguments}
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


@main.command()
@click.option("--data", "dataset", default="fashion-mnist", show_default=True)
@click.option("--out", default="out-small/augment.jsonl", show_default=True)
@click.option("--steps", default=1500, show_default=True, help="Of batches of 64: 12 epochs.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def augment(dataset: str, out: str, steps: int, seeds: int, workers: int) -> None:
    """Compare policies: none, flips and shifts, published with a grid, learned in one run."""
    train, _, _ = data(dataset)
    base = {"channels": train.images.shape[1], "crop": 2}
    grid = {
        f"RandAugment, N {n}, M {m}": RandAugment(**base, n=n, m=m)
        for n, m in ((1, 9), (2, 3), (2, 9), (2, 15))
    }
    policies: dict[str, Policy] = {
        "none": Nothing(channels=base["channels"]),
        "flips and shifts": Policy(**base),
        "TrivialAugment": TrivialAugment(**base),
        **grid,
    }
    one_step = OneStep("one_sided", radius=1e-3)
    learned = {
        "learned: magnitudes and probabilities": Learned(**base),
        "learned: magnitudes": Learned(**base, probabilities=False, operations=CLASSIC),
        "learned: RandAugment's M": RandAugment(**base, n=2, m=9),
    }
    common = {"steps": steps, "lr": MAGNITUDE_LR, "learn_lr": False, "dataset": dataset}
    jobs: dict[str, dict[str, Any]] = {}
    for s in range(seeds):
        for label, policy in policies.items():
            jobs[f"{dataset} {label} {s}"] = {
                **common, "seed": s, "augment": Augmentation(policy)
            }  # fmt: skip
        for label, policy in learned.items():
            jobs[f"{dataset} {label} {s}"] = {
                **common, "seed": s, "augment": Augmentation(policy),
                "estimator": one_step, "every": 4,
            }  # fmt: skip
    found = collect(Path(out), jobs, workers)
    rows = {n: [f"{dataset} {n} {s}" for s in range(seeds)] for n in (*policies, *learned)}
    whole = sum(mean(found, rows[n], "seconds") for n in grid)
    print(f"| {dataset} | test accuracy | of each seed | time, of the grid's |")
    print("|---|---|---|---|")
    for label, keys in rows.items():
        each = ", ".join(f"{found[k]['accuracy']:.2%}" for k in keys)
        share = mean(found, keys, "seconds") / whole
        print(f"| {label} | {mean(found, keys):.2%} | {each} | {share:.0%} |")
    for label in learned:
        last = found[rows[label][0]]["learned"]
        print(f"\n{label}, seed 0: " + ", ".join(f"{n} {v:.2f}" for n, v in last.items()))


if __name__ == "__main__":
    main()
