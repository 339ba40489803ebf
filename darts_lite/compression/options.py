"""Options of `compress`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_lite.training.option import option
from darts_lite.training.options import MachineOptions

CriterionName = Literal["magnitude", "norm", "taylor", "gates"]
ScopeName = Literal["inner", "all"]


@dataclass(frozen=True, kw_only=True)
class CompressOptions(MachineOptions):
    """Options of a smaller network from a trained one."""

    method: str = option(
        "prune",
        "Methods with commas, one after the other: prune (channels), tucker, cp or svd (low-rank "
        "layers), distill (a narrower network, from new weights), int8 (last; an ONNX file).",
    )
    target_params: int | None = option(None, "Largest number of parameters.", low=1)
    target_macs: int | None = option(
        None, "Largest number of multiply-accumulates per image.", low=1
    )
    target_ms: float | None = option(
        None,
        "Longest median time of a batch of 32 images on this processor, in milliseconds.",
        low=0,
        above=True,
    )
    scope: ScopeName = option(
        "all",
        "Channels that prune may remove. inner: inside of bottlenecks and inverted residuals; all: "
        "also those that several layers share.",
    )
    criterion: CriterionName = option(
        "taylor",
        "Channels that prune keeps: those with the largest weights (magnitude), BatchNorm scales "
        "(norm), influence on the loss (taylor), or gates learned by hypergradient (gates).",
    )
    rounds: int = option(
        1, "Rounds of prune, each followed by its share of the fine-tuning; 1 is one-shot.", low=1
    )
    multiple: int = option(
        1, "Widths that prune leaves are multiples of this number where they can be.", low=1
    )
    gate_steps: int = option(400, "Training steps in which --criterion gates learns.", low=2)
    out: str | None = option(None, "Folder of the run.", shown="smaller, beside RUN")
    budget_hours: float | None = option(
        None,
        "Wall-clock hours of all fine-tuning together.",
        low=0,
        above=True,
        shown="a tenth of the training time of RUN",
    )
    epochs: int | None = option(
        None,
        "Epochs of all fine-tuning together, instead of hours; the result is then exactly "
        "reproducible, but for --target-ms.",
        low=1,
    )
    rate: float = option(
        1.0, "Factor of the learning rate of RUN for fine-tuning.", low=0, high=10, above=True
    )
    teacher: bool = option(True, "Distill from RUN while fine-tuning.")
    teacher_weight: float | None = option(
        None, "Share of the teacher in the loss.", low=0, high=1, shown="0.9"
    )
    dataset: str | None = option(
        None, "Data set, if it lies elsewhere than for RUN.", shown="that of RUN"
    )
    data_dir: str | None = option(
        None, "Folder with the published data sets.", shown="the folder of RUN"
    )
    download: bool = option(False, "Download the data set if it is missing.")
