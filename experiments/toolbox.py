"""What each tool of the training toolbox is worth, on Fashion-MNIST, under equal wall clocks.

    python experiments/toolbox.py recipes       # average, test-time views, teachers, sharpness
    python experiments/toolbox.py imbalance     # 1:50 long tail: losses, class weights, sampling
    python experiments/toolbox.py unlabelled    # 500 labelled and 9500 unlabelled images
    python experiments/toolbox.py transfer      # from classes 0-4 to 5-9, 100 images a class
    python experiments/toolbox.py overhead      # time of a step

A small residual network made by hand: three stages of two dense 3x3 convolutions after a strided
stem. Every training has the same seconds on one thread, two trainings at a time; a teacher's own
training is not counted. Tables give the mean over seeds and the half width of its 95 % interval;
differences are taken seed by seed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch

from darts_lite.architecture.cost import genotype_with_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import Operation
from darts_lite.commands.folds import summary
from darts_lite.data import Dataset, Images, Splits, load, split
from darts_lite.data.splits import left_over
from darts_lite.data.unlabelled import Unlabelled
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import loop
from darts_lite.training.budget import Budget
from darts_lite.training.distillation import WEIGHT, Teacher
from darts_lite.training.imbalance import long_tailed
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import DeriveOptions
from darts_lite.training.self_training import PseudoLabels, pseudo_labels
from darts_lite.training.task import TrainTask
from darts_lite.training.tta import probabilities

CPU = torch.device("cpu")
CHANNELS = 16
SEEDS = (0, 1, 2)
Row = dict[str, float]


@dataclass(frozen=True)
class Job:
    """One row of a table and one seed."""

    table: Callable[..., Row]
    name: str
    seed: int
    seconds: float

    def __call__(self) -> Row:
        torch.set_num_threads(1)
        keep_freed_memory()
        return self.table(self.name, self.seed, self.seconds)


def by_hand(dataset: Dataset, channels: int = CHANNELS, rate: float = 0.1) -> Genotype:
    """Return the residual network as a genotype, with a constant recipe."""
    conv = Operation("conv", {"kernel": (3,)})
    space = blocks(channels, 6, stem_stride=2)
    chain = tuple(
        replace(cell, edges=(replace(cell.edges[0], operations=(conv,)),)) for cell in space.cells
    )
    space = replace(space, cells=chain)
    schedules = {"lr": ((0.0, rate),), "weight_decay": ((0.0, 5e-4),)}
    return genotype_with_cost(
        space,
        dataset.image,
        dataset.classes,
        recipe=Recipe(batch_size=128, augment="standard", schedules=schedules),
        dataset=dict(dataset.fingerprint),  # type: ignore[arg-type]
    )


def train(
    dataset: Dataset,
    splits: Splits,
    seed: int,
    seconds: float,
    *,
    channels: int = CHANNELS,
    teacher: Teacher | None = None,
    start: Network | None = None,
    pseudo: PseudoLabels | None = None,
    batch_size: int = 128,
    rate: float = 0.1,
    rounds: int | None = None,
    **options: Any,
) -> tuple[Network, Row]:
    """Train once, for `rounds` epochs or else for seconds; return the network and its metrics."""
    genotype = by_hand(dataset, channels, rate)
    said = DeriveOptions(seed=seed, batch_size=batch_size, **options)
    task = TrainTask(said, genotype, dataset, splits, CPU, teacher, start, pseudo)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        store = loop.Store(Path(folder) / "checkpoint.pt", "toolbox", {}, every=1e9)
        budget = Budget(seconds + loop.CLOSING)
        if rounds is not None:
            budget = Budget(steps=rounds * (task.images.count // batch_size))
        step = loop.run(task, budget, recorder, store)
        network = task.finish(step, recorder)
    row = dict(evaluate(network, splits.test).values)
    for kind in ("flip", "crops") if rounds is None else ():
        view = lambda x, kind=kind: probabilities(network, x, kind, dataset.flips)  # noqa: E731
        row[f"accuracy, {kind}"] = evaluate(network, splits.test, view).accuracy
    epochs = step * batch_size / task.images.count
    return network, row | {"epochs": epochs, "seconds": time.monotonic() - began}


def teaching(network: Network, kind: str = "kl") -> Teacher:
    """Return a trained network as a teacher with the usual weight."""
    frozen = network.eval().requires_grad_(False)
    return Teacher(frozen, kind, WEIGHT[kind])  # type: ignore[arg-type]


# --- the tables ---------------------------------------------------------------------------------


def fashion(subset: int, seed: int = 0) -> tuple[Dataset, Splits]:
    """Return Fashion-MNIST and the splits of a subset."""
    dataset = load("fashion-mnist", Path("data"), download=False, image_size=None)
    return dataset, split(dataset, subset=subset, seed=seed)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "average of the weights": {"ema": 0.995},
    "teacher of twice the width, kl": {"teacher": "kl"},
    "the same, decoupled": {"teacher": "decoupled"},
    "sharpness-aware": {"sharpness": 0.05},
}


def recipes(name: str, seed: int, seconds: float) -> Row:
    """Train with one recipe on 10 000 images."""
    dataset, splits = fashion(10_000)
    options = dict(RECIPES[name])
    if "teacher" in options:
        space = by_hand(dataset, 2 * CHANNELS).space
        network = Network(space, (1, 28, 28), len(dataset.classes))
        network.load_state_dict(torch.load(kept("teacher", seconds), weights_only=True))
        options["teacher"] = teaching(network, options["teacher"])
    return train(dataset, splits, seed, seconds, **options)[1]


def kept(name: str, seconds: float) -> Path:
    """Return the file of the weights that several trainings use."""
    return Path(tempfile.gettempdir()) / f"toolbox-{name}-{seconds:g}.pt"


IMBALANCE: dict[str, dict[str, Any]] = {
    "plain": {},
    "focal": {"loss": "focal:gamma=2"},
    "soft F1": {"loss": "soft_f1"},
    "class weights, balanced": {"class_weights": "balanced"},
    "class weights, effective": {"class_weights": "effective"},
    "balanced sampling": {"sampling": "balanced"},
}


def imbalance(name: str, seed: int, seconds: float) -> Row:
    """Train on a long tail of 1:50."""
    dataset, splits = fashion(10_000)
    whole = splits.learned
    index = long_tailed(whole.labels, 50.0, torch.Generator().manual_seed(seed))
    tail = whole.select(index)
    half = torch.arange(tail.count) % 2 == 0
    parts = (tail.select(mask.nonzero()[:, 0]) for mask in (half, ~half))
    return train(dataset, Splits(*parts, splits.test), seed, seconds, **IMBALANCE[name])[1]


UNLABELLED = ("labelled alone", "pseudo-labels once", "self-training, two rounds and the last")


def unlabelled(name: str, seed: int, seconds: float) -> Row:
    """Train on 500 labelled images, with or without 9500 others."""
    dataset, splits = fashion(500, seed)
    left = left_over(dataset, 500, seed)
    chosen = torch.randperm(left.count, generator=torch.Generator().manual_seed(seed))[:9500]
    others = Unlabelled(left.pixels[chosen], left.labels[chosen])
    network, row = train(dataset, splits, seed, seconds, batch_size=64)
    rounds = {UNLABELLED[0]: [], UNLABELLED[1]: [1.0], UNLABELLED[2]: [1.25, 1.5, 1.0]}[name]
    for width in rounds:
        labels = pseudo_labels(network.eval(), others)
        last = len(rounds) > 1 and width == rounds[-1]
        network, row = train(
            dataset,
            splits,
            seed,
            seconds,
            channels=round(width * CHANNELS),
            pseudo=labels,
            teacher=replace(teaching(network), weight=0.5) if last else None,
            augment="randaugment",
        )
        row |= {"labels": len(labels.pixels), "right": labels.right or 0.0}
    return row


TRANSFER: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "all weights, one rate": {"start": "pretrained"},
    "features frozen": {"start": "pretrained", "freeze": "features"},
    "frozen for a third": {"start": "pretrained", "freeze": "features", "unfreeze_at": 0.33},
    "rate × 0.1": {"start": "pretrained", "rate": 0.01},
    "rate × 0.01": {"start": "pretrained", "rate": 0.001},
    "layer decay 0.5": {"start": "pretrained", "layer_decay": 0.5},
    "learned rates by depth": {
        "start": "pretrained",
        "hyperparameters": "online",
        "estimator": "one_step",
        "learn": "layer_lr",
    },
}
SHORT = ("from scratch", "all weights, one rate", "frozen for a third", "layer decay 0.5")
"""Rows of short trainings, whose budget is in epochs."""


def classes_of(dataset: Dataset, first: int, each: int, seed: int) -> tuple[Dataset, Splits]:
    """Return five classes of Fashion-MNIST, with some training images of each."""

    def some(images: Images, count: int | None) -> Images:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for k in range(first, first + 5):
            mine = (images.labels == k).nonzero()[:, 0]
            found.append(mine[torch.randperm(len(mine), generator=generator)[:count]])
        chosen = images.select(torch.cat(found))
        return Images(chosen.pixels, chosen.labels - first)

    assert dataset.test is not None
    part = replace(
        dataset,
        train=some(dataset.train, each),
        test=some(dataset.test, None),
        classes=dataset.classes[first : first + 5],
    )
    return part, split(part, seed=seed)


def transfer(name: str, seed: int, seconds: float, rounds: int | None = None) -> Row:
    """Train on 100 images of each of the classes 5 to 9, for seconds or for `rounds` epochs."""
    dataset, _ = fashion(10_000)
    target, splits = classes_of(dataset, 5, 100, seed)
    options = dict(TRANSFER[name])
    start = None
    if options.pop("start", None):
        start = Network(by_hand(target).space, (1, 28, 28), 5)
        start.load_state_dict(torch.load(kept("start", seconds), weights_only=True))
    return train(
        target, splits, seed, seconds, start=start, batch_size=64, rounds=rounds, **options
    )[1]


# --- running ------------------------------------------------------------------------------------


def run(
    table: Callable[..., Row],
    names: Sequence[str],
    seconds: float,
    out: str,
    shown: Sequence[str],
    metric: str,
) -> None:
    """Train every row with every seed, two at a time; print and keep the table."""
    jobs = [Job(table, name, seed, seconds) for seed in SEEDS for name in names]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        rows = list(pool.map(Job.__call__, jobs))
    found = {name: [r for j, r in zip(jobs, rows) if j.name == name] for name in names}
    Path(out).mkdir(parents=True, exist_ok=True)
    kept_as = getattr(table, "__name__", "transfer-epochs")
    (Path(out) / f"{kept_as}.json").write_text(json.dumps(found, indent=1))
    print_table(found, shown, metric)


def print_table(found: dict[str, list[Row]], shown: Sequence[str], metric: str) -> None:
    """Print means with intervals, and the difference from the first row, seed by seed."""
    click.echo(f"| | epochs | {' | '.join(shown)} | {metric}: above the first row |")
    click.echo("|---" * (len(shown) + 3) + "|")
    first = [row[metric] for row in next(iter(found.values()))]
    for name, rows in found.items():
        cells = [name, f"{statistics.fmean(r['epochs'] for r in rows):.0f}"]
        for column in shown:
            if any(column not in row for row in rows):
                cells.append("")
                continue
            each = summary([row[column] for row in rows])
            cells.append(f"{each['mean']:.2%} ± {each['interval']:.2%}")
        gains = [row[metric] - base for row, base in zip(rows, first)]
        gain = summary(gains)
        cells.append(f"{100 * gain['mean']:+.2f} ± {100 * gain['interval']:.2f}")
        click.echo("| " + " | ".join(cells) + " |")


@click.group()
def main() -> None:
    """Run a table; see the docstring of the module."""


seconds_option = click.option("--seconds", default=100.0, show_default=True)
out_option = click.option("--out", default="out-toolbox", show_default=True)


@main.command("recipes")
@seconds_option
@out_option
def recipes_command(seconds: float, out: str) -> None:
    """Compare recipes on 10 000 images; the teacher trains first, for four times the seconds."""
    torch.set_num_threads(2)
    dataset, splits = fashion(10_000)
    network, row = train(dataset, splits, 9, 4 * seconds, channels=2 * CHANNELS)
    click.echo(f"teacher: {row['accuracy']:.2%} after {row['epochs']:.0f} epochs")
    torch.save(network.state_dict(), kept("teacher", seconds))
    shown = ("accuracy", "accuracy, flip", "accuracy, crops", "ece")
    run(recipes, tuple(RECIPES), seconds, out, shown, "accuracy")


@main.command("imbalance")
@seconds_option
@out_option
def imbalance_command(seconds: float, out: str) -> None:
    """Compare tools against imbalance by macro F1."""
    run(imbalance, tuple(IMBALANCE), seconds, out, ("macro_f1", "accuracy"), "macro_f1")


@main.command("unlabelled")
@seconds_option
@out_option
@click.option("--once", is_flag=True, help="Leave out the self-training in rounds.")
def unlabelled_command(seconds: float, out: str, once: bool) -> None:
    """Compare pseudo-labels and self-training; every training has the seconds."""
    names = UNLABELLED[:2] if once else UNLABELLED
    run(unlabelled, names, seconds, out, ("accuracy", "right"), "accuracy")


@main.command("transfer")
@seconds_option
@click.option("--epochs", multiple=True, type=int, help="Of a training, in place of the seconds.")
@click.option("--source-epochs", type=int, help="On the classes 0 to 4, in place of the seconds.")
@out_option
def transfer_command(
    seconds: float, epochs: tuple[int, ...], source_epochs: int | None, out: str
) -> None:
    """Compare ways to start from a network of other classes."""
    torch.set_num_threads(2)
    dataset, _ = fashion(10_000)
    source, splits = classes_of(dataset, 0, 2000, 0)
    network, row = train(source, splits, 9, seconds, rounds=source_epochs)
    click.echo(f"classes 0-4: {row['accuracy']:.2%} after {row['epochs']:.0f} epochs")
    torch.save(network.state_dict(), kept("start", seconds))
    if not epochs:
        run(transfer, tuple(TRANSFER), seconds, out, ("accuracy",), "accuracy")
    for count in epochs:
        click.echo(f"\n{count} epochs")
        table = partial(transfer, rounds=count)
        run(table, SHORT, seconds, f"{out}/{count}", ("accuracy",), "accuracy")


@main.command("overhead")
@click.option("--rounds", default=7, show_default=True)
def overhead_command(rounds: int) -> None:
    """Compare the time of a step with the plain step; the median ratio of paired rounds."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dataset, splits = fashion(10_000)
    genotype = by_hand(dataset)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "average of the weights": {"ema": 0.999},
        "focal": {"loss": "focal"},
        "soft F1": {"loss": "soft_f1"},
        "bce": {"loss": "bce"},
        "two plain steps of half the size": {"batch_size": 64},
        "two accumulated batches of half the size": {"accumulate": 2, "batch_size": 64},
        "clipping": {"clip": 1.0},
        "sharpness-aware": {"sharpness": 0.05},
    }
    tasks = {}
    for name, options in kinds.items():
        said = DeriveOptions(**{"batch_size": 128, **options})
        tasks[name] = TrainTask(said, genotype, dataset, splits, CPU)
        tasks[name].step(0.3)
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        times = {}
        for name, task in tasks.items():
            began = time.perf_counter()
            for _ in range(40 if name.startswith("two plain") else 20):
                task.step(0.3)
            times[name] = time.perf_counter() - began
        for name in kinds:
            ratios[name].append(times[name] / times["plain"])
    click.echo("| step | time, of the plain step |\n|---|---|")
    for name, values in ratios.items():
        click.echo(f"| {name} | {statistics.median(values):.3f} |")


if __name__ == "__main__":
    main()
