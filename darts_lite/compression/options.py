"""Options of `compress`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_lite.errors import UserError
from darts_lite.training.option import option
from darts_lite.training.options import MovedOptions

CriterionName = Literal["magnitude", "norm", "taylor", "gates"]
ScopeName = Literal["inner", "all"]


@dataclass(frozen=True, kw_only=True)
class CompressOptions(MovedOptions):
    """Options of a smaller network from a trained one."""

    method: str | None = option(
        None,
        "Methods with commas, one after the other: prune (channels), tucker, cp or svd (low-rank "
        "layers), distill (a narrower network, from new weights), int8 (last; an ONNX file).",
        shown="prune",
    )
    compare: bool = option(
        False,
        "Compare the roads to --target-params, each with the whole budget: a search with this "
        "limit, prune, tucker, and distillation into a random network and into a narrower one.",
    )
    target_params: int | str | None = option(
        None, "Largest number of parameters; with --compare also several, with commas."
    )
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
    out: str | None = option(
        None, "Folder of the run.", shown="smaller, beside RUN; with --compare, roads"
    )
    budget_hours: float | None = option(
        None,
        "Wall-clock hours of all fine-tuning together; with --compare, of each road, everything "
        "included.",
        low=0,
        above=True,
        shown="a tenth of the training time of RUN; with --compare, its training time",
    )
    epochs: int | None = option(
        None,
        "Epochs of all fine-tuning together, or of each road, instead of hours; the result is then "
        "exactly reproducible, but for --target-ms.",
        low=1,
    )
    rate: float = option(
        1.0, "Factor of the learning rate of RUN for fine-tuning.", low=0, high=10, above=True
    )
    teacher: bool = option(True, "Distill from RUN while fine-tuning.")
    teacher_weight: float | None = option(
        None, "Share of the teacher in the loss.", low=0, high=1, shown="0.9"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = self.targets
        if len(targets) == 1:  # the number that a text holds
            object.__setattr__(self, "target_params", targets[0])

    @property
    def targets(self) -> tuple[int, ...]:
        """The numbers of parameters that `target_params` holds, each once; empty without it.

        Raises: `UserError` if one is no number of parameters.
        """
        if self.target_params is None:
            return ()
        found: dict[int, None] = {}
        for text in str(self.target_params).split(","):
            if not text.strip().isdecimal() or int(text) < 1:
                raise UserError(
                    "--target-params must be a whole number of at least 1, or several with "
                    f"commas, got {self.target_params!r}; give numbers such as 100000,50000"
                )
            found[int(text)] = None
        return tuple(found)


def require_one_budget(options: CompressOptions) -> None:
    """Raise `UserError` if the budget is both in hours and in epochs."""
    if options.epochs is not None and options.budget_hours is not None:
        raise UserError(
            f"the budget must be in hours or in epochs, not both, got {options.budget_hours:g} "
            f"hours and {options.epochs} epochs; give one of them"
        )
