"""Trains a genotype with its learned schedules and measures what came of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from darts_lite import checkpoint
from darts_lite.data import Batches, Dataset, Images, Splits, evaluation_batches
from darts_lite.errors import UserError
from darts_lite.evaluation import accuracy, sample
from darts_lite.functional import FlatNetwork, Params
from darts_lite.hypergradient import InnerState
from darts_lite.hypergradient.problem import detach
from darts_lite.joint import OPTIMIZER, Batch, Joint, Phase, cosine, default_augmentation
from darts_lite.network import Network, calibrate
from darts_lite.optimizers import OptimizerState
from darts_lite.record import Recorder
from darts_lite.space import Genotype, Schedule

DEFAULTS: dict[str, Schedule] = {  # the usual recipe by hand: no augmentation but flips and crops
    "lr": ((0.0, 0.05),),
    "weight_decay": ((0.0, 5e-4),),
}
CALIBRATED = 10_000  # training images for the final BatchNorm statistics


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training is, apart from its genotype, its data and where it writes.

    `select` "last" trains on train and validation images to the end, as the papers do; "best"
    trains on the former and keeps the weights that were best on the latter.
    """

    batch_size: int = 64
    hyperparameters: Literal["learned", "default"] = "learned"
    select: Literal["last", "best"] = "last"
    seed: int = 0


class TrainTask:
    """The state of a training and its step; driven by `darts_lite.loop`."""

    def __init__(
        self,
        config: TrainConfig,
        genotype: Genotype,
        dataset: Dataset,
        splits: Splits,
        device: torch.device,
    ):
        self.config, self.genotype, self.dataset, self.device = config, genotype, dataset, device
        self.splits = splits
        self.images = splits.train
        if config.select == "last":
            self.images = Images(
                torch.cat([splits.train.pixels, splits.validation.pixels]),
                torch.cat([splits.train.labels, splits.validation.labels]),
            )
        generator = torch.Generator().manual_seed(config.seed)
        network = Network(genotype.space, genotype.image, len(genotype.classes), generator)
        self.network = FlatNetwork(network.to(device))
        self.augment = default_augmentation(dataset)
        self.schedules = DEFAULTS
        if config.hyperparameters == "learned":
            self.schedules = self._learned()
        self.joint = Joint(self.network, genotype.space, self.augment, lambda values: values)
        self.inner = InnerState(self.network.params, OPTIMIZER.init(self.network.params))
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.batches = Batches(self.images, config.batch_size, self.generator)
        self.fraction = 0.0
        self.best: tuple[float, Params] | None = None
        if config.select == "best":
            self.best = (-1.0, self.network.params)
        self._sum: tuple[Tensor, int] = (torch.zeros(2, device=device), 0)

    def _learned(self) -> dict[str, Schedule]:
        """The genotype's schedules; a magnitude that it does not name is zero."""
        found = self.genotype.hyperparameters
        magnitudes = {f"magnitude.{name}" for name in self.augment.names}
        missing = {"lr", "weight_decay"} - set(found)
        unknown = set(found) - {"lr", "weight_decay"} - magnitudes
        if missing or unknown:
            raise UserError(
                f"the genotype's hyperparameters lack {sorted(missing)} and have the unknown "
                f"{sorted(unknown)}; use --hyperparameters default or search again"
            )
        return {**dict.fromkeys(sorted(magnitudes), ((0.0, 0.0),)), **found}

    def values(self, fraction: float) -> dict[str, float]:
        """The scheduled hyperparameters at a fraction of the budget."""
        return {name: interpolate(s, fraction) for name, s in self.schedules.items()}

    @property
    def closing_steps(self) -> float:
        evaluated = self.splits.validation.count + self.splits.test.count
        return 0.5 * (evaluated + min(self.images.count, CALIBRATED)) / self.config.batch_size

    def step(self, fraction: float) -> None:
        x, y = next(self.batches)
        draws = self.augment.sample(len(x), self.dataset.image_size, self.generator, self.device)
        scheduled = self.values(fraction)
        vector = torch.tensor(list(scheduled.values())).to(self.device, non_blocking=True)
        values = dict(zip(scheduled, vector.unbind()))
        problem = self.joint.bind([Batch(x, y, draws)], None, Phase(lr_factor=cosine(fraction)))
        state, (_, report) = problem.inner_step(self.inner, values)
        self.inner = detach(state)
        self._sum = (self._sum[0] + report, self._sum[1] + 1)
        self.fraction = fraction

    def report(self) -> dict[str, float]:
        total, count = self._sum
        loss, correct = (total / max(count, 1)).tolist()
        self._sum = (torch.zeros_like(total), 0)
        used = {f"used/{n}": v for n, v in self.values(self.fraction).items()}
        return {
            "loss/train": loss,
            "accuracy/train": correct,
            "lr": used["used/lr"] * cosine(self.fraction),
            "fraction": self.fraction,
            **used,
        }

    def status(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss/train']:.3f}, accuracy {values['accuracy/train']:.1%}, "
            f"lr {values['lr']:.4f}"
        )

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """With select "best": the validation accuracy; remembers the best weights."""
        if self.best is None:
            return {}
        network = self.network.export(self.inner.params)
        statistics = evaluation_batches(sample(self.images, 1024), 128)
        value = accuracy(network, self.splits.validation, statistics)
        if value > self.best[0]:
            self.best = (value, self.inner.params)
        return {"accuracy/validation": value}

    def finish(self, step: int, recorder: Recorder) -> Network:
        """The trained network, its BatchNorm statistics calibrated on its training images."""
        params = self.inner.params
        if self.best is not None:
            recorder.scalars(step, self.evaluate(step, recorder))
            params = self.best[1]
        network = self.network.export(params)
        calibrate(network, evaluation_batches(sample(self.images, CALIBRATED), 256))
        return network.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "params": self.inner.params,
            "optimizer": tuple(self.inner.optimizer),
            "generator": self.generator.get_state(),
            "batches": self.batches.state_dict(),
            "fraction": self.fraction,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        state = checkpoint.move(state, self.device)
        mine = self.state_dict()
        for name in ("params", "optimizer", "best"):
            checkpoint.require_like(mine[name], state[name], name)
        self.inner = InnerState(state["params"], OptimizerState(*state["optimizer"]))
        self.batches.load_state_dict(state["batches"])
        self.fraction, self.best = state["fraction"], state["best"]


def interpolate(schedule: Schedule, fraction: float) -> float:
    """Piecewise linear through the knots, constant beyond them.

    >>> interpolate(((0.0, 1.0), (1.0, 3.0)), 0.25)
    1.5
    """
    at = bisect_right([f for f, _ in schedule], fraction)
    if at == 0 or at == len(schedule):
        return schedule[min(at, len(schedule) - 1)][1]
    (f0, v0), (f1, v1) = schedule[at - 1], schedule[at]
    return v0 + (v1 - v0) * (fraction - f0) / (f1 - f0)
