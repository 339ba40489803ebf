"""Options of data, device and training: one dataclass per command.

A field is an option. Its default, its type and its help text are defined here only. Flags,
`--help`, docs/commands.md, config.json and the options that `--resume` restores are derived from
the fields (`commands.flags`). This module imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ESTIMATOR = "one_step,optimizer=annealed"
AUGMENT = (
    "none, standard (flips and shifts), learned, randaugment, trivialaugment, autoaugment or a "
    ".json file; with settings, randaugment:n=2,m=15; +cutmix or +mixup mixes images."
)
MAY_CHANGE = frozenset({"out", "data_dir", "download", "device", "checkpoint_seconds"})
"""Options that a resumed run may change."""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
    shown: str | None = None,
    flag: str | None = None,
) -> Any:
    """Return a dataclass field that is an option.

    Arguments:
        default: the default; None leaves the choice to the data or the machine.
        help: help text, with the unit.
        low: smallest allowed number.
        high: largest allowed number.
        above: whether the number must be above `low`.
        shown: text of the default in the help, if the value is not clear.
        flag: the flag, if it differs from the name of the field.
    """
    about = {"help": help, "low": low, "high": high, "above": above, "shown": shown, "flag": flag}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of the data."""

    dataset: str | None = option(
        None,
        "Data set: digits, fashion-mnist, mnist, cifar10, cifar100, svhn or folder:PATH.",
        shown="the first of cifar10, fashion-mnist and digits that is on this machine",
    )
    data_dir: str = option("data", "Folder with the published data sets.")
    download: bool = option(False, "Download the data set if it is missing.")
    subset: int | None = option(
        None, "Total number of training and validation images.", low=1, shown="all"
    )
    image_size: int | None = option(
        None, "Pixels per side after resizing of the images.", low=1, shown="no resizing"
    )


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Options of the device and of the run."""

    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1.")
    seed: int = option(0, "Random seed.")
    checkpoint_seconds: float = option(50.0, "Seconds between two checkpoints.", low=0)


@dataclass(frozen=True, kw_only=True)
class DeriveOptions(MachineOptions):
    """Options of the final training of a genotype."""

    genotype: str = option("out/g.json", "Genotype file of a search.")
    out: str | None = option(None, "Folder of the run.", shown="derive, beside the genotype")
    data_dir: str | None = option(
        None, "Folder with the published data sets.", shown="the folder of the search"
    )
    download: bool = option(False, "Download the data set if it is missing.")
    budget_hours: float | None = option(
        None,
        "Wall-clock hours from process start to the result.",
        low=0,
        above=True,
        shown="0.035 below 16 pixels, else 1",
    )
    epochs: int | None = option(
        None, "Budget in epochs instead of hours; the result is then exactly reproducible.", low=1
    )
    max_params: int | None = option(
        None,
        "Parameter limit. If no network fits, the error reports the smallest possible one.",
        low=1,
    )
    hyperparameters: Literal["learned", "default", "online"] = option(
        "learned",
        "learned: schedules from the search; default: hand-set; online: keep learning on "
        "validation images.",
    )
    augment: str | None = option(
        None, f"Augmentation: {AUGMENT}", shown="the augmentation of the search"
    )
    estimator: str = option(
        ESTIMATOR, "Hypergradient estimator for --hyperparameters online, as in search."
    )
    select: Literal["last", "best", "held_out"] = option(
        "last",
        "last: train on training and validation images, keep the last weights; held_out: train on "
        "training images only, keep the last weights; best: train on training images only, keep "
        "the weights with the best validation accuracy.",
    )
    random: int | None = option(
        None,
        "Number of random networks of the same size to train instead, with the same recipe, for "
        "comparison.",
        low=1,
    )
    batch_size: int | None = option(
        None, "Images per step.", low=2, shown="the batch size of the search"
    )


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(DataOptions):
    """Options of a picture of an augmentation."""

    augment: str = option("learned", f"Augmentation: {AUGMENT}")
    out: str = option("augment.png", "Picture file.")
    save: str | None = option(None, "JSON file to write; --augment of other commands reads it.")
    fraction: float = option(
        0.0,
        "Fraction of the training, for an augmentation that changes during the training.",
        low=0,
        high=1,
    )
    seed: int = option(0, "Random seed of the sample of images.")
