"""A step of the weights without hypergradients: accumulated, sharpness-aware, clipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.hypergradient import Bilevel, InnerState
from darts_lite.hypergradient.problem import (
    Gradient,
    Hyper,
    Params,
    constant,
    detach,
    dot,
    gradient_at,
)


@dataclass(frozen=True)
class PlainStep:
    """How a plain step finds the gradient of the weights.

    Arguments:
        accumulate: batches whose gradients are averaged. For networks without BatchNorm, the step
            equals the step of one large batch; with BatchNorm, every batch has its own statistics.
        sharpness: radius of sharpness-aware minimization (Foret et al. 2021, eq. 2): the gradient
            is taken at w + radius g / |g|, at twice the cost; 0 for the gradient at w.
        clip: largest norm of the gradient, as `torch.nn.utils.clip_grad_norm_`; None for no limit.

    >>> from darts_lite.hypergradient import SGD
    >>> loss = lambda params, hyper, t=0: (params[0].square().sum(), torch.zeros(2))
    >>> problem = Bilevel(loss, loss, SGD(0.0), lambda hyper: {"lr": 0.1})
    >>> w = (torch.tensor([3.0]),)
    >>> PlainStep(clip=1.0)(problem, InnerState(w, SGD(0.0).init(w)), {})[0].params
    (tensor([2.9000]),)
    """

    accumulate: int = 1
    sharpness: float = 0.0
    clip: float | None = None

    def __call__(
        self, problem: Bilevel, inner: InnerState, hyper: Hyper
    ) -> tuple[InnerState, Tensor]:
        """Return the state after the step, and the mean report `[2]` of the loss before it.

        Arguments:
            problem: problem of a window of `accumulate` batches.
            inner: state before the step.
            hyper: raw values of the hyperparameters.
        """
        gradient, report = self._gradient(problem, inner.params, hyper)
        if self.sharpness:
            scale = self.sharpness / (norm(gradient) + 1e-12)
            ascended = tuple(p + scale * g for p, g in zip(inner.params, gradient))
            gradient, _ = self._gradient(problem, ascended, hyper)
        if self.clip is not None:
            factor = (self.clip / (norm(gradient) + 1e-6)).clamp(max=1.0)
            gradient = tuple(factor * g for g in gradient)
        with torch.no_grad():
            return problem.update(detach(inner), Gradient(gradient), constant(hyper)), report

    def _gradient(self, problem: Bilevel, params: Params, hyper: Hyper) -> tuple[Params, Tensor]:
        """Return the mean gradient and report over the batches of the window."""
        gradient, report = _batch(problem, params, hyper, 0)
        for t in range(1, self.accumulate):
            more, shown = _batch(problem, params, hyper, t)
            gradient = tuple(g + m for g, m in zip(gradient, more))
            report = report + shown
        if self.accumulate > 1:
            gradient = tuple(g / self.accumulate for g in gradient)
        return gradient, report / self.accumulate


PLAIN = PlainStep()


def _batch(problem: Bilevel, params: Params, hyper: Hyper, t: int) -> tuple[Params, Tensor]:
    gradient, (_, report) = gradient_at(lambda p, h: problem.inner_loss(p, h, t), params, hyper, ())
    return gradient.weights, report


def norm(tensors: Params) -> Tensor:
    """Return the Euclidean norm over all tensors, a scalar."""
    return dot(tensors, tensors).sqrt()
