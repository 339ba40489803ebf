"""How image files become images of a data set; a genotype carries it, for prediction. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_lite.architecture.space import STRICT

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How image files become images of a data set.

    Arguments:
        fit: How an image becomes square. crop: its center; pad: the whole, with a border of the
            background; stretch: the whole, distorted. None: as the shapes of the images suggest.
        background: Color behind transparent pixels and around padded images, as in CSS.
        skip_broken: Whether files that cannot be read are left out.
        flips: Whether a horizontal flip keeps the label; None: as the images suggest.
        vertical_flips: Whether a vertical flip keeps the label.
        low: Value of files of more than 8 bits that becomes 0; None without such files.
        high: Value of such files that becomes 255.
    """

    __pydantic_config__ = STRICT
    fit: Fit | None = None
    background: str = "white"
    skip_broken: bool = False
    flips: bool | None = None
    vertical_flips: bool = False
    low: float | None = None
    high: float | None = None
