"""Forward-mode estimator: tangents dw/dhyper are carried from step to step.

    Z_{t+1} = discount (d step/ds) Z_t + d step/dhyper        dL_outer/dhyper = direct + v . Z

for the state s = (w, moments), with one tangent per scalar hyperparameter (Franceschi et al. 2017,
algorithm 2, Forward-HG).

- discount 1 is real-time hyperparameter optimization (RTHO, Franceschi et al. 2017).
- discount 0 looks one step back.
- discounts in between are MARTHE (Donini et al. 2020).

The horizon is the whole training so far, in constant memory. The cost is one derivative of the
training gradient per scalar, so use it for few scalars: a learning rate, a weight decay, a few
magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from darts_lite.hypergradient.derivatives import Derivative, Method
from darts_lite.hypergradient.estimators.interface import (
    EVERY_KIND,
    UNKNOWN_KIND,
    Lookahead,
    check_supported,
    require,
)
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.problem import (
    Bilevel,
    Gradient,
    Hyper,
    InnerState,
    Params,
    add,
    constant,
    dot,
    flat,
    leaves,
    unflat,
)


@dataclass(frozen=True)
class Forward:
    """Carry tangents through all training steps so far (forward mode).

    The tangents are in `InnerState.carried`: per hyperparameter with n scalars, one tensor of shape
    [n, *shape] per parameter and moment. A tangent that overflows restarts at zero.

    Arguments:
        discount: factor on the tangent of the past, in [0, 1].
        product: how the tangent of the training gradient is computed: "jvp" (exact),
            "finite_difference" or "one_sided" (a third of the cost of jvp, for smooth networks).
        radius: step of the differences, see `Method`.
    Raises:
        ValueError: a setting is out of its range.

    >>> Forward(0.99, product="one_sided", radius=1e-3).carries
    True
    """

    discount: float = 1.0
    product: Method = "jvp"
    radius: float = 0.01

    steps: ClassVar[int] = 1
    supports: ClassVar[frozenset[Kind]] = EVERY_KIND
    carries: ClassVar[bool] = True
    remedy: ClassVar[str] = UNKNOWN_KIND

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ValueError(
                f"discount must be in [0, 1], got {self.discount}; use 1 for the whole past"
            )
        if self.product == "double_backward":
            raise ValueError(
                "product of Forward must move hyperparameters, got 'double_backward', which "
                "cannot; use 'jvp', which is exact too"
            )

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        check_supported(self, kinds)
        names = tuple(kinds)
        new, gradient, inner = problem.advance(state, hyper, 0)
        v, direct, outer = problem.outer_gradient(new.params, hyper, names)
        carried, total = {}, dict(direct)
        reached = _reached(problem, state, gradient, hyper, kinds)
        for name in names:
            rows = [
                self._tangent(problem, state, gradient, hyper, kinds, name, i)
                for i in range(hyper[name].numel())
            ]
            carried[name] = tuple(torch.stack(parts) for parts in zip(*map(_finite, rows)))
            if reached[name]:
                along = torch.stack([dot(v, row) for row in rows]).view_as(hyper[name])
                total[name] = add(direct[name], along)
        return Lookahead(new._replace(carried=carried), require(total), inner, outer)

    def _tangent(
        self,
        problem: Bilevel,
        state: InnerState,
        gradient: Gradient,
        hyper: Hyper,
        kinds: Mapping[str, Kind],
        name: str,
        i: int,
    ) -> Params:
        """Tangent d(params, moments)/d hyper[name][i] after the step."""
        unit = torch.zeros_like(hyper[name]).view(-1)
        unit[i] = 1.0
        moving = {name: unit.view_as(hyper[name])}
        old = state.carried.get(name) if self.discount else None
        if old is None:
            tangent = tuple(torch.zeros_like(s) for s in flat(state))
        else:
            tangent = tuple(self.discount * z[i] for z in old)
        in_loss = kinds[name] != "optimizer"
        turned = tuple(torch.zeros_like(g) for g in gradient.weights)
        if in_loss or old is not None:
            derivative = Derivative(
                lambda params, values: problem.inner_loss(params, values, 0),
                state.params,
                hyper,
                known=Gradient(gradient.weights),
            )
            turned = derivative.along(
                tangent[: len(gradient.weights)],
                moving if in_loss else None,
                method=self.product,
                radius=self.radius,
            ).weights
        return update_tangent(problem, state, gradient, hyper, tangent, turned, moving)


def _finite(tangent: Params) -> Params:
    """Restart a tangent that overflowed at zero; otherwise all later steps had no gradient."""
    fine = torch.stack([part.isfinite().all() for part in tangent]).all()
    return tuple(torch.where(fine, part, torch.zeros_like(part)) for part in tangent)


def update_tangent(
    problem: Bilevel,
    state: InnerState,
    gradient: Gradient,
    hyper: Hyper,
    tangent: Params,
    turned: Params,
    moving: Hyper,
) -> Params:
    """Return the tangent of (params, moments) after the optimizer's update.

    This Jacobian-vector product is computed as the derivative of a vector-Jacobian product in its
    vector. The update is elementwise, so that is cheap, and it works for rules without
    forward-mode derivatives.

    Arguments:
        problem: problem with the optimizer.
        state: state before the update.
        gradient: training gradient.
        hyper: raw hyperparameters.
        tangent: tangent of (params, moments) before the update.
        turned: tangent of the gradient.
        moving: tangent of the hyperparameters, by name.
    """
    sources = leaves((*flat(state), *gradient.weights, *(hyper[n] for n in moving)))
    one, two = len(flat(state)), len(flat(state)) + len(gradient.weights)
    values = constant(hyper) | dict(zip(moving, sources[two:]))
    moved = gradient._replace(weights=sources[one:two])
    new = flat(problem.update(unflat(sources[:one], state), moved, values))
    cotangent = tuple(torch.zeros_like(n).requires_grad_() for n in new)
    pulled = torch.autograd.grad(new, sources, cotangent, create_graph=True, allow_unused=True)
    pairs = [
        (back, along)
        for back, along in zip(pulled, (*tangent, *turned, *moving.values()))
        if back is not None
    ]
    found = torch.autograd.grad(
        [back for back, _ in pairs], cotangent, [along for _, along in pairs], allow_unused=True
    )
    return tuple(torch.zeros_like(n) if f is None else f for n, f in zip(new, found))


def _reached(
    problem: Bilevel, state: InnerState, gradient: Gradient, hyper: Hyper, kinds: Mapping[str, Kind]
) -> dict[str, bool]:
    """Whether a step depends on each hyperparameter, which a zero tangent would not tell.

    Only hyperparameters without a tangent are examined.
    """
    new = tuple(n for n in kinds if n not in state.carried)
    found = dict.fromkeys(kinds, True)
    if not new:
        return found
    _, _, moved = problem.update_product(state, gradient, hyper, new, gradient.weights, True)
    derivative = Derivative(
        lambda params, values: problem.inner_loss(params, values, 0),
        state.params,
        hyper,
        of=tuple(n for n in new if kinds[n] != "optimizer"),
        weights=False,
    )
    lost = derivative.gradient_at(state.params, hyper).hyper
    return found | {n: moved[n] is not None or lost.get(n) is not None for n in new}
