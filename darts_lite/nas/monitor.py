"""Monitor of a search: accuracies, pictures and warnings."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.network import Network
from darts_lite.architecture.space import SearchSpace
from darts_lite.architecture.weights import Weights, option_probabilities
from darts_lite.augment import Augmentation
from darts_lite.data import Dataset, Splits, evaluation_batches
from darts_lite.nas.relaxation import entropy
from darts_lite.reporting import augmentation_report, pictures
from darts_lite.reporting.recorder import Recorder
from darts_lite.training.metrics import accuracy, sample
from darts_lite.training.progress import warn

EVALUATED = 1024  # validation images per evaluation during the search
CALIBRATED = 512  # training images for BatchNorm statistics
DRAWING = 0.02  # largest share of the time that pictures take
LATE = 0.5  # fraction of the budget after which a collapse gives a warning
ANNEALED = 0.75  # fraction of the budget after which a high entropy gives a warning
BATCH = 128  # images per step of the BatchNorm calibration


class Watched(Protocol):
    """The attributes and methods of a search that a monitor reads."""

    dataset: Dataset
    splits: Splits
    image: tuple[int, int, int]
    device: torch.device
    space: SearchSpace
    augment: Augmentation
    fraction: float

    def weights(self, temperature: float | None = None) -> Weights: ...

    def trained(self) -> Weights: ...

    def discrete(self) -> SearchSpace: ...

    def supernet(self) -> Network: ...

    def augmenting(self) -> dict[str, Tensor]: ...


class Monitor:
    """Evaluate a search in its current state; give each warning once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._began = time.monotonic()
        self._drawing = 0.0  # seconds

    def evaluate(
        self, task: Watched, step: int, recorder: Recorder, last: bool = False
    ) -> dict[str, float]:
        """Return the accuracy of the mixture and of its selection; record the pictures.

        Pictures take at most `DRAWING` of the time, not counting the first and the last ones.

        Arguments:
            task: the search.
            step: number of steps so far.
            recorder: takes pictures and warnings.
            last: whether this is the evaluation at the end, whose pictures stay.
        """
        shown, space = sample(task.splits.validation, EVALUATED), task.discrete()
        statistics = list(evaluation_batches(sample(task.splits.train, CALIBRATED), BATCH))
        supernet = task.supernet()
        mixed = accuracy(supernet, shown, statistics, task.trained())
        classes = len(task.dataset.classes)
        narrow = space.with_channels(supernet.space.channels)
        network = Network(narrow, task.image, classes).to(task.device)
        network.inherit(supernet)
        one_hot = accuracy(network, shown, statistics)
        cost = network_cost(space, task.image, classes)
        now = time.monotonic()
        if last or self._drawing <= DRAWING * (now - self._began):
            self._draw(task, step, recorder, space, cost.parameters)
            self._drawing += time.monotonic() - now
        self._warn(task, step, recorder, mixed, one_hot, space, last)
        return {
            "accuracy/mixed": mixed,
            "accuracy/one_hot": one_hot,
            "genotype/parameters": cost.parameters,
            "genotype/macs": cost.macs,
        }

    def _draw(
        self, task: Watched, step: int, recorder: Recorder, space: SearchSpace, parameters: int
    ) -> None:
        picture = pictures.draw_genotype(space, f"{parameters} parameters")
        recorder.picture(step, "genotype", picture)
        for name, title, rows, columns, values in _probabilities(task):
            recorder.picture(step, name, pictures.heat_map(rows, columns, values, title))
        # the same training images at every evaluation
        images, _ = next(iter(evaluation_batches(sample(task.splits.train, 32), 32)))
        recorder.picture(
            step,
            "augmentation",
            augmentation_report.draw_augmentation(
                task.augment, images, task.augmenting(), task.fraction
            ),
        )

    def _warn(
        self,
        task: Watched,
        step: int,
        recorder: Recorder,
        mixed: float,
        one_hot: float,
        space: SearchSpace,
        last: bool,
    ) -> None:
        chosen = [edge.operations[0].name for _, edge in space.edges]
        late = task.fraction > LATE
        found = {
            "skip": (
                late and chosen.count("skip") > len(chosen) / 2,
                f"skip holds {chosen.count('skip')} of {len(chosen)} edges: the architecture may "
                "collapse to skip connections; give a larger --max-params or a longer budget",
            ),
            "entropy": (
                task.fraction > ANNEALED and float(entropy(task.weights(1.0))) > 0.97,
                "the entropy of the operations is above 0.97 of its maximum: the selection is "
                "close to a random choice; give a longer budget",
            ),
            "gap": (
                last and one_hot < mixed - 0.15,
                f"the discretized network has an accuracy of {one_hot:.1%}, the supernet has "
                f"{mixed:.1%}; give a longer budget",
            ),
        }
        for name, (true, message) in found.items():
            if true and name not in self._warned:
                self._warned.add(name)
                warn(message)
                recorder.text(step, "warning", message)


def _probabilities(task: Watched) -> Iterable[tuple[str, str, list[str], list[str], Any]]:
    """Yield name, title, row labels, column labels and values of each heat map."""
    weights = task.weights()
    for cell in task.space.cells:
        rows = [f"{e.source} → {e.target}" for e in cell.edges]
        options = option_probabilities(cell, weights[cell.name]).cpu().numpy()
        columns = [o.label for o in cell.edges[0].options]
        yield f"options/{cell.name}", f"{cell.name}: options", rows, columns, options
        edge = weights[cell.name].edge
        if edge is not None:
            values = edge[:, None].cpu().numpy()
            yield f"edges/{cell.name}", f"{cell.name}: edges", rows, ["edge"], values
