"""Cost of a joint step, in plain training steps of the same supernet.

A joint step updates the weights and learns the architecture, the learning rate, the weight decay
and every magnitude. Every fourth joint step includes the mixed pass. Plain and joint steps
alternate in groups of one amortization period; the ratio is the median over pairs of groups.
"""

from __future__ import annotations

import statistics
import time

import click
import torch

from darts_lite.data import Dataset, Images, Splits
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import EVERY, WARM_UP, SearchTask
from darts_lite.training.memory import keep_freed_memory

STEPS = EVERY["magnitude"]  # from one hypergradient of the augmentation to the next


def random_data(channels: int, size: int, count: int = 512) -> tuple[Dataset, Splits]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        256, (count, channels, size, size), generator=generator, dtype=torch.uint8
    )
    images = Images(pixels, torch.arange(count) % 10)
    classes = tuple(str(i) for i in range(10))
    return Dataset("random", images, images, classes, True), Splits(images, images, images)


def group(task: SearchTask, fraction: float, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        task.step(fraction)
    if task.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@click.command()
@click.option("--space", default="cells", show_default=True)
@click.option("--channels", default=8, show_default=True)
@click.option("--size", default=28, show_default=True, help="Pixels a side.")
@click.option("--image-channels", default=1, show_default=True)
@click.option("--stem-stride", default=1, show_default=True)
@click.option("--method", default="darts", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--pairs", default=7, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    space: str,
    channels: int,
    size: int,
    image_channels: int,
    stem_stride: int,
    method: str,
    batch_size: int,
    pairs: int,
    device: str,
) -> None:
    keep_freed_memory()
    dataset, splits = random_data(image_channels, size)
    where = torch.device(device)
    config = SearchOptions(
        space=space,
        channels=channels,
        search_channels=channels,
        max_params=10**9,
        stem_stride=stem_stride,
        method=method,
        batch_size=batch_size,
    )
    task = SearchTask(config, dataset, Splits(*(s.to(where) for s in splits)), where)
    plain, joint = WARM_UP / 2, (1 + WARM_UP) / 2
    group(task, plain, 1)
    group(task, joint, STEPS)
    rows = [(group(task, plain, STEPS), group(task, joint, STEPS)) for _ in range(pairs)]
    ratio = statistics.median(b / a for a, b in rows)
    seconds = [statistics.median(column) / STEPS for column in zip(*rows)]
    print(
        f"{space}, {channels} channels, {image_channels}x{size}x{size}, batch {batch_size}, "
        f"{len(task.augment.names)} values of the augmentation, {device}, "
        f"{torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {pairs} pairs of {STEPS} steps\n"
    )
    print("| step | ms | plain steps |\n|---|---|---|")
    print(f"| plain | {1e3 * seconds[0]:.0f} | 1 |")
    print(f"| joint | {1e3 * seconds[1]:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
