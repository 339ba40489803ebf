"""Speed of augmentation: against torchvision and kornia, and as a fraction of a training step.

Two random operations per image of a batch. The variants alternate in one process, and a ratio is
the median over the rounds. torchvision's policy runs on single PIL images, as in its documentation.
kornia is measured if it is installed.

    python experiments/benchmark_augment.py --threads 1
    python experiments/benchmark_augment.py --step
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import cells
from darts_lite.architecture.recipe import Recipe
from darts_lite.augment import Augmentation, Learned, RandAugment, TrivialAugment
from darts_lite.hypergradient import InnerState
from darts_lite.nas.problem import Phase, SupernetProblem, logit_specs
from darts_lite.nas.relaxation import Softmax
from darts_lite.training.build import build_optimizer
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.problem import Batch, NetworkProblem, outer_variables

AT_ONCE = 0.05  # seconds of a measurement: short calls are repeated for so long


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the mean seconds of one call, over `AT_ONCE` seconds, after one call as warmup."""
    wait: Callable[[], None] = getattr(torch, device.type).synchronize  # no-op on a CPU
    call()
    wait()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < AT_ONCE:
        call()
        count += 1
    wait()
    return (time.perf_counter() - start) / count


def in_turns(
    calls: dict[str, Callable[[], object]], turns: int, device: torch.device
) -> list[dict[str, float]]:
    for call in calls.values():
        call()
        call()
    found = []
    for i in range(turns):
        order = list(calls)[:: -1 if i % 2 else 1]
        found.append({name: seconds(calls[name], device) for name in order})
    return found


def ratio(found: list[dict[str, float]], name: str, over: str) -> float:
    return statistics.median(turn[name] / turn[over] for turn in found)


def rivals(images: Tensor) -> dict[str, Callable[[], object]]:
    """Return RandAugment of torchvision (PIL images) and, if installed, of kornia (batches)."""
    from torchvision.transforms import v2

    each = [v2.functional.to_pil_image(image) for image in images.cpu()]
    policy = v2.RandAugment()
    calls: dict[str, Callable[[], object]] = {
        "torchvision, PIL": lambda: [policy(image) for image in each]
    }
    try:
        from kornia.augmentation.auto import RandAugment as Kornia
    except ImportError:
        return calls
    batch, kornia = images, Kornia(n=2, m=9)
    calls["kornia, one choice for the whole batch"] = lambda: kornia(batch)
    alone = [image.unsqueeze(0) for image in images[:8]]  # slow: an eighth, times eight below
    calls["kornia, a choice for each image (8 images)"] = lambda: [kornia(x) for x in alone]
    return calls


def throughput(size: int, batch: int, turns: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    images = (images * 255).round().div(255).to(device)
    policy = RandAugment(channels=3, flips=False)
    augment = Augmentation(policy)
    shape = (size, size)
    magnitude = torch.tensor(0.3, device=device, requires_grad=True)
    values = {"magnitude.all": magnitude}
    draws = [policy.sample(batch, shape, generator, device, values) for _ in range(turns + 2)]
    weight = torch.rand_like(images)

    def ours(which: Augmentation) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.no_grad():
                choices = which.sample(batch, shape, generator, device)
                return which.apply(images, choices).images

        return call

    def loss(i: list[int]) -> Tensor:
        return (policy.apply(images, draws[i[0] % len(draws)], values) * weight).sum()

    at = [0]

    def forward() -> object:
        at[0] += 1
        return loss(at)

    def backward() -> object:
        return torch.autograd.grad(loss(at), magnitude)

    calls: dict[str, Callable[[], object]] = {
        "darts_lite, RandAugment": ours(augment),
        "darts_lite, TrivialAugment": ours(Augmentation(TrivialAugment(channels=3, flips=False))),
        "darts_lite, learned (all operations at once)": ours(
            Augmentation(Learned(channels=3, flips=False))
        ),
        "forward, for a gradient": forward,
        "forward and backward to the magnitude": backward,
        **rivals(images),
    }
    found = in_turns(calls, turns, device)
    print("| what | images/s | times darts_lite's RandAugment |")
    print("|---|---|---|")
    base = "darts_lite, RandAugment"
    for name in calls:
        share = 8 / batch if "8 images" in name else 1.0
        rate = share * batch / statistics.median(turn[name] for turn in found)
        print(f"| {name} | {rate:.0f} | {ratio(found, name, base) / share:.2f} |")
    over = ratio(found, "forward and backward to the magnitude", "forward, for a gradient")
    print(f"\nForward and backward over forward: {over:.2f} (target 2.5)")


def step(size: int, channels: int, batch: int, turns: int, device: torch.device) -> None:
    """Measure augmentation as a fraction of a plain training step of the default supernet."""
    generator = torch.Generator().manual_seed(0)
    space = cells(8, 7, 1)
    network = FlatNetwork(Network(space, (channels, size, size), 10, generator).to(device))
    images = torch.rand(batch, channels, size, size, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    state = InnerState(network.params, build_optimizer(Recipe()).init(network.params))
    for policy in (Learned(channels=channels, crop=2), RandAugment(channels=channels, crop=2)):
        augment = Augmentation(policy)
        variables = outer_variables(augment, first=logit_specs(space, {})).to(device)
        alone = NetworkProblem(network, augment, variables.constrain, Recipe())
        joint = SupernetProblem(alone, network, space, Softmax(), ())
        values = {n: v for n, v in variables.values().items() if n in augment.names}

        def plain(joint: SupernetProblem = joint, raw: dict[str, Tensor] = variables.raw) -> object:
            problem = joint.bind([Batch(images, labels)], None, Phase(0.5))
            return problem.inner_step(state, raw)

        def augmented(augment: Augmentation = augment, values: dict = values) -> object:
            with torch.no_grad():
                choices = augment.sample(batch, (size, size), generator, device, values)
                return augment.apply(images, choices, values)

        found = in_turns({"plain": plain, "augment": augmented}, turns, device)
        share = ratio(found, "augment", "plain")
        milliseconds = 1e3 * statistics.median(t["augment"] for t in found)
        print(f"| {policy.name} | {channels}x{size}x{size} | {milliseconds:.1f} ms | {share:.1%} |")


@click.command()
@click.option("--size", default=32, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--turns", default=15, show_default=True)
@click.option("--threads", type=int, help="Of the CPU.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--step", "of_a_step", is_flag=True, help="As a part of a training step instead.")
def main(
    size: int, batch: int, turns: int, threads: int | None, device: str, of_a_step: bool
) -> None:
    """Run the experiment; see the docstring of the module."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device)
    print(f"batch {batch}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if of_a_step:
        print("| policy | images | augmentation | of a plain step of the supernet |")
        print("|---|---|---|---|")
        for channels, side in ((1, 28), (3, 32)):
            step(side, channels, 64, turns, where)
    else:
        throughput(size, batch, turns, where)


if __name__ == "__main__":
    main()
