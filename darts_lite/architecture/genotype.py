"""Genotypes: the result of a search as typed data, and its JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from darts_lite.architecture.operations import check
from darts_lite.architecture.reading import Reading
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import STRICT, SearchSpace
from darts_lite.architecture.structure import Structure
from darts_lite.errors import UserError
from darts_lite.files import first_fault, write_json

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Origin of the images.

    Arguments:
        dataset: Name of the data set, or folder:PATH.
        data_dir: Folder with the published data sets.
        image_size: Pixels per side after resizing; None for no resizing.
        subset: Total number of training and validation images; None for all.
        reading: How image files become images.
    """

    __pydantic_config__ = STRICT
    dataset: str
    data_dir: str = "data"
    image_size: int | None = None
    subset: int | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """The result of a search: a discrete space, the recipe that trains it, and their origin.

    Arguments:
        space: Discrete space, with one option per edge.
        image: Channels, height and width of an input image.
        classes: Class names, in the order of the labels.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulate operations per image.
        recipe: Recipe of the final training, with the learned schedules.
        source: Origin of the images.
        dataset: Fingerprint of the data set.
        search: Settings of the search, for the record.
        finished: False if the search was interrupted.
        seed: Random seed of the search and of the data splits.
        versions: Versions of the packages of the search.
        structure: What the network is, if it is not the one of the space: changed layers, after
            compression, or a model of timm. None for the network of the space.
    """

    __pydantic_config__ = STRICT
    format: Literal["darts_lite.genotype"] = "darts_lite.genotype"
    version: int = FORMAT_VERSION
    space: SearchSpace
    image: tuple[int, int, int]
    classes: tuple[str, ...]
    parameters: int
    macs: int
    recipe: Recipe = field(default_factory=Recipe)
    source: Source = field(default_factory=lambda: Source(dataset="digits"))
    dataset: dict[str, str | int | list[int]] = field(default_factory=dict)
    search: dict[str, bool | str | int | float | None] = field(default_factory=dict)
    finished: bool = True
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"format version must be {FORMAT_VERSION}, got version {self.version}")
        for _, edge in self.space.edges:
            for operation in edge.operations:
                check(operation)
        if not self.space.is_discrete:
            raise ValueError("a genotype must have one option per edge, got several")
        if min(self.image) < 1 or len(self.classes) < 2:
            raise ValueError(
                "a genotype must have an image of at least 1 pixel and at least 2 classes, "
                f"got {self.image} and {len(self.classes)}"
            )

    def save(self, path: Path) -> None:
        """Write the genotype as JSON, atomically."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the genotype as JSON values; `read` accepts their text."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def load(path: Path) -> Genotype:
        """Read and check the genotype in a file.

        Raises: `UserError` if the file cannot be read, or is no genotype; it names the first error.
        """
        try:
            return Genotype.read(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    @staticmethod
    def read(content: str | bytes, source: object) -> Genotype:
        """Read and check a genotype, of this or an older format version.

        Arguments:
            content: JSON text.
            source: Origin of the text, for errors.
        Raises: `UserError` if the text is no genotype; it names the first error.
        """
        try:
            return _ADAPTER.validate_json(_current(content))
        except ValidationError as error:
            raise UserError(
                f"{source} must be a genotype of this version: {first_fault(error)}; "
                "make it again with `search` or `derive`"
            ) from None


_ADAPTER = TypeAdapter(Genotype)


def _current(content: str | bytes) -> str | bytes:
    """Return JSON text of format version 1 converted to this version; return other text unchanged.

    Version 1 has the recipe, the source and the settings of the search in one dictionary.
    """
    try:
        old = json.loads(content)
        version = old["version"]
        settings, schedules = dict(old["settings"]), old["hyperparameters"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    if version != 1:
        return content
    name = settings.get("optimizer", "sgd")
    own = {"sgd": ("momentum", "nesterov"), "adamw": ("beta1", "beta2")}.get(name, ())
    optimizer = {"name": name, **{n: settings.pop(n) for n in own if n in settings}}
    named = ("label_smoothing", "batch_size", "augment")
    recipe = {n: settings[n] for n in named if settings.get(n) is not None}
    source = {
        n: settings[n]
        for n in ("dataset", "data_dir", "image_size", "subset")
        if settings.get(n) is not None
    }
    finished = settings.pop("finished", True)
    new = {n: v for n, v in old.items() if n not in ("settings", "hyperparameters")}
    new |= {
        "version": FORMAT_VERSION,
        "recipe": {"optimizer": optimizer, "schedules": schedules, **recipe},
        "source": source,
        "search": settings,
        "finished": finished,
    }
    return json.dumps(new)
