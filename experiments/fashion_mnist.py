"""Searched against random networks, and learned against default settings, on Fashion-MNIST.

- `race` searches and derives under wall-clock budgets.
- `compare` then trains three kinds of networks with the same recipe and number of epochs: the
  searched genotype with learned hyperparameters, the searched genotype with default
  hyperparameters, and, by `derive --random`, random genotypes of the same space and size class.

    python experiments/fashion_mnist.py race --out out-fashion
    python experiments/fashion_mnist.py compare --out out-fashion --epochs 12
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

RUN = [sys.executable, str(Path(__file__).parent.parent / "run.py")]


@click.group()
def main() -> None:
    """Run the experiment; see the docstring of the module."""


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


@main.command()
@click.option("--out", default="out-fashion", show_default=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--random", "count", default=3, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1, 2), default=2, show_default=True,
    help="Trainings at once; two have one thread each.",
)  # fmt: skip
def compare(out: str, epochs: int, count: int, workers: int) -> None:
    """Train all genotypes with equal epochs and equal recipe."""
    common = ["--genotype", f"{out}/g.json", "--epochs", str(epochs)]
    learned = ["derive", *common, "--out", f"{out}/compare"]
    default = ["derive", *common, "--out", f"{out}/default", "--hyperparameters", "default"]
    baseline = [*learned, "--random", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if workers > 1 else None

    def train(commands: list[list[str]]) -> None:
        for command in commands:
            quiet = subprocess.DEVNULL  # two progress bars are none
            subprocess.run([*RUN, *command], check=True, env=environment, stderr=quiet)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(train, ([learned, default], [baseline])))
    subprocess.run([*RUN, *baseline, "--resume"], check=True)  # all are finished: the table
    accuracy = json.loads(Path(out, "default", "metrics.json").read_text())["test_accuracy"]
    print(f"the searched one with default hyperparameters: {accuracy:.2%}")
    print(f"{epochs} epochs each, {workers} at a time")


if __name__ == "__main__":
    main()
