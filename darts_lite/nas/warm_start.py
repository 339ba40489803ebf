"""Warm start: starting values of a search from earlier searches; the search can overturn them.

- Earlier genotypes give starting logits from their choices, and starting hyperparameters from the
  ends of their schedules.
- An earlier checkpoint gives the weights of its supernet, if both searches split the same images
  alike. Weights that were trained on images that are validation images now would bias everything
  that is learned on the validation images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.flat_network import Params
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.data import Dataset, changed, grown
from darts_lite.errors import UserError
from darts_lite.hypergradient import LearningRateFinder
from darts_lite.hypergradient.hyperparameters import LogInterval
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.relaxation import logit_shapes, relax
from darts_lite.training import checkpoint
from darts_lite.training.problem import OPTIMIZERS

KNOWN_LOOKS = 10  # look-aheads that a known learning rate saves; the rest move it up to 2.9 times
HEAD_START = 1 / 3  # share of the probability; one of four operations then starts at a half
ROUNDS = 60  # iterations for the edge logits; if a node keeps two of three, each halves the error
SHAPING = ("space", "cells", "search_channels", "stem_stride")  # options that shape the supernet
SPLITTING = ("seed", "subset")  # options that determine the splits of the data


@dataclass(frozen=True)
class Warm:
    """Starting values of a search; every value that is not named has its usual start.

    Attributes:
        alpha: architecture logits by name of `logit_shapes`.
        starts: hyperparameters by name.
        params: weights of the supernet; None for new weights.
    """

    alpha: Mapping[str, Tensor] = field(default_factory=dict)
    starts: Mapping[str, float] = field(default_factory=dict)
    params: Params | None = None

    def weights(self, own: Params) -> Params:
        """Return the starting weights of a supernet.

        Arguments:
            own: weights of the new supernet.
        Raises: `UserError` if the inherited weights are of another supernet.
        """
        if self.params is None:
            return own
        sizes, expected = ([len(vector) for vector in ps] for ps in (self.params, own))
        if sizes != expected:
            raise UserError(
                f"the weights of the warm start must have the sizes of this supernet, {expected}, "
                f"got {sizes}; start without the weights, they are of another version"
            )
        return tuple(vector.to(own[0].device) for vector in self.params)

    def finder(self) -> LearningRateFinder:
        """Return the learning-rate finder, with fewer look-aheads if the learning rate is known.

        With inherited weights there are no look-aheads. From trained weights only low learning
        rates work (docs/hypergradients.md), so look-aheads would lower the learning rate from
        search to search, but the final training uses it on new weights.
        """
        if "lr" not in self.starts:
            return LearningRateFinder()
        return LearningRateFinder(
            done=KNOWN_LOOKS if self.params is None else LearningRateFinder.looks
        )


COLD = Warm()


def prior(space: SearchSpace, genotypes: Sequence[Genotype]) -> dict[str, Tensor]:
    """Return starting logits from the choices of earlier genotypes.

    The share `HEAD_START` of each mixing weight follows the earlier choices; the rest is spread
    evenly over the options. Every genotype that has the cell has one vote per decision. A genotype
    without the decision votes for all options equally: it may not have kept the edge, or not have
    chosen the operation that has the kernel size. Logits of unknown cells are zero.

    Arguments:
        space: space of the new search.
        genotypes: genotypes of earlier searches.
    Returns: logits by name of `logit_shapes`.
    """
    logits = {n: torch.zeros(s, dtype=torch.float64) for n, s in logit_shapes(space).items()}
    for cell in space.cells:
        earlier = [c for g in genotypes for c in g.space.cells if _alike(cell, c)]
        if not earlier:
            continue
        for name, rows in _decisions(cell, earlier).items():
            if name in logits:
                logits[name] = torch.tensor(rows, dtype=torch.float64)
        if f"{cell.name}.edge" in logits:
            chance, beta = _kept(cell, earlier), logits[f"{cell.name}.edge"]
            for _ in range(ROUNDS):  # iterative scaling (Chen, Dempster and Liu 1994)
                edge = relax(space, logits)[cell.name].edge
                assert edge is not None
                beta += (chance / edge).log()
    return {name: value.float() for name, value in logits.items()}


def _alike(cell: Cell, earlier: Cell) -> bool:
    """Tell whether the choices of an earlier cell are valid for this cell."""
    return all(
        getattr(cell, what) == getattr(earlier, what)
        for what in ("name", "inputs", "keep", "reduction")
    )


def _decisions(cell: Cell, earlier: Sequence[Cell]) -> dict[str, list[list[float]]]:
    """Return the logits of operations and their choices by name: one row per edge."""
    found: dict[str, list[list[float]]] = {}
    chosen = [{(e.source, e.target): e.operations[0] for e in c.edges} for c in earlier]
    for edge in cell.edges:
        operations = [each.get((edge.source, edge.target)) for each in chosen]
        names = [operation.name for operation in edge.operations]
        row = _logits(names, [o and o.name for o in operations])
        found.setdefault(f"{cell.name}.operation", []).append(row)
        for operation in edge.operations:
            for choice, sizes in operation.choices.items():
                row = _logits(sizes, [_size(o, operation.name, choice) for o in operations])
                found.setdefault(f"{cell.name}.{operation.name}.{choice}", []).append(row)
    return found


def _size(operation: Operation | None, name: str, choice: str) -> int | None:
    """Return the chosen size if `operation` is the operation `name`, else None."""
    if operation is None or operation.name != name:
        return None
    return operation.choices[choice][0]


def _logits(options: Sequence[Any], chosen: Sequence[Any]) -> list[float]:
    """Return log(n p) per option; zero if the n options are even; p as in `prior`."""
    count = len(options)
    votes = [[float(o == c) if c in options else 1 / count for o in options] for c in chosen]
    shares = [sum(column) / len(votes) for column in zip(*votes)]
    return [math.log(1 - HEAD_START + HEAD_START * count * share) for share in shares]


def _kept(cell: Cell, earlier: Sequence[Cell]) -> Tensor:
    """Return the probability [E] that each edge is kept, as in `prior`."""
    chances = torch.zeros(len(cell.edges), dtype=torch.float64)
    for node in range(cell.inputs, cell.inputs + cell.nodes):
        into = cell.into(node)
        even = torch.full((len(into),), min(cell.keep, len(into)) / len(into)).double()
        votes = []
        for each in earlier:
            ends = {(e.source, e.target) for e in each.edges}
            vote = torch.tensor([float(_ends(cell.edges[i]) in ends) for i in into]).double()
            votes.append(vote if vote.sum() == even.sum().round() else even)
        share = torch.stack(votes).mean(0)
        chances[into] = (1 - HEAD_START) * even + HEAD_START * share
    return chances


def _ends(edge: Edge) -> tuple[int, int]:
    return edge.source, edge.target


def starts(genotypes: Sequence[Genotype], optimizer: str = "sgd") -> dict[str, float]:
    """Return the hyperparameters at the ends of the schedules, averaged over genotypes.

    The mean is geometric for a hyperparameter that is learned in logarithms. A learning rate or
    weight decay counts only if the genotype has the same optimizer.

    Arguments:
        genotypes: genotypes of earlier searches.
        optimizer: optimizer of the new search, "sgd" or "adamw".
    """
    usual = OPTIMIZERS[optimizer]
    ends: dict[str, list[float]] = {}
    for genotype in genotypes:
        same = genotype.recipe.optimizer.name == optimizer
        for name, schedule in genotype.recipe.schedules.items():
            if same or name not in usual.ranges:
                ends.setdefault(name, []).append(schedule[-1][1])
    return {name: _mean(values, usual.ranges.get(name)) for name, values in ends.items()}


def _mean(values: Sequence[float], range_: LogInterval | None) -> float:
    if range_ is None:
        return sum(values) / len(values)
    low, high = range_.low, range_.high
    return math.exp(sum(math.log(min(max(v, low), high)) for v in values) / len(values))


# --- files ------------------------------------------------------------------------------------


def read(
    paths: Sequence[str],
    options: SearchOptions,
    space: SearchSpace,
    dataset: Dataset,
    say: Callable[[str], None],
) -> Warm:
    """Return the warm start from earlier searches; print what is used from each.

    The weights come from the first path whose weights fit.

    Arguments:
        paths: genotype files, or folders with a `g.json`.
        options: options of the new search.
        space: space of the new search.
        dataset: data set of the new search.
        say: prints a line for the user.
    Raises: `UserError` if there is no genotype, or a genotype or its checkpoint is damaged.
    """
    genotypes, params = [], None
    for path in map(genotype_path, paths):
        genotype = Genotype.load(path)
        genotypes.append(genotype)
        parts = [
            changed(genotype.dataset, dataset.fingerprint) or "data unchanged",
            _matching(space, genotype.space),
        ]
        if params is None:
            found = _weights(path.parent / "search" / "checkpoint.pt", options, dataset)
            if isinstance(found, str):
                parts.append(f"weights not taken: {found}")
            else:
                params = found
                parts.append("weights taken")
        say(f"warm start from {path}: {'; '.join(parts)}")
    return Warm(prior(space, genotypes), starts(genotypes, options.optimizer), params)


def genotype_path(text: str) -> Path:
    """Return the genotype file of a path, which is a file or its folder.

    Raises: `UserError` if the folder has no `g.json`.
    """
    path = Path(text)
    if path.is_dir():
        path = path / "g.json"
        if not path.exists():
            raise UserError(
                f"there is no {path} to start from; run `derive` to make it from an interrupted "
                "search"
            )
    return path


def _matching(space: SearchSpace, earlier: SearchSpace) -> str:
    """Return a phrase that names the cells with a head start."""
    known = {c.name for c in space.cells if any(_alike(c, e) for e in earlier.cells)}
    if not known:
        return "none of its cells is in this space: hyperparameters only"
    without = [c.name for c in space.cells if c.name not in known]
    return f"nothing known of {', '.join(without)}" if without else "all cells known"


def _weights(path: Path, options: SearchOptions, dataset: Dataset) -> Params | str:
    """Return the weights of a supernet, or the reason why this search cannot use them."""
    if not path.exists():
        return f"there is no {path}"
    content = checkpoint.load(path, "search")
    try:
        then, data = content["config"]["options"], content["config"]["data"]
        for name in SHAPING:
            if then[name] != getattr(options, name):
                return f"{name} must be {then[name]}, got {getattr(options, name)}"
        for name in SPLITTING:
            if then[name] != getattr(options, name):
                return f"with {name} {then[name]} they were trained on today's validation images"
        if changed(data, dataset.fingerprint):
            return "they may have been trained on today's validation images"
        params = tuple(content["state"]["task"]["params"])
    except (KeyError, TypeError):
        raise UserError(
            f"{path} must be a checkpoint of this version of darts_lite; move it away to start "
            "without its weights"
        ) from None
    return params


def same_split(earlier: Genotype, options: SearchOptions) -> bool:
    """Tell whether a search splits the data as the search of an earlier genotype did."""
    return (earlier.seed, earlier.source.subset) == (options.seed, options.subset)


class Comparison(NamedTuple):
    """Time that a search and an earlier search took to the final accuracy of the earlier search.

    Accuracies are accuracies of the supernet on validation images. Times are as exact as
    evaluations are frequent.

    Attributes:
        accuracy: final accuracy of the earlier search.
        best: best accuracy of this search.
        then: seconds from the start of the earlier search until it first had `accuracy`.
        now: seconds from the start of this search until it first had `accuracy`; None if never.
        same_images: whether both searches have the same validation images.
    """

    accuracy: float
    best: float
    then: float
    now: float | None
    same_images: bool

    @property
    def scalars(self) -> dict[str, float]:
        """The saved seconds, for the record; empty if this search did not reach the accuracy."""
        return {} if self.now is None else {"warm_saved_seconds": self.then - self.now}

    def __str__(self) -> str:
        images = "the same" if self.same_images else "other"
        what = f"{self.accuracy:.1%} (of the supernet, on {images} validation images)"
        if self.now is None:
            return f"did not reach the earlier search's {what}; its best is {self.best:.1%}"
        saved = self.then - self.now
        return (
            f"reached the earlier search's {what} after {self.now:.0f} s; it took {self.then:.0f} "
            f"s then: {abs(saved):.0f} s {'saved' if saved >= 0 else 'more'}"
        )


def compare(path: str, folder: Path, options: SearchOptions, dataset: Dataset) -> Comparison | None:
    """Compare a search with the earlier search that it started from.

    Arguments:
        path: genotype of the earlier search, or its folder.
        folder: folder of this search, with `metrics.jsonl`.
        options: options of this search.
        dataset: data set of this search.
    Returns: the comparison; None if the earlier search is gone, has no measured accuracy, or had
        images that are not in the data set any more.
    """
    try:
        file = genotype_path(path)
        earlier = Genotype.load(file)
    except UserError:
        return None
    same = changed(earlier.dataset, dataset.fingerprint) is None
    before, after = (_accuracies(f / "metrics.jsonl") for f in (file.parent / "search", folder))
    if not (same or grown(earlier.dataset, dataset.fingerprint)) or not before or not after:
        return None
    accuracy = before[-1][1]
    split = same_split(earlier, options)
    return Comparison(
        accuracy,
        max(a for _, a in after),
        next(s for s, a in before if a >= accuracy),
        next((s for s, a in after if a >= accuracy), None),
        same and split,
    )


def _accuracies(path: Path) -> list[tuple[float, float]]:
    """Return seconds and accuracy of the supernet per evaluation; empty if they are unknown."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(r["seconds"], r["accuracy/mixed"]) for r in rows if "accuracy/mixed" in r]
    except (OSError, ValueError, KeyError):
        return []
