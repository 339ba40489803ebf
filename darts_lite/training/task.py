"""The final training of a genotype, with learned, default or online hyperparameters."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import calibrate
from darts_lite.architecture.networks import network_of
from darts_lite.data import Dataset, Images, Splits, evaluation_batches
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.averaging import WeightAverage
from darts_lite.training.distillation import Teacher
from darts_lite.training.feed import Feed
from darts_lite.training.imbalance import class_weights
from darts_lite.training.joint_task import JointTask
from darts_lite.training.metrics import measure, sample
from darts_lite.training.options import DeriveOptions
from darts_lite.training.plain_step import PlainStep
from darts_lite.training.problem import NetworkProblem
from darts_lite.training.replay import hyperparameters
from darts_lite.training.selection import selection_of
from darts_lite.training.self_training import PseudoLabels, joined
from darts_lite.training.transfer import block_rates, layer_specs, take_over
from darts_lite.training.tta import COUNT

CALIBRATED = 10_000  # training images for the final BatchNorm statistics


class TrainTask(JointTask):
    """The state of a final training and its step; driven by `training.loop`.

    Values of `options.select`:

    - "last": train on training and validation images, as papers do; keep the last weights.
    - "held_out": train on training images only; keep the last weights.
    - "best": train on training images only; keep the weights with the best `options.select_by`.

    If the hyperparameters are learned online, the weights are trained on training images only.

    Arguments:
        options: options of the training.
        genotype: genotype to train.
        dataset: gives image sizes and class names.
        splits: images on `device`.
        device: device of the training.
        teacher: teacher of the training images; None for none.
        start: network whose weights are the start; None for new weights.
        pseudo: further training images with the labels of a teacher; None for none.
    Raises: `UserError` if the genotype lacks a schedule, or an option is not valid.
    """

    def __init__(
        self,
        options: DeriveOptions,
        genotype: Genotype,
        dataset: Dataset,
        splits: Splits,
        device: torch.device,
        teacher: Teacher | None = None,
        start: nn.Module | None = None,
        pseudo: PseudoLabels | None = None,
    ):
        self.options, self.genotype, self.splits = options, genotype, splits
        self.pseudo = pseudo
        self.batch_size = options.batch_size or genotype.recipe.batch_size
        generator = torch.Generator().manual_seed(options.seed)
        network = network_of(genotype, generator)
        if start is not None:
            take_over(network, start, options.start or "")
        flat = FlatNetwork(network.to(device))
        layers = layer_specs(flat, options)
        recipe, augment, hyper = hyperparameters(
            options, genotype, dataset, device, teacher, layers
        )
        plateau = recipe.schedule == "plateau"
        self.selection = selection_of(options, options.select == "best", plateau)
        self.images, counts = self._training_images()
        before, after = block_rates(flat, options, "layer_lr.0" in hyper.at(0.0))
        plain = NetworkProblem(
            network=flat,
            augment=augment,
            constrain=hyper.constrain,
            recipe=recipe,
            class_weights=class_weights(counts, recipe.class_weights),
            teacher=teacher,
            rates=before,
            bf16=options.precision == "bf16",
        )
        self._unfrozen = replace(plain, rates=after)
        seed, size = options.seed + 1, self.batch_size
        feed = Feed(self.images, splits.validation, size, augment, seed, recipe.sampling)
        step = PlainStep(options.accumulate, options.sharpness, options.clip)
        super().__init__(plain, hyper, feed, device, plain_step=step)
        self.average = WeightAverage(self.inner.params, options.ema) if options.ema else None

    def _training_images(self) -> tuple[Images, Tensor]:
        """Return the training images, and the number `[K]` of each class."""
        images, pseudo = self.splits.train, self.pseudo
        if not self.held_out:
            images = self.splits.learned
        counts = images.labels.bincount(minlength=len(self.genotype.classes))
        if pseudo is None:
            return images, counts
        return joined(images, pseudo), counts + pseudo.counts

    @property
    def online(self) -> bool:
        """Whether the hyperparameters are learned in this training."""
        return self.options.hyperparameters == "online"

    @property
    def held_out(self) -> bool:
        """Whether the weights are never trained on validation images."""
        watched = self.selection is not None or self.options.folds is not None
        return self.options.select != "last" or self.online or watched

    @property
    def weights(self) -> Params:
        """The weights that are evaluated and returned: the average, if there is one."""
        return self.inner.params if self.average is None else self.average.params

    @property
    def finished(self) -> bool:
        return self.selection is not None and self.selection.stopped

    def lr_factor(self, fraction: float) -> float:
        falls = 1.0 if self.selection is None else self.selection.factor
        return super().lr_factor(fraction) * falls

    def step(self, fraction: float) -> int:
        if fraction >= self.options.unfreeze_at:
            self.plain = self._unfrozen
        taken = super().step(fraction)
        if self.average is not None:
            self.average.update(self.inner.params)
        return taken

    @property
    def closing_steps(self) -> float:
        views = 1 + COUNT[self.options.tta]
        evaluated = self.splits.validation.count + views * self.splits.test.count
        calibrated = (1 + self.options.keep) * min(self.images.count, CALIBRATED)
        return 0.5 * (evaluated + calibrated) / self.batch_size

    def report(self) -> dict[str, float]:
        means = self.means()
        used = {f"used/{n}": v for n, v in self.hyper.at(self.fraction).items()}
        return {
            "loss/train": float(means["loss/train"]),
            "accuracy/train": float(means["accuracy/train"]),
            "lr": used["used/lr"] * self.lr_factor(self.fraction),
            "fraction": self.fraction,
            **used,
        }

    def status(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss/train']:.3f}, accuracy {values['accuracy/train']:.1%}, "
            f"lr {values['lr']:.4f}"
        )

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Return the validation metric and keep the best weights, if something depends on them."""
        if self.selection is None:
            return {}
        name = self.options.select_by
        value = self.validate(name)
        self.selection.add(value, self.weights)
        return {f"{name}/validation": value}

    def validate(self, metric: str = "accuracy") -> float:
        """Return a metric of the current weights on validation images.

        Arguments:
            metric: name of the metric in `METRICS`.
        """
        network = self.network.export(self.weights)
        calibrate(network, evaluation_batches(sample(self.images, 1024), 128))
        return measure(network.eval(), self.splits.validation, metric)

    def finish(self, step: int, recorder: Recorder) -> nn.Module:
        """Return the trained network, with BatchNorm calibrated on its training images."""
        params = self.weights
        if self.selection is not None:
            recorder.scalars(step, self.evaluate(step, recorder))
            if self.options.select == "best":
                params = self.selection.best[0][1]
        return self._calibrated(params)

    def kept(self) -> list[nn.Module]:
        """Return the best networks that `options.keep` asks for, the best first."""
        best = [] if self.selection is None else self.selection.best
        return [self._calibrated(params) for _, params in best[: self.options.keep]]

    def _calibrated(self, params: Params) -> nn.Module:
        """Return a copy of the network with the given weights and calibrated statistics."""
        return calibrated(copy.deepcopy(self.network.export(params)), self.images)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "selection": None if self.selection is None else self.selection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for own, saved in ((self.average, "average"), (self.selection, "selection")):
            if own is not None:
                own.load_state_dict(checkpoint.move(state[saved], self.device))


def calibrated(network: nn.Module, images: Images) -> nn.Module:
    """Set the statistics of every BatchNorm, in place; return the network in evaluation mode.

    Arguments:
        network: the network.
        images: images that it learned from; at most `CALIBRATED` of them are used.
    """
    calibrate(network, evaluation_batches(sample(images, CALIBRATED), 256))
    return network.eval()
