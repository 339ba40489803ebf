"""A torch module and a torch optimizer as a pure bilevel problem.

An estimator may evaluate the same step several times and must see the same function each time.
So every evaluation gets cloned buffers (BatchNorm statistics) and restored random states (dropout
masks). Buffers and random states advance once per training step, when `Window.commit` is called.

While a loss is evaluated, the module itself holds the tensors of the evaluation. So the loss may
use all of the module: its methods, its parts, and modules that occur several times.

This module knows nothing of estimators or of how a hyperparameter is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from darts_lite.hypergradient.optimizers import Clipped, Optimizer, OptimizerState, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss, Params
from darts_lite.hypergradient.random_sources import Generator, RandomSources
from darts_lite.hypergradient.ranks import Ranks
from darts_lite.hypergradient.torch_optimizers import (
    SETTINGS,
    read_state,
    read_step,
    rule_of,
    write_state,
)

Batch = Any
TrainingLoss = Callable[[Any, Batch, Mapping[str, Tensor]], Tensor]
"""loss(model, batch, learned) -> scalar; `learned` holds the learned values by name."""

Buffers = dict[str, Tensor]
Places = list[tuple[dict[str, Any], str, str]]  # a dictionary of a module, its key, name of tensor
SAME = 1e-5  # relative difference of two values of one function: rounding of parallel sums


class FunctionalModel:
    """Read and write a module and its optimizer as values.

    Arguments:
        model: any module; only parameters with `requires_grad` are trained. Of a
            DistributedDataParallel, its `.module`, with the derivatives of the whole batch.
        optimizer: an optimizer of torch.optim with a rule here (see `rule_of`).
        generators: generators that the loss draws from, beside the global ones.
        clip: largest norm of the gradient; None for no limit.
        max_grad: largest absolute entry of the gradient; None for no limit.
    Raises:
        UnsupportedOptimizer: the optimizer, or one of its options, has no derivative here.
        ValueError: as `follow`, or the model is a DataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generators: Sequence[Generator] = (),
        clip: float | None = None,
        max_grad: float | None = None,
    ):
        if isinstance(model, nn.DataParallel):
            raise ValueError(
                "model must be one module on one device, got DataParallel; give its `.module`, or "
                "one process per device with DistributedDataParallel"
            )
        self.ranks: Ranks | None = None
        if isinstance(model, DistributedDataParallel):
            # It averages in `backward`, which is not called here; `Ranks` averages instead.
            self.ranks, model = Ranks(model.process_group), cast(nn.Module, model.module)
        self.model, self.optimizer = model, optimizer
        self.random = RandomSources(tuple(generators))
        self.rule = rule_of(optimizer)
        self.update: Optimizer = self.rule.optimizer
        if clip is not None or max_grad is not None:
            self.update = Clipped(self.rule.optimizer, clip, max_grad)
        self.known: dict[str, nn.Parameter] = {}  # all parameters of the module
        self.names: list[str] = []
        self.params: Params = ()  # trainable parameters of the module, not copied
        self.group_of: list[int] = []  # index of the parameter group, per parameter tensor
        self.base_lr: list[float] = []
        self.follow()

    def follow(self) -> bool:
        """Follow the caller's frozen and new parameters and parameter groups.

        Returns:
            Whether other parameters than before are trained.
        Raises:
            ValueError: a trainable parameter of the model is in no parameter group, or a trainable
                parameter of the optimizer is not the model's.
        """
        before, groups = self.names, self.optimizer.param_groups
        # A scheduler stores the initial lr in `initial_lr`. This object may be created later.
        new = groups[len(self.base_lr) :]
        self.base_lr += [float(g.get("initial_lr", g["lr"])) for g in new]
        where = {p: i for i, group in enumerate(groups) for p in group["params"]}
        known = self.known = dict(self.model.named_parameters())
        self.names = [n for n, p in known.items() if p.requires_grad]
        self.params = tuple(known[n] for n in self.names)
        missing = [n for n in self.names if known[n] not in where]
        if missing:
            raise ValueError(
                f"every trainable parameter must be in the optimizer, got none for {missing[0]!r}; "
                "add it to a parameter group or freeze it"
            )
        own = set(known.values())
        foreign = [p for p in where if p.requires_grad and p not in own]
        if foreign:
            raise ValueError(
                "every trainable parameter of the optimizer must be the model's, got one of shape "
                f"{tuple(foreign[0].shape)} in parameter group {where[foreign[0]]} that is not; "
                "give the Learner an nn.ModuleDict of all modules, with an nn.ParameterDict for "
                "single parameters"
            )
        self.group_of = [where[known[n]] for n in self.names]
        return self.names != before

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

    The first evaluation of each step's loss records the buffers and the random states after that
    step. Every estimator evaluates the steps in order before it does anything else.

    Arguments:
        model: the model and its optimizer.
        batches: training batches of each step; a step's loss is the mean over its batches.
        held_out: validation batch; None for plain training.
        loss: training loss.
        outer_loss: validation loss.
        constrain: raw hyperparameters to the values that the loss and the optimizer see.
    """

    def __init__(
        self,
        model: FunctionalModel,
        batches: list[list[Batch]],
        held_out: Batch | None,
        loss: TrainingLoss,
        outer_loss: TrainingLoss,
        constrain: Callable[[Hyper], dict[str, Tensor]],
    ):
        self.model, self.batches, self.held_out = model, batches, held_out
        self.loss, self.outer_loss, self.constrain = loss, outer_loss, constrain
        self._own = dict(model.model.named_buffers())
        buffers = {n: b.clone() for n, b in self._own.items()}
        self._places = _places(model.model, {**model.known, **self._own})
        self._starts: list[tuple[Any, Buffers]] = [(model.random.state(), buffers)]
        self.first_step = read_step(model.optimizer, model.params)
        self.problem = Bilevel(
            self._inner,
            self._outer,
            model.update,
            lambda raw: model.settings(constrain(raw)),
        )

    def _inner(self, params: Params, raw: Hyper, t: int) -> Loss:
        loss, after = self._evaluate(self._mean, params, raw, self.batches[t], t)
        if t + 1 == len(self._starts):
            self._starts.append(after)
        return loss, None

    def _mean(self, model: Any, batches: list[Batch], learned: Mapping[str, Tensor]) -> Tensor:
        """Mean training loss of the batches, one after the other."""
        losses = [self.loss(model, batch, learned) for batch in batches]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _outer(self, params: Params, raw: Hyper) -> Loss:
        assert self.held_out is not None
        last = len(self._starts) - 1
        return self._evaluate(self.outer_loss, params, raw, self.held_out, last)[0], None

    def _evaluate(
        self, function: TrainingLoss, params: Params, raw: Hyper, batch: Batch, t: int
    ) -> tuple[Tensor, tuple[Any, Buffers]]:
        """Loss from the start of step t, and buffers and random states afterwards."""
        (states, old), begin = self._starts[t], self._starts[0][0]
        buffers = {n: b.clone() for n, b in old.items()}
        tensors = {**dict(zip(self.model.names, params)), **buffers}
        random, ranks = self.model.random, self.model.ranks
        if ranks is not None:
            shared = ranks.share((*params, *raw.values()))
            tensors |= zip(self.model.names, shared)
            raw = dict(zip(raw, shared[len(params) :]))
        # Between two evaluations of a window, all random states are those of its beginning.
        if states is not begin:
            random.restore(states)
        try:
            with _holding(self._places, tensors):
                loss = function(self.model.model, batch, self.constrain(raw))
            after = random.state()
        finally:
            random.restore(begin)
        loss = loss if ranks is None else ranks.mean(loss)
        # A module may write into a buffer or replace it; `tensors` has the result of both.
        return loss, (after, {n: tensors[n].detach() for n in old})

    @torch.no_grad()
    def check(self, raw: Hyper) -> bool:
        """Check that both losses return one value for the same arguments.

        Arguments:
            raw: raw hyperparameters.
        Returns:
            Whether a module computes in half precision, by autocast or by its own dtype.
        Raises:
            ValueError: a loss draws from something that is not restored.
        """
        params, dtypes = tuple(p.detach() for p in self.model.params), set[torch.dtype]()
        losses = (
            ("loss", self._mean, self.batches[0]),
            ("outer_loss", self.outer_loss, self.held_out),
        )
        for name, function, batch in losses:
            with _dtypes(self.model.model) as seen:
                a, b = (self._evaluate(function, params, raw, batch, 0)[0] for _ in range(2))
            dtypes |= seen
            if bool((a - b).abs() > SAME * a.abs()):
                raise ValueError(
                    f"{name} must return one value for the same arguments, got {float(a):.6g} and "
                    f"then {float(b):.6g}; give the Learner `generators=[...]` that the loss draws "
                    "from, or draw outside of the loss and put the draws into the batch"
                )
        return bool(dtypes & {torch.bfloat16, torch.float16})

    @torch.no_grad()
    def commit(self, state: InnerState) -> None:
        """Write a state of this window and its buffers to the model; advance the random states."""
        self.model.write(state)
        states, buffers = self._starts[state.optimizer.step - self.first_step]
        for name, buffer in self._own.items():
            buffer.copy_(buffers[name])
        if self.model.ranks is not None:
            self.model.ranks.copy_first(tuple(self.model.model.buffers()))
        self.model.random.restore(states)


@contextmanager
def _dtypes(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """Collect the dtypes of what the parts of a model return."""
    seen: set[torch.dtype] = set()

    def see(_: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.add(output.dtype)

    handles = [module.register_forward_hook(see) for module in model.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _places(model: nn.Module, tensors: Mapping[str, Tensor]) -> Places:
    """Every place of a tensor in a module, once: modules and tensors may occur several times."""
    names = {id(t): n for n, t in tensors.items()}
    stores = (store for m in model.modules() for store in (m._parameters, m._buffers))
    return [(store, k, names[id(t)]) for store in stores for k, t in store.items() if t is not None]


@contextmanager
def _holding(places: Places, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Put tensors into a module; at the end take them out again, also replaced ones."""
    places = [place for place in places if place[2] in tensors]
    before = [store[key] for store, key, _ in places]
    for store, key, name in places:
        store[key] = tensors[name]
    try:
        yield
    finally:
        for (store, key, name), old in zip(places, before):
            tensors[name], store[key] = store[key], old
