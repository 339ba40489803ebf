"""Options of the search space and of a search. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_lite.architecture.recipe import Recipe
from darts_lite.training.option import option
from darts_lite.training.options import (
    AUGMENT,
    ESTIMATOR,
    BalanceOptions,
    DataOptions,
    MachineOptions,
    RecipeOptions,
)


@dataclass(frozen=True, kw_only=True)
class LimitOptions(DataOptions):
    """Options of the data and the size of the network."""

    max_params: int | None = option(
        None,
        "Parameter limit: the target of the search, and the limit of the resulting network.",
        low=1,
        shown="60000 below 16 pixels, else 150000",
    )


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(LimitOptions):
    """Options of the search space."""

    space: Literal["cells", "blocks"] = option(
        "blocks", "Search space: a chain of mixed blocks, or DARTS cells."
    )
    cells: int = option(7, "Number of cells or blocks.", low=1)
    channels: int | None = option(
        None, "Channels of the first stage.", low=1, shown="the most that fit --max-params"
    )
    stem_stride: int | None = option(
        None,
        "Stride of the first convolution, 1 or 2; 2 is faster and loses detail.",
        low=1,
        high=2,
        shown="2 on a CPU for images of at least 24 pixels, else 1",
    )


@dataclass(frozen=True, kw_only=True)
class FolderOptions(MachineOptions):
    """Options of the folder and the augmentation of a search."""

    out: str = option("out", "Folder of the run.")
    augment: str = option("learned", f"Augmentation: {AUGMENT}")


@dataclass(frozen=True, kw_only=True)
class FitOptions(BalanceOptions, FolderOptions, LimitOptions):
    """Options of a search and its final training under one clock."""

    budget_hours: float | None = option(
        None,
        "Wall-clock hours from process start to the result; a fifth is for the search, more if "
        "the budget is a few minutes.",
        low=0,
        above=True,
        shown="0.06 below 16 pixels, else 2",
    )


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RecipeOptions, FolderOptions, SpaceOptions):
    """Options of a search."""

    budget_hours: float | None = option(
        None,
        "Wall-clock hours from process start to g.json.",
        low=0,
        above=True,
        shown="0.025 below 16 pixels, else 1",
    )
    steps: int | None = option(
        None, "Budget in steps instead of hours; the result is then exactly reproducible.", low=1
    )
    search_channels: int | None = option(
        None,
        "Channels of the first stage of the supernet.",
        low=1,
        shown="--channels; at most 8 for darts on a CPU",
    )
    method: Literal["darts", "single_path"] = option(
        "darts",
        "darts: train a mixture of all operations, and its weights by hypergradients; single_path: "
        "train one sampled path per step, which costs no more than the resulting network, then "
        "score the options on validation images.",
    )
    fill: bool = option(
        False,
        "Widen the network that was found until it has the most parameters within --max-params; "
        "for long trainings, because fewer epochs fit into the same time.",
    )
    optimizer: Literal["sgd", "adamw"] = option(
        "sgd", "Optimizer of the weights, in the search and in the final training."
    )
    estimator: str = option(
        ESTIMATOR,
        "Hypergradient estimator: one_step, unrolled, forward, neumann, conjugate_gradient or "
        "online; one for all kinds, or KIND=NAME for architecture, loss, optimizer. annealed: find "
        "the learning rate by annealed look-aheads early in the training, do not learn the weight "
        "decay.",
    )
    protect: bool = option(
        True,
        "With --method darts, regularize the architecture against a collapse to skip connections.",
    )
    warm_start: tuple[str, ...] = option(
        (),
        "Earlier search to start from: a g.json or its folder; may be repeated.",
    )
    batch_size: int = option(Recipe().batch_size, "Images per step.", low=2)

    @property
    def limit(self) -> int:
        """The parameter limit; `nas.defaults.resolved` must have set it."""
        assert self.max_params is not None
        return self.max_params
