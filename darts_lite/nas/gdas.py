"""GDAS: one sampled path per step, with straight-through weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.architecture.weights import CellWeights, Path, Weights
from darts_lite.nas.relaxation import logit_shapes, relax


@dataclass(frozen=True)
class Gdas:
    """GDAS (Dong and Yang 2019): a path is sampled, and only the path is evaluated.

    With Gumbel noise g, the argmax of logits + g is a sample of softmax(logits). The weights of a
    sampled option have the value one and the derivative of p = softmax((logits + g) / temperature),

        one_hot + p - stop_gradient(p).

    A step costs as much as a step of a discrete network, so a supernet can be as wide as its
    result. Sizes are sampled as well as operations, and edges where they compete (the k edges with
    the largest logits + g of a node that keeps k).
    """

    def draw(self, space: SearchSpace, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the Gumbel noise of one step by name of the logits, on the CPU."""
        noise = {}
        for name, shape in logit_shapes(space).items():
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            noise[name] = -(-uniform.clamp(1e-12, 1 - 1e-12).log()).log()
        return noise

    def __call__(
        self,
        space: SearchSpace,
        logits: Mapping[str, Tensor],
        temperature: float = 1.0,
        draws: Mapping[str, Tensor] | None = None,
    ) -> Weights:
        """Return the weights of the sampled path; the softmax of the logits without draws.

        Waits for the device of the logits once, because the path decides what is computed.

        Arguments:
            space: the search space.
            logits: architecture logits by name.
            temperature: positive temperature of the softmax that gives the derivatives.
            draws: result of `draw`.
        """
        if draws is None:
            return relax(space, logits, temperature)
        noisy = {n: v + draws[n].to(v) for n, v in logits.items()}
        names, values = list(noisy), [v.detach().flatten() for v in noisy.values()]
        flat = torch.cat(values).cpu().split([len(v) for v in values])
        known = {n: part.view(noisy[n].shape) for n, part in zip(names, flat)}
        soft = relax(space, noisy, temperature)
        return {c.name: _path_weights(c, soft[c.name], known) for c in space.cells}


def _path_weights(cell: Cell, soft: CellWeights, noisy: Mapping[str, Tensor]) -> CellWeights:
    """Return straight-through weights of the path with the largest noisy logits.

    Arguments:
        cell: cell of the search space.
        soft: weights that give the derivatives.
        noisy: logits with noise by name, on the CPU.
    """
    operations = noisy[f"{cell.name}.operation"].argmax(1)
    kept = list(range(len(cell.edges)))
    edge = soft.edge
    if edge is not None:
        beta = noisy[f"{cell.name}.edge"]
        kept = [i for node in cell.inner_nodes for i in _largest(cell, node, beta)]
        hot = torch.zeros(len(beta)).index_fill(0, torch.tensor(kept), 1.0)
        edge = _straight_through(hot, edge)
    sizes = {
        o.name: {c: noisy[f"{cell.name}.{o.name}.{c}"].argmax(1) for c in soft.choices[o.name]}
        for o in cell.edges[0].operations
    }
    path: Path = tuple(
        _option(cell.edges[i].operations[int(operations[i])], sizes, i) if i in kept else None
        for i in range(len(cell.edges))
    )
    return CellWeights(
        edge,
        _straight_through(_one_hot(operations, soft.operation), soft.operation),
        {
            o: {c: _straight_through(_one_hot(sizes[o][c], p), p) for c, p in choices.items()}
            for o, choices in soft.choices.items()
        },
        path,
    )


def _largest(cell: Cell, node: int, beta: Tensor) -> list[int]:
    into = cell.into(node)
    best = beta[into].topk(min(cell.keep, len(into))).indices
    return [into[i] for i in best.tolist()]


def _option(operation: Operation, sizes: Mapping[str, Mapping[str, Tensor]], i: int) -> Operation:
    own = sizes[operation.name]
    chosen: dict[str, tuple[int, ...]] = {
        choice: (each[int(own[choice][i])] if choice in own else each[0],)
        for choice, each in operation.choices.items()
    }
    return Operation(operation.name, chosen)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index, like.shape[1])


def _straight_through(hot: Tensor, soft: Tensor) -> Tensor:
    """Return the values of `hot` with the derivatives of `soft`."""
    return hot.to(soft) + (soft - soft.detach())
