"""What an extension takes, in fact: an operation, a sampled relaxation, a loss, a learned knob."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.architecture import presets
from darts_lite.architecture.cost import CostTable, network_cost
from darts_lite.architecture.layers import (
    BatchNorm,
    ChoiceWeights,
    Entangled,
    conv_layer,
    masked_conv,
)
from darts_lite.architecture.network import Network
from darts_lite.architecture.operations import CANDIDATES, candidate
from darts_lite.architecture.space import Operation, SearchSpace
from darts_lite.architecture.weights import uniform
from darts_lite.augment import Targets
from darts_lite.data import Dataset, Splits
from darts_lite.hypergradient import HyperParameters, HyperSpec, Interval
from darts_lite.nas.method import Method, method_of
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.relaxation import relax
from darts_lite.nas.task import SearchTask
from darts_lite.reporting.pictures import draw_genotype
from darts_lite.training.losses import LOSSES, expected_cost
from darts_lite.training.options import DeriveOptions
from darts_lite.training.task import TrainTask

SMALL = SearchOptions(space="blocks", cells=3, channels=4, search_channels=4, max_params=3000,
                      batch_size=16, augment="none", estimator="one_step", stem_stride=1,
                      method="darts")  # fmt: skip


# --- an operation -------------------------------------------------------------------------------


class Depthwise(Entangled):
    """Depthwise k x k, then 1x1, with BatchNorm."""

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        super().__init__(operation, {})
        kernel = operation.choices["kernel"][-1]
        self.depthwise = conv_layer(in_channels, in_channels, kernel, stride, in_channels)
        self.project = conv_layer(in_channels, out_channels, 1)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        h = masked_conv(self.depthwise, x, kernel=self.mask("kernel", choices), inputs=None)
        return self.norm(self.project(h), scale)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchSpace]:
    """A chain that offers the new operation, which is registered for one test."""
    candidate("depthwise", {"kernel": (3, 5)}, colors=("#eeeeff", "#333399"))(Depthwise)
    every = tuple(Operation(c.name, c.sizes) for c in CANDIDATES.values())
    monkeypatch.setattr(presets, "OPERATIONS", every)
    yield presets.blocks(4, 3)
    del CANDIDATES["depthwise"]


def test_a_new_operation_is_one_class_with_its_record(space: SearchSpace) -> None:
    """Searched, counted, selected, built and drawn; at most 25 lines."""
    assert len(inspect.getsource(Depthwise).splitlines()) + 1 <= 25
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    supernet = Network(space, (1, 8, 8), 10, torch.Generator().manual_seed(0))
    assert supernet(images, uniform(space)).shape == (2, 10)
    five = Operation("depthwise", {"kernel": (5,)})
    only = tuple(replace(c, edges=(replace(c.edges[0], operations=(five,)),)) for c in space.cells)
    chosen = replace(space, cells=only)
    cost = network_cost(chosen, (1, 8, 8), 10)
    table = CostTable(space, (1, 8, 8), 10)
    assert table.constant.parameters < cost.parameters
    network = Network(chosen, (1, 8, 8), 10)
    network.inherit(supernet)
    assert network(images).shape == (2, 10)
    assert draw_genotype(chosen).ndim == 3


# --- a relaxation that samples ------------------------------------------------------------------


class Gumbel:
    """GDAS (Dong and Yang 2019): one sampled operation per edge, straight-through gradients."""

    def draw(self, space: SearchSpace, generator: torch.Generator) -> dict[str, Tensor]:
        noise = {}
        for cell in space.cells:
            shape = (len(cell.edges), len(cell.edges[0].operations))
            uniform = torch.rand(shape, generator=generator).clamp_min(1e-9)
            noise[f"{cell.name}.operation"] = -(-uniform.log()).log()
        return noise

    def __call__(self, space: SearchSpace, logits: Any, temperature: float, draws: Any) -> Any:
        if draws is None:
            return relax(space, logits, temperature)
        noisy = {n: v + draws[n].to(v) if n in draws else v for n, v in logits.items()}
        found = relax(space, noisy, temperature)
        for name, weights in found.items():
            soft = weights.operation
            hard = F.one_hot(soft.argmax(1), soft.shape[1]).to(soft)
            found[name] = weights._replace(operation=hard - soft.detach() + soft)
        return found


def test_a_sampled_relaxation_is_one_class(digits: tuple[Dataset, Splits]) -> None:
    """The search samples once per step, and learns the logits; at most 30 lines."""
    assert len(inspect.getsource(Gumbel).splitlines()) <= 30
    space = presets.blocks(4, 3)
    usual = method_of(SMALL, CostTable(space, digits[0].train.pixels.shape[1:], 10))
    method = Method(relaxation=Gumbel(), regularizers=usual.regularizers, selector=usual.selector)
    search = SearchTask(SMALL, *digits, torch.device("cpu"), method=method)
    before = {n: v.clone() for n, v in search.hyper.variables.raw.items()}
    for i in range(12, 18):
        search.step(i / 40)
    moved = {n for n, v in search.hyper.variables.raw.items() if not torch.equal(v, before[n])}
    assert {n for n in before if n.endswith(".operation")} <= moved  # sizes, if they were sampled
    draws = method.relaxation.draw(space, torch.Generator().manual_seed(0))
    logits = {n.removeprefix("alpha."): v for n, v in before.items() if n.startswith("alpha.")}
    weights = method.relaxation(space, logits, 1.0, draws)
    for each in weights.values():
        assert torch.equal(each.operation, each.operation.round())


# --- a loss, and a learned knob of it -----------------------------------------------------------


def focal(logits: Tensor, targets: Targets, gamma: float | Tensor = 2.0) -> Tensor:
    """Return the focal loss of each example, -(1 - p)^gamma log p (Lin et al. 2017)."""
    log_p = logits.log_softmax(-1)
    return expected_cost(-((1 - log_p.exp()) ** gamma) * log_p, targets)


def test_a_loss_is_one_function() -> None:
    """At most 14 lines; gamma zero is cross-entropy, and gamma has a derivative."""
    assert len(inspect.getsource(focal).splitlines()) <= 14
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(focal(logits, labels, 0.0), LOSSES["cross_entropy"](logits, labels))
    gamma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: focal(logits, labels, g), (gamma,))


def test_label_smoothing_is_learned_if_it_is_an_outer_variable(
    digits: tuple[Dataset, Splits],
) -> None:
    """One spec: the loss reads the value by its name."""
    search = SearchTask(SMALL, *digits, torch.device("cpu"))
    spec = HyperSpec("label_smoothing", torch.tensor(0.1), Interval(0.0, 0.5), "loss")
    more = HyperParameters((*search.hyper.variables.specs, spec))
    search.hyper.variables = more
    plain = replace(search.plain, constrain=more.constrain)
    search.problem = replace(search.problem, plain=plain)
    for i in range(12, 16):
        search.step(i / 40)
    assert float(more.values()["label_smoothing"]) != pytest.approx(0.1, abs=1e-6)
    trained = TrainTask(DeriveOptions(), search.genotype(), *digits, torch.device("cpu"))
    trained.step(0.5)
    assert trained.report()["used/label_smoothing"] > 0  # `derive` follows its schedule
