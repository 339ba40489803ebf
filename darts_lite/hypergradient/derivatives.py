"""Directional derivative of a gradient, the second-order quantity of every estimator.

    d/de (grad_w L, grad_hyper L)(w + e dw, hyper + e dhyper)  at e = 0

- With dhyper = 0 it is the Hessian-vector product H dw and, since the mixed derivative is
  symmetric, d/dhyper (grad_w L . dw).
- With a tangent (dw, dhyper) it is the tangent of the training gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from darts_lite.hypergradient.problem import (
    Gradient,
    Hyper,
    Loss,
    Params,
    Partial,
    constant,
    dot,
    filled,
    gradient_at,
    leaves,
)


class Graph(NamedTuple):
    """A gradient that can be differentiated once more.

    Arguments:
        gradient: gradient in each parameter, with its graph; None where there is none.
        params: the parameters, leaves of the graph.
        hyper: raw hyperparameters, leaves of the graph where they record gradients.
    """

    gradient: tuple[Tensor | None, ...]
    params: Params
    hyper: Hyper


Method = Literal["double_backward", "jvp", "finite_difference", "one_sided"]
"""How a directional derivative of the gradient is computed:

- double_backward: exact, differentiates the gradient again; dhyper must be 0.
- jvp: exact, forward over reverse mode; every operation needs a forward-mode derivative.
- finite_difference: (grad(+r) - grad(-r)) / 2r, error O(r^2); two gradients (Liu et al. 2019,
  equation 8).
- one_sided: (grad(+r) - grad) / r, error O(r); one gradient beside the training gradient.

The step r is `radius` divided by the length of the direction. The differences need a smooth
network: with ReLU they measure its kinks.

The exact methods compute attention by its mathematical kernel, and compiled modules without their
compilation: fused kernels have no second derivative. If the loss still has none (an LSTM on a GPU,
an autograd function of one's own), a central difference replaces them, and a warning says so."""


@dataclass(frozen=True)
class Derivative:
    """A loss and the point at which its gradient is differentiated.

    Arguments:
        loss: loss as a function of parameters and hyperparameters.
        params: parameters.
        hyper: raw hyperparameters.
        of: names of the hyperparameters whose gradient is differentiated.
        weights: whether the gradient in the parameters is differentiated.
        known: gradient at this point, if training has computed it already (`Bilevel.advance`).
        graph: graph of the gradient, if training has kept it (`recorded_gradient_at`). It serves
            one "double_backward".

    >>> w, h = (torch.tensor([1.0, 2.0]),), {"h": torch.tensor(3.0)}
    >>> cubic = Derivative(lambda w, h: (h["h"] * w[0].pow(3).sum(), None), w, h, of=("h",))
    >>> along = (torch.tensor([1.0, 0.0]),)
    >>> cubic.along(along, method="jvp", radius=0.01)  # 6 h w . along, 3 w^2 . along
    Gradient(weights=(tensor([18.,  0.]),), hyper={'h': tensor(3.)}, unused=frozenset())
    """

    loss: Callable[[Params, Hyper], Loss]
    params: Params
    hyper: Hyper
    of: tuple[str, ...] = ()
    weights: bool = True
    known: Gradient | None = None
    graph: Graph | None = None

    def along(
        self, params: Params, hyper: Hyper | None = None, *, method: Method, radius: float
    ) -> Gradient:
        """Return the derivative of the gradient along a direction.

        Arguments:
            params: direction of the parameters, one tensor per parameter.
            hyper: direction of the hyperparameters; an absent one is held fixed.
            method: how the derivative is computed.
            radius: length of the step of the differences; the exact methods ignore it.
        Returns:
            Derivative of grad_w (empty without `weights`), and of grad_hyper; None for a
            hyperparameter on which the loss does not depend.
        Raises:
            ValueError: the method is unknown, or double_backward is given a direction in `hyper`.
        """
        hyper = hyper or {}
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
        if not self.weights and not self.of:
            return Gradient(())
        if method == "double_backward" and hyper:
            raise ValueError(
                "double_backward must have no direction in hyperparameters, got "
                f"{tuple(hyper)}; use jvp, which is exact too"
            )
        if method in ("double_backward", "jvp"):
            exact = self._jvp if method == "jvp" else self._double_backward
            try:
                with differentiable_twice():
                    return exact(params, hyper)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # any other error of the loss comes again below
                found = self._difference(params, hyper, radius, -1)
                warnings.warn(
                    f"{method} cannot differentiate this loss twice, so a central difference of "
                    f"radius {radius} is used; say so with product='finite_difference', which "
                    f"saves the attempt (torch says: {str(error).splitlines()[0]})",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return found
        return self._difference(params, hyper, radius, -1 if method == "finite_difference" else 0)

    def _difference(self, along: Params, along_hyper: Hyper, radius: float, other: int) -> Gradient:
        """Difference quotient between +1 and `other` steps along the direction."""
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
        (w1, h1, _), (w0, h0, _) = found
        width = (1 - other) * step
        return Gradient(
            tuple((a - b) / width for a, b in zip(w1, w0)) if self.weights else (),
            {n: _minus(h1[n], h0[n], width) for n in self.of},
        )

    def gradient_at(self, params: Params, hyper: Hyper) -> Gradient:
        """Return the gradient at a point, without a graph."""
        if not self.weights and not self.of:
            return Gradient(())
        params = leaves(params) if self.weights else tuple(p.detach() for p in params)
        values = self._targets(hyper)
        loss, _ = self.loss(params, values)
        if not loss.requires_grad:
            return Gradient((), dict.fromkeys(self.of))  # no dependence on any of them
        sources = self._sources(params, values)
        return self._split(sources, torch.autograd.grad(loss, sources, allow_unused=True))

    def _double_backward(self, along: Params, _: Hyper) -> Gradient:
        graph = self.graph or _record(self.loss, self.params, self.hyper, self.of)[0]
        moving = ((g, a) for g, a in zip(graph.gradient, along) if g is not None)
        pairs = [(g, a) for g, a in moving if g.requires_grad]
        sources = self._sources(graph.params, graph.hyper)
        found: tuple[Tensor | None, ...] = (None,) * len(sources)
        if pairs:  # otherwise the gradient is a constant
            outputs, cotangents = zip(*pairs)
            found = torch.autograd.grad(outputs, sources, cotangents, allow_unused=True)
        return self._split(sources, found)

    def _jvp(self, along: Params, along_hyper: Hyper) -> Gradient:
        values = constant(self.hyper)
        moving = tuple(n for n in along_hyper if n not in self.of)  # not differentiated

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
        # torch.func returns zero if there is no dependence; autograd returns None.
        if any(not bool(moved[-1][n].any()) for n in self.of):
            real = self.gradient_at(self.params, self.hyper).hyper
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


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Choose kernels that have a second derivative: attention by its formula, no compilation."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield


def recorded_gradient_at(
    loss: Callable[[Params, Hyper], Loss], params: Params, hyper: Hyper, of: tuple[str, ...]
) -> tuple[Gradient, Loss, Graph | None]:
    """Return the gradient of a loss in the parameters, the loss, and the graph of the gradient.

    With the graph, `Derivative.along` needs no evaluation of the loss. If the loss has no second
    derivative, there is no graph.

    Arguments:
        loss: loss as a function of parameters and hyperparameters.
        params: parameters.
        hyper: raw hyperparameters.
        of: hyperparameters that the graph reaches; the loss is not differentiated in them here.

    >>> w = (torch.tensor([1.0, 2.0]),)
    >>> _, _, graph = recorded_gradient_at(lambda w, h: (w[0].pow(3).sum(), None), w, {}, ())
    >>> cubic = Derivative(lambda w, h: None, w, {}, graph=graph)  # the loss is not called
    >>> cubic.along((torch.tensor([1.0, 1.0]),), method="double_backward", radius=0.0).weights
    (tensor([ 6., 12.]),)
    """
    try:
        with differentiable_twice():
            graph, (value, report) = _record(loss, params, hyper, of)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an error of the loss itself comes again here
        return *gradient_at(loss, params, hyper, ()), None
    found = tuple(None if g is None else g.detach() for g in graph.gradient)
    return filled(found, params), (value.detach(), report), graph


def _record(
    loss: Callable[[Params, Hyper], Loss], params: Params, hyper: Hyper, of: tuple[str, ...]
) -> tuple[Graph, Loss]:
    """Return the gradient in the parameters with its graph, and the loss."""
    params = leaves(params)
    values = {n: h.detach().requires_grad_(n in of) for n, h in hyper.items()}
    value, report = loss(params, values)
    _require_twice(value)
    gradient = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    return Graph(gradient, params, values), (value, report)


ONCE = once_differentiable(lambda *_: None).__code__  # the code of every function so marked


def _require_twice(loss: Tensor) -> None:
    """Raise if a function in the graph of the loss is marked with @once_differentiable.

    `torch.autograd.grad` would take its gradient for a constant, in silence.
    """
    nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        own = getattr(node, "_forward_cls", None)  # of an autograd function in Python
        if own is not None and own.backward.__code__ is ONCE:
            raise RuntimeError(f"{own.__name__} is marked with @once_differentiable")
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        nodes += new


def _minus(a: Tensor | None, b: Tensor | None, width: Tensor) -> Tensor | None:
    return None if a is None or b is None else (a - b) / width
