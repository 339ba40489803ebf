"""Pruning of trained networks: criteria, one-shot and iterative, before and after fine-tuning.

    python experiments/pruning.py --epochs 100               # all rows, 3 seeds, both networks
    python experiments/pruning.py RUN RUN RUN --rows "Taylor,gates by hypergradient"
    python experiments/pruning.py --epochs 2 --seeds 1       # a short look, of no value as a result

Fashion-MNIST, 10 000 training and validation images, 10 000 test images. Two networks: the
residual network of toolbox.py, made by hand, and a searched network of the same number of
parameters, which is searched first. Each is trained once per seed for `--epochs`. Every row then
prunes it to half or a quarter of its parameters, and fine-tunes for a tenth of the epochs with
distillation from the original. The training steps of learned gates count as epochs of the
fine-tuning. Milliseconds are medians at batch 1 and 32 on the threads of this process, original
and pruned one after the other. With RUN..., finished trainings are pruned; none are trained here.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from toolbox import by_hand

from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.commands.compress import compress
from darts_lite.commands.derive import derive
from darts_lite.commands.search import search
from darts_lite.compression.options import CompressOptions
from darts_lite.compression.pruning import GATE_BATCH
from darts_lite.data import load
from darts_lite.nas.options import SearchOptions
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.options import DeriveOptions

SUBSET, VALIDATION = 10_000, 0.5
PARAMETERS = 146_000
SHARE = 0.1  # of the original epochs, for fine-tuning
SHARES = (0.5, 0.25)
COST_OF_A_GATE_STEP = 2.0  # time of a step with a hypergradient, in plain steps with a teacher


@dataclass(frozen=True)
class Row:
    """A way to prune."""

    name: str
    options: dict[str, Any]


ROWS = (
    Row("magnitude", {"criterion": "magnitude"}),
    Row("BatchNorm scale", {"criterion": "norm"}),
    Row("Taylor", {"criterion": "taylor"}),
    Row("Taylor in 3 rounds", {"criterion": "taylor", "rounds": 3}),
    Row("Taylor without teacher", {"criterion": "taylor", "teacher": False}),
    Row("Taylor with widths of 8", {"criterion": "taylor", "multiple": 8}),
    Row("gates by hypergradient", {"criterion": "gates"}),
)


def hand_made(path: Path, data_dir: str) -> Path:
    """Write the genotype of the network made by hand, with about 146 k parameters."""
    dataset = load("fashion-mnist", Path(data_dir))
    channels = 16
    while by_hand(dataset, channels + 1).parameters <= PARAMETERS:
        channels += 1
    source = Source(dataset="fashion-mnist", data_dir=data_dir, subset=SUBSET)
    replace(by_hand(dataset, channels), source=source).save(path)
    return path


def searched(folder: Path, data_dir: str, hours: float) -> Path:
    """Search a network of at most as many parameters; return its genotype file."""
    if not (folder / "g.json").exists():
        options = SearchOptions(
            dataset="fashion-mnist",
            data_dir=data_dir,
            subset=SUBSET,
            max_params=PARAMETERS,
            budget_hours=hours,
            out=str(folder),
        )
        search(options, resume=set() if (folder / "search").exists() else None)
    return folder / "g.json"


def trained(genotype: Path, out: Path, epochs: int, seed: int) -> Path:
    """Train a genotype, or continue its training; return the folder."""
    begun = (out / "checkpoint.pt").exists()
    options = DeriveOptions(genotype=str(genotype), out=str(out), epochs=epochs, seed=seed)
    derive(options, resume=set() if begun else None)
    return out


def pruned(run: Path, out: Path, share: float, row: Row, epochs: int, seed: int) -> dict[str, Any]:
    """Prune a training by one row; return the content of its metrics.json."""
    parameters = Genotype.load(run / "genotype.json").parameters
    options = dict(row.options)
    tuned = max(round(SHARE * epochs), options.get("rounds", 1))
    if options["criterion"] == "gates":  # half of the time for the gates, half for the rest
        epoch = (1 - VALIDATION) * SUBSET / GATE_BATCH
        options["gate_steps"] = max(2, round(tuned / 2 * epoch / COST_OF_A_GATE_STEP))
        tuned = max(1, tuned - round(tuned / 2))
    begun = (out / "compressed" / "compress.json").exists()
    asked = CompressOptions(
        target_params=int(share * parameters), epochs=tuned, seed=seed, out=str(out), **options
    )
    return compress(run, asked, resume=set() if begun else None)


def prune_all(
    runs: list[Path], rows: list[Row], top: Path, seeds: list[int], epochs: int | None
) -> dict[str, list[dict[str, Any]]]:
    """Prune every run by every row; return the accounts by share and row.

    Arguments:
        runs: folders of finished trainings.
        rows: ways to prune.
        top: folder of the results, one below it for each run.
        seeds: seed of each run.
        epochs: epochs of the trainings; None to read them from each run.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for number, (run, seed) in enumerate(zip(runs, seeds)):
        length = json.loads((run / "metrics.json").read_text())["epochs"]
        for share in SHARES:
            for row in rows:
                place = top / f"seed{number}" / f"{share:g} {row.name}"
                metrics = pruned(run, place, share, row, epochs or round(length), seed)
                table.setdefault(f"{share:g}, {row.name}", []).append(metrics["compression"])
    return table


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--rows", default=",".join(row.name for row in ROWS),
              help="Ways to prune, with commas.", show_default=True)  # fmt: skip
@click.option("--epochs", default=100, show_default=True, help="Epochs of the original training.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--search-hours", default=0.5, show_default=True)
@click.option("--only", default="hand,searched", show_default=True, help="Networks, with commas.")
@click.option("--out", default="out-pruning", show_default=True)
@click.option("--data-dir", default="data", show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(
    runs: tuple[str, ...],
    rows: str,
    epochs: int,
    seeds: int,
    search_hours: float,
    only: str,
    out: str,
    data_dir: str,
    threads: int,
) -> None:
    """Train, prune and fine-tune; print the tables. A second call continues an interrupted one."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    top = Path(out)
    top.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in ROWS if row.name in rows.split(",")]
    if runs:
        folders = [Path(run) for run in runs]
        table = prune_all(folders, wanted, top, list(range(len(folders))), None)
        print_table("given", table)
        return
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in only.split(","):
        if name == "hand":
            genotype = hand_made(top / "hand.json", data_dir)
        else:
            genotype = searched(top / "searched", data_dir, search_hours)
        numbers = list(range(seeds))
        places = [top / name / f"seed{seed}" / "run" for seed in numbers]
        folders = [trained(genotype, place, epochs, s) for s, place in enumerate(places)]
        found[name] = table = prune_all(folders, wanted, top / name, numbers, epochs)
        (top / "pruning.json").write_text(json.dumps(found, indent=1))
        print_table(name, table)


def print_table(name: str, table: dict[str, list[dict[str, Any]]]) -> None:
    """Print means over the seeds."""
    count = len(next(iter(table.values())))
    click.echo(f"\n{name}, {count} seeds, {torch.get_num_threads()} threads")
    click.echo(
        "| share, way | parameters | MACs | accuracy before | cut | fine-tuned | points lost | "
        "ms at 1 | ms at 32 | faster at 32 |"
    )
    click.echo("|---" * 10 + "|")
    for label, rows in table.items():
        before = mean(r["test_accuracy"]["before"] for r in rows)
        cut = mean(r["test_accuracy"]["before fine-tuning"] for r in rows)
        after = mean(r["test_accuracy"]["after"] for r in rows)
        times = {
            (side, size): mean(r["milliseconds"][side][size] for r in rows)
            for side in ("before", "after")
            for size in ("1", "32")
        }
        cells = [
            label,
            f"{mean(r['parameters']['after'] for r in rows):.0f}",
            f"{mean(r['macs']['after'] for r in rows):.0f}",
            f"{before:.2%}",
            f"{cut:.2%}",
            f"{after:.2%}",
            f"{100 * (before - after):+.2f}",
            f"{times['before', '1']:.2f} -> {times['after', '1']:.2f}",
            f"{times['before', '32']:.1f} -> {times['after', '32']:.1f}",
            f"{times['before', '32'] / times['after', '32']:.2f}",
        ]
        click.echo("| " + " | ".join(cells) + " |")


def mean(values: Any) -> float:
    """Return the mean of numbers."""
    return statistics.fmean(values)


if __name__ == "__main__":
    main()
