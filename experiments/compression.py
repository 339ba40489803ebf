"""What low rank and int8 cost and bring, on finished trainings of Fashion-MNIST, 10 000 images.

    python experiments/compression.py hand --out out-hand     # a genotype made by hand, 141 140
    python run.py derive --genotype out-hand/g.json --budget-hours 0.1
    python experiments/compression.py lowrank out-hand/derive out/derive --epochs 3
    python experiments/compression.py int8 out-hand/derive out/derive

`lowrank` puts SVD, Tucker and CP of half and a quarter of the parameters (or MACs) in the place of
the layers, with ranks from one exact budget. It gives the test accuracy right after (with the
statistics of BatchNorm measured again), and after a fine-tuning on training and validation images
with the original as teacher. Latencies are of the ONNX file on one thread, measured in turns.
`int8` quantizes the ONNX file by each choice of ranges, and gives accuracy, size and latency.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from toolbox import CPU, by_hand, fashion, teaching
from torch import Tensor, nn

from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.network import calibrate
from darts_lite.compression import int8
from darts_lite.compression.low_rank import Limit, apply, low_rank
from darts_lite.data import Dataset, Splits, evaluation_batches
from darts_lite.data.images import floats
from darts_lite.export import onnx_file
from darts_lite.export.deployed import description, program_of
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import loop
from darts_lite.training.budget import Budget
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import DeriveOptions
from darts_lite.training.predictor import Predictor, load
from darts_lite.training.task import TrainTask

SUBSET, CHANNELS = 10_000, 22
PATCHED = 256  # training images whose outputs the new layers reconstruct
CALIBRATED = 3000  # training images of the statistics of BatchNorm
ROUNDS = 7  # measurements of each latency, in turns
Call = Callable[[Tensor], object]


def statistics_again(network: nn.Module, splits: Splits) -> nn.Module:
    """Measure the statistics of every BatchNorm again, in place; return the network."""
    some = splits.train.select(torch.arange(CALIBRATED))
    calibrate(network, evaluation_batches(some, 500))
    return network.eval()


def finetuned(
    genotype: Genotype,
    network: nn.Module,
    original: nn.Module,
    dataset: Dataset,
    splits: Splits,
    *,
    epochs: float,
    rate: float,
    seed: int,
) -> nn.Module:
    """Return a network after a fine-tuning with the original as teacher.

    Arguments:
        genotype: Genotype with the changed layers.
        network: Network with these layers: the start.
        original: Network before the change.
        dataset: Data set.
        splits: Splits of the original training.
        epochs: Length.
        rate: Learning rate at the start; it falls linearly to a fiftieth.
        seed: Random seed.
    """
    schedules = genotype.recipe.schedules | {"lr": ((0.0, rate), (1.0, rate / 50))}
    recipe = replace(genotype.recipe, schedules=schedules)
    said = DeriveOptions(seed=seed)
    task = TrainTask(
        said, replace(genotype, recipe=recipe), dataset, splits, CPU, teaching(original), network
    )
    steps = max(1, round(epochs * task.images.count / task.batch_size))
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        store = loop.Store(Path(folder) / "checkpoint.pt", "compression", {}, every=1e9)
        step = loop.run(task, Budget(steps=steps), recorder, store)
        return task.finish(step, recorder)


def onnx_of(network: nn.Module, genotype: Genotype) -> bytes:
    """Return the ONNX file of a network, for images uint8."""
    program = program_of(Predictor(network, genotype), uint8=True)
    return onnx_file.to_bytes(program, description(genotype, uint8=True))


def in_turns(calls: dict[str, Call], image: tuple[int, int, int]) -> dict[str, dict[int, float]]:
    """Return the median milliseconds of every function at batch 1 and 32, measured in turns."""
    found: dict[str, dict[int, list[float]]] = {n: {1: [], 32: []} for n in calls}
    for batch, repeats in ((1, 100), (32, 10)):
        images = torch.zeros(batch, *image, dtype=torch.uint8)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                call(images)
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    call(images)
                    times.append(1000 * (time.perf_counter() - began))
                found[name][batch].append(statistics.median(times))
    return {n: {b: statistics.median(t) for b, t in each.items()} for n, each in found.items()}


def opened(run: str) -> tuple[Predictor, Genotype, Dataset, Splits]:
    """Return a finished training and its images."""
    predictor = load(run)
    genotype = predictor.genotype
    dataset, splits = fashion(genotype.source.subset or SUBSET, genotype.seed)
    return predictor, genotype, dataset, splits


def keep(out: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a table as JSON."""
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / f"{name}.json").write_text(json.dumps(rows, indent=1))


@click.group()
def main() -> None:
    """Run a table; see the docstring of the module."""
    torch.set_num_threads(1)
    keep_freed_memory()


out_option = click.option("--out", default="out-compression", show_default=True)
runs_argument = click.argument("runs", nargs=-1, required=True)


@main.command()
@click.option("--out", default="out-hand", show_default=True)
@click.option("--channels", default=CHANNELS, show_default=True)
def hand(out: str, channels: int) -> None:
    """Write the genotype of the network made by hand, for `derive`."""
    dataset, _ = fashion(SUBSET)
    made = by_hand(dataset, channels)
    genotype = replace(made, source=Source(dataset="fashion-mnist", subset=SUBSET))
    Path(out).mkdir(parents=True, exist_ok=True)
    genotype.save(Path(out) / "g.json")
    click.echo(f"{out}/g.json: {genotype.parameters} parameters, {genotype.macs} MACs")


@main.command()
@runs_argument
@click.option("--methods", default="svd,tucker,cp", show_default=True)
@click.option("--shares", default="0.5,0.25", show_default=True, help="Of the original.")
@click.option("--of", type=click.Choice(["parameters", "macs"]), default="parameters")
@click.option("--epochs", default=0.0, show_default=True, help="Fine-tuning; 0: none.")
@click.option("--rate", default=0.03, show_default=True, help="Learning rate of the fine-tuning.")
@click.option("--seeds", default=1, show_default=True, help="Fine-tunings per row.")
@click.option("--blind", is_flag=True, help="Reconstruct the weights, not the outputs.")
@out_option
def lowrank(
    runs: tuple[str, ...],
    methods: str,
    shares: str,
    of: str,
    epochs: float,
    rate: float,
    seeds: int,
    blind: bool,
    out: str,
) -> None:
    """Put layers of low rank into finished trainings."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        predictor, genotype, dataset, splits = opened(run)
        plain = predictor.network.plain()  # type: ignore[operator]
        images = None if blind else floats(splits.train.pixels[:PATCHED])
        files = {"original": onnx_of(plain, genotype)}
        accuracy = evaluate(plain, splits.test).accuracy
        before = {"parameters": genotype.parameters, "macs": genotype.macs, "after": accuracy}
        mine = [{"run": run, "name": "original", **before}]
        for method in methods.split(","):
            for share in map(float, shares.split(",")):
                limit = Limit(**{of: int(share * before[of])})
                began = time.monotonic()
                plan = low_rank(plain, method, limit, genotype.image, images)  # type: ignore[arg-type]
                planned = time.monotonic() - began
                small = statistics_again(apply(plain, plan), splits)
                made = replace(genotype, structure=plan.structure, **plan.cost._asdict())
                assert cost_of(made) == plan.cost
                name = f"{method}, {share:g} of the {of}"
                row = {"run": run, "name": name, **plan.cost._asdict(), "planned": planned}
                row["after"] = evaluate(small, splits.test).accuracy
                files[name] = onnx_of(small, made)
                began, tuned = time.monotonic(), []
                for seed in range(seeds if epochs else 0):
                    end = finetuned(
                        made, small, plain, dataset, splits, epochs=epochs, rate=rate, seed=seed
                    )
                    tuned.append(evaluate(end, splits.test).accuracy)
                row |= {"tuned": tuned, "seconds": time.monotonic() - began, "ranks": plan.ranks}
                mine.append(row)
                keep(out, "lowrank", rows + mine)
        calls: dict[str, Call] = {n: onnx_file.runner(c) for n, c in files.items()}
        times = in_turns(calls, genotype.image)
        rows += [row | {"ms": times[row["name"]]} for row in mine]
        keep(out, "lowrank", rows)
    click.echo("| | parameters | MACs | right after | tuned | s | batch 1, ms | batch 32, ms |")
    click.echo("|---" * 8 + "|")
    for row in rows:
        tuned = ", ".join(f"{a:.2%}" for a in row.get("tuned", []))
        cells = [f"{row['run']}: {row['name']}", row["parameters"], row["macs"]]
        cells += [f"{row['after']:.2%}", tuned, f"{row.get('seconds', 0):.0f}"]
        cells += [f"{row['ms'][1]:.3f}", f"{row['ms'][32]:.2f}"]
        click.echo("| " + " | ".join(map(str, cells)) + " |")


@main.command("int8")
@runs_argument
@click.option("--images", default=512, show_default=True, help="Validation images for ranges.")
@out_option
def int8_command(runs: tuple[str, ...], images: int, out: str) -> None:
    """Quantize finished trainings."""
    rows: list[dict[str, Any]] = []
    click.echo("| | bytes | test accuracy | same class | batch 1, ms | batch 32, ms |")
    click.echo("|---" * 6 + "|")
    for run in runs:
        predictor, genotype, _, splits = opened(run)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float32"
            source.write_bytes(onnx_of(predictor.network, genotype))
            paths = {"float32": source}
            for ranges in int8.RANGES:
                paths[ranges] = Path(folder) / ranges
                pixels = splits.validation.pixels[:images]
                int8.quantize(source, pixels, paths[ranges], ranges)  # type: ignore[arg-type]
            calls = {n: int8.OnnxNetwork(p).of_pixels for n, p in paths.items()}
            times = in_turns(dict(calls), genotype.image)
            classes = {}
            for name, path in paths.items():
                found, classes[name] = int8.measure(path, splits.test)
                same = float((classes[name] == classes["float32"]).double().mean())
                row = {"run": run, "name": name, "bytes": found.bytes, "accuracy": found.accuracy}
                rows.append(row | {"same": same, "ms": times[name]})
                cells = [f"{run}: {name}", found.bytes, f"{found.accuracy:.2%}"]
                cells += [f"{same:.2%}", f"{times[name][1]:.3f}", f"{times[name][32]:.2f}"]
                click.echo("| " + " | ".join(map(str, cells)) + " |")
    keep(out, "int8", rows)
    click.echo(int8.slow())


if __name__ == "__main__":
    main()
