"""Genotypes: what a search found, as typed data, and its JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from darts_lite.architecture.operations import check
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import STRICT, SearchSpace
from darts_lite.errors import UserError
from darts_lite.files import first_fault, write_json

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the images come from.

    Arguments:
        dataset: name of the data set, or folder:PATH.
        data_dir: folder in which published data sets lie.
        image_size: pixels per side after resizing; None leaves the images as they are.
        subset: number of training and validation images together; None for all.
    """

    __pydantic_config__ = STRICT
    dataset: str
    data_dir: str = "data"
    image_size: int | None = None
    subset: int | None = None


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """A discrete space with the recipe that trains it, and where both come from.

    Arguments:
        space: the architecture, one option per edge.
        image: channels, height and width of an input.
        classes: names of the classes, in the order of the labels.
        parameters, macs: trainable parameters, and multiply-accumulates per image.
        recipe: how the network is trained, with what was learned.
        source: where the images come from.
        dataset: fingerprint of the data set.
        search: the settings of the search, for the record.
        finished: False if the search was interrupted.
        seed: seed of the search, and of the splits of the data.
        versions: versions of the packages that the search ran with.
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

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"format version must be {FORMAT_VERSION}, got version {self.version}")
        for _, edge in self.space.edges:
            for operation in edge.operations:
                check(operation)
        if not self.space.is_discrete:
            raise ValueError("a genotype must have one option per edge")
        if min(self.image) < 1 or len(self.classes) < 2:
            raise ValueError(
                "a genotype must have an image of at least 1 pixel and at least 2 classes, "
                f"got {self.image} and {len(self.classes)}"
            )

    def save(self, path: Path) -> None:
        """Write JSON under a temporary name, then rename."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return what `read` reads, once it is text."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def load(path: Path) -> Genotype:
        """Read and check a genotype; raise `UserError` with the first thing that is wrong."""
        try:
            return Genotype.read(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    @staticmethod
    def read(content: str | bytes, source: object) -> Genotype:
        """Read JSON text, of an older format version too; `source` is for errors."""
        try:
            return _ADAPTER.validate_json(_current(content))
        except ValidationError as error:
            raise UserError(
                f"{source} must be a genotype of this version: {first_fault(error)}; "
                "make it again with `search` or `derive`"
            ) from None


_ADAPTER = TypeAdapter(Genotype)


def _current(content: str | bytes) -> str | bytes:
    """Return a JSON of format version 1 in the form of this version, any other text as it is.

    Version 1 kept the recipe, the source and the settings of the search in one dictionary.
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
