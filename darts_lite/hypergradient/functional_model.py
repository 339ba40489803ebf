"""A torch module and a torch optimizer as a pure bilevel problem.

An estimator may evaluate the same step several times and must see the same function each time.
So every evaluation gets cloned buffers (BatchNorm statistics) and a restored random state (dropout
masks). Buffers and random state advance once per training step, when `Window.commit` is called.

This module knows nothing of estimators or of how a hyperparameter is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite.hypergradient.optimizers import OptimizerState, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss, Params
from darts_lite.hypergradient.torch_optimizers import SETTINGS, read_state, rule_of, write_state

Batch = Any
TrainingLoss = Callable[[Callable[..., Any], Batch, Mapping[str, Tensor]], Tensor]
"""loss(model, batch, learned) -> scalar; `learned` holds the learned values by name."""

RandomState = tuple[Tensor, list[Tensor]]  # state of the CPU and of every CUDA device in use
Buffers = dict[str, Tensor]


class FunctionalModel:
    """Read and write a module and its optimizer as values.

    Arguments:
        model: any module; only parameters with `requires_grad` are trained.
        optimizer: SGD, Adam, AdamW, or another optimizer that `higher` supports.
    Raises:
        UnsupportedOptimizer: the optimizer, or one of its options, has no derivative here.
        ValueError: a trainable parameter is in no parameter group.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.model, self.optimizer = model, optimizer
        self.rule = rule_of(optimizer)
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        self.group_of = self._group_of()  # index of the parameter group, per parameter tensor
        # A scheduler stores the initial lr in `initial_lr`. This object may be created later.
        self.base_lr = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]

    def _group_of(self) -> list[int]:
        groups = enumerate(self.optimizer.param_groups)
        where = {p: i for i, group in groups for p in group["params"]}
        missing = [n for n, p in zip(self.names, self.params) if p not in where]
        if missing:
            raise ValueError(
                f"every trainable parameter must be in the optimizer, got none for {missing[0]!r}; "
                "add it to a parameter group or freeze it"
            )
        return [where[p] for p in self.params]

    @property
    def params(self) -> Params:
        """Trainable parameters of the module, not copied."""
        return tuple(self.model.get_parameter(n) for n in self.names)

    @property
    def optimizer_state(self) -> OptimizerState:
        """Optimizer state as values."""
        return read_state(self.optimizer, self.params, self.rule)

    def inner_state(self, carried: Mapping[str, Params]) -> InnerState:
        """Copy of the parameters and of the optimizer state."""
        params = tuple(p.detach().clone() for p in self.params)
        return InnerState(params, self.optimizer_state, carried)

    @torch.no_grad()
    def write(self, state: InnerState) -> None:
        """Put a state back into the module and the optimizer."""
        for p, new in zip(self.params, state.params):
            p.copy_(new)
        write_state(self.optimizer, self.params, self.rule, state.optimizer)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers read it

    def settings(self, learned: Mapping[str, Tensor]) -> dict[str, Setting]:
        """Optimizer settings by name, each with one value per parameter tensor.

        A learned value replaces the value of the parameter groups. A learned lr is multiplied by
        the factor between a group's lr now and its initial lr, which is the schedule.

        Arguments:
            learned: constrained values by name; a scalar, or one value per parameter group.
        """
        groups = self.optimizer.param_groups
        found: dict[str, Setting] = {}
        for name in self.rule.settings:
            key, place = SETTINGS[name]
            own = [g[key] if place is None else g[key][place] for g in groups]
            if name in learned:
                value = learned[name]
                values = value.unbind() if value.dim() else (value,) * len(groups)
                if name == "lr":
                    values = tuple(v * (o / b) for v, o, b in zip(values, own, self.base_lr))
                own = list(values)
            found[name] = tuple(own[g] for g in self.group_of)
        return found


class Window:
    """A few batches bound to a model as one pure `Bilevel` problem.

    The first evaluation of each step's loss records the buffers and the random state after that
    step. Every estimator evaluates the steps in order before it does anything else.

    Arguments:
        model: the model and its optimizer.
        batches: training batches, one per step.
        held_out: validation batch; None for plain training.
        loss: training loss.
        outer_loss: validation loss.
        constrain: raw hyperparameters to the values that the loss and the optimizer see.
    """

    def __init__(
        self,
        model: FunctionalModel,
        batches: list[Batch],
        held_out: Batch | None,
        loss: TrainingLoss,
        outer_loss: TrainingLoss,
        constrain: Callable[[Hyper], dict[str, Tensor]],
    ):
        self.model, self.batches, self.held_out = model, batches, held_out
        self.loss, self.outer_loss, self.constrain = loss, outer_loss, constrain
        buffers = {n: b.clone() for n, b in model.model.named_buffers()}
        self._starts: list[tuple[RandomState, Buffers]] = [(_random_state(), buffers)]
        self.first_step = model.optimizer_state.step
        self.problem = Bilevel(
            self._inner,
            self._outer,
            model.rule.optimizer,
            lambda raw: model.settings(constrain(raw)),
        )

    def _inner(self, params: Params, raw: Hyper, t: int) -> Loss:
        loss, after = self._evaluate(self.loss, params, raw, self.batches[t], t)
        if t + 1 == len(self._starts):
            self._starts.append(after)
        return loss, None

    def _outer(self, params: Params, raw: Hyper) -> Loss:
        assert self.held_out is not None
        last = len(self._starts) - 1
        return self._evaluate(self.outer_loss, params, raw, self.held_out, last)[0], None

    def _evaluate(
        self, function: TrainingLoss, params: Params, raw: Hyper, batch: Batch, t: int
    ) -> tuple[Tensor, tuple[RandomState, Buffers]]:
        """Loss from the start of step t, and buffers and random state afterwards."""
        model = self.model.model
        random, old = self._starts[t]
        buffers = {n: b.clone() for n, b in old.items()}
        tensors = {**dict(zip(self.model.names, params)), **buffers}

        def call(*arguments: Any, **keywords: Any) -> Any:
            return functional_call(model, tensors, arguments, keywords)

        with _restored_random_state():
            _set_random_state(random)
            loss = function(call, batch, self.constrain(raw))
            after = _random_state()
        # A module may write into a buffer or replace it; `tensors` has the result of both.
        return loss, (after, {n: tensors[n].detach() for n in old})

    @torch.no_grad()
    def commit(self, state: InnerState) -> None:
        """Write a state of this window, its buffers and its random state to the model."""
        self.model.write(state)
        random, buffers = self._starts[state.optimizer.step - self.first_step]
        for name, buffer in self.model.model.named_buffers():
            buffer.copy_(buffers[name])
        _set_random_state(random)


def _random_state() -> RandomState:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else []


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def _restored_random_state() -> Iterator[None]:
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)
