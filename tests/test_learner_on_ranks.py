"""Learner in two processes: hypergradients of the whole batch, and equal values on every rank."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from darts_lite.hypergradient import (
    ConjugateGradient,
    Estimator,
    Forward,
    HyperSpec,
    Identity,
    Interval,
    Learner,
    Neumann,
    OneStep,
    Unrolled,
)

ESTIMATORS: dict[str, Estimator] = {
    "one_step": OneStep(),
    "one_sided": OneStep("one_sided", radius=1e-5),
    "unrolled": Unrolled(2),
    "forward": Forward(product="finite_difference"),
    "neumann": Neumann(3, damping=5.0),
    "conjugate_gradient": ConjugateGradient(3, damping=5.0),
}


class Network(nn.Module):
    """Has a layer that nothing uses, and one that only the first rank uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.unused, self.sometimes = nn.Linear(2, 2), nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        self.seen += x.sum()
        return self.head(F.silu(self.body(x))) + (self.sometimes(x) if both else 0)


def loss(model: Any, batch: Any, learned: Mapping[str, Tensor]) -> Tensor:
    x, y, both = batch
    return learned.get("scale", 1.0) * F.cross_entropy(model(x, both), y)


def data(count: int, rank: int) -> list[Any]:
    """Batches of one rank."""
    g = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(8, 5, generator=g).double(), torch.randint(3, (8,), generator=g), rank == 0)
        for _ in range(count)
    ]


def trained(wrap: Any, windows: Any, held_out: Any, **arguments: Any) -> dict[str, Tensor]:
    """Everything after three learning steps with every estimator, and their hypergradients."""
    found = {}
    for name, estimator in ESTIMATORS.items():
        torch.manual_seed(0)
        model = wrap(Network().double())
        optimizer = optim.SGD(model.parameters(), 0.125, momentum=0.5, weight_decay=0.25)
        scale = HyperSpec("scale", torch.tensor(1.0).double(), Identity(), "loss")
        lr = HyperSpec("lr", torch.tensor(0.125).double(), Interval(), "optimizer")
        specs = [s for s in (scale, lr) if s.kind in estimator.supports]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner = Learner(model, optimizer, loss, specs, 9, estimator, clip=0.5, **arguments)
        for i in range(3):
            window = windows(estimator.steps, i)
            of = learner.hypergradient(window, held_out)
            found |= {f"{name}/{i}/{n}": h for n, h in of.items()}
            found[f"{name}/{i}"] = learner.step(window, held_out)
        found |= {f"{name}/{n}": v.clone() for n, v in learner.model.state_dict().items()}
        found |= {f"{name}/raw/{n}": v for n, v in learner.variables.raw.items()}
    return found


def work(rank: int, folder: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = data(6, rank)

    def windows(steps: int, i: int) -> Any:
        return own[i * steps : (i + 1) * steps] if steps > 1 else own[i]

    wrap = DistributedDataParallel
    torch.save(trained(wrap, windows, data(1, 10 + rank)[0]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """The twin is one process that takes the mean loss of both ranks' batches."""
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name

    shares = data(6, 0), data(6, 1)

    def windows(steps: int, i: int) -> Any:
        return [share[t] for t in range(i * steps, (i + 1) * steps) for share in shares]

    def validation(model: Any, batch: Any, learned: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([loss(model, each, learned) for each in batch]).mean()

    held_out = (data(1, 10)[0], (*data(1, 11)[0][:2], False))
    expected = trained(lambda m: m, windows, held_out, accumulate=2, outer_loss=validation)
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        if "seen" not in name:  # as in DDP, buffers are those of the first rank
            torch.testing.assert_close(first[name], value, rtol=1e-8, atol=1e-10, msg=name)
