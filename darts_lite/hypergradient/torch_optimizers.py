"""Torch optimizers as pure update rules with exact derivatives.

Most optimizers use the rules of `optimizers.py` and `adaptive_optimizers.py`. Others come from
`higher` (Grefenstette et al. 2019), which is unmaintained and therefore imported by this module
only. Its differentiable step is given the gradient, so every estimator applies and not only
unrolling.
Settings are passed as overrides: a tensor inside a torch optimizer would receive no gradient.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import higher
import torch
from torch import Tensor

from darts_lite.hypergradient.adaptive_optimizers import (
    Adagrad,
    Adamax,
    Muon,
    NAdam,
    PerTensor,
    RAdam,
    RMSprop,
)
from darts_lite.hypergradient.optimizers import (
    SGD,
    Adam,
    Optimizer,
    OptimizerState,
    Setting,
    per_tensor,
)
from darts_lite.hypergradient.problem import Params

SETTINGS = {  # name of a setting -> key in a parameter group, and index if the value is a tuple
    "lr": ("lr", None),
    "weight_decay": ("weight_decay", None),
    "momentum": ("momentum", None),
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
}

# Left out: ASGD, whose state holds Python numbers, and Rprop, which uses the gradient's sign.
FROM_HIGHER = (torch.optim.Adadelta,)

# class of torch.optim -> its rule, and the rule's options by the keys of a parameter group
PER_TENSOR: dict[type[torch.optim.Optimizer], tuple[type[PerTensor], dict[str, str]]] = {
    torch.optim.NAdam: (
        NAdam,
        {
            "eps": "eps",
            "momentum_decay": "momentum_decay",
            "decoupled_weight_decay": "decoupled",
        },
    ),
    torch.optim.RAdam: (RAdam, {"eps": "eps", "decoupled_weight_decay": "decoupled"}),
    torch.optim.Adamax: (Adamax, {"eps": "eps"}),
    torch.optim.Adagrad: (
        Adagrad,
        {"eps": "eps", "lr_decay": "lr_decay", "initial_accumulator_value": "initial"},
    ),
    torch.optim.RMSprop: (RMSprop, {"alpha": "alpha", "eps": "eps", "centered": "centered"}),
    torch.optim.Muon: (
        Muon,
        {
            "nesterov": "nesterov",
            "ns_coefficients": "coefficients",
            "ns_steps": "iterations",
            "eps": "eps",
            "adjust_lr_fn": "adjust",
        },
    ),
}


class UnsupportedOptimizer(ValueError):
    """A torch optimizer, or one of its options, has no derivative here."""


class Rule(NamedTuple):
    """A torch optimizer as a pure function.

    Arguments:
        optimizer: update rule.
        moments: keys of the moments in `torch_optimizer.state[p]`.
        settings: names of the settings that may be learned.
    """

    optimizer: Optimizer
    moments: tuple[str, ...]
    settings: tuple[str, ...]


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """Return the pure rule of a torch optimizer.

    Arguments:
        optimizer: torch optimizer with any parameter groups.
    Raises:
        UnsupportedOptimizer: the optimizer, or one of its options, has no derivative here.

    >>> rule_of(torch.optim.SGD([torch.zeros(1)], lr=0.1)).settings
    ('lr', 'weight_decay', 'momentum')
    """
    name = type(optimizer).__name__
    for option in ("maximize", "amsgrad", "dampening"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise UnsupportedOptimizer(
                f"{option} of {name} must be off, because it has no derivative here; "
                f"build the optimizer without {option}"
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
    if type(optimizer) in PER_TENSOR:
        make, keys = PER_TENSOR[type(optimizer)]
        options = {own: _shared(optimizer, key) for key, own in keys.items()}
        if make is RMSprop:
            options["with_momentum"] = any(g["momentum"] > 0 for g in optimizer.param_groups)
        made = make(**options)
        return Rule(made, made.moments, made.settings)
    known = ", ".join(kind.__name__ for kind in (*PER_TENSOR, *FROM_HIGHER))
    if type(optimizer) not in FROM_HIGHER:
        raise UnsupportedOptimizer(
            f"optimizer must be one of SGD, Adam, AdamW, {known}, got {name}, which has no "
            "derivative here; use one of these"
        )
    if len(optimizer.param_groups) > 1:
        raise UnsupportedOptimizer(
            f"{name} must have one parameter group, got {len(optimizer.param_groups)}; merge them "
            "or use SGD, Adam or AdamW"
        )
    own = {k: v for k, v in optimizer.defaults.items() if k in _arguments(optimizer)}
    learnable = tuple(n for n, (key, _) in SETTINGS.items() if key in own)
    rule = FromHigher(type(optimizer), own)
    return Rule(rule, rule.names, learnable)


@dataclass(frozen=True)
class FromHigher:
    """Any optimizer that `higher` supports, as a pure rule.

    The moments are the tensors in the optimizer's state, in alphabetical order.

    Arguments:
        kind: class of torch.optim.
        defaults: arguments of the class.
    """

    kind: type[torch.optim.Optimizer]
    defaults: Mapping[str, Any]

    decoupled: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the tensors that torch keeps per parameter."""
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
        """Return the new parameters and the next state.

        Arguments:
            params: parameter tensors.
            grads: gradients, one per parameter tensor.
            state: state before the update.
            settings: settings by the names in `SETTINGS`.
        """
        blank = [torch.empty_like(p, requires_grad=True) for p in params]
        with warnings.catch_warnings():  # `higher` warns of RMSprop; tests show it is right
            warnings.simplefilter("ignore")
            rule = higher.optim.get_diff_optim(
                self.kind([{"params": [p]} for p in blank], **self.defaults), blank
            )
        steps = state.taken(len(params))
        for kept, step in zip(rule.state, steps):
            if "step" in kept[0]:
                kept[0]["step"] = step  # Adagrad starts with a float32 tensor
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
            if steps[i]:
                moments = dict(zip(self.names, (moment[i] for moment in state.moments)))
                rule.state[i][0] = {"step": steps[i], **moments}
        # `rule.step` would take the gradient of a loss; only the update rule is needed here.
        rule._update([[g] for g in grads])
        new = tuple(group["params"][0] for group in rule.param_groups)
        moved = tuple(tuple(rule.state[i][0][name] for i in range(len(new))) for name in self.names)
        return new, state._replace(step=state.step + 1, moments=moved)


def read_state(optimizer: torch.optim.Optimizer, params: Params, rule: Rule) -> OptimizerState:
    """Return the state of a torch optimizer as values; those of `init` before its first step.

    Arguments:
        optimizer: torch optimizer.
        params: parameters, in the order of the state.
        rule: rule of the optimizer.
    """
    states = [optimizer.state.get(p, {}) for p in params]
    stored = [[s.get(name) for s in states] for name in rule.moments]
    if any(m is None for moment in stored for m in moment):  # before the first step
        beginning = rule.optimizer.init(params).moments
        stored = [
            [first if m is None else m for first, m in zip(firsts, moment)]
            for firsts, moment in zip(beginning, stored)
        ]
    moments = tuple(tuple(m.detach().clone() for m in moment) for moment in stored)
    steps = _steps(optimizer, params)
    step = max(steps, default=0)
    missed = tuple(step - s for s in steps)
    return OptimizerState(step, moments, missed if any(missed) else ())


def read_step(optimizer: torch.optim.Optimizer, params: Params) -> int:
    """Return `read_state(...).step` without reading the moments.

    Arguments:
        optimizer: torch optimizer.
        params: parameters.
    """
    return max(_steps(optimizer, params), default=0)


def _steps(optimizer: torch.optim.Optimizer, params: Params) -> list[int]:
    return [int(optimizer.state.get(p, {}).get("step", 0)) for p in params]


@torch.no_grad()
def write_state(
    optimizer: torch.optim.Optimizer, params: Params, rule: Rule, state: OptimizerState
) -> None:
    """Write values into the state of a torch optimizer, so that its own `step` can continue.

    A parameter that took no step keeps the state that it has, as in torch.

    Arguments:
        optimizer: torch optimizer.
        params: parameters, in the order of the state.
        rule: rule of the optimizer.
        state: values to write.
    """
    for p, taken, *moments in zip(params, state.taken(len(params)), *state.moments):
        if not taken:
            continue
        kept = optimizer.state[p]
        for name, m in zip(rule.moments, moments):
            scalar = p.dim() > 0 and m.dim() == 0  # torch keeps numbers in its default dtype
            kept[name] = m.detach().to(torch.get_default_dtype() if scalar else m.dtype, copy=True)
        if not isinstance(rule.optimizer, SGD):
            old = kept.get("step")
            step = float(taken)
            kept["step"] = torch.tensor(step) if old is None else copy.copy(old) * 0 + step


def call_hooks(optimizer: torch.optim.Optimizer, when: Literal["pre", "post"]) -> None:
    """Call the hooks that the caller registered for before or after `optimizer.step`.

    Arguments:
        optimizer: torch optimizer.
        when: "pre" or "post".
    """
    for hook in list(getattr(optimizer, f"_optimizer_step_{when}_hooks").values()):
        hook(optimizer, (), {})


def _shared(optimizer: torch.optim.Optimizer, option: str) -> Any:
    values = {group.get(option) for group in optimizer.param_groups}
    if len(values) > 1:
        raise UnsupportedOptimizer(
            f"{option} of {type(optimizer).__name__} must be the same in all parameter groups, "
            f"got {values}; give all groups one value"
        )
    return values.pop()


def _arguments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    code = type(optimizer).__init__.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
