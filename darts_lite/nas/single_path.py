"""Single-path search: train uniformly sampled paths, then score options on validation images.

- `UniformPath` samples the path of a step; the weights of all paths are entangled.
- `PathScores` fits the validation losses of many paths by a sum of effects, one per decision. The
  effects become the logits, so selection takes the best network within the parameter limit.

In a table of all networks of a small space (`experiments/truth_table.py`), these scores rank
networks better, and in less time, than logits that learn from derivatives of a mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_lite.architecture.space import Cell, Operation, SearchSpace
from darts_lite.architecture.weights import CellWeights, Path, Weights, on_path
from darts_lite.nas.relaxation import logit_shapes, relax

RANGE = 25.0  # largest logit


@dataclass(frozen=True)
class UniformPath:
    """Uniform sampling of one path per step (SPOS, Guo et al. 2020).

    A step costs as much as a step of a discrete network, so a supernet can be as wide as its
    result. Operations are sampled uniformly, then the sizes of the operation, and the k edges of a
    node that keeps k. The weights do not depend on the logits, which get no hypergradient.
    """

    def draw(self, space: SearchSpace, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a uniform number for every logit, by name, on the CPU."""
        return {n: torch.rand(s, generator=generator) for n, s in logit_shapes(space).items()}

    def __call__(
        self,
        space: SearchSpace,
        logits: Mapping[str, Tensor],
        temperature: float = 1.0,
        draws: Mapping[str, Tensor] | None = None,
    ) -> Weights:
        """Return one-hot weights of the path of the draws; the softmax of the logits without draws.

        Arguments:
            space: the search space.
            logits: architecture logits by name.
            temperature: positive temperature of the softmax.
            draws: result of `draw`.
        """
        if draws is None:
            return relax(space, logits, temperature)
        like = next(iter(logits.values()))
        return {cell.name: _one_path(cell, draws, like) for cell in space.cells}


def _one_path(cell: Cell, draws: Mapping[str, Tensor], like: Tensor) -> CellWeights:
    """Return one-hot weights, of the type of `like`, of the path whose draws are largest."""
    count, operations = len(cell.edges), draws[f"{cell.name}.operation"].argmax(1)
    sizes = {
        o.name: {
            choice: draws[f"{cell.name}.{o.name}.{choice}"].argmax(1)
            for choice, each in o.choices.items()
            if len(each) > 1
        }
        for o in cell.edges[0].operations
    }
    kept = list(range(count))
    if cell.edges_compete:
        beta = draws[f"{cell.name}.edge"]
        kept = [i for node in cell.inner_nodes for i in _largest(cell, node, beta)]
    path: Path = tuple(
        _option(cell.edges[i].operations[int(operations[i])], sizes, i) if i in kept else None
        for i in range(count)
    )
    return on_path(cell, path, like)


def _largest(cell: Cell, node: int, beta: Tensor) -> list[int]:
    into = cell.into(node)
    return [into[i] for i in beta[into].topk(min(cell.keep, len(into))).indices.tolist()]


def _option(operation: Operation, sizes: Mapping[str, Mapping[str, Tensor]], i: int) -> Operation:
    own = sizes[operation.name]
    chosen: dict[str, tuple[int, ...]] = {
        choice: (each[int(own[choice][i])] if choice in own else each[0],)
        for choice, each in operation.choices.items()
    }
    return Operation(operation.name, chosen)


def _has(option: Operation | None, operation: Operation, choice: str, size: int) -> bool:
    """Tell whether the option is the operation with this size."""
    same = option is not None and option.name == operation.name
    return same and option.choices[choice] == (size,)  # type: ignore[union-attr]


class PathScores:
    """Least-squares effects of the decisions of paths on their validation losses.

    The loss of a path on a batch is modeled as

        loss = (effect of the batch) + sum over edges of [effect of its operation
               + sum over the operation's choices of the effect of the size] + noise,

    so paths that were evaluated on one batch are compared with each other only. Effects have a
    normal prior with the standard deviation of the noise (ridge regression).

    Arguments:
        space: the search space.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        self.shapes = logit_shapes(space)
        size = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        self.moments = torch.zeros(size, size, dtype=torch.float64)  # sum of x x^T
        self.products = torch.zeros(size, dtype=torch.float64)  # sum of x y
        self.square = 0.0  # sum of y^2
        self.freedom = 0  # losses minus batches
        self._contrast = self._contrasts(torch.eye(size).double())

    def add(self, paths: Sequence[Weights], losses: Sequence[float]) -> None:
        """Add the losses of several paths on one batch.

        Arguments:
            paths: one-hot weights of each path.
            losses: the loss of each path; others than finite ones are left out.
        """
        pairs = [(p, v) for p, v in zip(paths, losses, strict=True) if torch.tensor(v).isfinite()]
        if len(pairs) < 2:
            return
        x = torch.stack([self.features(path) for path, _ in pairs])
        y = torch.tensor([loss for _, loss in pairs], dtype=torch.float64)
        x, y = x - x.mean(0), y - y.mean()
        self.moments += x.T @ x
        self.products += x.T @ y
        self.square += float(y @ y)
        self.freedom += len(pairs) - 1

    def features(self, path_weights: Weights) -> Tensor:
        """Return the decisions of a path as zeros and ones, in the order of the logits."""
        parts: list[list[bool]] = []
        for cell in self.space.cells:
            path = path_weights[cell.name].path
            assert path is not None
            if cell.edges_compete:
                parts.append([option is not None for option in path])
            operations = cell.edges[0].operations
            parts += ([option is not None and option.name == o.name for o in operations]
                      for option in path)  # fmt: skip
            for operation in operations:
                for choice, sizes in operation.choices.items():
                    if len(sizes) > 1:
                        parts += ([_has(option, operation, choice, size) for size in sizes]
                                  for option in path)  # fmt: skip
        return torch.tensor([value for part in parts for value in part]).double()

    def logits(self) -> dict[str, Tensor]:
        """Return logits by name: minus the effects, in mean standard errors of a contrast.

        The effect of an operation is that with its best sizes, because selection adds log p(size)
        relative to the best size (`option_scores`).
        """
        inverse = torch.linalg.inv(self.moments + torch.eye(len(self.products)).double())
        effects = inverse @ self.products
        rest = max(self.square - float(effects @ self.products), 1e-12)
        covariance = self._contrast.T @ inverse @ self._contrast * (rest / max(1, self.freedom))
        effects = effects @ self._contrast
        error = max(float(covariance.diagonal().sqrt().mean()), float(effects.abs().max()) / RANGE)
        found = {n: v[0].float() for n, v in self._parts(-effects[None] / error).items()}
        for cell, column, sizes in self._sizes(found):
            found[f"{cell.name}.operation"][:, column] += sum(v.amax(1) for v in sizes)
        return found

    def _contrasts(self, effects: Tensor) -> Tensor:
        """Return effects `[K, F]` without what the data cannot tell.

        Sizes are relative to the mean size, whose effect is that of the operation; operations are
        relative to the mean operation, and edges to the mean edge of their node.
        """
        parts = {n: v.clone() for n, v in self._parts(effects).items()}
        for cell, column, sizes in self._sizes(parts):
            for size in sizes:
                mean = size.mean(-1)
                parts[f"{cell.name}.operation"][:, :, column] += mean
                size -= mean.unsqueeze(-1)
        for cell in self.space.cells:
            operation = parts[f"{cell.name}.operation"]
            operation -= operation.mean(-1, keepdim=True)
            for node in cell.inner_nodes if cell.edges_compete else ():
                edge, into = parts[f"{cell.name}.edge"], cell.into(node)
                edge[:, into] -= edge[:, into].mean(-1, keepdim=True)
        return torch.cat([v.flatten(1) for v in parts.values()], 1)

    def _parts(self, effects: Tensor) -> dict[str, Tensor]:
        """Return views `[K, *shape]` of effects `[K, F]`, by name of the logits."""
        parts = effects.split([torch.Size(s).numel() for s in self.shapes.values()], 1)
        return {n: v.view(-1, *s) for (n, s), v in zip(self.shapes.items(), parts)}

    def _sizes(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[Cell, int, list[Tensor]]]:
        """Yield cell, column of the operation, and the parts of its sizes."""
        for cell in self.space.cells:
            for column, operation in enumerate(cell.edges[0].operations):
                start = f"{cell.name}.{operation.name}."
                yield cell, column, [v for n, v in parts.items() if n.startswith(start)]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {
            "moments": self.moments,
            "products": self.products,
            "square": self.square,
            "freedom": self.freedom,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.moments = state["moments"].cpu()
        self.products = state["products"].cpu()
        self.square, self.freedom = float(state["square"]), int(state["freedom"])
