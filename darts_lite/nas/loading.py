"""Genotypes from disk: g.json, or the search checkpoint beside it, under a parameter limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import UserError
from darts_lite.nas.defaults import resolved
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget
from darts_lite.training.run import Say, read_data, require_same_data, stored_options


def load_genotype(
    path: Path, limit: int | None, data_dir: str | None = None, say: Say = print
) -> Genotype:
    """Read a genotype, or make it from the search checkpoint beside it, under a parameter limit.

    A genotype above the limit is derived anew from that checkpoint and left on disk as it is.
    """
    saved = path.parent / "search" / "checkpoint.pt"
    genotype = Genotype.load(path) if path.exists() or not saved.exists() else None
    if genotype is not None:
        counted = network_cost(genotype.space, genotype.image, len(genotype.classes))
        if counted != (genotype.parameters, genotype.macs):
            raise UserError(
                f"{path}: parameters and macs are {genotype.parameters} and {genotype.macs}, but "
                f"its network has {counted.parameters} and {counted.macs}; search again"
            )
        if limit is None or genotype.parameters <= limit:
            return genotype
        if not saved.exists():
            raise UserError(
                f"{path} has {genotype.parameters} parameters, more than {limit}, and without "
                f"{saved} it is the smallest possible network here: raise --max-params, bring "
                "that checkpoint, or search again"
            )
    say(f"deriving from {saved}" + ("" if genotype else f": {path} does not exist"))
    made = _discretized(saved, limit, data_dir, say)
    if genotype is None:
        made.save(path)
    return made


def _discretized(saved: Path, limit: int | None, data_dir: str | None, say: Say) -> Genotype:
    """Return the genotype of a search checkpoint as it stands."""
    content = checkpoint.load(saved, "search")
    options = stored_options(SearchOptions, content["config"], saved)
    options = replace(options, data_dir=data_dir or options.data_dir)
    device = torch.device("cpu")
    dataset, splits = read_data(options, options.seed, say)
    require_same_data(content, dataset, saved)
    options = resolved(options, dataset, device)
    if limit is not None:
        options = replace(options, max_params=min(limit, options.limit))
    task = SearchTask(options, dataset, splits, device)
    loop.restore(task, content, saved, Budget(steps=1))
    return task.genotype(finished=False)
