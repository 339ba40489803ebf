"""Combination of estimators: one per kind of hyperparameter, with shared passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from darts_lite.hypergradient.estimators.interface import (
    EVERY_KIND,
    UNKNOWN_KIND,
    Estimator,
    Lookahead,
    UnsupportedHyperparameter,
    check_supported,
)
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import (
    Bilevel,
    Gradient,
    GradientAt,
    Hyper,
    InnerState,
    Loss,
    Params,
    Partial,
)


@dataclass(frozen=True)
class PerKind:
    """Use one estimator per kind of hyperparameter.

    The window is as long as the longest window of the estimators; the others see its last steps.
    The training steps and the validation gradient are computed once for all estimators.

    Arguments:
        architecture: estimator for the kind "architecture".
        loss: estimator for the kind "loss".
        optimizer: estimator for the kind "optimizer".
    Raises:
        UnsupportedHyperparameter: an estimator does not support its kind, or it carries tangents
            and another estimator takes several steps.

    >>> from darts_lite.hypergradient import Forward, OneStep
    >>> PerKind(architecture=OneStep(), loss=OneStep(), optimizer=Forward()).steps
    1
    """

    architecture: Estimator
    loss: Estimator
    optimizer: Estimator

    remedy: ClassVar[str] = UNKNOWN_KIND
    supports: ClassVar[frozenset[Kind]] = EVERY_KIND

    def __post_init__(self) -> None:
        for kind, estimator in self._by_kind.items():
            check_supported(estimator, {kind: kind})
            if estimator.carries and self.steps > 1:
                raise UnsupportedHyperparameter(
                    f"{type(estimator).__name__} carries tangents through every step, so the "
                    f"other estimators must have windows of 1 step, got {self.steps}; use OneStep"
                )

    @property
    def _by_kind(self) -> dict[Kind, Estimator]:
        return {
            "architecture": self.architecture,
            "loss": self.loss,
            "optimizer": self.optimizer,
        }

    @property
    def carries(self) -> bool:
        return any(e.carries for e in self._by_kind.values())

    @property
    def steps(self) -> int:
        return max(e.steps for e in self._by_kind.values())

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        groups: dict[Estimator, dict[str, Kind]] = {}
        for name, kind in kinds.items():
            groups.setdefault(self._by_kind[kind], {})[name] = kind
        shared = _Shared(
            problem.inner_loss, problem.outer_loss, problem.optimizer, problem.settings,
            names=tuple(kinds),
        )  # fmt: skip
        trace = [state]
        inner: list[Loss] = []

        def walk(steps: int) -> None:
            while len(inner) < steps:
                new, _, loss = shared.advance(trace[-1], hyper, len(inner))
                trace.append(new)
                inner.append(loss)

        found: dict[str, Tensor] = {}
        diagnostics: dict[str, Tensor] = {}
        carried: dict[str, Params] = {}
        outer = None
        # The longest window comes first: it may need more of a training step than the others.
        # Annealed windows come last: the training's own steps must be evaluated before them.
        looks = {e: getattr(e, "anneal", False) for e in groups}
        order = sorted(groups.items(), key=lambda item: (looks[item[0]], -item[0].steps))
        for estimator, group in order:
            start = self.steps - estimator.steps
            walk(self.steps if looks[estimator] else start)
            own = {n: z for n, z in state.carried.items() if n in group}
            begin = trace[start]._replace(carried=own)
            ahead = estimator(shared.after(start), begin, hyper, group)
            found |= ahead.hypergradient
            outer = outer or ahead.outer
            carried |= ahead.state.carried
            diagnostics |= {
                f"{type(estimator).__name__}.{n}": d for n, d in ahead.diagnostics.items()
            }
        walk(self.steps)
        end = trace[-1]._replace(carried=carried)
        return Lookahead(end, found, inner[0], outer, diagnostics)


@dataclass(frozen=True)
class _Shared(Bilevel):
    """A problem that stores its steps and validation gradients by the tensors they were given."""

    names: tuple[str, ...] = ()
    offset: int = 0
    steps: dict[tuple, tuple[InnerState, Gradient, Loss]] = field(default_factory=dict)
    ends: dict[int, tuple[Params, Partial, Loss]] = field(default_factory=dict)

    def advance(
        self,
        state: InnerState,
        hyper: Hyper,
        t: int,
        of: tuple[str, ...] = (),
        by: GradientAt | None = None,
    ) -> tuple[InnerState, Gradient, Loss]:
        # The key may use `id`: the caller and `steps` keep these tensors alive. `settings` is part
        # of the key because an annealed window has other settings.
        key = (id(state.params[0]), t + self.offset, self.settings)
        known = self.steps.get(key)
        if known is None:
            known = super().advance(state, hyper, t, of, by)
        elif any(n not in known[1].hyper for n in of):
            both = tuple(dict.fromkeys((*known[1].hyper, *of)))
            known = (known[0], super().advance(state, hyper, t, both)[1], known[2])
        self.steps[key] = known
        return known

    def outer_gradient(
        self, params: Params, hyper: Hyper, names: tuple[str, ...]
    ) -> tuple[Params, Partial, Loss]:
        key = id(params[0])
        if key not in self.ends:
            self.ends[key] = super().outer_gradient(params, hyper, self.names)
        v, direct, loss = self.ends[key]
        return v, {n: direct[n] for n in names}, loss

    def after(self, steps: int) -> _Shared:
        return replace(super().after(steps), offset=self.offset + steps)
