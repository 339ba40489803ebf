"""Cost of a step of `Learner` in your own loop, in plain torch steps.

A small residual network with BatchNorm on 28x28 images, SGD with momentum and decay. The variants
alternate in one process; every ratio is the median over the rounds.

    python experiments/benchmark_learner.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.hypergradient import Learner
from darts_lite.training.memory import keep_freed_memory

CLASSES, BATCH, WIDTH = 10, 64, 16
Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.short = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.silu(self.body(images) + self.short(images))


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the network and its optimizer."""
    torch.manual_seed(0)
    blocks = [Block(1, WIDTH, 2), Block(WIDTH, 2 * WIDTH, 2), Block(2 * WIDTH, 4 * WIDTH, 2)]
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * WIDTH, CLASSES))
    model = nn.Sequential(*blocks, *tail)
    rule = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return model, rule


def loss(model: nn.Module, batch: Batch, learned: object = None) -> Tensor:
    """Return the loss of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def variants(batch: Batch, held_out: Batch) -> dict[str, Callable[[], object]]:
    """Return one step of every variant, by its name."""
    model, rule = network()

    def plain() -> None:
        rule.zero_grad()
        loss(model, batch).backward()
        rule.step()

    found: dict[str, Callable[[], object]] = {"plain torch": plain}
    for name, with_held_out in (("Learner, OneStep on lr", True), ("no held-out batch", False)):
        learner = Learner(*network(), loss, ["lr"], steps=10_000)
        images = held_out if with_held_out else None
        found[name] = lambda learner=learner, images=images: learner.step(batch, images)
    return found


@click.command()
@click.option("--rounds", default=60, show_default=True)
def main(rounds: int) -> None:
    """Run the benchmark; see the docstring of the module."""
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    batch, held_out = (
        (
            torch.rand(BATCH, 1, 28, 28, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(2)
    )
    steps = variants(batch, held_out)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 5):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 5:  # the first rounds allocate memory
                times[name].append(time.perf_counter() - start)
    plain = times["plain torch"]
    click.echo("| step | ms | plain torch steps |\n|---|---|---|")
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, plain))
        click.echo(f"| {name} | {1000 * statistics.median(own):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
