"""The searched network on Fashion-MNIST against random ones, learned against default settings.

`race` searches and derives under wall-clock budgets. `compare` then trains, for the same number of
epochs and by the same recipe, the searched genotype with learned and with default hyperparameters
and random genotypes of the same space and size class (within a tenth of its parameters).

    python experiments/fashion_mnist.py race --out out-fashion
    python experiments/fashion_mnist.py compare --out out-fashion --epochs 12
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import click
import torch

from darts_lite.derive import uniform_random
from darts_lite.network import network_cost
from darts_lite.space import PRESETS, Genotype

RUN = [sys.executable, str(Path(__file__).parent.parent / "run.py")]


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.option("--out", default="out-fashion", show_default=True)
@click.option("--subset", default="10000", show_default=True, help="0: all images.")
@click.option("--max-params", default="150000", show_default=True)
@click.option("--search-hours", default="0.07", show_default=True)
@click.option("--derive-hours", default="0.38", show_default=True)
@click.option("--stem-stride", default="2", show_default=True)
@click.option("--space", default="blocks", show_default=True)
@click.option("--batch-size", default="64", show_default=True)
def race(
    out: str, subset: str, max_params: str, search_hours: str, derive_hours: str, space: str,
    batch_size: str, stem_stride: str,
) -> None:  # fmt: skip
    """Search, then derive."""
    search = ["search", "--dataset", "fashion-mnist", "--space", space, "--out", out]
    search += ["--max-params", max_params, "--budget-hours", search_hours]
    search += ["--batch-size", batch_size, "--stem-stride", stem_stride]
    search += [] if subset == "0" else ["--subset", subset]
    derive = ["derive", "--genotype", f"{out}/g.json", "--budget-hours", derive_hours]
    derive += ["--batch-size", batch_size]
    for arguments in (search, derive):
        subprocess.run([*RUN, *arguments], check=True)


def random_genotype(like: Genotype, seed: int) -> Genotype:
    """Uniform in the space of `like`, drawn until its size is within a tenth of it."""
    generator = torch.Generator().manual_seed(seed)
    old = like.space
    space = PRESETS[old.preset](old.channels, len(old.sequence), old.stem_stride)
    while True:
        drawn = uniform_random(space, generator)
        cost = network_cost(drawn, like.image, len(like.classes))
        if abs(cost.parameters / like.parameters - 1) <= 0.1:
            return replace(like, space=drawn, parameters=cost.parameters, macs=cost.macs)


@main.command()
@click.option("--out", default="out-fashion", show_default=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--random", "count", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at once, one thread each.")
def compare(out: str, epochs: int, count: int, workers: int) -> None:
    """Equal epochs, equal recipe."""
    folder = Path(out)
    genotype = Genotype.load(folder / "g.json")
    runs = {
        "searched, learned hyperparameters": (folder / "g.json", "learned"),
        "searched, default hyperparameters": (folder / "g.json", "default"),
    }
    for seed in range(count):
        path = folder / f"random{seed}.json"
        random_genotype(genotype, seed).save(path)
        runs[f"random {seed}, learned hyperparameters"] = (path, "learned")

    def train(name: str) -> dict[str, float]:
        path, hyperparameters = runs[name]
        target = folder / "compare" / name.replace(", ", "-").replace(" ", "-")
        arguments = ["derive", "--genotype", str(path), "--out", str(target)]
        arguments += ["--epochs", str(epochs), "--hyperparameters", hyperparameters]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if workers > 1 else None
        subprocess.run([*RUN, *arguments], check=True, env=environment, stderr=subprocess.DEVNULL)
        return json.loads((target / "metrics.json").read_text())

    with ThreadPoolExecutor(workers) as pool:
        results = dict(zip(runs, pool.map(train, runs)))
    print(f"\n{epochs} epochs each, {workers} at a time\n")
    print("| network | parameters | MACs | test accuracy | seconds |\n|---|---|---|---|---|")
    for name, m in results.items():
        print(
            f"| {name} | {m['parameters']} | {m['macs']} | {m['test_accuracy']:.2%} "
            f"| {m['seconds']:.0f} |"
        )
    mean = statistics.mean(m["test_accuracy"] for n, m in results.items() if "random" in n)
    print(f"| mean of {count} random | | | {mean:.2%} | |")


if __name__ == "__main__":
    main()
