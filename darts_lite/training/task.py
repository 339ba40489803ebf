"""The final training of a genotype, with learned, default or online hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.recipe import Recipe
from darts_lite.data import Dataset, Images, Splits, evaluation_batches
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState, LearningRateFinder
from darts_lite.hypergradient.problem import Hyper, detach
from darts_lite.reporting.recorder import Recorder
from darts_lite.schedules import Schedule, interpolate
from darts_lite.training import checkpoint
from darts_lite.training.feed import Feed
from darts_lite.training.hyper_learner import HyperLearner, Window, plan
from darts_lite.training.metrics import accuracy, sample
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import (
    AUGMENT,
    LOSS_VALUES,
    OPTIMIZERS,
    Batch,
    NetworkProblem,
    augmentation_for,
    outer_variables,
)

DEFAULTS: dict[str, Schedule] = {  # the hand-set recipe; its augmentation is flips and crops only
    name: ((0.0, value),) for name, value in OPTIMIZERS["sgd"].start.items()
}
ONLINE_EVERY = 4  # steps from one hypergradient to the next
CALIBRATED = 10_000  # training images for the final BatchNorm statistics


class TrainTask:
    """The state of a final training and its step; driven by `training.loop`.

    Values of `options.select`:

    - "last": train on training and validation images, as papers do; keep the last weights.
    - "held_out": train on training images only; keep the last weights.
    - "best": train on training images only; keep the weights with the best validation accuracy.

    Values of `options.hyperparameters`:

    - "learned": use the schedules of the genotype.
    - "default": use the hand-set recipe.
    - "online": start from the last values of the genotype and keep learning on validation images;
      the weights are trained on training images only.

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
        self.options, self.genotype, self.dataset, self.device = options, genotype, dataset, device
        self.splits = splits
        self.batch_size = options.batch_size or genotype.recipe.batch_size
        self.images = splits.train
        if not self.held_out:
            self.images = Images(
                torch.cat([splits.train.pixels, splits.validation.pixels]),
                torch.cat([splits.train.labels, splits.validation.labels]),
            )
        generator = torch.Generator().manual_seed(options.seed)
        network = Network(genotype.space, genotype.image, len(genotype.classes), generator)
        self.network = FlatNetwork(network.to(device))
        self.augment = augmentation_for(dataset, options.augment or genotype.recipe.augment)
        learned = options.hyperparameters == "learned"
        recipe, self.schedules = genotype.recipe, DEFAULTS
        if options.hyperparameters != "default":
            self.schedules = self._learned()
            self.augment = self.augment.replayed(self.schedules) if learned else self.augment
        else:
            recipe = Recipe()
            # an augmentation by name is as published; "learned" needs values
            self.augment = self.augment.replayed({}) if options.augment else self.augment.plain
        self.hyper: HyperLearner | None = None
        learning = plan(options.estimator)  # raise the error of a bad --estimator now
        constrain: Callable[[Hyper], Hyper] = lambda values: values  # noqa: E731
        if options.hyperparameters == "online":
            start = {name: schedule[-1][1] for name, schedule in self.schedules.items()}
            variables = outer_variables(self.augment, start, recipe.optimizer.name).to(device)
            self.hyper = HyperLearner(variables, learning, LearningRateFinder(), pause=ONLINE_EVERY)
            constrain = variables.constrain
        self.problem = NetworkProblem(self.network, self.augment, constrain, recipe)
        params = self.network.params
        self.inner = InnerState(params, self.problem.optimizer.init(params))
        self.feed = Feed(
            self.images, splits.validation, self.batch_size, self.augment, options.seed + 1
        )
        self.fraction = 0.0
        self.best: tuple[float, Params] | None = None
        if options.select == "best":
            self.best = (-1.0, self.network.params)
        self._ahead = 0  # steps of the last window that calls of `step` have not counted yet
        self._window_report = torch.zeros(2)
        self._sum: tuple[Tensor, int] = (torch.zeros(2, device=device), 0)

    @property
    def held_out(self) -> bool:
        """Whether the weights are never trained on validation images."""
        return self.options.select != "last" or self.options.hyperparameters == "online"

    def _learned(self) -> dict[str, Schedule]:
        """Return the schedules of the genotype for the optimizer and the augmentation in use."""
        found = self.genotype.recipe.schedules
        missing = {"lr", "weight_decay"} - set(found)
        always = {"lr", "weight_decay", *LOSS_VALUES}
        unknown = {n for n in set(found) - always if n.partition(".")[0] not in AUGMENT}
        if missing or unknown:
            raise UserError(
                "the schedules of the genotype must have lr, weight_decay and known names, got "
                f"{sorted(missing)} missing and {sorted(unknown)} unknown; use --hyperparameters "
                "default or search again"
            )
        own = {*always, *self.augment.names}
        return {name: schedule for name, schedule in found.items() if name in own}

    def values(self, fraction: float) -> dict[str, float]:
        """Return the hyperparameters at a fraction of the budget."""
        if self.hyper is not None:
            return {name: float(v) for name, v in self.hyper.values().items()}
        return {name: interpolate(s, fraction) for name, s in self.schedules.items()}

    @property
    def closing_steps(self) -> float:
        evaluated = self.splits.validation.count + self.splits.test.count
        return 0.5 * (evaluated + min(self.images.count, CALIBRATED)) / self.batch_size

    # --- the step -------------------------------------------------------------------------

    def step(self, fraction: float) -> None:
        before, self.fraction = self.fraction, fraction
        if self.hyper is None:
            scheduled = self.values(fraction)
            vector = torch.tensor(list(scheduled.values())).to(self.device, non_blocking=True)
            report = self._plain_step(dict(zip(scheduled, vector.unbind())))
        elif self._ahead:
            self._ahead -= 1
            report = self._window_report
        else:
            report = self._online_step(self.hyper, before)
        self._sum = (self._sum[0] + report, self._sum[1] + 1)

    def _plain_step(self, values: Hyper) -> Tensor:
        problem = self.problem.bind([self.batch()], None, self.problem.lr_factor(self.fraction))
        state, (_, report) = problem.inner_step(self.inner, values)
        self.inner = detach(state)
        return report

    def _online_step(self, hyper: HyperLearner, before: float) -> Tensor:
        """Take a step that also learns the hyperparameters that are due.

        Arguments:
            hyper: learner of the hyperparameters.
            before: fraction of the budget at the step before.
        """
        fraction, factor = self.fraction, self.problem.lr_factor(self.fraction)
        hyper.remember(fraction, before)
        hyper.find_rate(fraction, self.inner, self._window, self.problem.bind)
        kinds = hyper.due()
        hyper.steps += 1
        if not kinds:
            return self._plain_step(hyper.variables.raw)
        ahead = hyper.learn(
            kinds,
            fraction,
            self.inner,
            self._window,
            lambda train, validation: self.problem.bind(train, validation, factor),
        )
        self.inner = ahead.state
        self._ahead, self._window_report = hyper.plan.estimator.steps - 1, ahead.inner[1]
        return self._window_report

    def _augmenting(self) -> dict[str, Tensor]:
        """Return the learned or scheduled values of the augmentation by name."""
        if self.hyper is not None:
            values = self.hyper.values()
            return {n: values[n] for n in self.augment.names}
        now = self.values(self.fraction)
        return {n: torch.tensor(now[n]) for n in self.augment.names if n in now}

    def batch(self) -> Batch:
        """Return the next training batch, with the draws of its augmentation."""
        return self.feed.batch(self._augmenting(), self.fraction)

    def _window(self, steps: int, turn: bool) -> Window:
        return self.feed.window(steps, turn, self._augmenting(), self.fraction)

    def learned(self) -> dict[str, Schedule]:
        """Return the schedules learned online, or the schedules that the training used."""
        return self.schedules if self.hyper is None else self.hyper.schedules()

    # --- reports and results --------------------------------------------------------------

    def report(self) -> dict[str, float]:
        total, count = self._sum
        loss, correct = (total / max(count, 1)).tolist()
        self._sum = (torch.zeros_like(total), 0)
        used = {f"used/{n}": v for n, v in self.values(self.fraction).items()}
        return {
            "loss/train": loss,
            "accuracy/train": correct,
            "lr": used["used/lr"] * self.problem.lr_factor(self.fraction),
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
        return {
            **checkpoint.inner_state(self.inner),
            "feed": self.feed.state_dict(),
            "fraction": self.fraction,
            "best": self.best,
            "hyper": None if self.hyper is None else self.hyper.state_dict(),
            "window": (self._ahead, self._window_report),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = checkpoint.move(state, self.device)
        self.inner = checkpoint.restored(self.inner, state)
        checkpoint.require_like(self.best, state["best"], "best")
        self.feed.load_state_dict(state["feed"])
        if self.hyper is not None:
            self.hyper.load_state_dict(state["hyper"])
        self._ahead, self._window_report = state["window"]
        self.fraction, self.best = state["fraction"], state["best"]
