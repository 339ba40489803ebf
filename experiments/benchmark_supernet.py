"""Cost of an entangled supernet step, against one pass per candidate as in other libraries.

A chain of 7 mixed edges with 13 candidates each (12 and skip): forward, backward and update. The
two variants alternate in one process, and the ratio is the median over pairs. Peak memory is
measured in a process that runs only one variant, above its memory before the network is built.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.network import Network
from darts_lite.architecture.operations import CANDIDATES, has_residual
from darts_lite.architecture.presets import OPERATIONS, blocks
from darts_lite.architecture.space import SearchSpace
from darts_lite.hypergradient.optimizers import SGD
from darts_lite.nas.relaxation import logit_shapes, relax
from darts_lite.training.memory import keep_freed_memory

IMAGE, CANDIDATES_COUNT = (1, 28, 28), 10


class OneByOne(nn.Module):
    """Sum over all candidates of p_o (x + o(silu(x))); every candidate has its own weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.residual = has_residual(in_channels, out_channels, stride)
        options = [o for operation in OPERATIONS for o in operation.options]
        self.candidates = nn.ModuleList(
            CANDIDATES[o.name].build(o, in_channels, out_channels, stride)
            for o in options
            if not (o.name == "skip" and self.residual)
        )
        self.count = len(options)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        activated = F.silu(x)
        out = sum(p[i] * o(activated, None, None) for i, o in enumerate(self.candidates))
        return out + x if self.residual else out


class Chain(nn.Module):
    """The chain of `blocks`, with one pass per candidate."""

    def __init__(self, space: SearchSpace):
        super().__init__()
        width = space.channels
        self.stem = nn.Conv2d(IMAGE[0], width, 3, 1, 1, bias=False)
        self.norm = BatchNorm(width)
        self.edges = nn.ModuleList()
        for name in space.sequence:
            out = width * 2 if space.cell(name).reduction else width
            self.edges.append(OneByOne(width, out, 1 if out == width else 2))
            width = out
        self.classifier = nn.Linear(width, CANDIDATES_COUNT)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        x = self.norm(self.stem(x - 0.5))
        for edge in self.edges:
            x = edge(x, p)
        return self.classifier(F.silu(x).mean((2, 3)))


def entangled_step(space: SearchSpace, x: Tensor, y: Tensor) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    network = FlatNetwork(Network(space, IMAGE, CANDIDATES_COUNT, generator).to(x.device))
    logits = {n: torch.zeros(s, device=x.device) for n, s in logit_shapes(space).items()}
    optimizer, x = SGD(0.9), x.contiguous(memory_format=torch.channels_last)
    state = [network.params, optimizer.init(network.params)]

    def step() -> None:
        params = tuple(p.detach().requires_grad_() for p in state[0])
        loss = F.cross_entropy(network(params, x, relax(space, logits)), y)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            state[:] = optimizer.update(params, grads, state[1], 0.01, [1e-4, 0.0])

    return step


def one_by_one_step(space: SearchSpace, x: Tensor, y: Tensor) -> Callable[[], None]:
    network = Chain(space).to(x.device)
    p = torch.full((len(space.cells[0].edges[0].options),), 1.0, device=x.device).softmax(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x, p), y).backward()
        optimizer.step()

    return step


STEPS = {"entangled": entangled_step, "one by one": one_by_one_step}


def timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(variant: str, arguments: list[str]) -> float:
    """Return the peak memory in MiB, measured in a separate process."""
    command = [sys.executable, __file__, "--memory-of", variant, *arguments]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


@click.command()
@click.option("--channels", default=16, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--pairs", default=7, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--memory-of", type=click.Choice(list(STEPS)), hidden=True)
def main(channels: int, batch_size: int, pairs: int, device: str, memory_of: str | None) -> None:
    keep_freed_memory()
    where = torch.device(device)
    space = blocks(channels)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch_size, *IMAGE, generator=generator).to(where)
    y = torch.randint(CANDIDATES_COUNT, (batch_size,), generator=generator).to(where)
    if memory_of:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step = STEPS[memory_of](space, x, y)
        for _ in range(3):
            step()
        if where.type == "cuda":
            print(torch.cuda.max_memory_allocated() / 2**20)
        else:
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    arguments = ["--channels", channels, "--batch-size", batch_size, "--device", device]
    memory = {v: peak_memory(v, [str(a) for a in arguments]) for v in STEPS}
    steps = {name: make(space, x, y) for name, make in STEPS.items()}
    for step in steps.values():
        timed(step, where)
    rows = [{name: timed(step, where) for name, step in steps.items()} for _ in range(pairs)]
    ratio = statistics.median(row["one by one"] / row["entangled"] for row in rows)
    print(
        f"chain of {len(space.sequence)} mixed edges, {len(space.cells[0].edges[0].options)} "
        f"candidates each, {channels} channels, {IMAGE}, batch {batch_size}, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {pairs} pairs\n"
    )
    print("| | images/s | peak memory, MiB |\n|---|---|---|")
    for name in STEPS:
        speed = batch_size / statistics.median(row[name] for row in rows)
        print(f"| {name} | {speed:.0f} | {memory[name]:.0f} |")
    share = memory["entangled"] / memory["one by one"]
    print(f"| ratio | {ratio:.2f} times faster | {share:.2f} |")


if __name__ == "__main__":
    main()
