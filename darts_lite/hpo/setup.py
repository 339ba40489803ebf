"""From the options of a study to the objects of its workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from darts_lite.architecture.genotype import Genotype
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.methods.gradient import Gradient
from darts_lite.hpo.methods.population import Population
from darts_lite.hpo.methods.sampled import Asha, Sampled, rungs
from darts_lite.hpo.options import TuneOptions
from darts_lite.hpo.records import Method
from darts_lite.hpo.space import AugmentationSpace, Configuration, ConfigurationSpace, Space, Values
from darts_lite.nas.defaults import search_width, shaped
from darts_lite.nas.loading import load_genotype
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.random_networks import uniform_random
from darts_lite.nas.task import space_of
from darts_lite.training.device import device_named
from darts_lite.training.metrics import METRICS
from darts_lite.training.problem import augmentation_for
from darts_lite.training.replay import DEFAULTS
from darts_lite.training.run import is_small, on
from darts_lite.training.source import source_of

METHODS = ("random", "tpe", "asha", "bohb", "pbt", "pba", "gradient")
WITH_PARETO = ("random", "tpe", "asha", "gradient")
BATCH_SIZES = (32, 64, 128)
BATCH_SIZE = 64  # images per batch of our own method and of PBA
DRAWS = 200  # random networks to draw for PBA until one has few enough parameters
PARTS = 3  # networks per gradient search for a Pareto front


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a study that do not depend on the storage."""

    method: Method
    space: Space
    bench: Bench
    search: SearchOptions


def completed(options: TuneOptions, dataset: Dataset) -> TuneOptions:
    """Return the options with every default filled in, so that all workers use the same values.

    Arguments:
        options: Options of the user.
        dataset: Data set of the study.

    Raises:
        UserError: Two options exclude each other, or a value is unknown.
    """
    if options.method not in METHODS:  # a new study needs one
        raise UserError(f"--method must be one of {', '.join(METHODS)}, got {options.method}")
    options = shaped(options, dataset, device_named(options.device))
    hours = options.budget_hours
    if hours is None and options.trials is None:
        hours = 0.1 if is_small(dataset) else 1.0
    if options.pareto and options.method not in WITH_PARETO:
        raise UserError(
            f"--pareto needs a method of {', '.join(WITH_PARETO)}, got {options.method}"
        )
    if options.fidelity != "epochs" and options.method in ("pbt", "pba"):
        raise UserError(
            f"--fidelity must be epochs for {options.method}, got {options.fidelity}; change it"
        )
    if options.workers > 1 and (options.storage or "").startswith("sqlite"):
        raise UserError(
            "--storage must not be SQLite with several workers, because a trial may run twice; "
            "use a journal file"
        )
    if options.genotype is not None and options.method != "pba":
        raise UserError(
            "--genotype is only for pba, its small model; use --warm-start to start from a genotype"
        )
    return replace(options, dataset=dataset.name, budget_hours=hours)


def assemble(options: TuneOptions, dataset: Dataset, splits: Splits) -> Setup:
    """Return method, space, bench and search options of a study.

    Arguments:
        options: Options as `completed` returns them.
        dataset: Data set of the study.
        splits: Its training, validation and test images.
    """
    if not METRICS[options.select_by].larger_is_better:
        grows = ", ".join(name for name, metric in METRICS.items() if metric.larger_is_better)
        raise UserError(
            f"--select-by of a study must be a metric to maximize, {grows}, got "
            f"{options.select_by}; choose one of them"
        )
    device = device_named(options.device)
    assert options.max_params is not None and options.channels is not None
    bench = Bench(
        dataset=dataset,
        splits=on(device, splits),
        device=device,
        epochs=options.epochs,
        fidelity=options.fidelity,
        seed=options.seed,
        folder=Path(options.out),
        source=source_of(options, dataset),
        record={"method": options.method},
        checkpoint_seconds=options.checkpoint_seconds,
        select_by=options.select_by,
    )
    search = SearchOptions(
        dataset=options.dataset,
        data_dir=options.data_dir,
        image_size=options.image_size,
        subset=options.subset,
        space=options.space,
        cells=options.cells,
        channels=options.channels,
        search_channels=search_width(SearchOptions().method, options.channels, device),
        stem_stride=options.stem_stride,
        max_params=options.max_params,
        batch_size=BATCH_SIZE,
        seed=options.seed,
    )
    space = _space(options, search, bench)
    return Setup(method=_method(options, space), space=space, bench=bench, search=search)


def _space(options: TuneOptions, search: SearchOptions, bench: Bench) -> Space:
    learnable = augmentation_for(bench.dataset, "learned")
    if options.method != "pba":
        sizes = tuple(s for s in BATCH_SIZES if s <= bench.splits.train.count // 2)
        if not sizes:
            raise UserError(
                f"training images must be at least {2 * BATCH_SIZES[0]} (two batches), got "
                f"{bench.splits.train.count}; use a larger --subset"
            )
        return ConfigurationSpace(
            architecture=space_of(search), batch_sizes=sizes, learnable=learnable
        )
    genotype = _small_model(options, search, bench)
    known = {**DEFAULTS, **genotype.recipe.schedules}
    fixed = Configuration(
        space=genotype.space,
        recipe=replace(
            genotype.recipe,
            batch_size=BATCH_SIZE,
            augment="learned",
            schedules={n: ((0.0, known[n][-1][1]),) for n in DEFAULTS},
        ),
        values={},
    )
    return AugmentationSpace(fixed=fixed, learnable=learnable)


def _small_model(options: TuneOptions, search: SearchOptions, bench: Bench) -> Genotype:
    """Return the genotype of --genotype, or a random network within the parameter limit."""
    if options.genotype is not None:
        found = load_genotype(Path(options.genotype), options.max_params, options.data_dir)
        if found.structure is not None:
            raise UserError(
                f"--genotype must be a network of a space, got {options.genotype} with changed "
                "layers or a timm model; give the genotype of its search"
            )
        return found
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(DRAWS):
        space = uniform_random(space_of(search), generator)
        found = bench.genotype_of(space)
        if found.parameters <= search.limit:
            return found
    raise UserError(
        f"a network must have at most {search.max_params} parameters, got more in {DRAWS} draws; "
        "raise --max-params, lower --channels, or give a --genotype"
    )


def _method(options: TuneOptions, space: Space) -> Method:
    lowest = rungs(options.lowest)
    if options.method in ("pbt", "pba"):
        begin: Values | None = None
        if isinstance(space, AugmentationSpace):
            begin = dict.fromkeys(space.learnable.policy.names, 0.0)
        return Population(
            size=options.population,
            generations=min(options.epochs, 10),
            explore="pba" if options.method == "pba" else "pbt",
            begin=begin,
            seed=options.seed,
        )
    hours = options.budget_hours
    budget = None if hours is None else 3600 * hours
    methods: dict[str, Method] = {
        "random": Sampled("random"),
        "tpe": Sampled("tpe"),
        "bohb": Sampled("tpe", lowest),
        "asha": Asha(lowest, options.pareto),
        "gradient": Gradient(budget=budget, parts=PARTS if options.pareto else 1),
    }
    return methods[options.method]


def threads(workers: int) -> int:
    """Return the CPU threads per worker: all workers together use the threads of one process."""
    return max(1, torch.get_num_threads() // workers)
