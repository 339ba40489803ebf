"""Roads from a trained network to a smaller one, each a run of existing commands.

To add a road, write a function that takes a `Job` and returns its seconds, and name it in `ROADS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_type_hints

from darts_lite.architecture.cost import default_channels
from darts_lite.commands import fit
from darts_lite.commands.compress import compress
from darts_lite.commands.derive import derive
from darts_lite.commands.original import Original, recipe_of, training_of
from darts_lite.commands.search import search
from darts_lite.compression.options import CompressOptions
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.files import read_json
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.random_networks import SIZE_CLASS, random_genotypes, whole_space
from darts_lite.training.option import names_of
from darts_lite.training.options import MAY_CHANGE, MAY_MOVE, DataOptions, DeriveOptions
from darts_lite.training.run import Say, make_folder

LEAST_STEPS = 4  # of a search in a budget of epochs
# settings of the search of RUN that the search here takes over
KEPT = ("method", "fill", "optimizer", "estimator", "protect", "batch_size", "augment", "loss",
        "label_smoothing", "schedule", "warm_up", "learn", "class_weights", "sampling")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One road to one target.

    Arguments:
        original: the training that the road starts from.
        options: options of the command; the budget is set.
        data: options that load the images.
        dataset: the images.
        splits: their splits, on the CPU.
        road: name of the road.
        target: largest number of parameters.
        folder: folder of the road.
        say: prints a line for the user.
    """

    original: Original
    options: CompressOptions
    data: DataOptions
    dataset: Dataset
    splits: Splits
    road: str
    target: int
    folder: Path
    say: Say


def _searched(job: Job) -> float:
    """Search with the target as parameter limit, then train what was found."""
    began, folder, options = time.monotonic(), job.folder, job.options
    saved, checkpoint = folder / "search" / "checkpoint.pt", folder / "derive" / "checkpoint.pt"
    asked = _search_options(job)
    search(
        asked,
        resume=MAY_MOVE if saved.exists() else None,
        started=began,
        say=job.say,
        dataset=job.dataset,
    )
    spent, hours, epochs = fit.seconds_of(folder / "search" / "metrics.jsonl"), None, None
    if options.budget_hours is not None:
        hours = max(fit.FIXED, 3600 * options.budget_hours - spent) / 3600
    if options.epochs is not None:
        epochs = max(1, options.epochs - round(fit.SEARCH * options.epochs))
    training = DeriveOptions(
        genotype=str(folder / "g.json"),
        out=str(folder / "derive"),
        budget_hours=hours,
        epochs=epochs,
        select=job.original.select,
        **options.carried,
    )
    taken = MAY_MOVE if checkpoint.exists() else None
    metrics = derive(training, resume=taken, say=job.say, dataset=job.dataset)
    return round(spent + metrics["seconds"], 1)


def _search_options(job: Job) -> SearchOptions:
    """Return the options of a search in the space of the original, on its images.

    The seed is that of the original, because it draws the images. The other settings are those of
    its search, if it has one.

    Raises: `UserError` if the genotype of the original is of no search space.
    """
    genotype, options = job.original.genotype, job.options
    space = whole_space(genotype.space)
    known = {each.name for each in fields(SearchOptions)}
    settings = genotype.search if known <= {*genotype.search, *MAY_CHANGE} else {}
    methods = names_of(get_type_hints(SearchOptions)["method"])
    kept = {n: v for n, v in settings.items() if n in KEPT}
    if kept.get("method") not in methods:  # that of a study
        kept.pop("method", None)
    data = {each.name: getattr(job.data, each.name) for each in fields(job.data)}
    asked = SearchOptions(
        **kept,  # type: ignore[arg-type]
        **data,
        space=space.preset,  # type: ignore[arg-type]
        cells=len(space.sequence),
        stem_stride=space.stem_stride,
        max_params=job.target,
        out=str(job.folder),
        seed=genotype.seed,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    if options.epochs is not None:
        steps = fit.SEARCH * options.epochs * job.splits.train.count / asked.batch_size
        return replace(asked, steps=max(LEAST_STEPS, round(steps)))
    assert options.budget_hours is not None
    return replace(asked, budget_hours=fit.search_seconds(3600 * options.budget_hours) / 3600)


def _compression(method: str) -> Callable[[Job], float]:
    def compressed(job: Job) -> float:
        """Make the network of the original smaller by one method, and fine-tune it."""
        folder = job.folder
        options = replace(
            job.options, compare=False, method=method, target_params=job.target, out=str(folder)
        )
        begun = (folder / "compressed" / "compress.json").exists()
        compress(
            job.original.folder,
            options,
            resume=MAY_MOVE if begun else None,
            started=time.monotonic(),
            say=job.say,
        )
        stages = [folder / "metrics.json", *folder.glob("stage*/metrics.json")]
        return round(sum(read_json(path)["seconds"] for path in stages), 1)

    return compressed


def _random(job: Job) -> float:
    """Train a random network of the space of the original, with the original as teacher."""
    began, folder, options = time.monotonic(), job.folder, job.options
    genotype = job.original.genotype
    path = folder / "genotype.json"
    if not path.exists():
        space = whole_space(genotype.space)
        image, classes = genotype.image, len(genotype.classes)
        channels = default_channels(space.with_channels, image, classes, job.target)
        like = replace(
            genotype,
            space=genotype.space.with_channels(channels),
            structure=None,
            parameters=job.target,  # the size of the random network
            recipe=recipe_of(job.original),
        )
        try:
            (drawn,) = random_genotypes(like, 1, job.target, first=options.seed)
        except UserError:
            raise UserError(
                f"the space {space.preset} must have networks of "
                f"{(1 - SIZE_CLASS) * job.target:.0f} to {job.target} parameters, got none by "
                "chance; choose another --target-params"
            ) from None
        make_folder(folder)
        drawn.save(path)
    training = training_of(
        job.original, options, path, folder, epochs=options.epochs, hours=options.budget_hours
    )
    begun = (folder / "checkpoint.pt").exists()
    metrics = derive(
        training,
        resume=MAY_MOVE if begun else None,
        started=began,
        say=job.say,
        dataset=job.dataset,
    )
    return float(metrics["seconds"])


ROADS: dict[str, Callable[[Job], float]] = {
    "search": _searched,
    "prune": _compression("prune"),
    "tucker": _compression("tucker"),
    "distill random": _random,
    "distill searched": _compression("distill"),
}
