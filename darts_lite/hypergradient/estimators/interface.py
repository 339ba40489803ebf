"""Interface of a hypergradient estimator, and its checks.

An estimator sees only a `Bilevel` problem: pure functions of parameters and raw hyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss


class Lookahead(NamedTuple):
    """Result of an estimator: the state after the window, and the hypergradient. All detached.

    Arguments:
        state: state after the window.
        hypergradient: derivatives of the validation loss in the raw hyperparameters, by name.
        inner: training loss of the window's first step.
        outer: validation loss after the window; None if the estimator does not compute it.
        diagnostics: numbers of the estimator's own, such as a residual.
    """

    state: InnerState
    hypergradient: dict[str, Tensor]
    inner: Loss
    outer: Loss | None
    diagnostics: Mapping[str, Tensor] = {}


class Estimator(Protocol):
    """Takes `steps` training steps and estimates dL_outer/dhyper on the way.

    An estimator is a frozen dataclass that holds only its settings.
    """

    remedy: ClassVar[str]
    """End of the error message for a kind that is not supported: why, and what to use."""

    @property
    def carries(self) -> bool:
        """Whether `InnerState.carried` is used, so that no training step may be missed."""

    @property
    def steps(self) -> int:
        """Length of the window in training steps."""

    @property
    def supports(self) -> frozenset[Kind]:
        """Kinds of hyperparameters for which the estimate is defined."""

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        """Take the window's steps and estimate the hypergradient.

        Arguments:
            problem: window of `steps` steps.
            state: state before the window.
            hyper: raw hyperparameters, as leaves that record gradients.
            kinds: hyperparameters to differentiate, with their kinds.
        Raises:
            UnsupportedHyperparameter: a kind is not supported, or nothing depends on a
                hyperparameter.
        """


EVERY_KIND: frozenset[Kind] = frozenset({"architecture", "loss", "optimizer"})
UNKNOWN_KIND = "its kind is unknown; use architecture, loss or optimizer"  # remedy with EVERY_KIND


class UnsupportedHyperparameter(ValueError):
    """An estimator was asked for a derivative that it does not define."""


def check_supported(estimator: Estimator, kinds: Mapping[str, Kind]) -> None:
    """Check that an estimator supports the kinds of all hyperparameters; call this at start-up.

    Arguments:
        estimator: estimator of the hypergradient.
        kinds: kinds of the hyperparameters by name.
    Raises:
        UnsupportedHyperparameter: a kind is not supported; the message has the remedy.

    >>> from darts_lite.hypergradient import OneStep
    >>> check_supported(OneStep(), {"lr": "optimizer"})
    """
    for variable, kind in kinds.items():
        if kind not in estimator.supports:
            raise UnsupportedHyperparameter(
                f"{type(estimator).__name__} cannot differentiate the {kind} hyperparameter "
                f"{variable!r}: {estimator.remedy}"
            )


def require(gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the detached gradients, all of which must exist.

    Without this error a missing gradient would pass for a zero that was never computed.

    Arguments:
        gradients: derivatives by hyperparameter; None where nothing depends on it.
    Raises:
        UnsupportedHyperparameter: a gradient is None.
    """
    for name, gradient in gradients.items():
        if gradient is None:
            raise UnsupportedHyperparameter(
                f"no gradient reaches the hyperparameter {name!r}: the functions that this "
                "estimator differentiates do not depend on it; check its kind and the problem"
            )
    return {name: g.detach() for name, g in gradients.items() if g is not None}
