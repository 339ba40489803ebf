"""Run every command for a few steps and tell whether the numbers equal earlier numbers.

    python experiments/same_as_before.py before.json     # writes the file, or compares with it

About three minutes on one thread. Numbers are compared exactly: genotypes, learned schedules,
architecture logits, hashes of the final weights, metrics, the learned augmentation.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).parent.parent
SMALL = "--dataset digits --space blocks --cells 3 --channels 4 --max-params 3000"
STUDY = "--dataset digits --space blocks --cells 3 --channels 4 --max-params 20000 --epochs 2"
COMMANDS = {
    "search": f"search {SMALL} --batch-size 16 --steps 16 --out search",
    "search-cells": "search --dataset digits --cells 3 --channels 4 --max-params 9000 "
    "--batch-size 16 --steps 8 --subset 400 --optimizer adamw --augment randaugment+cutmix "
    "--estimator one_step --out cells",
    "warm": f"search {SMALL} --batch-size 16 --steps 4 --warm-start search --out warm",
    "learned": "derive --genotype search/g.json --epochs 2 --out learned",
    "default": "derive --genotype search/g.json --epochs 2 --hyperparameters default "
    "--select best --out default",
    "online": "derive --genotype search/g.json --epochs 2 --hyperparameters online --out online",
    "cells-derived": "derive --genotype cells/g.json --epochs 1 --out cells-derived",
    "random": "derive --genotype search/g.json --epochs 1 --random 1 --out random",
    "tune-random": f"tune --method random {STUDY} --subset 200 --trials 2 --out tune-random",
    "tune-gradient": f"tune --method gradient {STUDY} --subset 200 --trials 1 --out tune-gradient",
    "augment": "augment --dataset digits --out augment.png --save augment.json",
}
TIMES = {"seconds", "created", "versions", "duration", "started", "ended", "spent", "budget"}


def run(folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    for name, words in COMMANDS.items():
        command = [sys.executable, str(ROOT / "run.py"), *words.split()]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        click.echo(f"{name} done")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("g.json", "learned.json", "random.json") and "trials" not in path.parts:
            content = json.loads(path.read_text())
            if "recipe" in content:
                content["hyperparameters"] = content["recipe"]["schedules"]
            for part in ("space", "parameters", "macs", "hyperparameters", "random"):
                if part in content:
                    found[f"{name}: {part}"] = _plain(content[part])
        elif path.name in ("metrics.json", "augment.json"):
            found[name] = _plain(json.loads(path.read_text()))
        elif path.name == "model.pt":
            found[name] = _hash(torch.load(path, weights_only=True))
        elif path.name == "checkpoint.pt":
            content = torch.load(path, weights_only=True)
            found |= {f"{name}: {n}": _hash(t) for n, t in _logits(content)}
        elif path.name == "augment.png":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _plain(value: Any) -> Any:
    """Return the value without the entries that depend on the clock."""
    if isinstance(value, dict):
        return {n: _plain(v) for n, v in value.items() if n not in TIMES}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _logits(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(name, str) and name.startswith("alpha.") and torch.is_tensor(value):
                yield name, value
            else:
                yield from _logits(value)


def _hash(value: Any) -> str:
    if isinstance(value, dict):
        parts = [f"{name}={_hash(v)}" for name, v in sorted(value.items())]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@click.command(help=__doc__)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(run(Path(folder))))
    if not file.exists():
        file.write_text(json.dumps(found, indent=1))
        click.echo(f"{file}: {len(found)} values")
        return
    before = json.loads(file.read_text())
    other = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    for name in other:
        click.echo(f"{name}:\n  {str(before.get(name))[:300]}\n  {str(found.get(name))[:300]}")
    click.echo(f"{len(before)} values, {len(other)} differ")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
