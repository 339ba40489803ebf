"""A table of truth: every network of a small space, trained; and what search methods find in it.

The space is a chain of two blocks with 13 options each, 169 networks of 16 channels, on images of
Fashion-MNIST with 14x14 pixels: 2000 for training, 2000 for validation, all 10 000 test images.

    python experiments/truth_table.py make    # trains each network with 3 seeds, half an hour
    python experiments/truth_table.py rank    # searches with each method and 10 seeds

`make` writes truth_table.json beside this file, and continues where it stopped. `rank` compares
methods with the table, without training a network: the regret (test accuracy of the best network
minus that of the one that was found), its rank, and Kendall's tau between the scores that the
search gives to all networks and their test accuracies. Random search trains as many networks as the
time of the search allows, and takes the best by validation accuracy.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from scipy.stats import kendalltau

from darts_lite.architecture.cost import genotype_with_cost
from darts_lite.architecture.presets import OPERATIONS
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import Cell, Edge, SearchSpace
from darts_lite.architecture.weights import option_probabilities
from darts_lite.commands.folds import summary
from darts_lite.data import Dataset, Splits, load, split
from darts_lite.nas import task as nas_task
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import loop
from darts_lite.training.budget import Budget
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import DeriveOptions
from darts_lite.training.task import TrainTask

TABLE = Path(__file__).parent / "truth_table.json"
CPU = torch.device("cpu")
CHANNELS = 16
SEEDS = (0, 1, 2)
EPOCHS = 10
Row = dict[str, Any]


def space() -> SearchSpace:
    """Return the space: a block, and one that halves the resolution, after a strided stem."""
    edge = (Edge(0, 1, OPERATIONS),)
    chain = tuple(Cell(f"block{i + 1}", 1, 1, 1, i == 1, edge) for i in range(2))
    return SearchSpace("blocks", chain, tuple(c.name for c in chain), CHANNELS, 2)


@cache
def data() -> tuple[Dataset, Splits]:
    """Return the data set and its splits."""
    dataset = load("fashion-mnist", Path("data"), download=False, image_size=14)
    return dataset, split(dataset, subset=4000, seed=0)


def names() -> list[str]:
    """Return the names of all networks, such as "conv k3 + skip"."""
    options = [o.label for o in space().cells[0].edges[0].options]
    return [" + ".join(pair) for pair in itertools.product(options, repeat=2)]


def member(name: str) -> SearchSpace:
    """Return the network of a name."""
    whole, chosen = space(), name.split(" + ")

    def only(cell: Cell, label: str) -> Cell:
        edge = cell.edges[0]
        option = next(o for o in edge.options if o.label == label)
        return replace(cell, edges=(replace(edge, operations=(option,)),))

    return replace(whole, cells=tuple(only(c, n) for c, n in zip(whole.cells, chosen)))


def trained(name: str) -> Row:
    """Train a network with every seed; return its row of the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dataset, splits = data()
    schedules = {"lr": ((0.0, 0.1),), "weight_decay": ((0.0, 5e-4),)}
    genotype = genotype_with_cost(
        member(name),
        dataset.image,
        dataset.classes,
        recipe=Recipe(batch_size=64, augment="standard", schedules=schedules),
        dataset=dict(dataset.fingerprint),  # type: ignore[arg-type]
    )
    row: Row = {"parameters": genotype.parameters, "macs": genotype.macs}
    found: dict[str, list[float]] = {"test": [], "validation": [], "seconds": []}
    for seed in SEEDS:
        began = time.monotonic()
        said = DeriveOptions(seed=seed, select="held_out", epochs=EPOCHS)
        task = TrainTask(said, genotype, dataset, splits, CPU)
        with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
            store = loop.Store(Path(folder) / "checkpoint.pt", "truth", {}, every=1e9)
            steps = EPOCHS * (splits.train.count // 64)
            network = task.finish(loop.run(task, Budget(steps=steps), recorder, store), recorder)
        found["seconds"].append(round(time.monotonic() - began, 2))
        for part in ("test", "validation"):
            accuracy = evaluate(network, getattr(splits, part)).accuracy
            found[part].append(round(accuracy, 5))
    return row | found


@click.group()
def main() -> None:
    """Make the table, or rank methods by it; see the docstring of the module."""


@main.command("make")
@click.option("--workers", default=2, show_default=True, help="Trainings at a time.")
def make_command(workers: int) -> None:
    """Train all networks that are not in the table."""
    table: dict[str, Row] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    missing = [name for name in names() if name not in table]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for name, row in zip(missing, pool.map(trained, missing)):
            table[name] = row
            lines = [f'"{n}": {json.dumps(r)}' for n, r in table.items()]
            TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            click.echo(
                f"{len(table)} of {len(names())}: {name} {statistics.fmean(row['test']):.2%}"
            )


# --- searches ------------------------------------------------------------------------------------


def searched(method: str, seed: int, steps: int) -> tuple[str, dict[str, float], float]:
    """Search once; return the found network, the scores of all networks, and the seconds."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dataset, splits = data()
    nas_task.space_of = lambda options: space()  # type: ignore[assignment]
    options = SearchOptions(
        seed=seed,
        method=method,  # type: ignore[arg-type]
        channels=CHANNELS,
        search_channels=CHANNELS,
        max_params=10**9,
        steps=steps,  # no limit of measured time
        stem_stride=2,
        augment="standard",
    )
    began = time.monotonic()
    task = SearchTask(options, dataset, splits, CPU)
    while task.hyper.steps < steps:
        task.step(task.hyper.steps / steps)
    seconds = time.monotonic() - began
    weights = task.weights(1.0)
    logs = [
        option_probabilities(cell, weights[cell.name])[0].clamp_min(1e-30).log().tolist()
        for cell in task.space.cells
    ]
    scores = [sum(pair) for pair in itertools.product(*logs)]
    chosen = [cell.edges[0].operations[0].label for cell in task.discrete().cells]
    return " + ".join(chosen), dict(zip(names(), scores)), seconds


def by_chance(table: dict[str, Row], seconds: float, seed: int) -> str:
    """Return what random search finds in the time: the best of its networks by validation."""
    rng, best, spent = random.Random(seed), ("", 0.0), 0.0
    for name in rng.sample(list(table), len(table)):
        spent += table[name]["seconds"][0]
        if spent > seconds and best[0]:
            break
        best = max(best, (name, table[name]["validation"][0]), key=lambda pair: pair[1])
    return best[0]


@main.command("rank")
@click.option("--methods", default="single_path,darts", show_default=True)
@click.option("--seeds", default=10, show_default=True)
@click.option("--steps", default=600, show_default=True, help="Of each search.")
@click.option("--workers", default=2, show_default=True, help="Searches at a time.")
def rank_command(methods: str, seeds: int, steps: int, workers: int) -> None:
    """Print regret, rank and Kendall's tau of each method."""
    table: dict[str, Row] = json.loads(TABLE.read_text())
    truth = {name: statistics.fmean(row["test"]) for name, row in table.items()}
    order = sorted(truth, key=lambda name: -truth[name])
    click.echo(
        f"{len(table)} networks, test accuracy {min(truth.values()):.2%} to "
        f"{max(truth.values()):.2%}; standard error of one {_noise(table):.2%}\n"
    )
    click.echo("| method | seconds | regret, median | regret, mean | rank, median | Kendall tau |")
    click.echo("|---|---|---|---|---|---|")
    for method in methods.split(","):
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            runs = list(
                pool.map(searched, itertools.repeat(method, seeds), range(seeds),
                         itertools.repeat(steps, seeds))
            )  # fmt: skip
        taus = [
            kendalltau([s[n] for n in truth], list(truth.values())).statistic for _, s, _ in runs
        ]
        _print(method, [name for name, _, _ in runs], truth, order, [t for *_, t in runs], taus)
        chance = [by_chance(table, seconds, seed) for seed, (*_, seconds) in enumerate(runs)]
        _print(f"random search, time of {method}", chance, truth, order, [t for *_, t in runs], [])


def _print(
    label: str,
    found: Sequence[str],
    truth: dict[str, float],
    order: Sequence[str],
    seconds: Sequence[float],
    taus: Sequence[float],
) -> None:
    regrets = [truth[order[0]] - truth[name] for name in found]
    ranks = [order.index(name) + 1 for name in found]
    tau = summary(list(taus)) if taus else None
    cells = [
        label,
        f"{statistics.median(seconds):.0f}",
        f"{100 * statistics.median(regrets):.2f}",
        f"{100 * statistics.fmean(regrets):.2f}",
        f"{statistics.median(ranks):.0f}",
        "" if tau is None else f"{tau['mean']:.2f} ± {tau['interval']:.2f}",
    ]
    click.echo("| " + " | ".join(cells) + " |")


def _noise(table: dict[str, Row]) -> float:
    """Return the standard error of a mean test accuracy, from the spread over seeds."""
    return statistics.fmean(statistics.stdev(r["test"]) for r in table.values()) / len(SEEDS) ** 0.5


if __name__ == "__main__":
    main()
