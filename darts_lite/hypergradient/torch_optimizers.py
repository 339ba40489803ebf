"""Torch's optimisers as pure rules with exact derivatives, so that any loop can be learned.

SGD, Adam and AdamW become ours. The others come from `higher` (Grefenstette et al. 2019), which is
unmaintained and therefore imported here and nowhere else: its differentiable step is handed the
gradient, so that every estimator, not only unrolling, applies. A tensor placed in a torch optimiser
would silently receive no gradient; settings are passed as overrides.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import higher
import torch
from torch import Tensor

from darts_lite.hypergradient.optimizers import (
    SGD,
    Adam,
    Optimizer,
    OptimizerState,
    Setting,
    per_tensor,
)
from darts_lite.hypergradient.problem import Params

SETTINGS = {  # by the name of a variable: where it lies in a parameter group
    "lr": ("lr", None),
    "weight_decay": ("weight_decay", None),
    "momentum": ("momentum", None),
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
}


# Not ASGD, which keeps numbers in its state, nor Rprop, which sees only the gradient's sign.
FROM_HIGHER = (torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adamax, torch.optim.RMSprop)


class UnsupportedOptimizer(ValueError):
    """A torch optimiser, or an option of it, whose derivative is not defined here."""


class Rule(NamedTuple):
    """A torch optimiser seen as a pure function: the rule, its state's names, its settings."""

    optimizer: Optimizer
    moments: tuple[str, ...]  # of `torch_optimizer.state[p]`
    settings: tuple[str, ...]  # that may be learned


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The pure rule of a torch optimiser.

    Raises: UnsupportedOptimizer, with the remedy.
    """
    name = type(optimizer).__name__
    for option in ("maximize", "amsgrad", "dampening"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise UnsupportedOptimizer(
                f"{name} with {option} has no derivative here; build it without {option}"
            )
    if type(optimizer) is torch.optim.SGD:
        nesterov = bool(_shared(optimizer, "nesterov"))
        return Rule(SGD(0.0, nesterov), ("momentum_buffer",), ("lr", "weight_decay", "momentum"))
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = bool(_shared(optimizer, "decoupled_weight_decay"))
        eps = float(_shared(optimizer, "eps"))
        return Rule(
            Adam(eps=eps, decoupled=decoupled),
            ("exp_avg", "exp_avg_sq"),
            ("lr", "weight_decay", "beta1", "beta2"),
        )
    if type(optimizer) not in FROM_HIGHER:
        raise UnsupportedOptimizer(
            f"{name} has no derivative here; use SGD, Adam, AdamW, "
            f"{', '.join(t.__name__ for t in FROM_HIGHER)}"
        )
    if len(optimizer.param_groups) > 1:
        raise UnsupportedOptimizer(f"{name} is supported with one parameter group only")
    own = {k: v for k, v in optimizer.defaults.items() if k in _arguments(optimizer)}
    learnable = tuple(n for n, (key, _) in SETTINGS.items() if key in own)
    rule = FromHigher(type(optimizer), own)
    return Rule(rule, rule.names, learnable)


@dataclass(frozen=True)
class FromHigher:
    """Any optimiser that `higher` knows, as a pure rule.

    Arguments: `kind`, a class of torch.optim; `defaults`, its arguments. The moments are the
    tensors in its state, in alphabetical order.
    """

    kind: type[torch.optim.Optimizer]
    defaults: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that torch keeps for a parameter."""
        p = torch.zeros(1, requires_grad=True)
        p.grad = torch.zeros(1)
        probe = self.kind([p], **self.defaults)
        probe.step()
        state = probe.state[p]
        return tuple(sorted(n for n, v in state.items() if isinstance(v, Tensor) and v.dim()))

    def init(self, params: Sequence[Tensor]) -> OptimizerState:
        zeros = tuple(torch.zeros_like(p) for p in params)
        return OptimizerState(0, (zeros,) * len(self.names))

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: OptimizerState,
        **settings: Setting,
    ) -> tuple[tuple[Tensor, ...], OptimizerState]:
        """New parameters and the next state."""
        blank = [torch.empty_like(p, requires_grad=True) for p in params]
        with warnings.catch_warnings():  # of RMSprop's derivatives, which are right (tests)
            warnings.simplefilter("ignore")
            rule = higher.optim.get_diff_optim(
                self.kind([{"params": [p]} for p in blank], **self.defaults), blank
            )
        for kept in rule.state:
            if "step" in kept[0]:
                kept[0]["step"] = state.step  # Adagrad begins with a float32 tensor
        groups = zip(
            rule.param_groups, params, *(per_tensor(v, len(blank)) for v in settings.values())
        )
        for i, (group, p, *values) in enumerate(groups):
            group["params"] = [p]
            for name, value in zip(settings, values):
                key, place = SETTINGS[name]
                if place is None:
                    group[key] = value
                else:
                    group[key] = tuple(
                        value if at == place else old for at, old in enumerate(group[key])
                    )
            if state.step:
                moments = dict(zip(self.names, (moment[i] for moment in state.moments)))
                rule.state[i][0] = {"step": state.step, **moments}
        # Its `step` would take the gradient of a loss by itself; only its update rule is wanted.
        rule._update([[g] for g in grads])
        new = tuple(group["params"][0] for group in rule.param_groups)
        moved = tuple(tuple(rule.state[i][0][name] for i in range(len(new))) for name in self.names)
        return new, OptimizerState(state.step + 1, moved)


def read_state(optimizer: torch.optim.Optimizer, params: Params, rule: Rule) -> OptimizerState:
    """The optimiser's state as values; zeros before its first step."""
    states = [optimizer.state.get(p, {}) for p in params]
    moments = tuple(
        tuple(
            torch.zeros_like(p) if s.get(name) is None else s[name].detach().clone()
            for p, s in zip(params, states)
        )
        for name in rule.moments
    )
    steps = {int(s["step"]) for s in states if "step" in s}
    if len(steps) > 1:
        raise UnsupportedOptimizer("the parameters have taken different numbers of steps")
    return OptimizerState(steps.pop() if steps else 0, tuple(tuple(m) for m in moments))


@torch.no_grad()
def write_state(
    optimizer: torch.optim.Optimizer, params: Params, rule: Rule, state: OptimizerState
) -> None:
    """Puts values back where torch keeps them, so that its own `step` could go on."""
    for p, *moments in zip(params, *state.moments):
        kept = optimizer.state[p]
        kept.update({n: m.detach().clone() for n, m in zip(rule.moments, moments)})
        if not isinstance(rule.optimizer, SGD):
            old = kept.get("step")
            step = float(state.step)
            kept["step"] = torch.tensor(step) if old is None else copy.copy(old) * 0 + step


def _shared(optimizer: torch.optim.Optimizer, option: str) -> Any:
    values = {group.get(option) for group in optimizer.param_groups}
    if len(values) > 1:
        raise UnsupportedOptimizer(
            f"the parameter groups of {type(optimizer).__name__} differ in {option}; give them one"
        )
    return values.pop()


def _arguments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    code = type(optimizer).__init__.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
