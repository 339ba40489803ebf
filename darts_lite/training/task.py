"""Trains a genotype with its learned schedules and measures what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.space import Genotype
from darts_lite.data import Batches, Dataset, Images, Splits, evaluation_batches
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState, LearningRateFinder
from darts_lite.hypergradient.hyperparameters import HyperParameters
from darts_lite.hypergradient.optimizers import OptimizerState
from darts_lite.hypergradient.problem import Hyper, detach
from darts_lite.reporting.recorder import Recorder
from darts_lite.schedules import Schedule, cosine, interpolate
from darts_lite.training import checkpoint
from darts_lite.training.hyper_learner import DEFAULT, Plan, look, plan
from darts_lite.training.metrics import accuracy, sample
from darts_lite.training.problem import (
    AUGMENT,
    USUAL,
    Batch,
    Joint,
    Phase,
    augmentation_for,
    outer_variables,
)
from darts_lite.training.recipe import Recipe

DEFAULTS: dict[str, Schedule] = {  # the usual recipe by hand: no augmentation but flips and crops
    "lr": ((0.0, 0.05),),
    "weight_decay": ((0.0, 5e-4),),
}
KNOTS = 50  # of a learned schedule
ONLINE_EVERY = 4  # steps between two hypergradients
CALIBRATED = 10_000  # training images for the final BatchNorm statistics


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training is, apart from its genotype, its data and where it writes.

    `select` "last" trains on train and validation images to the end, as the papers do; "held_out"
    on the former alone; "best" too, and keeps the weights that were best on the latter.
    `hyperparameters`
    "learned" follows the genotype's schedules, "default" the usual recipe, and "online" goes on
    learning from where the genotype ended: then validation images are never trained on.
    `estimator` says how, for "online" (see `hyper_learner.plan`). `augment` None is that of the
    search, with what it learned of it.
    """

    batch_size: int = 64
    hyperparameters: Literal["learned", "default", "online"] = "learned"
    augment: str | None = None
    estimator: str = DEFAULT
    select: Literal["last", "best", "held_out"] = "last"
    seed: int = 0


@dataclass
class Online:
    """What a training that goes on learning its hyperparameters carries beside its weights."""

    variables: HyperParameters
    plan: Plan
    rate_search: LearningRateFinder
    steps: int = 0
    learned: float = 0.0  # the fraction at which they were last learned
    ahead: int = 0  # steps taken beyond those asked for
    report: Tensor = field(default_factory=lambda: torch.zeros(2))  # of the last window
    history: list[tuple[float, dict[str, Tensor]]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {
            "variables": self.variables.state_dict(),
            "rate_search": self.rate_search.state_dict(),
            "progress": (self.steps, self.learned, self.ahead, self.report),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.variables.load_state_dict(state["variables"])
        self.rate_search.load_state_dict(state["rate_search"])
        self.steps, self.learned, self.ahead, self.report = state["progress"]
        self.history = state["history"]


class TrainTask:
    """The state of a training and its step; driven by `darts_lite.training.loop`."""

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
        if config.select == "last" and config.hyperparameters != "online":
            self.images = Images(
                torch.cat([splits.train.pixels, splits.validation.pixels]),
                torch.cat([splits.train.labels, splits.validation.labels]),
            )
        generator = torch.Generator().manual_seed(config.seed)
        network = Network(genotype.space, genotype.image, len(genotype.classes), generator)
        self.network = FlatNetwork(network.to(device))
        searched = genotype.settings.get("augment", "learned")
        self.augment = augmentation_for(dataset, config.augment or str(searched))
        self.schedules = DEFAULTS
        if config.hyperparameters != "default":
            self.schedules = self._learned()
            if config.hyperparameters == "learned":
                self.augment = self.augment.replayed(self.schedules)
        elif config.augment is None:
            self.augment = self.augment.plain
        else:
            self.augment = self.augment.replayed({})  # as published; "learned" needs values
        usual = config.hyperparameters == "default"
        recipe = USUAL if usual else Recipe.read(genotype.settings)
        self.online: Online | None = None
        learning = plan(config.estimator)
        constrain: Callable[[Hyper], Hyper] = lambda values: values  # noqa: E731
        if config.hyperparameters == "online":
            start = {name: schedule[-1][1] for name, schedule in self.schedules.items()}
            optimizer = str(genotype.settings.get("optimizer", "sgd"))
            variables = outer_variables(self.augment, start=start, optimizer=optimizer).to(device)
            self.online = Online(variables, learning, LearningRateFinder())
            constrain = variables.constrain
        self.joint = Joint(self.network, genotype.space, self.augment, constrain, recipe=recipe)
        params = self.network.params
        self.inner = InnerState(params, recipe.optimizer.init(params))
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.batches = Batches(self.images, config.batch_size, self.generator)
        self.held_out = Batches(splits.validation, config.batch_size, self.generator)
        self.fraction = 0.0
        self.best: tuple[float, Params] | None = None
        if config.select == "best":
            self.best = (-1.0, self.network.params)
        self._sum: tuple[Tensor, int] = (torch.zeros(2, device=device), 0)

    def _learned(self) -> dict[str, Schedule]:
        """The genotype's schedules, of the augmentation those of what is in use."""
        found = self.genotype.hyperparameters
        missing = {"lr", "weight_decay"} - set(found)
        others = set(found) - {"lr", "weight_decay"}
        unknown = {n for n in others if n.partition(".")[0] not in AUGMENT}
        if missing or unknown:
            raise UserError(
                f"the genotype's hyperparameters lack {sorted(missing)} and have the unknown "
                f"{sorted(unknown)}; use --hyperparameters default or search again"
            )
        own = {"lr", "weight_decay", *self.augment.names}
        return {name: schedule for name, schedule in found.items() if name in own}

    def values(self, fraction: float) -> dict[str, float]:
        """The hyperparameters at a fraction of the budget."""
        if self.online is not None:
            return {name: float(v) for name, v in self.online.variables.values().items()}
        return {name: interpolate(s, fraction) for name, s in self.schedules.items()}

    @property
    def closing_steps(self) -> float:
        evaluated = self.splits.validation.count + self.splits.test.count
        return 0.5 * (evaluated + min(self.images.count, CALIBRATED)) / self.config.batch_size

    def step(self, fraction: float) -> None:
        phase = Phase(lr_factor=cosine(fraction))
        before, self.fraction = self.fraction, fraction
        if self.online is None:
            scheduled = self.values(fraction)
            vector = torch.tensor(list(scheduled.values())).to(self.device, non_blocking=True)
            report = self._plain_step(phase, dict(zip(scheduled, vector.unbind())))
        else:
            report = self._online_step(self.online, phase, before)
        self._sum = (self._sum[0] + report, self._sum[1] + 1)

    def _plain_step(self, phase: Phase, values: Hyper) -> Tensor:
        problem = self.joint.bind([self._batch()], None, phase)
        state, (_, report) = problem.inner_step(self.inner, values)
        self.inner = detach(state)
        return report

    def _online_step(self, online: Online, phase: Phase, before: float) -> Tensor:
        """A step that learns the hyperparameters too, now and then.

        Arguments: `before`, the fraction at the step before.
        """
        fraction = self.fraction
        if online.ahead:  # the last window was longer than the one step that was asked for
            online.ahead -= 1
            return online.report
        if int(fraction * KNOTS) > int(before * KNOTS) or not online.history:
            online.history.append((fraction, online.variables.values()))
        # one a step: by the clock, the looks must not take more than their share
        if online.plan.annealed and online.rate_search.due(fraction):
            window = self._window(online.rate_search.estimator.steps)
            flat = replace(phase, lr_factor=1.0)
            look(online.rate_search, self.joint, self.inner, online.variables, *window, flat)
        online.steps += 1
        estimator = online.plan.estimator
        if not estimator.carries and online.steps % ONLINE_EVERY:
            return self._plain_step(phase, online.variables.raw)
        kinds = online.plan.kinds(online.variables.kinds)
        window = self._window(estimator.steps, turn="loss" in kinds.values())
        problem = self.joint.bind(*window, phase)
        ahead = estimator(problem, self.inner, online.variables.leaves(), kinds)
        self.inner = ahead.state
        online.variables.update(ahead.hypergradient, fraction - online.learned)
        online.learned = fraction
        online.ahead, online.report = estimator.steps - 1, ahead.inner[1]
        return online.report

    def _batch(self, turn: bool = False) -> Batch:
        x, y = next(self.batches)
        choices = self.augment.sample(
            len(x),
            self.dataset.image_size,
            self.generator,
            self.device,
            self._augmenting(),
            self.fraction,
            turn,
        )
        return Batch(x, y, choices)

    def _augmenting(self) -> dict[str, Tensor]:
        """The values of the augmentation that are learned, or follow a schedule."""
        if self.online is not None:
            values = self.online.variables.values()
            return {n: values[n] for n in self.augment.names}
        now = self.values(self.fraction)
        return {n: torch.tensor(now[n]) for n in self.augment.names if n in now}

    def _window(self, steps: int, turn: bool = False) -> tuple[list[Batch], Batch]:
        return [self._batch(turn) for _ in range(steps)], Batch(*next(self.held_out))

    def learned(self) -> dict[str, Schedule]:
        """The schedules that were learned online, or those that were followed."""
        if self.online is None:
            return self.schedules
        history = [*self.online.history, (1.0, self.online.variables.values())]
        return {n: tuple((f, float(v[n])) for f, v in history) for n in history[-1][1]}

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
        value = self.validate()
        if value > self.best[0]:
            self.best = (value, self.inner.params)
        return {"accuracy/validation": value}

    def validate(self) -> float:
        """Accuracy on validation images as the weights stand."""
        network = self.network.export(self.inner.params)
        statistics = evaluation_batches(sample(self.images, 1024), 128)
        return accuracy(network, self.splits.validation, statistics)

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
            "held_out": self.held_out.state_dict(),
            "carried": dict(self.inner.carried),
            "online": None if self.online is None else self.online.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        state = checkpoint.move(state, self.device)
        mine = self.state_dict()
        for name in ("params", "optimizer", "best"):
            checkpoint.require_like(mine[name], state[name], name)
        optimizer = OptimizerState(*state["optimizer"])
        self.inner = InnerState(state["params"], optimizer, state["carried"])
        self.batches.load_state_dict(state["batches"])
        self.held_out.load_state_dict(state["held_out"])
        if self.online is not None:
            self.online.load_state_dict(state["online"])
        self.fraction, self.best = state["fraction"], state["best"]
