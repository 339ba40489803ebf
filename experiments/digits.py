"""Search and derive on digits with default settings, by the real command line, with several seeds.

python experiments/digits.py --out out-digits
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

RUN = [sys.executable, str(Path(__file__).parent.parent / "run.py")]


def timed(*arguments: str) -> float:
    start = time.monotonic()
    subprocess.run([*RUN, *arguments], check=True)
    return time.monotonic() - start


@click.command()
@click.option("--out", default="out-digits", show_default=True)
@click.option("--seeds", default=3, show_default=True)
def main(out: str, seeds: int) -> None:
    rows = []
    for seed in range(seeds):
        folder, flags = Path(out) / str(seed), ("--seed", str(seed))
        seconds = timed("search", "--dataset", "digits", "--out", str(folder), *flags)
        seconds += timed("derive", "--genotype", str(folder / "g.json"), *flags)
        metrics = json.loads((folder / "derive" / "metrics.json").read_text())
        rows.append(
            (seed, metrics["parameters"], metrics["macs"], metrics["test_accuracy"], seconds)
        )
    print("\n| seed | parameters | MACs | test accuracy | seconds in all |\n|---|---|---|---|---|")
    for seed, parameters, macs, accuracy, seconds in rows:
        print(f"| {seed} | {parameters} | {macs} | {accuracy:.2%} | {seconds:.0f} |")
    means = [statistics.mean(column) for column in list(zip(*rows))[1:]]
    print(f"| mean | {means[0]:.0f} | {means[1]:.0f} | {means[2]:.2%} | {means[3]:.0f} |")


if __name__ == "__main__":
    main()
