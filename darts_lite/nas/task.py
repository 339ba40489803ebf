"""The joint search: weights, architecture, learning rate, weight decay and augmentation at once.

Phases by budget fraction: warm-up (weights only), joint, hardening (the temperature falls, so that
the mixture approaches the one option per edge that will remain), then discretisation.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import darts_lite
from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.network import CostTable, Network, network_cost
from darts_lite.architecture.relaxation import (
    Weights,
    entropy,
    logit_shapes,
    option_probabilities,
    relax,
)
from darts_lite.architecture.space import PRESETS, Genotype, SearchSpace
from darts_lite.data import Batches, Dataset, Splits, evaluation_batches
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState, Lookahead, RateSearch
from darts_lite.hypergradient.hyperparameters import select
from darts_lite.hypergradient.optimizers import OptimizerState
from darts_lite.hypergradient.problem import detach
from darts_lite.nas.select import discretise
from darts_lite.nas.warm_start import COLD, Warm
from darts_lite.reporting import augmentation_report, pictures
from darts_lite.reporting.recorder import Recorder
from darts_lite.schedules import cosine
from darts_lite.training import checkpoint, loop
from darts_lite.training.hyper_learner import DEFAULT, look, plan
from darts_lite.training.metrics import accuracy, sample
from darts_lite.training.problem import (
    OPTIMIZERS,
    Batch,
    Joint,
    Phase,
    augmentation_for,
    outer_variables,
)

WARM_UP = 0.25  # of the budget
INHERITED_WARM_UP = 0.05  # with the weights of an earlier search
KNOWN_LOOKS = 10  # that an earlier learning rate spares; the rest move it by up to 2.9 times
HARDENING = 0.75  # where it begins
FINAL_TEMPERATURE = 0.2
BETA_DECAY = 0.2  # final weight, reached linearly
MIXED_EVERY = 4  # steps between two hypergradients of the augmentation
TURN_EVERY = 8  # of the augmentation's probabilities, which need twice the passes
KNOTS = 50  # of a learned schedule
EVALUATED = 1024  # validation images in an evaluation during the search
CALIBRATED = 512  # training images for BatchNorm statistics


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a search is, apart from its data and where it writes."""

    space: str = "cells"
    cells: int = 7
    channels: int  # of the network that will be derived
    search_channels: int  # of the supernet
    stem_stride: int = 1
    max_params: int
    batch_size: int = 64
    optimizer: str = "sgd"
    augment: str = "learned"
    estimator: str = DEFAULT
    protect: bool = True
    seed: int = 0

    def build_space(self) -> SearchSpace:
        """The space at the width of the derived network."""
        return PRESETS[self.space](self.channels, self.cells, self.stem_stride)


class SearchTask:
    """The state of a search and its step; driven by `darts_lite.training.loop`."""

    def __init__(
        self,
        config: SearchConfig,
        dataset: Dataset,
        splits: Splits,
        device: torch.device,
        warm: Warm = COLD,
    ):
        self.config, self.dataset, self.device = config, dataset, device
        self.image = (dataset.channels, *dataset.image_size)
        classes = len(dataset.classes)
        self.space = config.build_space()
        self.costs = CostTable(self.space, self.image, classes).to(device)
        supernet = self.space.with_channels(config.search_channels)
        generator = torch.Generator().manual_seed(config.seed)
        network = Network(supernet, self.image, classes, generator).to(device)
        self.network = FlatNetwork(network)
        self.augment = augmentation_for(dataset, config.augment)
        self.variables = outer_variables(
            self.augment, self.space, warm.starts, warm.alpha, config.optimizer
        ).to(device)
        self.plan = plan(config.estimator)
        self.rate_search = _rate_search(warm)
        recipe = OPTIMIZERS[config.optimizer].recipe
        self.joint = Joint(
            self.network,
            self.space,
            self.augment,
            self.variables.constrain,
            self.costs,
            float(config.max_params),
            recipe,
        )
        params = self._inherited(warm)
        self.warm_up = WARM_UP if warm.params is None else INHERITED_WARM_UP
        self.inner = InnerState(params, recipe.optimizer.init(params))
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.splits = splits
        self.train = Batches(splits.train, config.batch_size, self.generator)
        self.validation = Batches(splits.validation, config.batch_size, self.generator)
        self.steps = 0
        self.fraction = 0.0
        self.history: list[tuple[float, dict[str, Tensor]]] = []
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._hypergradient: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        self.discrete()  # an impossible cap is an error now, not after the search

    def _inherited(self, warm: Warm) -> Params:
        """The weights to start from."""
        own = self.network.params
        if warm.params is None:
            return own
        sizes, expected = ([len(vector) for vector in ps] for ps in (warm.params, own))
        if sizes != expected:
            raise UserError(
                f"the weights of the warm start do not fit this supernet (sizes {sizes}, not "
                f"{expected}); they come from another version: start without them"
            )
        return tuple(vector.to(self.device) for vector in warm.params)

    # --- the step -------------------------------------------------------------------------

    def phase(self, fraction: float) -> Phase:
        hardening = max(0.0, (fraction - HARDENING) / (1 - HARDENING))
        return Phase(
            lr_factor=cosine(fraction),
            temperature=FINAL_TEMPERATURE**hardening,
            beta_decay=BETA_DECAY * fraction if self.config.protect else 0.0,
        )

    @property
    def closing_steps(self) -> float:
        return (EVALUATED + CALIBRATED) / self.config.batch_size

    def step(self, fraction: float) -> None:
        if int(fraction * KNOTS) > int(self.fraction * KNOTS) or not self.history:
            self.history.append((fraction, self._learned()))
        phase = self.phase(fraction)
        # one a step: by the clock, the looks must not take more than their share
        if self.plan.annealed and self.rate_search.due(fraction):
            self._look(phase)
        if fraction < self.warm_up:
            batch = self._batch(self.train, augmented=True)
            problem = self.joint.bind([batch], None, phase)
            state, (_, report) = problem.inner_step(self.inner, self.variables.raw)
            self.inner = detach(state)
            self._record("train", report)
        else:
            ahead = self._joint_step(phase)
            self.inner = ahead.state
            progress = (fraction - max(self.fraction, self.warm_up)) / (1 - self.warm_up)
            self.variables.update(ahead.hypergradient, progress)
            self._hypergradient.update(ahead.hypergradient)
            self._record("train", ahead.inner[1])
            if ahead.outer is not None:
                self._record("validation", ahead.outer[1])
        self.fraction = fraction
        self.steps += 1

    def _joint_step(self, phase: Phase) -> Lookahead:
        estimator = self.plan.estimator
        kinds = self.plan.kinds(self.variables.kinds, mixed=self.steps % MIXED_EVERY == 0)
        turn = "loss" in kinds.values() and (
            self.steps % TURN_EVERY == 0 or estimator.steps > 1 or self.plan.loss_carries
        )
        if not turn:
            kinds = {n: k for n, k in kinds.items() if not n.startswith("probability.")}
        window = self._window(estimator.steps, turn)
        problem = self.joint.bind(*window, phase)
        return estimator(problem, self.inner, self.variables.leaves(), kinds)

    def _look(self, phase: Phase) -> None:
        window = self._window(self.rate_search.estimator.steps)
        phase = replace(phase, lr_factor=1.0)
        look(self.rate_search, self.joint, self.inner, self.variables, *window, phase)

    def _window(self, steps: int, turn: bool = False) -> tuple[list[Batch], Batch]:
        train = [self._batch(self.train, augmented=True, turn=turn) for _ in range(steps)]
        return train, self._batch(self.validation)

    def _batch(self, batches: Batches, augmented: bool = False, turn: bool = False) -> Batch:
        x, y = next(batches)
        if not augmented:
            return Batch(x, y)
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
        """The learned values of the augmentation."""
        values = self.variables.values()
        return {n: values[n] for n in self.augment.names}

    # --- what is seen of it ---------------------------------------------------------------

    def _record(self, split: str, report: Tensor) -> None:
        total, count = self._sums.get(split, (torch.zeros_like(report), 0))
        self._sums[split] = (total + report, count + 1)

    def _learned(self) -> dict[str, Tensor]:
        return {n: v for n, v in self.variables.values().items() if not n.startswith("alpha.")}

    def weights(self, temperature: float | None = None) -> Weights:
        """The current mixing weights."""
        if temperature is None:
            temperature = self.phase(self.fraction).temperature
        return relax(self.space, select(self.variables.raw, "alpha."), temperature)

    def report(self) -> dict[str, float]:
        found: dict[str, Tensor] = {}
        for split, (total, count) in self._sums.items():
            found[f"loss/{split}"], found[f"accuracy/{split}"] = (total / count).unbind()
        self._sums.clear()
        learned = self._learned()
        found |= {f"learned/{name}": value for name, value in learned.items()}
        found |= {
            f"hypergradient/{name}": g for name, g in self._hypergradient.items() if name in learned
        }
        weights = self.weights()
        found["expected/parameters"], found["expected/macs"] = self.costs.expected(weights)
        found["entropy"] = entropy(weights)
        found["skipped_hypergradients"] = self.variables.skipped.double()
        numbers = torch.stack([value.double() for value in found.values()]).tolist()  # waits once
        values = dict(zip(found, numbers))
        values["lr"] = values["learned/lr"] * self.phase(self.fraction).lr_factor
        values["fraction"] = self.fraction
        return values

    def status(self, values: dict[str, float]) -> str:
        losses = [f"{values[n]:.3f}" for n in ("loss/train", "loss/validation") if n in values]
        return (
            f"loss {'/'.join(losses)}, lr {values['lr']:.4f}, "
            f"~{values['expected/parameters'] / 1e3:.0f}k parameters"
        )

    def discrete(self) -> SearchSpace:
        """The genotype's space as it would be derived now."""
        return discretise(self.space, self.weights(), self.costs, self.config.max_params)

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float]:
        """Accuracy of the mixture and of its discretisation, and the pictures."""
        shown, space = sample(self.splits.validation, EVALUATED), self.discrete()
        statistics = list(evaluation_batches(sample(self.splits.train, CALIBRATED), 128))
        supernet = self.network.export(self.inner.params)
        mixed = accuracy(supernet, shown, statistics, self.weights())
        classes = len(self.dataset.classes)
        narrow = space.with_channels(self.config.search_channels)
        network = Network(narrow, self.image, classes).to(self.device)
        network.inherit(supernet)
        one_hot = accuracy(network, shown, statistics)
        cost = network_cost(space, self.image, classes)
        recorder.picture(
            step, "genotype", pictures.draw_genotype(space, f"{cost.parameters} parameters")
        )
        for name, title, rows, columns, values in self._probabilities():
            recorder.picture(step, name, pictures.heat_map(rows, columns, values, title))
        recorder.picture(step, "augmentation", self._preview())
        self._warn(step, recorder, mixed, one_hot, space)
        return {
            "accuracy/mixed": mixed,
            "accuracy/one_hot": one_hot,
            "genotype/parameters": cost.parameters,
            "genotype/macs": cost.macs,
        }

    def _probabilities(self) -> Iterable[tuple[str, str, list[str], list[str], Any]]:
        weights = self.weights()
        for cell in self.space.cells:
            rows = [f"{e.source} → {e.target}" for e in cell.edges]
            options = option_probabilities(cell, weights[cell.name]).cpu().numpy()
            columns = [o.label for o in cell.edges[0].options]
            yield f"options/{cell.name}", f"{cell.name}: options", rows, columns, options
            edge = weights[cell.name].edge
            if edge is not None:
                values = edge[:, None].cpu().numpy()
                yield f"edges/{cell.name}", f"{cell.name}: edges", rows, ["edge"], values

    def _preview(self) -> pictures.Image:
        """The augmentation as it is now, of the same training images every time."""
        images, _ = next(iter(evaluation_batches(sample(self.splits.train, 32), 32)))
        return augmentation_report.draw_augmentation(
            self.augment, images, self._augmenting(), self.fraction
        )

    def _warn(
        self, step: int, recorder: Recorder, mixed: float, one_hot: float, space: SearchSpace
    ) -> None:
        chosen = [edge.operations[0].name for _, edge in space.edges]
        late = self.fraction > 0.5
        found = {
            "skip": (
                late and chosen.count("skip") > len(chosen) / 2,
                f"skip holds {chosen.count('skip')} of {len(chosen)} edges: the architecture may "
                "be collapsing; give a larger --max-params or a longer budget",
            ),
            "entropy": (
                self.fraction > HARDENING and float(entropy(self.weights(1.0))) > 0.97,
                "the entropy of the operations hardly falls: the choice is close to a random "
                "one; give a longer budget",
            ),
            "gap": (
                late and one_hot < mixed - 0.15,
                f"the discretised network reaches {one_hot:.1%} where the mixture reaches "
                f"{mixed:.1%}; a longer budget hardens it further",
            ),
        }
        for name, (true, message) in found.items():
            if true and name not in self._warned:
                self._warned.add(name)
                loop.warn(message)
                recorder.text(step, "warning", message)

    # --- the result -----------------------------------------------------------------------

    def genotype(self, settings: dict[str, Any]) -> Genotype:
        """The architecture under the cap, with the learned schedules."""
        space = self.discrete()
        cost = network_cost(space, self.image, len(self.dataset.classes))
        history = [*self.history, (1.0, self._learned())]
        names = history[-1][1]
        return Genotype(
            space=space,
            image=self.image,
            classes=self.dataset.classes,
            parameters=cost.parameters,
            macs=cost.macs,
            hyperparameters={n: tuple((f, float(v[n])) for f, v in history) for n in names},
            dataset=dict(self.dataset.fingerprint),  # type: ignore[arg-type]
            settings={**settings, **asdict(self.config)},
            seed=self.config.seed,
            versions={
                "darts_lite": darts_lite.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "params": self.inner.params,
            "optimizer": tuple(self.inner.optimizer),
            "carried": dict(self.inner.carried),
            "variables": self.variables.state_dict(),
            "rate_search": self.rate_search.state_dict(),
            "generator": self.generator.get_state(),
            "train": self.train.state_dict(),
            "validation": self.validation.state_dict(),
            "steps": self.steps,
            "fraction": self.fraction,
            "warm_up": self.warm_up,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        state = checkpoint.move(state, self.device)
        mine = self.state_dict()
        for name in ("params", "optimizer"):
            checkpoint.require_like(mine[name], state[name], name)
        checkpoint.require_like(mine["variables"]["raw"], state["variables"]["raw"], "variables")
        optimizer = OptimizerState(*state["optimizer"])
        self.inner = InnerState(state["params"], optimizer, state["carried"])
        self.rate_search.load_state_dict(state["rate_search"])
        self.variables.load_state_dict(state["variables"])
        self.train.load_state_dict(state["train"])
        self.validation.load_state_dict(state["validation"])
        self.steps, self.fraction = state["steps"], state["fraction"]
        self.warm_up = state["warm_up"]
        self.history = state["history"]


def _rate_search(warm: Warm) -> RateSearch:
    """Without the looks that a warm start has made needless.

    From trained weights only low rates work (docs/hypergradients.md), so looks would lower, search
    by search, a rate that `derive` is to train new weights with: there it stays as it is.
    """
    if "lr" not in warm.starts:
        return RateSearch()
    return RateSearch(done=KNOWN_LOOKS if warm.params is None else RateSearch.looks)


def default_channels(
    space: str, cells: int, image: tuple[int, int, int], classes: int, cap: int
) -> int:
    """The largest even width at which the space's average network has at most `cap` parameters."""

    def average(channels: int) -> float:
        candidate = PRESETS[space](channels, cells)
        zeros = {name: torch.zeros(shape) for name, shape in logit_shapes(candidate).items()}
        parameters, _ = CostTable(candidate, image, classes).expected(relax(candidate, zeros))
        return float(parameters)

    low = 2
    while average(2 * low) <= cap:
        low *= 2
    high = 2 * low
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if average(middle) <= cap else (low, middle)
    return low
