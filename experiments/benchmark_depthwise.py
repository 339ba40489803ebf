"""Gradients of depthwise convolutions on the CPU: ours against torch's, and what a search gains.

    OMP_NUM_THREADS=1 python experiments/benchmark_depthwise.py

Pairs alternate in one process; a ratio is the median over pairs, above 1 where ours is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from toolbox import fashion
from torch import Tensor

from darts_lite.architecture import layers
from darts_lite.architecture.depthwise import depthwise_conv
from darts_lite.nas.defaults import resolved
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask
from darts_lite.training.memory import keep_freed_memory

STEPS = 16  # of a search, a whole number of its rounds of hypergradients
SHAPES = [  # images, channels, pixels a side, kernel, stride
    (64, 48, 14, 5, 1),
    (64, 80, 14, 5, 2),
    (64, 160, 7, 5, 1),
    (64, 320, 4, 5, 1),
    (64, 80, 28, 5, 1),
    (64, 80, 14, 7, 1),
    (64, 80, 14, 3, 1),
]
Depthwise = Callable[[Tensor, Tensor, int], Tensor]


def torch_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the same convolution with torch's gradients."""
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))


def compared(run: Callable[[Depthwise], object], pairs: int) -> tuple[float, float, float]:
    """Return the median milliseconds of ours and of torch's, and the median ratio."""
    times: dict[Depthwise, list[float]] = {depthwise_conv: [], torch_conv: []}
    for function in times:
        run(function)
    for _ in range(pairs):
        for function, found in times.items():
            began = time.perf_counter()
            run(function)
            found.append(1e3 * (time.perf_counter() - began))
    ours, theirs = times.values()
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    return statistics.median(ours), statistics.median(theirs), ratio


def gradients(shape: tuple[int, int, int, int, int]) -> Callable[[Depthwise], object]:
    """Return a function that runs forward and backward pass of a shape."""
    count, channels, pixels, kernel, stride = shape
    x = torch.randn(count, channels, pixels, pixels).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, requires_grad=True)
    upstream = torch.randn_like(torch_conv(x, weight, stride))

    def run(function: Depthwise) -> object:
        return torch.autograd.grad(function(x, weight, stride), (x, weight), upstream)

    return run


def search_steps() -> Callable[[Depthwise], object]:
    """Return a function that runs `STEPS` steps of the default search of Fashion-MNIST."""
    dataset, splits = fashion(10_000)
    device = torch.device("cpu")
    options = SearchOptions(dataset="fashion-mnist", subset=10_000, budget_hours=0.05)
    task = SearchTask(resolved(options, dataset, device), dataset, splits, device)

    def run(function: Depthwise) -> None:
        layers.depthwise_conv = function  # type: ignore[assignment]
        for _ in range(STEPS):
            task.step(0.5)

    return run


@click.command()
@click.option("--pairs", default=15, show_default=True)
@click.option("--search/--no-search", default=True, show_default=True)
def main(pairs: int, search: bool) -> None:
    """Print the table."""
    keep_freed_memory()
    click.echo("| | ms, ours | ms, torch | ratio |\n|---|---|---|---|")
    for shape in SHAPES:
        count, channels, pixels, kernel, stride = shape
        name = f"{kernel}x{kernel}, stride {stride}, {count}x{channels}x{pixels}x{pixels}"
        ours, theirs, ratio = compared(gradients(shape), pairs)
        click.echo(f"| {name} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |")
    if search:
        ours, theirs, ratio = compared(search_steps(), pairs)
        click.echo(f"| {STEPS} steps of a search | {ours:.0f} | {theirs:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
