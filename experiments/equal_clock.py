"""Our search against a network made by hand and random networks, on the same clock.

    python experiments/equal_clock.py --minutes 13 --seeds 3

Fashion-MNIST, 10 000 images for training and validation together, at most 150 000 parameters, the
whole test set. Each side has the same minutes of wall clock, everything included, on one thread;
two runs at a time.

- ours: `search` for a fifth of the minutes, then `derive` for the rest, default flags;
- by hand: three stages of two dense 3x3 convolutions with residual connections, 22-44-88 channels,
  strided stem, SiLU; flips, shifts, cutout, smoothing 0.1, SGD at 0.2 with a cosine, batch 128, an
  average of the weights: the best recipe that we know for it (docs/results.md);
- random: networks of our network's size with our recipe, for the time of our `derive`.

Results are kept in --out; a stopped run continues.
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
from toolbox import by_hand, fashion

from darts_lite.augment import to_json
from darts_lite.commands.folds import summary
from darts_lite.files import write_json
from darts_lite.training.problem import augmentation_for

RUN = [sys.executable, str(Path(__file__).parent.parent / "run.py")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DATA = ["--dataset", "fashion-mnist", "--subset", "10000", "--max-params", "150000"]
SEARCH = 0.2  # share of the minutes
CUTOUT = 0.57  # magnitude: squares of up to 8 pixels


def call(folder: Path, *arguments: str) -> None:
    """Run a command once; its output goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{arguments[0]}.log").open("a") as log:
        done = subprocess.run([*RUN, *arguments], env=ENVIRONMENT, stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed, see {folder}")


def ours(folder: Path, seed: int, hours: float) -> None:
    """Search and derive with default flags."""
    if not (folder / "g.json").exists():
        call(folder, "search", *DATA, "--seed", str(seed), "--out", str(folder),
             "--budget-hours", str(SEARCH * hours))  # fmt: skip
    if not (folder / "derive" / "metrics.json").exists():
        call(folder, "derive", "--genotype", str(folder / "g.json"), "--seed", str(seed),
             "--tta", "flip", "--budget-hours", str((1 - SEARCH) * hours))  # fmt: skip


def hand(folder: Path, seed: int, hours: float) -> None:
    """Train the network made by hand."""
    dataset, _ = fashion(10_000)
    augment = augmentation_for(dataset, "learned").replayed({"magnitude.cutout": ((0.0, CUTOUT),)})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "augment.json", to_json(augment))
    genotype = by_hand(dataset, 22, 0.2)
    source = replace(genotype.source, dataset="fashion-mnist", subset=10_000)
    recipe = replace(genotype.recipe, augment=str(folder / "augment.json"))
    replace(genotype, source=source, recipe=recipe).save(folder / "g.json")
    call(folder, "derive", "--genotype", str(folder / "g.json"), "--seed", str(seed),
         "--ema", "0.998", "--tta", "flip", "--budget-hours", str(hours))  # fmt: skip


def random(folder: Path, seed: int, hours: float) -> None:
    """Train one random network of the size of ours."""
    found = folder.parent / f"ours-{seed}" / "g.json"
    call(folder, "derive", "--genotype", str(found), "--seed", str(seed), "--random", "1",
         "--tta", "flip", "--budget-hours", str((1 - SEARCH) * hours),
         "--out", str(folder))  # fmt: skip


SIDES = {"ours": ours, "hand": hand, "random": random}


@click.command()
@click.option("--minutes", default=13.0, show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2))
@click.option("--out", default="out-equal-clock", show_default=True)
@click.option("--sides", default="ours,hand,random", show_default=True)
@click.option("--parallel", default=2, show_default=True, help="Runs at a time, one thread each.")
def main(minutes: float, seeds: int, out: str, sides: str, parallel: int) -> None:
    """Run all sides and print the table."""
    names = sides.split(",")

    def one(job: tuple[str, int]) -> None:
        name, seed = job
        folder = Path(out) / f"{name}-{seed}"
        if not list(folder.glob("**/metrics.json")):
            SIDES[name](folder, seed, minutes / 60)

    first = [name for name in names if name != "random"]  # random networks need ours
    for part in (first, [name for name in names if name == "random"]):
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(one, [(name, seed) for seed in range(seeds) for name in part]))
    click.echo("| | parameters | MACs | epochs | test accuracy | with flips | seconds |")
    click.echo("|---|---|---|---|---|---|---|")
    for name in names:
        files = [next((Path(out) / f"{name}-{s}").glob("**/metrics.json")) for s in range(seeds)]
        rows = [json.loads(file.read_text()) for file in files]
        mean = {n: statistics.fmean(r[n] for r in rows) for n in ("parameters", "macs", "epochs")}
        cells = [name, f"{mean['parameters']:.0f}", f"{mean['macs']:.0f}", f"{mean['epochs']:.0f}"]
        for metric in ("test_accuracy", "test_accuracy_tta"):
            each = summary([row[metric] for row in rows])
            cells.append(f"{each['mean']:.2%} ± {each['interval']:.2%}")
        cells.append(f"{statistics.fmean(r['seconds'] for r in rows):.0f}")
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
