"""What a user may say of data, machine and training: one dataclass per command.

A field is an option: its default, its type and one sentence of help stand here and nowhere else.
Flags, `--help`, docs/commands.md, config.json and what `--resume` restores derive from the fields
(`commands.flags`). Imports no torch, so that `--help` answers at once.
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
        help: one sentence, with its unit.
        low, high: limits of a number, both allowed.
        above: whether `low` itself is not allowed.
        shown: what help says of the default, if the value itself says too little.
        flag: the flag, if it is not the name of the field.
    """
    about = {"help": help, "low": low, "high": high, "above": above, "shown": shown, "flag": flag}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a user may say of the data."""

    dataset: str | None = option(
        None,
        "Data set: digits, fashion-mnist, mnist, cifar10, cifar100, svhn or folder:PATH.",
        shown="the first of cifar10, fashion-mnist, digits that is on this machine",
    )
    data_dir: str = option("data", "Folder with the published data sets.")
    download: bool = option(False, "Download the data set if it is missing.")
    subset: int | None = option(
        None, "Number of training and validation images together.", low=1, shown="all"
    )
    image_size: int | None = option(
        None, "Pixels per side that images are resized to.", low=1, shown="as they are"
    )


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What a user may say of the machine and of the run."""

    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1.")
    seed: int = option(0, "Random seed.")
    checkpoint_seconds: float = option(50.0, "Longest time between two checkpoints.", low=0)


@dataclass(frozen=True, kw_only=True)
class DeriveOptions(MachineOptions):
    """What a user may say of the final training of a genotype."""

    genotype: str = option("out/g.json", "Genotype file that a search wrote.")
    out: str | None = option(None, "Folder of the run.", shown="derive, beside the genotype")
    data_dir: str | None = option(
        None, "Folder with the published data sets.", shown="that of the search"
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
        None, "Epochs instead of hours; then the result is exactly reproducible.", low=1
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
    augment: str | None = option(None, f"Augmentation: {AUGMENT}", shown="that of the search")
    estimator: str = option(ESTIMATOR, "Hypergradient estimators of online, as in search.")
    select: Literal["last", "best", "held_out"] = option(
        "last",
        "last: train on training and validation images, keep the last weights; held_out: train on "
        "training images alone; best: the same, and keep the weights that are best on validation "
        "images.",
    )
    random: int | None = option(
        None,
        "Train this number of random networks of the same size instead, with the same recipe, and "
        "compare.",
        low=1,
    )
    batch_size: int | None = option(None, "Images per step.", low=2, shown="that of the search")


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(DataOptions):
    """What a user may say of a picture of an augmentation."""

    augment: str = option("learned", f"Augmentation: {AUGMENT}")
    out: str = option("augment.png", "Picture file.")
    save: str | None = option(None, "JSON file to write the augmentation to, for --augment.")
    fraction: float = option(
        0.0,
        "Fraction of the training, for an augmentation that changes with it.",
        low=0,
        high=1,
    )
    seed: int = option(0, "Random seed of the choice of images.")
