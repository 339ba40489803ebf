"""The result of a search: its discrete space and learned schedules as a genotype."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version

import torch

import darts_lite
from darts_lite.architecture.cost import genotype_with_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import SearchSpace
from darts_lite.data import Dataset
from darts_lite.nas.options import SearchOptions
from darts_lite.schedules import Schedule
from darts_lite.training.build import recipe_with
from darts_lite.training.options import MAY_CHANGE
from darts_lite.training.problem import OPTIMIZERS
from darts_lite.training.source import source_of


def recipe_of(options: SearchOptions) -> Recipe:
    """Return the recipe of a search, without learned schedules."""
    usual = OPTIMIZERS[options.optimizer].recipe
    recipe = recipe_with(usual, options)
    return replace(recipe, batch_size=options.batch_size, augment=options.augment)


def result(
    options: SearchOptions,
    dataset: Dataset,
    space: SearchSpace,
    schedules: Mapping[str, Schedule],
    finished: bool,
) -> Genotype:
    """Return the genotype of a search.

    Arguments:
        options: options of the search.
        dataset: data set of the search.
        space: discrete space, the selected network.
        schedules: learned schedules by name.
        finished: whether the search spent its whole budget.
    """
    record = {n: v for n, v in asdict(options).items() if n not in MAY_CHANGE}
    record["warm_start"] = ", ".join(options.warm_start) or None
    return genotype_with_cost(
        space,
        dataset.image,
        dataset.classes,
        recipe=replace(recipe_of(options), schedules=dict(schedules)),
        source=source_of(options, dataset),
        dataset=dict(dataset.fingerprint),  # type: ignore[arg-type]
        search=record,
        finished=finished,
        seed=options.seed,
        versions={
            "darts_lite": darts_lite.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
    )
