"""Learned hyperparameters in your own training loop: model, loss and torch optimizer stay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from darts_lite.hypergradient.caveats import caveats
from darts_lite.hypergradient.check import Table, check_hypergradient
from darts_lite.hypergradient.estimators.interface import Estimator, Lookahead, check_supported
from darts_lite.hypergradient.estimators.one_step import OneStep
from darts_lite.hypergradient.estimators.per_kind import PerKind
from darts_lite.hypergradient.estimators.unrolled import Unrolled
from darts_lite.hypergradient.functional_model import (
    Batch,
    FunctionalModel,
    TrainingLoss,
    Window,
)
from darts_lite.hypergradient.hyperparameters import (
    HyperParameters,
    HyperSpec,
    Interval,
    Kind,
    LogInterval,
)
from darts_lite.hypergradient.lr_finder import LearningRateFinder
from darts_lite.hypergradient.problem import Params
from darts_lite.hypergradient.random_sources import Generator
from darts_lite.hypergradient.torch_optimizers import SETTINGS, call_hooks


class Learner:
    """Train a model and learn hyperparameters of the training at the same time.

    `Learner.step` replaces `zero_grad`, `backward`, clipping, accumulation and `optimizer.step`.

    - A learned optimizer setting ("lr", "weight_decay", "momentum", "beta1", "beta2") replaces the
      value of the parameter groups. A scalar serves all groups; a vector has one value per group.
    - A learned lr is multiplied by the schedule that a torch scheduler applies to the groups' lr.
    - Every other learned value is passed to the loss.

    Arguments:
        model: the module that is trained; an `nn.ModuleDict` for several modules. For a
            DistributedDataParallel, every process gives its share of each batch, and the loss gets
            its `.module`; the processes must call `step` together. The caller chooses `train()` or
            `eval()`, and may freeze or add parameters between two steps (tangents of an estimator
            that carries them then begin again).
        optimizer: SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop or Muon.
        loss: `loss(model, batch, learned) -> scalar`, with the learned values by name. As in torch,
            a parameter that it does not use takes no step.
        learn: names of optimizer settings, or a `HyperSpec` for any other value.
        steps: number of training steps in the whole training. A raw value can move by at most its
            `HyperSpec.travel` in that time.
        estimator: hypergradient estimator; default `OneStep()`.
        outer_loss: loss on validation data, with the same signature; default `loss`.
        generators: generators of torch, numpy or Python that the losses draw from. The global ones
            need not be named. A hypergradient leaves them as they are, a step advances them once.
        clip: largest norm of the gradient, as `clip_grad_norm_`; None for no limit.
        max_grad: largest absolute entry of the gradient, as `clip_grad_value_`; None for no limit.
        accumulate: batches per training step; its loss is their mean, with the graphs of all of
            them in memory.
    Raises:
        UnsupportedHyperparameter: the estimator does not support the kind of a hyperparameter.
        UnsupportedOptimizer: the optimizer, or one of its options, has no derivative here.
        ValueError: a setting is unknown, or its start is outside its range; or parameters of the
            model and of the optimizer are not the same.

    >>> from darts_lite.hypergradient import HyperSpec, Identity, Learner
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def loss(model, batch, learned):
    ...     inputs, targets = batch
    ...     return (model(inputs) + learned["offset"] - targets).square().mean()
    >>> offset = HyperSpec("offset", torch.zeros(1), Identity(), "loss")
    >>> learner = Learner(model, optimizer, loss, [offset], steps=10)
    >>> for _ in range(10):
    ...     batch, held_out = ((torch.randn(8, 3), torch.ones(8, 1)) for _ in range(2))
    ...     value = learner.step(batch, held_out)
    >>> learner.values()["offset"].shape
    torch.Size([1])
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
        generators: Sequence[Generator] = (),
        clip: float | None = None,
        max_grad: float | None = None,
        accumulate: int = 1,
    ):
        for name, value in (("clip", clip), ("max_grad", max_grad), ("accumulate", accumulate)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}; leave it out for none")
        self.estimator: Estimator = estimator or OneStep()
        if isinstance(self.estimator, Unrolled) and self.estimator.anneal:
            raise ValueError(
                "estimator must take training steps, got Unrolled(anneal=True), which only looks "
                "ahead; give it to `Learner.hypergradient` or use a LearningRateFinder, and give "
                "another estimator here"
            )
        self.loss, self.outer_loss, self.steps = loss, outer_loss or loss, steps
        self.accumulate = accumulate
        self.functional = FunctionalModel(model, optimizer, generators, clip, max_grad)
        self._checked = False  # whether both losses are functions
        self._rounded = False  # whether they compute in half precision
        specs = [s if isinstance(s, HyperSpec) else self._spec(s) for s in learn]
        self.variables = HyperParameters(tuple(specs))
        self.variables.to(self.functional.params[0].device)
        self._carried: Mapping[str, Params] = {}
        kinds = self.variables.kinds
        check_supported(self.estimator, kinds)
        self._check_settings(kinds)
        normalized = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
        for text in caveats(self.estimator, kinds, normalized):
            warnings.warn(text, UserWarning, stacklevel=2)

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self.functional.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer whose rule is used."""
        return self.functional.optimizer

    # --- what a training loop calls ---------------------------------------------------------

    def step(self, batch: Batch | list[Batch], held_out: Batch | None = None) -> Tensor:
        """Train on a batch, or on a list of batches, and return the loss.

        - This computes the gradient by itself: it neither reads nor writes `p.grad`. For clipping
          and accumulation, see the arguments of `Learner`. A GradScaler has no effect; bfloat16
          needs none.
        - The hooks of the optimizer's step are called, once before and once after.
        - You may mix this with plain `optimizer.step()` calls. Those use the settings of the
          parameter groups.

        Arguments:
            batch: training batch; a list of `estimator.steps * accumulate` batches if that is
                more than one.
            held_out: validation batch. With it, the hyperparameters are learned too. Without it,
                the step is plain training with the current values.
        Returns:
            Training loss of the first batch, a detached scalar.
        Raises:
            ValueError: the number of batches is wrong.
        """
        call_hooks(self.optimizer, "pre")
        batches = self._batches(batch, self.estimator)
        window = self._window(batches, held_out)
        if held_out is None:
            state, loss = self.functional.inner_state(self._carried), None
            for t in range(len(batches)):
                state, (value, _) = window.problem.inner_step(state, self.variables.raw, t)
                loss = value if loss is None else loss
            if self.variables.begun:  # progress between two hypergradients counts too
                self.variables.update({}, len(batches) / self.steps)
        else:
            ahead = self._estimate(window)
            state, loss = ahead.state, ahead.inner[0]
            self.variables.update(ahead.hypergradient, len(batches) / self.steps)
        window.commit(state)
        call_hooks(self.optimizer, "post")
        self._carried = state.carried
        assert loss is not None
        return loss

    def hypergradient(
        self,
        batch: Batch | list[Batch],
        held_out: Batch,
        estimator: Estimator | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> dict[str, Tensor]:
        """Return the derivatives of the validation loss in the raw values; change nothing.

        Arguments:
            batch: training batch, or a list of batches as for `step`.
            held_out: validation batch.
            estimator: estimator to use instead of the one that trains.
            kinds: hyperparameters to differentiate, with their kinds; default all.
        Raises:
            ValueError: the number of batches is wrong.
        """
        window = self._window(self._batches(batch, estimator or self.estimator), held_out)
        return self._estimate(window, estimator, kinds).hypergradient

    def look(self, finder: LearningRateFinder, batches: list[Batch], held_out: Batch) -> None:
        """Let a learning-rate finder look ahead once; change nothing but "lr".

        The look-ahead uses the lr without its schedule.

        Arguments:
            finder: the finder; call this whenever `finder.due(fraction)` is true.
            batches: `finder.estimator.steps * accumulate` training batches.
            held_out: validation batch.
        Raises:
            ValueError: the number of batches is wrong.
        """
        groups = self.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        for group, base in zip(groups, self.functional.base_lr):
            group["lr"] = base
        try:
            found = self.hypergradient(batches, held_out, finder.estimator, finder.kinds)
        finally:
            for group, lr in zip(groups, scheduled):
                group["lr"] = lr
        finder.update(self.variables, found)

    def check(
        self, batches: list[Batch], held_out: Batch, estimators: Mapping[str, Estimator]
    ) -> Table:
        """Compare estimators with central differences of the real look-ahead on this model.

        Use float64 and a smooth activation. See `check_hypergradient`.

        Arguments:
            batches: training batches, `accumulate` of them per step of the horizon.
            held_out: validation batch.
            estimators: estimators by label.
        """
        window = self._window(self._grouped(batches), held_out)
        self._verify(window)
        leaves, kinds = self.variables.leaves(), self.variables.kinds
        state = self.functional.inner_state({})  # the central differences begin without tangents
        return check_hypergradient(
            window.problem, state, leaves, kinds, estimators, horizon=len(window.batches)
        )

    def values(self) -> dict[str, Tensor]:
        """Return the learned values by name, constrained to their ranges."""
        return self.variables.values()

    def state_dict(self) -> dict[str, object]:
        """Return the state of the learned values; model and optimizer have their own."""
        return {"variables": self.variables.state_dict(), "carried": self._carried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.variables.load_state_dict(state["variables"])
        self._carried = state["carried"]

    # --- inside -----------------------------------------------------------------------------

    def _batches(self, batch: Batch | list[Batch], estimator: Estimator) -> list[list[Batch]]:
        """The window. Torch's loaders yield lists, so for one batch a list is that batch."""
        count, name = estimator.steps * self.accumulate, type(estimator).__name__
        if not isinstance(batch, list) or count == 1:
            batch = [batch]
        elif len({(b.dtype, b.shape[1:]) if isinstance(b, Tensor) else None for b in batch}) > 1:
            raise ValueError(
                f"batch must be a list of {count} batches for {name}, got a list of tensors that "
                "differ, which is one batch of a loader; collect a window of such batches first "
                "(a batch of one tensor as a tuple)"
            )
        return self._grouped(batch)

    def _grouped(self, batches: list[Batch]) -> list[list[Batch]]:
        """The batches of each step."""
        each = self.accumulate
        if len(batches) % each:
            raise ValueError(
                f"batches must be a multiple of accumulate ({each}), got {len(batches)}; collect a "
                "window first"
            )
        return [batches[i : i + each] for i in range(0, len(batches), each)]

    def _window(self, batches: list[list[Batch]], held_out: Batch | None) -> Window:
        if self.functional.follow():
            self._carried = {}
        self._check_settings(self.variables.kinds)
        return Window(
            self.functional, batches, held_out, self.loss, self.outer_loss, self.variables.constrain
        )

    def _verify(self, window: Window) -> None:
        """Check at the first hypergradient that the losses are functions, and how they round."""
        if not self._checked:
            self._rounded = window.check(self.variables.raw)
            self._checked = True
            if self._rounded and _exact(self.estimator) != self.estimator:
                warnings.warn(
                    "the loss computes in half precision, where differences of gradients measure "
                    "rounding: exact products replace them; say so with "
                    f"{type(self.estimator).__name__}(product='double_backward'), or 'jvp' for "
                    "Forward",
                    UserWarning,
                    stacklevel=2,
                )

    def _estimate(
        self,
        window: Window,
        estimator: Estimator | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> Lookahead:
        estimator = estimator or self.estimator
        if len(window.batches) != estimator.steps:
            raise ValueError(
                f"batch must be a list of {estimator.steps * self.accumulate} batches for "
                f"{type(estimator).__name__}, got {len(window.batches) * self.accumulate}; collect "
                "a window first"
            )
        self._verify(window)
        kinds = kinds or self.variables.kinds
        # Tangents belong to the estimator that made them.
        carried = self._carried if estimator == self.estimator else {}
        state = self.functional.inner_state(carried)
        estimator = _exact(estimator) if self._rounded else estimator
        return estimator(window.problem, state, self.variables.leaves(), kinds)

    def _spec(self, name: str) -> HyperSpec:
        """The usual range around the value that the optimizer has now."""
        kind, known = type(self.optimizer).__name__, self.functional.rule.settings
        if name not in SETTINGS:
            raise ValueError(
                f"learn must name a setting of {kind} ({', '.join(known)}), got {name!r}; give a "
                "HyperSpec for any other value"
            )
        if name not in known:
            raise ValueError(
                f"learn must name a setting of {kind} ({', '.join(known)}), got {name!r}; leave it "
                "out or use another optimizer"
            )
        key, place = SETTINGS[name]
        group = self.optimizer.param_groups[0]
        value = group.get("initial_lr", group["lr"]) if name == "lr" else group[key]
        start = float(value if place is None else value[place])
        if name in ("lr", "weight_decay") and not start > 0:
            raise ValueError(
                f"{name} must start above 0 because it is learned on a log scale, got {start}; set "
                "it in the optimizer or give a HyperSpec"
            )
        bijection = {
            "lr": LogInterval(start / 1e4, start * 1e4),
            "weight_decay": LogInterval(start / 1e4, start * 1e4),
        }.get(name, Interval(0.0, 1.0))
        return HyperSpec(name, torch.tensor(start), bijection, "optimizer")

    def _check_settings(self, kinds: Mapping[str, str]) -> None:
        known, groups = self.functional.rule.settings, len(self.optimizer.param_groups)
        for name, kind in kinds.items():
            if kind == "optimizer" and name not in known:
                raise ValueError(
                    f"a HyperSpec of kind 'optimizer' must name a setting of "
                    f"{type(self.optimizer).__name__} ({', '.join(known)}), got {name!r}; use kind "
                    "'loss' for a value that the loss uses"
                )
            size = self.variables.raw[name].numel()
            if name in known and self.variables.raw[name].dim() and size != groups:
                raise ValueError(
                    f"{name} must be a scalar or have one value per parameter group ({groups}), "
                    f"got {size} values; change the start of its HyperSpec"
                )
        if "lr" in kinds and not all(base > 0 for base in self.functional.base_lr):
            raise ValueError(
                "lr of every parameter group must be above 0, because a learned lr multiplies the "
                f"schedule relative to it, got {self.functional.base_lr}; set an initial lr"
            )


def _exact(estimator: Any) -> Any:
    """The estimator with exact products in place of differences."""
    if isinstance(estimator, PerKind):
        kinds = ("architecture", "loss", "optimizer")
        return replace(estimator, **{kind: _exact(getattr(estimator, kind)) for kind in kinds})
    if getattr(estimator, "product", None) in ("finite_difference", "one_sided"):
        return replace(estimator, product="jvp" if estimator.carries else "double_backward")
    return estimator
