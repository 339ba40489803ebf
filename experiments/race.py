"""Race of every search method with the same budget, data and bench, then equal final trainings.

Each method and seed is a study of `run.py tune` in a process with one thread; `--parallel` sets the
number of processes at a time. `run.py derive` trains the best configuration of each study, always
for the same number of epochs, and tests it once. For our method, the configuration of the first
round is trained too. Existing results are kept, so a race can be stopped and resumed.

    python experiments/race.py --out out-race --budget-hours 0.25
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
METHODS = ("gradient", "bohb", "asha", "random", "tpe", "pbt")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(log: Path, *arguments: str) -> None:
    with log.open("a") as file:
        done = subprocess.run([*RUN, *arguments], env=ENVIRONMENT, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\nfailed, see {log}")


@click.command()
@click.option("--out", default="out-race", show_default=True)
@click.option("--budget-hours", default=0.25, show_default=True, help="Of each study.")
@click.option("--epochs", default=8, show_default=True, help="Of a full training in a study.")
@click.option("--final-epochs", default=16, show_default=True, help="Of the final training.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--population", default=6, show_default=True, help="Of PBT.")
@click.option("--subset", default=10000, show_default=True)
@click.option("--max-params", default=150000, show_default=True)
@click.option("--parallel", default=2, show_default=True, help="Studies at a time.")
def main(
    out: str, budget_hours: float, epochs: int, final_epochs: int, seeds: int, methods: str,
    population: int, subset: int, max_params: int, parallel: int,
) -> None:  # fmt: skip
    """Run the experiment; see the docstring of the module."""
    names = methods.split(",")

    def one(method: str, seed: int) -> Path:
        folder = Path(out) / f"{method}-{seed}"
        log = Path(out) / f"{method}-{seed}.log"
        if not (folder / "g.json").exists():
            begun = ["--resume"] if (folder / "study.json").exists() else []
            call(
                log, "tune", "--method", method, "--out", str(folder), "--seed", str(seed),
                "--dataset", "fashion-mnist", "--subset", str(subset), "--space", "blocks",
                "--stem-stride", "2", "--max-params", str(max_params), "--epochs", str(epochs),
                "--population", str(population), "--budget-hours", str(budget_hours), *begun,
            )  # fmt: skip
        final(folder / "g.json", folder / "derive", log)
        if method == "gradient":
            final(folder / "trials" / "0" / "genotype.json", folder / "first", log)
        return folder

    def final(genotype: Path, place: Path, log: Path) -> None:
        if not (place / "metrics.json").exists():
            begun = ["--resume"] if (place / "checkpoint.pt").exists() else []
            files = ["--genotype", str(genotype), "--out", str(place)]
            call(log, "derive", *files, "--epochs", str(final_epochs), "--seed", "0", *begun)
        metrics = json.loads((place / "metrics.json").read_text())
        click.echo(f"{place}: test accuracy {metrics['test_accuracy']:.2%}")

    Path(out).mkdir(parents=True, exist_ok=True)
    # another order for each seed, so that none always meets the same neighbor
    runs = [(names[(i + s) % len(names)], s) for s in range(seeds) for i in range(len(names))]
    with ThreadPoolExecutor(parallel) as pool:
        folders = list(pool.map(lambda run: one(*run), runs))
    subprocess.run([*RUN, "report", *map(str, folders), "--out", f"{out}/report"], check=True)


if __name__ == "__main__":
    main()
