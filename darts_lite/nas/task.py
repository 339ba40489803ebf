"""The joint search: learns weights, architecture, learning rate, weight decay and augmentation.

Phases by fraction of the budget:

1. warm-up: only the weights are trained;
2. joint: weights and outer variables are learned together;
3. with `--method darts`, annealing: the softmax temperature falls until one operation dominates
   each edge; with `--method single_path`, scoring: the weights are done, and sampled paths are
   compared on validation images;
4. selection of the discrete network, after the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from darts_lite.architecture.cost import CostTable, filled
from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import PRESETS
from darts_lite.architecture.space import SearchSpace
from darts_lite.architecture.speed import Seconds, training_seconds
from darts_lite.architecture.weights import Weights, member_weights
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.hypergradient import Bilevel
from darts_lite.hypergradient.hyperparameters import select
from darts_lite.nas.method import Method, method_of
from darts_lite.nas.monitor import CALIBRATED, EVALUATED, Monitor
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.problem import ALPHA, Phase, SupernetProblem, logit_specs
from darts_lite.nas.relaxation import entropy
from darts_lite.nas.result import recipe_of, result
from darts_lite.nas.select import TimedKnapsack
from darts_lite.nas.single_path import PathScores
from darts_lite.nas.warm_start import COLD, Warm
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.build import loss_specs, names_in
from darts_lite.training.feed import Feed
from darts_lite.training.hyper_learner import HyperLearner, plan
from darts_lite.training.imbalance import class_weights
from darts_lite.training.joint_task import JointTask
from darts_lite.training.problem import (
    Batch,
    NetworkProblem,
    augmentation_for,
    outer_variables,
)

WARM_UP = 0.25  # fraction of the budget
INHERITED_WARM_UP = 0.05  # fraction of the budget, with the weights of an earlier search
ANNEALING = 0.75  # fraction of the budget at which annealing begins
SETTLING = 0.9  # fraction of the budget from which the selected path alone is trained
SCORING = 0.75  # fraction of the budget at which the weights are trained and scoring begins
PATHS = 4  # paths that are scored on one batch
FINAL_TEMPERATURE = 0.2
EVERY = {  # steps from one hypergradient to the next
    "loss": 4,
    "magnitude": 4,
    "mixing": 4,
    "probability": 8,
}


class SearchTask(JointTask):
    """The state of a search and its step; driven by `training.loop`.

    Arguments:
        options: options of the search; `max_params`, `channels` and `search_channels` are set.
        dataset: gives names, sizes and fingerprint.
        splits: images on `device`; training images train the weights, validation images train all
            outer variables.
        device: device of the search.
        warm: starting values of the search.
        method: relaxation, regularizers and selector; None for the method of the options.
    Raises: `UserError` if no network fits the parameter limit, or the starting weights do not fit.
    """

    hyper: HyperLearner

    def __init__(
        self,
        options: SearchOptions,
        dataset: Dataset,
        splits: Splits,
        device: torch.device,
        warm: Warm = COLD,
        method: Method | None = None,
    ):
        assert options.search_channels is not None
        self.options, self.dataset, self.splits = options, dataset, splits
        self.image = dataset.image
        self.space = space_of(options)
        self.costs = CostTable(self.space, self.image, len(dataset.classes)).to(device)
        self.method = method or method_of(options, self.costs)
        self.monitor = Monitor()
        supernet = self.space.with_channels(options.search_channels)
        generator = torch.Generator().manual_seed(options.seed)
        network = Network(supernet, self.image, len(dataset.classes), generator).to(device)
        self.augment = augmentation_for(dataset, options.augment)
        recipe = recipe_of(options)
        begin = WARM_UP if warm.params is None else INHERITED_WARM_UP
        end = (SETTLING - begin) / (1 - begin) if self.method.settles else 1.0
        variables = outer_variables(
            self.augment,
            warm.starts,
            options.optimizer,
            EVERY,
            logit_specs(self.space, warm.alpha, end),
            loss_specs(recipe, names_in(options.learn), warm.starts, EVERY["loss"]),
        ).to(device)
        learning = plan(options.estimator)
        self.scores = PathScores(self.space) if self.method.scored else None
        if self.method.scored:
            _require_no_architecture(options.estimator)
            learning = replace(learning, constant=frozenset({"architecture"}))
        self._first = select(dict(variables.raw), ALPHA)  # what an earlier search knows
        hyper = HyperLearner(variables, learning, warm.finder(), begin)
        flat = FlatNetwork(network)
        counts = splits.train.labels.bincount(minlength=len(dataset.classes))
        weights = class_weights(counts, recipe.class_weights)
        plain = NetworkProblem(flat, self.augment, hyper.constrain, recipe, weights)
        self.problem = SupernetProblem(
            plain, flat, self.space, self.method.relaxation, self.method.regularizers
        )
        seed = options.seed + 1
        size = options.batch_size
        feed = Feed(splits.train, splits.validation, size, self.augment, seed, recipe.sampling)
        super().__init__(plain, hyper, feed, device, warm.weights(flat.params))
        self._path: Weights | None = None  # of the selection, once it is trained alone
        self.seconds: Seconds | None = None  # measured at the first step of a budget of hours
        self.discrete()  # raise the error of an impossible limit now, not after the search

    @property
    def closing_steps(self) -> float:
        return (EVALUATED + CALIBRATED) / self.options.batch_size

    def temperature(self, fraction: float) -> float:
        """Return the softmax temperature at a fraction of the budget; one for scored logits."""
        if self.scores is not None:
            return 1.0
        cooled = (fraction - ANNEALING) / (SETTLING - ANNEALING)
        return FINAL_TEMPERATURE ** min(1.0, max(0.0, cooled))

    def lr_factor(self, fraction: float) -> float:
        """Return the factor of the learning rate; the schedule begins anew for a settled path."""
        if self.scores is not None:
            return super().lr_factor(min(1.0, fraction / SCORING))
        if not self.method.settles:
            return super().lr_factor(fraction)
        if fraction < SETTLING:
            return super().lr_factor(fraction / SETTLING)
        return super().lr_factor((fraction - SETTLING) / (1 - SETTLING))

    def doing(self, fraction: float) -> str:
        if self._unmeasured:
            return "measuring the speed of every option"
        return super().doing(fraction)

    @property
    def _unmeasured(self) -> bool:
        """Whether the selection needs the speed of every option, which is not yet known."""
        return self.method.timed and self.seconds is None and self.options.steps is None

    def step(self, fraction: float) -> int:
        if self._unmeasured:
            self.seconds = training_seconds(self.space, self.dataset.image_size, self.device)
        if self.scores is not None and fraction >= SCORING:
            self._score(self.scores, fraction)
            return 1
        if self._settles(fraction) and self._path is None:
            self._settle()
        return super().step(fraction)

    def _settles(self, fraction: float) -> bool:
        return self.method.settles and fraction >= SETTLING

    def _settle(self) -> None:
        """Train the selected path alone from now on; the logits stay as they are.

        A step then costs that of a discrete network, and the weights and all other learned values
        adapt to the path: nothing is lost when the search ends.
        """
        like = next(iter(self.hyper.raw.values()))
        self._path = member_weights(self.space, self._selected(1.0), like)
        hyper = self.hyper
        hyper.plan = replace(hyper.plan, constant=hyper.plan.constant | {"architecture"})

    def _score(self, scores: PathScores, fraction: float) -> None:
        """Score some paths on one validation batch, and set the logits."""
        self.hyper.begin_step(fraction, self.fraction)
        self.hyper.steps += 1
        self.fraction = fraction
        batch, relaxation = self.feed.held_out(), self.method.relaxation
        logits = select(self.hyper.variables.raw, ALPHA)
        paths = [relaxation(self.space, logits, 1.0, self._draw()) for _ in range(PATHS)]
        values = self.hyper.constrain(self.hyper.raw)
        with torch.no_grad():
            reports = torch.stack(
                [
                    self.plain.loss(self.problem.at(path), self.inner.params, values, batch)[1]
                    for path in paths
                ]
            )
        scores.add(paths, reports[:, 0].tolist())
        for name, value in scores.logits().items():
            first = self._first[name]
            self.hyper.variables.raw[ALPHA + name] = first + value.to(first)
        self._record("validation", reports.mean(0))

    def _draw(self) -> Any:
        return self.method.relaxation.draw(self.space, self.feed.generator)

    def bind(
        self, train: Sequence[Batch], validation: Batch | None, lr_factor: float = 1.0
    ) -> Bilevel:
        """Return the bilevel problem of a window; the relaxation draws once for each step."""
        draws = tuple(self._draw() for _ in train)
        temperature = self.temperature(self.fraction)
        phase = Phase(lr_factor, temperature, self.fraction, draws, self._path)
        return self.problem.bind(train, validation, phase)

    def weights(self, temperature: float | None = None) -> Weights:
        """Return the current mixing weights, without noise.

        Arguments:
            temperature: temperature of the softmaxes; None for that of the search.
        """
        if temperature is None:
            temperature = self.temperature(self.fraction)
        logits = select(self.hyper.variables.raw, ALPHA)
        return self.method.relaxation(self.space, logits, temperature, None)

    def trained(self) -> Weights:
        """Return the weights that a step trains: of the mixture, or of the settled path."""
        return self.weights() if self._path is None else self._path

    def report(self) -> dict[str, float]:
        found = self.means()
        learned, latest = self.hyper.values(), self.hyper.hypergradient
        found |= {f"learned/{name}": value for name, value in learned.items()}
        found |= {f"hypergradient/{name}": g for name, g in latest.items() if name in learned}
        weights = self.weights()
        found["expected/parameters"], found["expected/macs"] = self.costs.expected(weights)
        found["entropy"] = entropy(weights)
        found["skipped_hypergradients"] = self.hyper.variables.skipped.double()
        numbers = torch.stack([value.double() for value in found.values()]).tolist()  # one wait
        values = dict(zip(found, numbers))
        values["lr"] = values["learned/lr"] * self.lr_factor(self.fraction)
        values["fraction"] = self.fraction
        return values

    def status(self, values: dict[str, float]) -> str:
        losses = [f"{values[n]:.3f}" for n in ("loss/train", "loss/validation") if n in values]
        return (
            f"loss {'/'.join(losses)}, lr {values['lr']:.4f}, "
            f"~{values['expected/parameters'] / 1e3:.0f}k parameters"
        )

    def supernet(self) -> Network:
        """Return the supernet with its current weights."""
        network = self.network.export(self.inner.params)
        assert isinstance(network, Network)
        return network

    def discrete(self) -> SearchSpace:
        """Return the discrete space that selection gives now."""
        return self._selected(self.fraction)

    def _selected(self, fraction: float) -> SearchSpace:
        """Return what selection gives at the temperature of a fraction of the budget."""
        selector = self.method.selector
        if self.seconds is not None:
            selector = TimedKnapsack(self.seconds)
        weights = self.weights(self.temperature(fraction))
        return selector(self.space, weights, self.costs, self.options.limit)

    def evaluate(self, step: int, recorder: Recorder, last: bool = False) -> dict[str, float]:
        """Return the accuracy of the mixture and of its selection; record pictures."""
        return self.monitor.evaluate(self, step, recorder, last)

    def state_dict(self) -> dict[str, Any]:
        found = {**super().state_dict(), "seconds": self.seconds}
        if self.scores is not None:
            found |= {"scores": self.scores.state_dict(), "first_logits": self._first}
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seconds = state["seconds"]
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"])
            self._first = checkpoint.move(state["first_logits"], self.device)
        if self._settles(self.fraction):
            self._settle()

    def genotype(self, finished: bool = True) -> Genotype:
        """Return the selected network within the parameter limit, with the learned schedules.

        Arguments:
            finished: whether the search spent its whole budget.
        """
        schedules, space = self.hyper.schedules(), self.discrete()
        if self.options.fill:
            image, classes = self.dataset.image, len(self.dataset.classes)
            space = filled(space, image, classes, self.options.limit)
        return result(self.options, self.dataset, space, schedules, finished)


def _require_no_architecture(estimator: str) -> None:
    """Raise `UserError` if an estimator is given to logits that have no hypergradient."""
    if "architecture=" in estimator.replace(" ", ""):
        raise UserError(
            "--estimator architecture=... needs --method darts, because the other method scores "
            f"paths without hypergradients, got {estimator}; add it, or leave the part out"
        )


def space_of(options: SearchOptions) -> SearchSpace:
    """Return the search space at the width of the derived network."""
    assert options.channels is not None and options.stem_stride is not None
    return PRESETS[options.space](options.channels, options.cells, options.stem_stride)
