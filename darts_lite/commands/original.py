"""The training that `compress` starts from, and what its successors take over from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from darts_lite.architecture.cost import Cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.structure import TimmModel
from darts_lite.compression.options import CompressOptions
from darts_lite.errors import UserError
from darts_lite.files import read_json
from darts_lite.training.build import recipe_with
from darts_lite.training.options import DeriveOptions, RecipeOptions
from darts_lite.training.predictor import Ensemble, Predictor, load
from darts_lite.training.replay import DEFAULTS

TAKEN = ("augment", "batch_size")  # options of RUN that trainings after it take over


class Original(NamedTuple):
    """The training that is compressed.

    Attributes:
        folder: its folder.
        predictor: its network and genotype.
        metrics: content of its metrics.json; empty for a training without one.
        options: options of its training; empty if they are not known.
    """

    folder: Path
    predictor: Predictor
    metrics: dict[str, Any]
    options: dict[str, Any]

    @property
    def genotype(self) -> Genotype:
        """Its genotype."""
        return self.predictor.genotype

    @property
    def held_out(self) -> bool:
        """Whether it held the validation images out."""
        return bool(self.metrics.get("validation_held_out", False))

    @property
    def cost(self) -> Cost:
        """Its parameters and MACs."""
        return Cost(self.genotype.parameters, self.genotype.macs)

    @property
    def select(self) -> Literal["held_out", "last"]:
        """The option `select` of a training on the same images."""
        return "held_out" if self.held_out else "last"


def original_of(run: Path) -> Original:
    """Return the training in a folder.

    Arguments:
        run: folder of the training, as for `predict`.
    Raises: `UserError` if there is none, or its network cannot be compressed.
    """
    predictor = load(run)
    if isinstance(predictor.network, Ensemble):
        raise UserError(
            f"RUN must be one training, got the cross-validation {run}; give one of its folds, "
            f"such as {run / 'fold0'}"
        )
    folder = run if (run / "model.pt").exists() else run / "derive"
    structure = predictor.genotype.structure
    if isinstance(structure, TimmModel):
        raise UserError(
            f"RUN must have a network of a search space, got the timm model {structure.name} in "
            f"{folder}; give a smaller network this one as a teacher: derive --teacher {folder}"
        )
    metrics, config = folder / "metrics.json", folder / "config.json"
    known = read_json(config).get("options", {}) if config.exists() else {}
    return Original(folder, predictor, read_json(metrics) if metrics.exists() else {}, known)


def require_same_run(content: Mapping[str, Any], original: Original, result: Path) -> None:
    """Raise `UserError` if a resumed command was begun with another training.

    Arguments:
        content: content of the JSON file of the command.
        original: the training that the user gave.
        result: the JSON file, for the error.
    """
    begun = content.get("run")
    if begun is not None and begun != str(original.folder.absolute()):
        raise UserError(
            f"RUN must be {begun}, which {result} was begun with, got {original.folder}; "
            "give that one, or choose another --out"
        )


def recipe_of(original: Original, factor: float = 1.0) -> Recipe:
    """Return the recipe of a training, with a factor on its learning rate.

    Arguments:
        original: the training.
        factor: the factor; it replaces the factor of an earlier compression.
    """
    learned = original.folder / "learned.json"
    recipe = (Genotype.load(learned) if learned.exists() else original.genotype).recipe
    if original.options.get("hyperparameters") == "default":
        recipe = Recipe(augment="standard", schedules=dict(DEFAULTS))
    names = RecipeOptions.__dataclass_fields__
    said = {n: v for n, v in original.options.items() if n in names and n != "learn"}
    recipe = recipe_with(recipe, RecipeOptions(**said))
    before = original.metrics.get("compression", {}).get("rate", 1.0)
    rates = tuple((at, value * factor / before) for at, value in recipe.schedules["lr"])
    return replace(recipe, schedules={**recipe.schedules, "lr": rates})


def training_of(
    original: Original,
    options: CompressOptions,
    genotype: Path,
    out: Path,
    *,
    epochs: int | None,
    hours: float | None,
    start: Path | None = None,
) -> DeriveOptions:
    """Return the options of the training of a smaller network, with the original as teacher.

    Arguments:
        original: the original training.
        options: options of the command.
        genotype: genotype file of the smaller network.
        out: folder of the training.
        epochs: its epochs; None for hours.
        hours: its hours; None for epochs.
        start: folder with the weights that it starts from; None for new weights.
    """
    taken = {n: original.options[n] for n in TAKEN if original.options.get(n) is not None}
    return DeriveOptions(
        genotype=str(genotype),
        start=None if start is None else str(start),
        teacher=str(original.folder) if options.teacher else None,
        teacher_weight=options.teacher_weight if options.teacher else None,
        out=str(out),
        epochs=epochs,
        budget_hours=hours,
        select=original.select,
        **options.carried,
        **taken,
    )
