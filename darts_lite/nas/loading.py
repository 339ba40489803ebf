"""Load genotypes within a parameter limit: from g.json, or from the search checkpoint beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from darts_lite.architecture.cost import cost_of
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
    """Read a genotype, or derive it from the search checkpoint beside its file.

    A genotype above the parameter limit is derived again from the checkpoint. Its file does not
    change.

    Arguments:
        path: genotype file; it is written if only the search checkpoint exists.
        limit: parameter limit; None for no limit.
        data_dir: folder with the published data sets; None for the folder of the search.
        say: prints a line for the user.
    Raises: `UserError` if a file is damaged, or no network fits the limit.
    """
    saved = path.parent / "search" / "checkpoint.pt"
    genotype = Genotype.load(path) if path.exists() or not saved.exists() else None
    if genotype is not None:
        counted = cost_of(genotype)
        if counted != (genotype.parameters, genotype.macs):
            raise UserError(
                f"{path}: parameters and macs must be {counted.parameters} and {counted.macs}, "
                f"the counts of its network, got {genotype.parameters} and {genotype.macs}; search "
                "again"
            )
        if limit is None or genotype.parameters <= limit:
            return genotype
        if not saved.exists():
            raise UserError(
                f"{path} must have at most {limit} parameters, got {genotype.parameters}; raise "
                f"--max-params, restore {saved} to derive a smaller network, or search again"
            )
    say(f"deriving from {saved}" + ("" if genotype else f": {path} does not exist"))
    made = _discretized(saved, limit, data_dir, say)
    if genotype is None:
        made.save(path)
    return made


def _discretized(saved: Path, limit: int | None, data_dir: str | None, say: Say) -> Genotype:
    """Return the genotype that discretization of a search checkpoint gives."""
    return restored_search(saved, limit, data_dir, say).genotype(finished=False)


def restored_search(
    saved: Path, limit: int | None = None, data_dir: str | None = None, say: Say = print
) -> SearchTask:
    """Return the state of a search on the CPU, from its checkpoint.

    Arguments:
        saved: checkpoint of the search.
        limit: smaller parameter limit of its selection; None for the limit of the search.
        data_dir: folder with the published data sets; None for the folder of the search.
        say: prints a line for the user.
    Raises: `UserError` if the file is damaged, the data differ, or no network fits the limit.
    """
    content = checkpoint.load(saved, "search")
    options = stored_options(SearchOptions, content["config"], saved)
    options = replace(options, data_dir=data_dir or options.data_dir)
    device = torch.device("cpu")
    dataset, splits = read_data(options, options.seed, say)
    require_same_data(content["config"]["data"], dataset, saved)
    options = resolved(options, dataset, device)
    if limit is not None:
        options = replace(options, max_params=min(limit, options.limit))
    task = SearchTask(options, dataset, splits, device)
    loop.restore(task, content, saved, Budget(steps=1))
    return task
