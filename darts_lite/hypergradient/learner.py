"""Learned hyperparameters for a training loop of one's own: model, loss and torch optimiser stay.

The model is evaluated as a pure function: buffers are cloned and the random state is put back
before every evaluation, so that an estimator sees one function however often it looks, dropout and
BatchNorm included. Only a training step moves them, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite.hypergradient.caveats import caveats
from darts_lite.hypergradient.check import Table, check_hypergradient
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.hyperparameters import (
    HyperParameters,
    HyperSpec,
    Interval,
    Kind,
    LogInterval,
)
from darts_lite.hypergradient.lr_finder import LearningRateFinder
from darts_lite.hypergradient.optimizers import Setting
from darts_lite.hypergradient.problem import (
    Bilevel,
    Estimator,
    Hyper,
    InnerState,
    Lookahead,
    Loss,
    Params,
    check_supported,
)
from darts_lite.hypergradient.torch_optimizers import SETTINGS, read_state, rule_of, write_state

Batch = Any
TrainingLoss = Callable[[Callable[..., Any], Batch, Mapping[str, Tensor]], Tensor]


class Learner:
    """Trains a model and learns hyperparameters of the training at once.

    A learned setting of the optimiser ("lr", "weight_decay", "momentum", "beta1", "beta2") replaces
    that of its parameter groups: a scalar in all of them, a vector of one value a group in each. A
    learned lr multiplies whatever a scheduler does to the groups' lr. Every other name is for the
    loss to use.

    Arguments:
        model: any module; `train()` or `eval()` as the caller left it.
        optimizer: SGD, Adam, AdamW, or another that `higher` knows.
        loss: `loss(model, batch, learned) -> scalar`, with the learned values by name. It must call
            the model that it is given.
        learn: names of the optimiser's settings, or a `HyperSpec` for anything else.
        steps: of the training; a learned value can travel its `HyperSpec.travel` in that time.
        estimator: of the hypergradient.
        outer_loss: on held-out data, if it is another; same signature.
    Raises: UnsupportedHyperparameter, UnsupportedOptimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: TrainingLoss,
        learn: Sequence[str | HyperSpec],
        steps: int,
        estimator: Estimator | None = None,
        outer_loss: TrainingLoss | None = None,
    ):
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.outer_loss = outer_loss or loss
        self.estimator: Estimator = estimator or OneStep()
        if isinstance(self.estimator, Unrolled) and self.estimator.anneal:
            raise ValueError(
                "Unrolled(anneal=True) only looks ahead and never trains; give it to "
                "`hypergradient` or use a LearningRateFinder, and another estimator here"
            )
        self.steps = steps
        self.rule = rule_of(optimizer)
        specs = [s if isinstance(s, HyperSpec) else self._spec(s) for s in learn]
        self.variables = HyperParameters(tuple(specs))
        self._carried: Mapping[str, Params] = {}
        self._names = [n for n, p in model.named_parameters() if p.requires_grad]
        self._group_of = self._groups()
        self.variables.to(self._params[0].device)
        kinds = self.variables.kinds
        check_supported(self.estimator, kinds)
        self._check_settings(kinds)
        # `initial_lr` is where a scheduler began: a learner may be made amid its schedule
        self._base = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        if "lr" in kinds and not all(base > 0 for base in self._base):
            raise ValueError("the lr of a parameter group is 0: a learned lr needs one above 0")
        normalised = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
        for text in caveats(self.estimator, kinds, normalised):
            warnings.warn(text, UserWarning, stacklevel=2)

    # --- what a loop calls ------------------------------------------------------------------

    def step(self, batch: Batch | list[Batch], held_out: Batch | None = None) -> Tensor:
        """Trains on a batch, or on a list of `estimator.steps` of them, and returns the loss.

        With `held_out` the hyperparameters are learned as well; without, the step is plain training
        with the current values. The optimiser's own `step`, which may come in between, uses the
        settings of its groups.
        """
        batches = self._batches(batch, self.estimator)
        window = _Window(self, batches, held_out)
        if held_out is None:
            state, loss = self._state(), None
            for t in range(len(batches)):
                state, (value, _) = window.problem.inner_step(state, self.variables.raw, t)
                loss = value if loss is None else loss
            if self.variables.begun:  # what passes between two hypergradients counts, too
                self.variables.update({}, len(batches) / self.steps)
        else:
            ahead = self._estimate(window)
            state, loss = ahead.state, ahead.inner[0]
            self.variables.update(ahead.hypergradient, len(batches) / self.steps)
        self._write(state, window)
        assert loss is not None
        return loss

    def hypergradient(
        self,
        batch: Batch | list[Batch],
        held_out: Batch,
        estimator: Estimator | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> dict[str, Tensor]:
        """The derivatives in the raw values; moves nothing.

        Arguments: `estimator` and `kinds`, if they are to differ from those of the training.
        """
        batches = self._batches(batch, estimator or self.estimator)
        return self._estimate(_Window(self, batches, held_out), estimator, kinds).hypergradient

    def look(self, search: LearningRateFinder, batches: list[Batch], held_out: Batch) -> None:
        """One look of a search for the lr, which is taken without its schedule; moves "lr" only."""
        groups = self.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        for group, base in zip(groups, self._base):
            group["lr"] = base
        try:
            found = self.hypergradient(batches, held_out, search.estimator, search.kinds)
        finally:
            for group, lr in zip(groups, scheduled):
                group["lr"] = lr
        search.update(self.variables, found)

    def check(
        self, batches: list[Batch], held_out: Batch, estimators: Mapping[str, Estimator]
    ) -> Table:
        """`check_hypergradient` on the real model; use float64 and a smooth activation."""
        window = _Window(self, batches, held_out)
        leaves, kinds = self.variables.leaves(), self.variables.kinds
        state = self._state()._replace(carried={})  # the truth begins here, without tangents
        return check_hypergradient(
            window.problem, state, leaves, kinds, estimators, horizon=len(batches)
        )

    @staticmethod
    def _batches(batch: Batch | list[Batch], estimator: Estimator) -> list[Batch]:
        """A list is a window only for who looks at several: loaders of torch yield lists."""
        return batch if isinstance(batch, list) and estimator.steps > 1 else [batch]

    def values(self) -> dict[str, Tensor]:
        """The learned values."""
        return self.variables.values()

    def state_dict(self) -> dict[str, object]:
        """Of the learned values; the model's and the optimiser's are their own."""
        return {"variables": self.variables.state_dict(), "carried": self._carried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.variables.load_state_dict(state["variables"])
        self._carried = state["carried"]

    # --- between torch and the pure functions -----------------------------------------------

    @property
    def _params(self) -> Params:
        return tuple(self.model.get_parameter(n) for n in self._names)

    def _state(self) -> InnerState:
        params = tuple(p.detach().clone() for p in self._params)
        state = read_state(self.optimizer, self._params, self.rule)
        return InnerState(params, state, self._carried)

    def _estimate(
        self,
        window: _Window,
        estimator: Estimator | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> Lookahead:
        estimator = estimator or self.estimator
        if len(window.batches) != estimator.steps:
            raise ValueError(
                f"{type(estimator).__name__} looks at a list of {estimator.steps} batches, "
                f"not {len(window.batches)}"
            )
        kinds = kinds or self.variables.kinds
        state = self._state()
        if estimator != self.estimator:
            state = state._replace(carried={})  # another's
        return estimator(window.problem, state, self.variables.leaves(), kinds)

    @torch.no_grad()
    def _write(self, state: InnerState, window: _Window) -> None:
        for p, new in zip(self._params, state.params):
            p.copy_(new)
        write_state(self.optimizer, self._params, self.rule, state.optimizer)
        self._carried = state.carried
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
        window.commit(state.optimizer.step - window.began)

    def settings(self, raw: Hyper) -> dict[str, Setting]:
        """The optimiser's settings, one value a parameter tensor."""
        learned = self.variables.constrain(raw)
        groups = self.optimizer.param_groups
        found: dict[str, Setting] = {}
        for name in self.rule.settings:
            key, place = SETTINGS[name]
            own = [g[key] if place is None else g[key][place] for g in groups]
            if name in learned:
                value = learned[name]
                values = value.unbind() if value.dim() else (value,) * len(groups)
                if name == "lr":
                    values = tuple(v * (o / b) for v, o, b in zip(values, own, self._base))
                own = list(values)
            found[name] = tuple(own[g] for g in self._group_of)
        return found

    def _groups(self) -> list[int]:
        where = {p: i for i, g in enumerate(self.optimizer.param_groups) for p in g["params"]}
        missing = [n for n, p in zip(self._names, self._params) if p not in where]
        if missing:
            raise ValueError(f"the optimiser does not move {missing[0]!r}; add it or freeze it")
        return [where[p] for p in self._params]

    def _spec(self, name: str) -> HyperSpec:
        """The usual range around what the optimiser has now."""
        if name not in SETTINGS:
            raise ValueError(f"{name!r} is no setting of an optimiser; give a HyperSpec for it")
        if name not in self.rule.settings:
            raise ValueError(f"{type(self.optimizer).__name__} has no {name!r} to learn")
        key, place = SETTINGS[name]
        group = self.optimizer.param_groups[0]
        value = group.get("initial_lr", group["lr"]) if name == "lr" else group[key]
        start = float(value if place is None else value[place])
        if name in ("lr", "weight_decay") and not start > 0:
            raise ValueError(f"{name} is {start}: learned on a log scale, it must start above 0")
        bijection = {
            "lr": LogInterval(start / 1e4, start * 1e4),
            "weight_decay": LogInterval(start / 1e4, start * 1e4),
        }.get(name, Interval(0.0, 1.0))
        return HyperSpec(name, torch.tensor(start), bijection, "optimizer")

    def _check_settings(self, kinds: Mapping[str, str]) -> None:
        groups = len(self.optimizer.param_groups)
        for name, kind in kinds.items():
            if kind == "optimizer" and name not in self.rule.settings:
                raise ValueError(
                    f"{type(self.optimizer).__name__} has no setting {name!r}; it has "
                    f"{', '.join(self.rule.settings)}"
                )
            size = self.variables.raw[name].numel()
            if name in self.rule.settings and self.variables.raw[name].dim() and size != groups:
                raise ValueError(f"{name} has {size} values for {groups} parameter groups")


@dataclass
class _Window:
    """Some batches bound to the model as a pure problem.

    What a training step does beside the parameters, to buffers and random state, is taken from the
    first evaluation of each step's loss: estimators begin with it.
    """

    learner: Learner
    batches: list[Batch]
    held_out: Batch | None
    _begins: list[tuple[Any, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        buffers = {n: b.clone() for n, b in self.learner.model.named_buffers()}
        self._begins.append((_random_state(), buffers))
        self.began = self.learner._state().optimizer.step
        self.problem = Bilevel(
            self._inner, self._outer, self.learner.rule.optimizer, self.learner.settings
        )

    def _inner(self, params: Params, raw: Hyper, t: int) -> Loss:
        loss, after = self._evaluate(self.learner.loss, params, raw, self.batches[t], t)
        if t + 1 == len(self._begins):
            self._begins.append(after)
        return loss, None

    def _outer(self, params: Params, raw: Hyper) -> Loss:
        assert self.held_out is not None
        last = len(self._begins) - 1
        return self._evaluate(self.learner.outer_loss, params, raw, self.held_out, last)[0], None

    def _evaluate(
        self, function: TrainingLoss, params: Params, raw: Hyper, batch: Batch, t: int
    ) -> tuple[Tensor, tuple[Any, dict[str, Tensor]]]:
        model = self.learner.model
        random, old = self._begins[t]
        buffers = {n: b.clone() for n, b in old.items()}
        tensors = {**dict(zip(self.learner._names, params)), **buffers}

        def call(*arguments: Any, **keywords: Any) -> Any:
            return functional_call(model, tensors, arguments, keywords)

        with _put_back():
            _set_random_state(random)
            loss = function(call, batch, self.learner.variables.constrain(raw))
            after = _random_state()
        return loss, (after, {n: tensors[n].detach() for n in old})  # written to, or replaced

    @torch.no_grad()
    def commit(self, steps: int) -> None:
        """Lets the model's buffers and the random state be those after some of the window."""
        random, buffers = self._begins[steps]
        for name, buffer in self.learner.model.named_buffers():
            buffer.copy_(buffers[name])
        _set_random_state(random)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def _put_back() -> Any:
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)
