"""Options of data, device and training: one dataclass per command.

A field is an option (`training.option`). Its default, its type and its help text are defined here
only. This module imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from darts_lite.architecture.reading import Fit
from darts_lite.architecture.recipe import ClassWeights, Sampling, ScheduleName
from darts_lite.training.option import Options, option

ESTIMATOR = "one_step,optimizer=annealed"
AUGMENT = (
    "none, standard (flips and shifts), learned, randaugment, trivialaugment, autoaugment or a "
    ".json file; with settings, randaugment:n=2,m=15; +cutmix or +mixup mixes images."
)
MetricName = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "roc_auc",
    "top5",
    "ece",
    "log_loss",
]
MAY_CHANGE = frozenset({"out", "data_dir", "download", "device", "checkpoint_seconds"})
"""Options that a resumed run may change, and that say nothing about its result."""
MAY_MOVE = MAY_CHANGE | {"dataset"}
"""Options that a resumed run may change: the data may lie elsewhere, but are compared."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Options of the data."""

    dataset: str | None = option(
        None,
        "Data set: digits, fashion-mnist, mnist, cifar10, cifar100, svhn, folder:PATH (a folder "
        "per class, perhaps in train, val and test) or csv:PATH (columns file, label, split).",
        shown="the first of cifar10, fashion-mnist and digits that is on this machine",
    )
    data_dir: str = option("data", "Folder with the published data sets.")
    download: bool = option(False, "Download the data set if it is missing.")
    subset: int | None = option(
        None, "Total number of training and validation images.", low=1, shown="all"
    )
    image_size: int | None = option(
        None,
        "Pixels per side after resizing of the images.",
        low=1,
        shown="no resizing; of your own images, as they and the budget suggest",
    )
    fit: Fit | None = option(
        None,
        "How your own images become square: crop the center, pad with the background, or stretch.",
        shown="as the shapes of the images suggest",
    )
    background: str = option(
        "white", "Color behind transparent pixels and around padded images, such as #00ff00."
    )
    skip_broken: bool = option(False, "Leave out files that cannot be read.")
    flips: bool | None = option(
        None,
        "Mirror training images left to right, or not, because that changes labels.",
        shown="as the data set needs; of your own images, measured",
    )
    vertical_flips: bool = option(False, "Mirror training images upside down too.")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DataOptions):
    """Options of a look at the data without training."""

    seed: int = option(0, "Random seed of the splits.")
    as_json: bool = option(False, "Print one JSON object for scripts.", flag="--json")
    out: str | None = option(None, "Picture file of a contact sheet.", shown="no picture")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Options of the device."""

    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1.")


@dataclass(frozen=True, kw_only=True)
class MachineOptions(DeviceOptions):
    """Options of the device and of the run."""

    seed: int = option(0, "Random seed.")
    checkpoint_seconds: float = option(50.0, "Seconds between two checkpoints.", low=0)


@dataclass(frozen=True, kw_only=True)
class MovedOptions(MachineOptions):
    """Options of data that an earlier run used, and that may lie elsewhere now."""

    dataset: str | None = option(
        None, "Data set, if it lies elsewhere than in the run before.", shown="as in the run before"
    )
    data_dir: str | None = option(
        None, "Folder with the published data sets.", shown="as in the run before"
    )
    download: bool = option(False, "Download the data set if it is missing.")

    @property
    def carried(self) -> dict[str, Any]:
        """These options and those of the machine by name, for a run that this run starts."""
        return {each.name: getattr(self, each.name) for each in fields(MovedOptions)}


@dataclass(frozen=True, kw_only=True)
class SourceOptions(MovedOptions):
    """Options of the genotype, and of the data of its search."""

    genotype: str = option("out/g.json", "Genotype file of a search.")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SourceOptions):
    """Options of folder, budget and kind of a final training."""

    out: str | None = option(None, "Folder of the run.", shown="derive, beside the genotype")
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
        "the weights with the best --select-by.",
    )
    folds: int | None = option(
        None,
        "Cross-validate with this number of stratified folds of the training and validation "
        "images, each training with the whole budget; their mean is the result.",
        low=2,
        shown="no folds",
    )
    fold: int | None = option(
        None, "Train only this fold, from 0, of --folds.", low=0, shown="all folds"
    )
    repeats: int | None = option(
        None,
        "Train with this number of seeds, from --seed on, each with the whole budget, and give "
        "mean and interval.",
        low=2,
        shown="one training",
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
class BalanceOptions(Options):
    """Options against classes of different sizes; the genotype carries them in its recipe."""

    class_weights: ClassWeights | None = option(
        None,
        "Weights of the classes in the loss, against imbalance: balanced, by the inverse of the "
        "counts; effective, by the effective number of images.",
        shown="none; in derive, those of the search",
    )
    sampling: Sampling | None = option(
        None,
        "Draw training images uniformly, or every class equally often, against imbalance.",
        shown="uniform; in derive, that of the search",
    )


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(BalanceOptions):
    """Options of loss and schedule; the genotype carries them in its recipe."""

    loss: str | None = option(
        None,
        "Loss: cross_entropy, focal, soft_f1 or bce; with settings, focal:gamma=2.",
        shown="cross_entropy; in derive, that of the search",
    )
    label_smoothing: float | None = option(
        None,
        "Share of a label that is spread over all classes, 0 to below 1.",
        low=0,
        high=1,
        below=True,
        shown="0.1; in derive, that of the search",
    )
    schedule: ScheduleName | None = option(
        None,
        "Learning-rate schedule, as a factor of the learned rate; plateau: divide by ten when the "
        "validation metric stops to rise (derive only).",
        shown="cosine; in derive, that of the search",
    )
    warm_up: float | None = option(
        None,
        "Fraction of the budget in which the learning rate rises linearly.",
        low=0,
        high=0.9,
        shown="0.03; 0.3 for one-cycle",
    )
    learn: str | None = option(
        None,
        "Further values to learn by hypergradient, with commas: label_smoothing, gamma (of the "
        "focal loss); in derive --hyperparameters online also teacher_weight, temperature, "
        "layer_lr (a learning rate per block).",
    )


@dataclass(frozen=True, kw_only=True)
class StepOptions(Options):
    """Options of the steps and the evaluation of a final training."""

    accumulate: int = option(
        1,
        "Batches whose gradients are averaged in a step, for large batches in little memory.",
        low=1,
    )
    clip: float | None = option(
        None, "Largest norm of the gradient.", low=0, above=True, shown="no limit"
    )
    sharpness: float = option(
        0.0,
        "Radius of sharpness-aware minimization; 0.05 is usual, a step then costs twice as much.",
        low=0,
    )
    precision: Literal["float32", "bf16"] = option(
        "float32",
        "Precision of the network's products: bf16 is faster on GPUs, and slower on CPUs without "
        "instructions for it.",
    )
    ema: float = option(
        0.0,
        "Decay of the exponential moving average of the weights, which is then the result; --ema "
        "alone is 0.999; 0 for the weights themselves.",
        low=0,
        high=1,
        below=True,
        alone=0.999,
    )
    select_by: MetricName = option(
        "accuracy", "Validation metric of --select best, of --patience and of the plateau schedule."
    )
    patience: int | None = option(
        None,
        "Stop after this number of evaluations (ten per run) without a better --select-by.",
        low=1,
        shown="never",
    )
    keep: int = option(
        0, "Number of the best weights to keep as best1.pt, best2.pt, ..., by --select-by.", low=0
    )
    tta: Literal["none", "flip", "crops"] = option(
        "none",
        "Test-time augmentation, reported beside the plain result. flip: mean over an image and "
        "its mirror; crops: over five shifts, and their mirrors if the data may be flipped.",
    )


@dataclass(frozen=True, kw_only=True)
class PseudoOptions(Options):
    """Options of images without labels, which a teacher labels."""

    unlabelled: str | None = option(
        None,
        "Folder of images without labels, which the teacher labels; or rest:N for N images outside "
        "the --subset of the search. The teacher is then distilled only with --teacher-weight.",
        shown="none",
    )
    confidence: float = option(
        0.8, "Smallest probability of the teacher's class of a used image.", low=0, high=1
    )
    balance: bool = option(
        True, "Use at most twice as many unlabelled images of a class as of the median class."
    )
    pseudo: Literal["soft", "hard"] = option(
        "soft", "Labels of unlabelled images: the teacher's probabilities, or its class."
    )


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(PseudoOptions):
    """Options of distillation and transfer."""

    teacher: str | None = option(
        None,
        "Teacher to distill from: the folder of a derive run; ensemble:DIR,DIR (a folder of tune: "
        "its five best); supernet (of the search of the genotype); timm:NAME:FILE (needs timm, and "
        "a local file of weights of the same classes).",
        shown="none",
    )
    distillation: Literal["kl", "decoupled"] = option(
        "kl", "kl: divergence from the teacher (Hinton 2015); decoupled (Zhao 2022)."
    )
    teacher_weight: float | None = option(
        None,
        "Share of the teacher in the loss.",
        low=0,
        high=1,
        shown="0.9 for kl, 0.5 for decoupled",
    )
    temperature: float | None = option(
        None, "Temperature of teacher and student.", low=0, above=True, shown="4"
    )
    teacher_map: str | None = option(
        None,
        "JSON file {class: class of the teacher}, if the teacher has other classes.",
    )
    start: str | None = option(
        None,
        "Start from the weights of a derive run, given by its folder; of the supernet of the "
        "search: supernet (if it is as wide as the genotype); or train a model of timm with "
        "pretrained weights, by the recipe of the genotype: timm:NAME:FILE (needs timm, and a "
        "local file, .pth or .safetensors).",
        flag="--from",
        shown="none",
    )
    freeze: str = option(
        "0",
        "Blocks from the stem that do not learn: a number (1 is the stem alone), or features: all "
        "but the classifier.",
    )
    unfreeze_at: float = option(
        1.0, "Fraction of the budget at which --freeze ends.", low=0, high=1
    )
    layer_decay: float = option(
        1.0,
        "Factor of the learning rate from one block to the block below; the classifier has the "
        "whole rate. With --learn layer_lr it is only the start.",
        low=0,
        high=1,
        above=True,
    )


@dataclass(frozen=True, kw_only=True)
class DeriveOptions(TeacherOptions, StepOptions, RecipeOptions, TrainingOptions):
    """Options of the final training of a genotype."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainOptions(PseudoOptions, SourceOptions):
    """Options of self-training: a teacher labels images, its students become teachers."""

    out: str | None = option(None, "Folder of the run.", shown="selftrain, beside the genotype")
    rounds: int = option(2, "Students that become teachers, before the last student.", low=1)
    growth: float = option(
        1.25,
        "Factor of the width from one student to the next; the last has that of the genotype.",
        low=1,
    )
    epochs: int | None = option(None, "Epochs of each training, instead of hours.", low=1)
    budget_hours: float | None = option(
        None, "Wall-clock hours of all trainings together.", low=0, above=True, shown="1"
    )
    augment: str = option("randaugment", f"Augmentation of the students: {AUGMENT}")
    hyperparameters: Literal["learned", "default"] = option(
        "learned", "learned: schedules from the search; default: hand-set."
    )


@dataclass(frozen=True, kw_only=True)
class RefreshOptions(DeviceOptions):
    """Options of a look at new data with an old model."""

    dataset: str | None = option(None, "Data set of today.", shown="that of the run")
    data_dir: str | None = option(
        None, "Folder with the published data sets.", shown="the folder of the run"
    )
    budget_hours: float = option(
        1.0, "Wall-clock hours for a new model, if one is needed.", low=0, above=True
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


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DeviceOptions):
    """Options of the predictions of a trained network."""

    top: int = option(1, "Number of classes per image, the most probable first.", low=1)
    csv: str | None = option(
        None,
        "CSV file to write, with the columns file, class and probability.",
        shown="print one line per image",
    )
