"""From options to the origin of the images that a genotype keeps, and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.reading import Reading
from darts_lite.data import Dataset, changed
from darts_lite.data.images import is_own
from darts_lite.data.layout import display
from darts_lite.errors import UserError
from darts_lite.training.options import DataOptions, MovedOptions

CHOSEN = ("low", "high")  # values of `Reading` that follow from the images and are no options


def reading_of(options: DataOptions) -> Reading:
    """Return how image files become images, from options."""
    named = (each.name for each in fields(Reading) if each.name not in CHOSEN)
    return Reading(**{name: getattr(options, name) for name in named})


def source_of(options: DataOptions, dataset: Dataset) -> Source:
    """Return the origin of a data set, for the genotype; paths are absolute.

    Arguments:
        options: options of the data.
        dataset: the data set that they gave; it has decided what the user left open.
    """
    name, size = options.dataset or dataset.name, options.image_size
    if is_own(name):
        kind, _, path = name.partition(":")
        name = display(f"{kind}:{Path(path).expanduser().absolute()}")  # JSON needs UTF-8
        size = dataset.image_size[0]
    return Source(
        dataset=name,
        data_dir=options.data_dir,
        image_size=size,
        subset=options.subset,
        reading=dataset.reading,
    )


def data_of(genotype: Genotype, options: MovedOptions) -> DataOptions:
    """Return the options that load the data of the search of a genotype.

    Arguments:
        genotype: genotype of the search.
        options: options of a later run; they may say where the data lie now.
    """
    source = genotype.source
    how = {n: v for n, v in asdict(source.reading).items() if n not in CHOSEN}
    return DataOptions(
        dataset=options.dataset or source.dataset,
        data_dir=options.data_dir or source.data_dir,
        download=options.download,
        image_size=source.image_size or (genotype.image[1] if is_own(source.dataset) else None),
        subset=source.subset,
        **how,
    )


def require_data_of(genotype: Genotype, dataset: Dataset, where: str) -> None:
    """Raise `UserError` if a data set is not that of a search; equal bytes are equal data.

    Arguments:
        genotype: genotype of the search.
        dataset: the data set.
        where: name of the genotype, for the error.
    """
    difference = changed(genotype.dataset, dataset.fingerprint)
    if difference is not None:
        raise UserError(
            f"{dataset.name} must have the images of the search of {where}, got {difference}; "
            "restore the images, or say where they lie by --dataset or --data-dir"
        )
