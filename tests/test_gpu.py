"""The same code on a GPU: same numbers, the whole job, and resuming there what a CPU began."""

import json
from pathlib import Path

import pytest
import torch

from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import cells
from darts_lite.commands.derive import derive
from darts_lite.commands.search import search
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.relaxation import logit_shapes, relax
from darts_lite.training.options import DeriveOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_supernet_computes_what_it_computes_on_the_cpu() -> None:
    space, generator = cells(4, 3), torch.Generator().manual_seed(0)
    network = Network(space, (1, 8, 8), 10, generator).double()
    x = torch.rand(4, 1, 8, 8, generator=generator).double()
    alpha = {n: torch.zeros(s).double() for n, s in logit_shapes(space).items()}
    there = {n: value.cuda() for n, value in alpha.items()}
    expected = network(x, relax(space, alpha))
    found = network.to("cuda")(x.to("cuda"), relax(space, there))
    torch.testing.assert_close(found.cpu(), expected)


def test_the_whole_job_and_resuming_on_the_other_device(tmp_path: Path) -> None:
    options = SearchOptions(
        out=str(tmp_path), dataset="digits", space="blocks", cells=3, channels=4,
        search_channels=4, batch_size=16, max_params=3000, steps=12, device="cuda",
    )  # fmt: skip
    search(options)
    derive(DeriveOptions(genotype=str(tmp_path / "g.json"), epochs=1, device="cuda"))
    assert json.loads((tmp_path / "derive" / "metrics.json").read_text())["parameters"] <= 3000
    (tmp_path / "g.json").unlink()
    search(SearchOptions(out=str(tmp_path), device="cpu"), resume={"out", "device"})
    assert (tmp_path / "g.json").exists()
