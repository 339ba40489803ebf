"""The final training of a genotype, with learned, default or online hyperparameters."""

from __future__ import annotations

from typing import Any

import torch

from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network, calibrate
from darts_lite.data import Dataset, Images, Splits, evaluation_batches
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.feed import Feed
from darts_lite.training.joint_task import JointTask
from darts_lite.training.metrics import accuracy, sample
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import NetworkProblem
from darts_lite.training.replay import hyperparameters

CALIBRATED = 10_000  # training images for the final BatchNorm statistics


class TrainTask(JointTask):
    """The state of a final training and its step; driven by `training.loop`.

    Values of `options.select`:

    - "last": train on training and validation images, as papers do; keep the last weights.
    - "held_out": train on training images only; keep the last weights.
    - "best": train on training images only; keep the weights with the best validation accuracy.

    If the hyperparameters are learned online, the weights are trained on training images only.

    Arguments:
        options: options of the training.
        genotype: genotype to train.
        dataset: gives image sizes and class names.
        splits: images on `device`.
        device: device of the training.
    Raises: `UserError` if the genotype lacks a schedule, or an option is not valid.
    """

    def __init__(
        self,
        options: DeriveOptions,
        genotype: Genotype,
        dataset: Dataset,
        splits: Splits,
        device: torch.device,
    ):
        self.options, self.genotype, self.splits = options, genotype, splits
        self.batch_size = options.batch_size or genotype.recipe.batch_size
        self.images = splits.train
        if not self.held_out:
            both = zip(splits.train, splits.validation)
            self.images = Images(*(torch.cat(pair) for pair in both))
        generator = torch.Generator().manual_seed(options.seed)
        network = Network(genotype.space, genotype.image, len(genotype.classes), generator)
        recipe, augment, hyper = hyperparameters(options, genotype, dataset, device)
        flat = FlatNetwork(network.to(device))
        plain = NetworkProblem(flat, augment, hyper.constrain, recipe)
        seed = options.seed + 1
        feed = Feed(self.images, splits.validation, self.batch_size, augment, seed)
        super().__init__(plain, hyper, feed, device)
        self.best: tuple[float, Params] | None = None
        if options.select == "best":
            self.best = (-1.0, self.inner.params)

    @property
    def online(self) -> bool:
        """Whether the hyperparameters are learned in this training."""
        return self.options.hyperparameters == "online"

    @property
    def held_out(self) -> bool:
        """Whether the weights are never trained on validation images."""
        return self.options.select != "last" or self.online

    @property
    def closing_steps(self) -> float:
        evaluated = self.splits.validation.count + self.splits.test.count
        return 0.5 * (evaluated + min(self.images.count, CALIBRATED)) / self.batch_size

    def report(self) -> dict[str, float]:
        means = self.means()
        used = {f"used/{n}": v for n, v in self.hyper.at(self.fraction).items()}
        return {
            "loss/train": float(means["loss/train"]),
            "accuracy/train": float(means["accuracy/train"]),
            "lr": used["used/lr"] * self.plain.lr_factor(self.fraction),
            "fraction": self.fraction,
            **used,
        }

    def status(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss/train']:.3f}, accuracy {values['accuracy/train']:.1%}, "
            f"lr {values['lr']:.4f}"
        )

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Return the validation accuracy and keep the best weights, with select "best" only."""
        if self.best is None:
            return {}
        value = self.validate()
        if value > self.best[0]:
            self.best = (value, self.inner.params)
        return {"accuracy/validation": value}

    def validate(self) -> float:
        """Return the accuracy of the current weights on validation images, 0 to 1."""
        network = self.network.export(self.inner.params)
        statistics = evaluation_batches(sample(self.images, 1024), 128)
        return accuracy(network, self.splits.validation, statistics)

    def finish(self, step: int, recorder: Recorder) -> Network:
        """Return the trained network, with BatchNorm calibrated on its training images."""
        params = self.inner.params
        if self.best is not None:
            recorder.scalars(step, self.evaluate(step, recorder))
            params = self.best[1]
        network = self.network.export(params)
        calibrate(network, evaluation_batches(sample(self.images, CALIBRATED), 256))
        return network.eval()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        checkpoint.require_like(self.best, state["best"], "best")
        super().load_state_dict(state)
        self.best = checkpoint.move(state["best"], self.device)
