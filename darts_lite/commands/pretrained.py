"""Models of timm with local weights: `--from timm:NAME:FILE` and `--teacher timm:NAME:FILE`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.structure import TimmModel
from darts_lite.architecture.timm_network import (
    TimmNetwork,
    pretrained,
    require_trainable,
    timm_network,
)
from darts_lite.errors import UserError
from darts_lite.nas.loading import load_genotype
from darts_lite.training import checkpoint
from darts_lite.training.options import DeriveOptions
from darts_lite.training.run import Say

TIMM = "timm:"
BY_BLOCK = "layer_lr."  # values of the blocks of one network


def is_timm(text: str | None) -> bool:
    """Tell whether an option names a model of timm.

    >>> is_timm("timm:resnet18:weights.pth"), is_timm("out/derive"), is_timm(None)
    (True, False, False)
    """
    return text is not None and text.startswith(TIMM)


def parts_of(text: str, flag: str) -> tuple[str, Path]:
    """Return name and weights file of timm:NAME:FILE.

    Arguments:
        text: value of the option.
        flag: name of the option, for the error.
    Raises: `UserError` if there is no name, or no such file.

    >>> parts_of("timm:resnet18:", "--from")
    Traceback (most recent call last):
    darts_lite.errors.UserError: --from must be timm:NAME:FILE with a local file of weights, got ...
    """
    name, _, file = text.removeprefix(TIMM).partition(":")
    if not name or not Path(file).is_file():
        raise UserError(
            f"{flag} must be timm:NAME:FILE with a local file of weights, got {text}; download the "
            "weights of a name of timm.list_models() first"
        )
    return name, Path(file)


def pretrained_of(
    text: str,
    flag: str,
    image: tuple[int, int, int],
    classes: int,
    generator: torch.Generator | None = None,
) -> tuple[TimmNetwork, bool]:
    """Return the network of timm:NAME:FILE on the CPU, and whether its classifier is of the file.

    Arguments:
        text: value of the option.
        flag: name of the option, for errors.
        image: channels, height and width of an input image.
        classes: number of classes.
        generator: CPU generator of a new classifier.
    Raises: `UserError` if timm is missing, or model, file and images do not fit.
    """
    name, file = parts_of(text, flag)
    weights = checkpoint.read_weights(file)
    return pretrained(name, image, classes, weights, file, generator)


def genotype_of(options: DeriveOptions, say: Say = print) -> Genotype:
    """Return the genotype to train: with --from timm:NAME:FILE, its network is that of timm.

    Data, recipe and seed are those of the genotype file.

    Arguments:
        options: options of the training.
        say: prints a line for the user.
    Raises: `UserError` if a file or the model does not fit, or it has too many parameters.
    """
    path, limit = Path(options.genotype), options.max_params
    if not is_timm(options.start):
        return load_genotype(path, limit, options.data_dir, say)
    assert options.start is not None
    name, _ = parts_of(options.start, "--from")
    found = as_timm(load_genotype(path, None, options.data_dir, say), name)
    if limit is not None and found.parameters > limit:
        raise UserError(
            f"--max-params must be at least {found.parameters}, the parameters of the timm model "
            f"{name}, got {limit}; raise it or choose a smaller model"
        )
    return found


def as_timm(genotype: Genotype, name: str) -> Genotype:
    """Return the genotype with a model of timm as its network, and the exact cost of that model.

    Arguments:
        genotype: gives images, classes and recipe; rates by depth that a search or a training has
            learned for the blocks of its network are dropped.
        name: name of the model.
    Raises: `UserError` if the name is unknown, or the model cannot be trained on the images.
    """
    require_trainable(
        timm_network(name, genotype.image, len(genotype.classes)), name, genotype.image
    )
    recipe = genotype.recipe
    kept = {n: s for n, s in recipe.schedules.items() if not n.startswith(BY_BLOCK)}
    made = replace(genotype, structure=TimmModel(name=name), recipe=replace(recipe, schedules=kept))
    return replace(made, **cost_of(made)._asdict())
