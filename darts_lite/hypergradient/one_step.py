"""The one-step hypergradient: look one training step ahead (T1-T2, Luketina et al. 2016; DARTS).

With w+ = update(w, g, hyper), g = grad_w L_train(w, hyper) and v = grad_w L_val(w+, hyper):

    dL_val/dhyper = d L_val(w+, hyper)/dhyper          direct: the architecture
                  + v . d update/dhyper                 optimiser: lr, weight decay, momentum
                  + d/dhyper (grad_w L_train . u)       mixed: augmentation, architecture
    u = (d update/dg)^T v

v falls out of the validation pass that the direct term needs anyway, and the middle line is a
vector-Jacobian product of the elementwise update, so only the mixed term costs passes of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from darts_lite.hypergradient.problem import (
    Bilevel,
    Hyper,
    InnerState,
    Lookahead,
    Params,
    add,
    detach,
    detach_loss,
    require,
)
from darts_lite.hyperparameters import Kind


@dataclass(frozen=True)
class OneStep:
    """See the module. The step that is looked ahead is the training step itself: none is lost.

    Arguments: `mixed`, how d/dhyper (grad_w L_train . u) is computed. "double_backward" is exact;
    "finite_difference" is the central difference (grad_hyper L_train(w + r u) - grad_hyper
    L_train(w - r u)) / 2r with r = `radius` / ||u|| (Liu et al. 2019, equation 8), about half the
    cost and, on a smooth network, as good: its error is O(r^2). `second_order` adds the mixed
    term to the architecture's direct one; first order is the default of the field.
    """

    mixed: Literal["finite_difference", "double_backward"] = "finite_difference"
    second_order: bool = False
    radius: float = 0.01

    steps: ClassVar[int] = 1
    supports: ClassVar[frozenset[Kind]] = frozenset({"architecture", "loss", "optimizer"})

    def __call__(
        self, problem: Bilevel, state: InnerState, hyper: Hyper, kinds: Mapping[str, Kind]
    ) -> Lookahead:
        state = detach(state)
        names = list(kinds)
        with_mixed = {"loss", "architecture"} if self.second_order else {"loss"}
        needs_mixed = [n for n in names if kinds[n] in with_mixed]
        exact = bool(needs_mixed) and self.mixed == "double_backward"

        params = tuple(p.detach().requires_grad_() for p in state.params)
        constant = hyper if exact else {n: h.detach() for n, h in hyper.items()}
        loss, report = problem.inner_loss(params, constant, 0)
        graph = torch.autograd.grad(loss, params, create_graph=exact)

        grads = tuple(g.detach().requires_grad_() for g in graph)
        ahead, optimizer = problem.optimizer.update(
            state.params, grads, state.optimizer, **problem.settings(hyper)._asdict()
        )
        new = detach(InnerState(ahead, optimizer))
        leaves = tuple(p.requires_grad_() for p in new.params)
        outer = problem.outer_loss(leaves, hyper)
        variables = [hyper[n] for n in names]
        results = torch.autograd.grad(outer[0], (*leaves, *variables), allow_unused=True)
        v, direct = results[: len(leaves)], results[len(leaves) :]
        if any(part is None for part in v):
            raise ValueError("the outer loss must depend on every parameter tensor")

        moved = torch.autograd.grad(ahead, (*grads, *variables), v, allow_unused=True)
        u, optimal = moved[: len(grads)], moved[len(grads) :]

        mixed: dict[str, Tensor | None] = dict.fromkeys(names)
        if exact:
            targets = [hyper[n] for n in needs_mixed]
            terms = torch.autograd.grad(graph, targets, u, allow_unused=True)
            mixed.update(zip(needs_mixed, terms))
        elif needs_mixed:
            mixed.update(self._central_difference(problem, state.params, hyper, needs_mixed, u))

        total = {n: add(a, b, mixed[n]) for n, a, b in zip(names, direct, optimal)}
        return Lookahead(
            InnerState(tuple(p.detach() for p in leaves), new.optimizer),
            require(total),
            (loss.detach(), report),
            detach_loss(outer),
        )

    def _central_difference(
        self, problem: Bilevel, params: Params, hyper: Hyper, names: list[str], u: Params
    ) -> dict[str, Tensor | None]:
        """d/dhyper (grad_w L_train . u) from two gradients in hyper alone."""
        norm = torch.stack([part.square().sum() for part in u]).sum().sqrt()
        radius = self.radius / (norm + torch.finfo(norm.dtype).tiny)
        targets = [hyper[n] for n in names]
        hyper = {n: h if n in names else h.detach() for n, h in hyper.items()}
        sides = []
        for sign in (1, -1):
            shifted = tuple((p + sign * radius * part).detach() for p, part in zip(params, u))
            loss, _ = problem.inner_loss(shifted, hyper, 0)
            if not loss.requires_grad:
                return {}  # it depends on no outer variable at all
            sides.append(torch.autograd.grad(loss, targets, allow_unused=True))
        return {
            name: None if plus is None or minus is None else (plus - minus) / (2 * radius)
            for name, plus, minus in zip(names, *sides)
        }
