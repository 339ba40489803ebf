"""Options of a study and of a correlation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from darts_lite.nas.options import SpaceOptions
from darts_lite.training.option import option
from darts_lite.training.options import MachineOptions, MetricName


@dataclass(frozen=True, kw_only=True)
class StudyOptions(MachineOptions, SpaceOptions):
    """Options that `tune` and `correlate` share."""

    epochs: int = option(20, "Epochs of one full training.", low=1)
    fidelity: Literal["epochs", "subset", "resolution"] = option(
        "epochs",
        "Kind of a cheap training: epochs stops early, subset uses fewer images, resolution uses "
        "smaller images.",
    )
    select_by: MetricName = option(
        "accuracy",
        "Validation metric to maximize, so neither ece nor log_loss; pictures and tables of the "
        "study call it accuracy.",
    )
    lowest: float = option(
        1 / 9,
        "Lowest fidelity, as a fraction of the cost of one full training.",
        low=0,
        high=1,
        above=True,
        shown="1/9",
    )


@dataclass(frozen=True, kw_only=True)
class TuneOptions(StudyOptions):
    """Options of a study."""

    method: Literal["random", "tpe", "asha", "bohb", "pbt", "pba", "gradient"] = option(
        "gradient",
        "Method: random search, TPE, ASHA, TPE with Hyperband, population based training, "
        "population based augmentation, or our gradient search in rounds.",
    )
    out: str = option("out", "Folder of the study.")
    budget_hours: float | None = option(
        None,
        "Wall-clock hours of the study, including earlier sessions.",
        low=0,
        above=True,
        shown="0.1 below 16 pixels, else 1",
    )
    trials: int | None = option(
        None, "Budget in trials, instead of hours or in addition to hours.", low=1
    )
    pareto: bool = option(False, "Search the Pareto front of parameters and accuracy.")
    population: int = option(8, "Number of members of the population of pbt and pba.", low=2)
    genotype: str | None = option(
        None,
        "Genotype file of the small model of pba.",
        shown="a random network within the parameter limit",
    )
    warm_start: tuple[str, ...] = option(
        (),
        "Earlier study or search to start from: its folder or a g.json; may be repeated.",
    )
    workers: int = option(1, "Number of worker processes on this machine.", low=1)
    storage: str | None = option(
        None,
        "Journal file, or URL of a database that machines share (postgresql+psycopg://...).",
        shown="OUT/study.journal",
    )


@dataclass(frozen=True, kw_only=True)
class CorrelateOptions(StudyOptions):
    """Options of a correlation between cheap and full trainings."""

    configurations: int = option(
        20, "Number of random configurations; each is trained at every fidelity.", low=3
    )
    out: str = option("correlation", "Folder of the results.")

    @property
    def study(self) -> TuneOptions:
        """The options of a study by random search with the same settings."""
        shared = {f.name: getattr(self, f.name) for f in fields(StudyOptions)}
        return TuneOptions(method="random", out=self.out, trials=self.configurations, **shared)
