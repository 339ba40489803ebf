"""The one second-order quantity that every estimator needs, computed in four ways.

    d/de (grad_w L, grad_hyper L)(w + e dw, hyper + e dhyper)  at e = 0

With dhyper = 0 it is the Hessian-vector product H dw and, the mixed derivative being symmetric,
d/dhyper (grad_w L . dw). With a tangent (dw, dhyper) it is the tangent of the training gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from darts_lite.hypergradient.problem import (
    Gradient,
    Hyper,
    Loss,
    Params,
    Partial,
    constant,
    dot,
    leaves,
)

Method = Literal["double_backward", "jvp", "finite_difference", "one_sided"]
"""double_backward: exact, differentiates the gradient again; the variables cannot move.
jvp: exact, forward over reverse; every operation needs a forward-mode derivative.
finite_difference: (grad(+r) - grad(-r)) / 2r, error O(r^2); two gradients (Liu et al. 2019, eq. 8).
one_sided: (grad(+r) - grad) / r, error O(r); one gradient beside the one that training has.

The steps r are `radius` over the length of the direction. Differences are for smooth networks: in
one with ReLU they measure its kinks."""


@dataclass(frozen=True)
class Derivative:
    """What is differentiated, and where.

    Arguments: `loss`, of parameters and variables; `of`, the variables in which the gradient is
    wanted; `weights`, whether that in the parameters is; `known`, the gradient if training has it
    already (`Bilevel.advance`).
    """

    loss: Callable[[Params, Hyper], Loss]
    params: Params
    hyper: Hyper
    of: tuple[str, ...] = ()
    weights: bool = True
    known: Gradient | None = None

    def along(
        self, params: Params, hyper: Hyper | None = None, *, method: Method, radius: float
    ) -> Gradient:
        """The derivative along a direction; a variable that it does not name stays.

        Returns: the derivative of grad_w (empty without `weights`), and of grad_hyper, None for
        each variable on which the loss does not depend.
        """
        hyper = hyper or {}
        if method not in get_args(Method):
            raise ValueError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
        if not self.weights and not self.of:
            return Gradient(())
        if method == "double_backward":
            if hyper:
                raise ValueError("double_backward cannot move hyperparameters; use jvp")
            return self._double_backward(params)
        if method == "jvp":
            return self._jvp(params, hyper)
        return self._difference(params, hyper, radius, -1 if method == "finite_difference" else 0)

    def _difference(self, along: Params, along_hyper: Hyper, radius: float, other: int) -> Gradient:
        """Between one step ahead and `other` steps."""
        moving = (*along, *along_hyper.values())
        largest = torch.stack([m.abs().max() for m in moving]).max()
        largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
        unit = tuple(m / largest for m in moving)
        norm = largest * dot(unit, unit).sqrt()
        step = radius / (norm + torch.finfo(norm.dtype).tiny)
        found: list[Gradient] = []
        for side in (1, other):
            known = self.known
            if side == 0 and known is not None and all(n in known.hyper for n in self.of):
                found.append(known)
                continue
            params = tuple(p.detach() + side * step * a for p, a in zip(self.params, along))
            values = constant(self.hyper)
            values |= {n: values[n] + side * step * a for n, a in along_hyper.items()}
            found.append(self.gradient_at(params, values))
        (w1, h1), (w0, h0) = found
        width = (1 - other) * step
        return Gradient(
            tuple((a - b) / width for a, b in zip(w1, w0)) if self.weights else (),
            {n: _minus(h1[n], h0[n], width) for n in self.of},
        )

    def gradient_at(self, params: Params, hyper: Hyper) -> Gradient:
        """First derivatives, without a graph."""
        if not self.weights and not self.of:
            return Gradient(())
        params = leaves(params) if self.weights else tuple(p.detach() for p in params)
        values = self._targets(hyper)
        loss, _ = self.loss(params, values)
        if not loss.requires_grad:
            return Gradient((), dict.fromkeys(self.of))  # it depends on none of them
        sources = self._sources(params, values)
        return self._split(sources, torch.autograd.grad(loss, sources, allow_unused=True))

    def _double_backward(self, along: Params) -> Gradient:
        params, values = leaves(self.params), self._targets(self.hyper)
        loss, _ = self.loss(params, values)
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        pairs = [(g, a) for g, a in zip(gradient, along) if g.requires_grad]
        sources = self._sources(params, values)
        found: tuple[Tensor | None, ...] = (None,) * len(sources)
        if pairs:  # else the gradient is a constant
            outputs, cotangents = zip(*pairs)
            found = torch.autograd.grad(outputs, sources, cotangents, allow_unused=True)
        return self._split(sources, found)

    def _jvp(self, along: Params, along_hyper: Hyper) -> Gradient:
        values = constant(self.hyper)
        moving = tuple(n for n in along_hyper if n not in self.of)  # not differentiated in

        def loss(params: Params, wanted: Hyper, others: Hyper) -> Tensor:
            return self.loss(params, {**values, **wanted, **others})[0]

        def tangents(names: tuple[str, ...]) -> dict[str, Tensor]:
            zeros = {n: torch.zeros_like(values[n]) for n in names}
            return {n: along_hyper[n].detach() if n in along_hyper else zeros[n] for n in names}

        arguments = ((0,) if self.weights else ()) + ((1,) if self.of else ())
        moved = torch.func.jvp(
            torch.func.grad(loss, arguments),
            (
                tuple(p.detach() for p in self.params),
                {n: values[n] for n in self.of},
                {n: values[n] for n in moving},
            ),
            (tuple(along), tangents(self.of), tangents(moving)),
        )[1]
        found: Partial = {n: moved[-1][n] for n in self.of}
        # torch.func says zero where there is no dependence; autograd knows the difference
        if any(not bool(moved[-1][n].any()) for n in self.of):
            _, real = self.gradient_at(self.params, self.hyper)
            found = {n: None if real[n] is None else found[n] for n in self.of}
        return Gradient(moved[0] if self.weights else (), found)

    def _targets(self, hyper: Hyper) -> dict[str, Tensor]:
        return {n: h.detach().requires_grad_(n in self.of) for n, h in hyper.items()}

    def _sources(self, params: Params, values: Hyper) -> Params:
        return (*(params if self.weights else ()), *(values[n] for n in self.of))

    def _split(self, sources: Params, found: tuple[Tensor | None, ...]) -> Gradient:
        count = len(sources) - len(self.of)
        parts = zip(sources[:count], found[:count])
        return Gradient(
            tuple(torch.zeros_like(s) if f is None else f for s, f in parts),
            dict(zip(self.of, found[count:])),
        )


def _minus(a: Tensor | None, b: Tensor | None, width: Tensor) -> Tensor | None:
    return None if a is None or b is None else (a - b) / width
