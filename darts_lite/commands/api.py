"""The commands as functions of `import darts_lite`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.commands import compare_roads as _compare_roads
from darts_lite.commands import compress as _compress
from darts_lite.commands import derive as _derive
from darts_lite.commands import fit as _fit
from darts_lite.commands import folds, random_baseline
from darts_lite.commands import search as _search
from darts_lite.commands import selftrain as _selftrain
from darts_lite.compression.options import CompressOptions
from darts_lite.errors import UserError
from darts_lite.hpo.options import TuneOptions
from darts_lite.nas.options import FitOptions, SearchOptions
from darts_lite.reporting.comparison.roads import NAME
from darts_lite.training.options import DeriveOptions, SelfTrainOptions
from darts_lite.training.run import Say


def fit(*, resume: bool = False, say: Say = print, **options: Any) -> dict[str, Any]:
    """Search a network, train and test it, and write a report; return the content of `fit.json`.

    Arguments:
        resume: whether to continue the run in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `FitOptions`, the flags of the command, such as
            `dataset="folder:photos"`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    given = set(options) if resume else None
    return _fit.fit(FitOptions(**options), resume=given, say=say)


def search(*, resume: bool = False, say: Say = print, **options: Any) -> Genotype:
    """Learn an architecture and its hyperparameters; write `g.json` and return the genotype.

    Arguments:
        resume: whether to continue the run in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `SearchOptions`, the flags of the command, such as `dataset="digits"`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    given = set(options) if resume else None
    return _search.search(SearchOptions(**options), resume=given, say=say)


def derive(*, resume: bool = False, say: Say = print, **options: Any) -> dict[str, Any]:
    """Train a genotype and test it once; return the content of `metrics.json`.

    With `random=N`, train N random networks of the same size instead; return the content of
    `random.json`. With `folds=N` or `repeats=N`, train several times; return the content of
    `folds.json` or `repeats.json`.

    Arguments:
        resume: whether to continue the run in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `DeriveOptions`, the flags of the command, such as `epochs=20`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    given = set(options) if resume else None
    said = DeriveOptions(**options)
    return derive_command(said)(said, resume=given, say=say)


def derive_command(options: DeriveOptions) -> Callable[..., dict[str, Any]]:
    """Return the function that does what the options of `derive` ask for.

    Raises: `UserError` for a fold without a number of folds.
    """
    if options.fold is not None and options.folds is None:
        raise UserError("--fold needs --folds, the number of folds, got none; add it")
    if options.random is not None:
        return random_baseline.derive_random
    if options.repeats is not None or (options.folds is not None and options.fold is None):
        return folds.derive_folds
    return _derive.derive


def selftrain(*, resume: bool = False, say: Say = print, **options: Any) -> dict[str, Any]:
    """Let a teacher label images, and its students become teachers; return `selftrain.json`.

    Arguments:
        resume: whether to continue the run in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `SelfTrainOptions`, the flags of the command, such as
            `unlabelled="photos"`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    given = set(options) if resume else None
    return _selftrain.selftrain(SelfTrainOptions(**options), resume=given, say=say)


def compress(
    run: str | Path, *, resume: bool = False, say: Say = print, **options: Any
) -> dict[str, Any]:
    """Make the network of a training smaller and fine-tune it; return its `metrics.json`.

    With `compare=True`, train several roads to the same size; return the content of `compare.json`.

    Arguments:
        run: folder of the training, as for `load`.
        resume: whether to continue the run in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `CompressOptions`, the flags of the command, such as
            `target_params=50_000`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    given = set(options) if resume else None
    said = CompressOptions(**options)
    return compress_command(said, resume)(Path(run), said, resume=given, say=say)


def compress_command(options: CompressOptions, resume: bool) -> Callable[..., dict[str, Any]]:
    """Return the function that does what the options of `compress` ask for.

    Arguments:
        options: options of the command.
        resume: whether the user gave --resume; a comparison in `out` then goes on without
            `compare`.
    """
    begun = options.out is not None and (Path(options.out) / NAME).exists()
    compared = options.compare or (resume and begun)
    return _compare_roads.compare_roads if compared else _compress.compress


def tune(*, resume: bool = False, say: Say = print, **options: Any) -> Path:
    """Run a study of a search method within a budget; return the path of the best `g.json`.

    This function needs Optuna (extra `tune`).

    Arguments:
        resume: whether to continue the study in `out` with its own settings.
        say: prints a line for the user.
        options: fields of `TuneOptions`, the flags of the command, such as `method="tpe"`.
    Raises: `UserError` for bad input; `TypeError` for an unknown option.
    """
    from darts_lite.hpo.launcher import tune  # an optional dependency

    given = set(options) if resume else None
    return tune(TuneOptions(**options), resume=given, say=say)
