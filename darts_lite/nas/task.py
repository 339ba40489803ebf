"""The joint search: learns weights, architecture, learning rate, weight decay and augmentation.

Phases by fraction of the budget:

1. warm-up: only the weights are trained;
2. joint: weights and outer variables are learned together;
3. annealing: the softmax temperature falls until one operation dominates each edge;
4. selection of the discrete network, after the last step.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import darts_lite
from darts_lite.architecture.cost import CostTable, network_cost
from darts_lite.architecture.flat_network import FlatNetwork, Params
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import PRESETS
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import SearchSpace
from darts_lite.architecture.weights import Weights
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState, LearningRateFinder
from darts_lite.hypergradient.hyperparameters import select
from darts_lite.hypergradient.problem import detach
from darts_lite.nas.method import Method, method_of
from darts_lite.nas.monitor import CALIBRATED, EVALUATED, Monitor
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.problem import ALPHA, Phase, SupernetProblem, logit_specs
from darts_lite.nas.relaxation import entropy
from darts_lite.nas.warm_start import COLD, Warm
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint
from darts_lite.training.feed import Feed
from darts_lite.training.hyper_learner import HyperLearner, Window, plan
from darts_lite.training.options import MAY_CHANGE
from darts_lite.training.problem import (
    OPTIMIZERS,
    NetworkProblem,
    augmentation_for,
    outer_variables,
)

WARM_UP = 0.25  # fraction of the budget
INHERITED_WARM_UP = 0.05  # fraction of the budget, with the weights of an earlier search
KNOWN_LOOKS = 10  # look-aheads that a known learning rate saves; the rest move it up to 2.9 times
ANNEALING = 0.75  # fraction of the budget at which annealing begins
FINAL_TEMPERATURE = 0.2
EVERY = {"magnitude": 4, "mixing": 4, "probability": 8}  # steps from one hypergradient to the next


class SearchTask:
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
        self.options, self.dataset, self.splits, self.device = options, dataset, splits, device
        self.image = (dataset.channels, *dataset.image_size)
        self.space = space_of(options)
        self.costs = CostTable(self.space, self.image, len(dataset.classes)).to(device)
        self.method = method or method_of(options, self.costs)
        supernet = self.space.with_channels(options.search_channels)
        generator = torch.Generator().manual_seed(options.seed)
        network = Network(supernet, self.image, len(dataset.classes), generator).to(device)
        self.network = FlatNetwork(network)
        self.augment = augmentation_for(dataset, options.augment)
        alpha = logit_specs(self.space, warm.alpha)
        variables = outer_variables(self.augment, warm.starts, options.optimizer, EVERY, alpha)
        self.hyper = HyperLearner(
            variables.to(device),
            plan(options.estimator),
            _finder(warm),
            begin=WARM_UP if warm.params is None else INHERITED_WARM_UP,
        )
        recipe = OPTIMIZERS[options.optimizer].recipe
        plain = NetworkProblem(self.network, self.augment, variables.constrain, recipe)
        self.problem = SupernetProblem(
            plain, self.network, self.space, self.method.relaxation, self.method.regularizers
        )
        params = self._inherited(warm)
        self.inner = InnerState(params, plain.optimizer.init(params))
        self.feed = Feed(
            splits.train, splits.validation, options.batch_size, self.augment, options.seed + 1
        )
        self.fraction = 0.0
        self.monitor = Monitor()
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self.discrete()  # raise the error of an impossible limit now, not after the search

    def _inherited(self, warm: Warm) -> Params:
        """Return the starting weights: of the warm start, else of a new network."""
        own = self.network.params
        if warm.params is None:
            return own
        sizes, expected = ([len(vector) for vector in ps] for ps in (warm.params, own))
        if sizes != expected:
            raise UserError(
                f"the weights of the warm start must have the sizes of this supernet, {expected}, "
                f"got {sizes}; start without the weights, they are of another version"
            )
        return tuple(vector.to(self.device) for vector in warm.params)

    # --- the step -------------------------------------------------------------------------

    def temperature(self, fraction: float) -> float:
        """Return the softmax temperature at a fraction of the budget."""
        return FINAL_TEMPERATURE ** max(0.0, (fraction - ANNEALING) / (1 - ANNEALING))

    @property
    def closing_steps(self) -> float:
        return (EVALUATED + CALIBRATED) / self.options.batch_size

    def step(self, fraction: float) -> None:
        hyper = self.hyper
        hyper.remember(fraction, self.fraction)
        phase = Phase(
            lr_factor=self.problem.plain.lr_factor(fraction),
            temperature=self.temperature(fraction),
            fraction=fraction,
            draws=self.method.relaxation.draw(self.space, self.feed.generator),
        )
        flat = phase._replace(lr_factor=1.0)
        hyper.find_rate(
            fraction, self.inner, self._window, lambda t, v: self.problem.bind(t, v, flat)
        )
        if fraction < hyper.begin:
            batch = self.feed.batch(self.augmenting(), self.fraction)
            problem = self.problem.bind([batch], None, phase)
            state, (_, report) = problem.inner_step(self.inner, hyper.variables.raw)
            self.inner = detach(state)
            self._record("train", report)
        else:
            ahead = hyper.learn(
                hyper.due(),
                fraction,
                self.inner,
                self._window,
                lambda t, v: self.problem.bind(t, v, phase),
            )
            self.inner = ahead.state
            self._record("train", ahead.inner[1])
            if ahead.outer is not None:
                self._record("validation", ahead.outer[1])
        self.fraction = fraction
        hyper.steps += 1

    def _window(self, steps: int, turn: bool) -> Window:
        return self.feed.window(steps, turn, self.augmenting(), self.fraction)

    def augmenting(self) -> dict[str, Tensor]:
        """Return the learned values of the augmentation by name."""
        values = self.hyper.variables.values()
        return {n: values[n] for n in self.augment.names}

    # --- reports --------------------------------------------------------------------------

    def _record(self, split: str, report: Tensor) -> None:
        total, count = self._sums.get(split, (torch.zeros_like(report), 0))
        self._sums[split] = (total + report, count + 1)

    def weights(self, temperature: float | None = None) -> Weights:
        """Return the current mixing weights, without noise."""
        if temperature is None:
            temperature = self.temperature(self.fraction)
        logits = select(self.hyper.variables.raw, ALPHA)
        return self.method.relaxation(self.space, logits, temperature, None)

    def report(self) -> dict[str, float]:
        found: dict[str, Tensor] = {}
        for split, (total, count) in self._sums.items():
            found[f"loss/{split}"], found[f"accuracy/{split}"] = (total / count).unbind()
        self._sums.clear()
        learned, latest = self.hyper.values(), self.hyper.hypergradient
        found |= {f"learned/{name}": value for name, value in learned.items()}
        found |= {f"hypergradient/{name}": g for name, g in latest.items() if name in learned}
        weights = self.weights()
        found["expected/parameters"], found["expected/macs"] = self.costs.expected(weights)
        found["entropy"] = entropy(weights)
        found["skipped_hypergradients"] = self.hyper.variables.skipped.double()
        numbers = torch.stack([value.double() for value in found.values()]).tolist()  # one wait
        values = dict(zip(found, numbers))
        values["lr"] = values["learned/lr"] * self.problem.plain.lr_factor(self.fraction)
        values["fraction"] = self.fraction
        return values

    def status(self, values: dict[str, float]) -> str:
        losses = [f"{values[n]:.3f}" for n in ("loss/train", "loss/validation") if n in values]
        return (
            f"loss {'/'.join(losses)}, lr {values['lr']:.4f}, "
            f"~{values['expected/parameters'] / 1e3:.0f}k parameters"
        )

    def discrete(self) -> SearchSpace:
        """Return the discrete space that selection gives now."""
        return self.method.selector(self.space, self.weights(), self.costs, self.options.limit)

    def evaluate(self, step: int, recorder: Recorder, last: bool = False) -> dict[str, float]:
        """Return the accuracy of the mixture and of its selection; record pictures."""
        return self.monitor.evaluate(self, step, recorder, last)

    # --- the result -----------------------------------------------------------------------

    def genotype(self, finished: bool = True) -> Genotype:
        """Return the selected network within the parameter limit, with the learned schedules.

        Arguments:
            finished: whether the search spent its whole budget.
        """
        space, options = self.discrete(), self.options
        cost = network_cost(space, self.image, len(self.dataset.classes))
        record = {n: v for n, v in asdict(options).items() if n not in MAY_CHANGE}
        record["warm_start"] = ", ".join(options.warm_start) or None
        return Genotype(
            space=space,
            image=self.image,
            classes=self.dataset.classes,
            parameters=cost.parameters,
            macs=cost.macs,
            recipe=Recipe(
                optimizer=OPTIMIZERS[options.optimizer].recipe.optimizer,
                batch_size=options.batch_size,
                augment=options.augment,
                schedules=self.hyper.schedules(),
            ),
            source=Source(
                dataset=options.dataset or self.dataset.name,
                data_dir=options.data_dir,
                image_size=options.image_size,
                subset=options.subset,
            ),
            dataset=dict(self.dataset.fingerprint),  # type: ignore[arg-type]
            search=record,
            finished=finished,
            seed=options.seed,
            versions={
                "darts_lite": darts_lite.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            **checkpoint.inner_state(self.inner),
            "hyper": self.hyper.state_dict(),
            "feed": self.feed.state_dict(),
            "fraction": self.fraction,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = checkpoint.move(state, self.device)
        self.inner = checkpoint.restored(self.inner, state)
        self.hyper.load_state_dict(state["hyper"])
        self.feed.load_state_dict(state["feed"])
        self.fraction = state["fraction"]


def space_of(options: SearchOptions) -> SearchSpace:
    """Return the search space at the width of the derived network."""
    assert options.channels is not None
    return PRESETS[options.space](options.channels, options.cells, options.stem_stride)


def _finder(warm: Warm) -> LearningRateFinder:
    """Return the learning-rate finder, with fewer look-aheads if the learning rate is known.

    With inherited weights there are no look-aheads. From trained weights only low learning rates
    work (docs/hypergradients.md), so look-aheads would lower the learning rate from search to
    search, but the final training uses it on new weights.
    """
    if "lr" not in warm.starts:
        return LearningRateFinder()
    return LearningRateFinder(done=KNOWN_LOOKS if warm.params is None else LearningRateFinder.looks)
