"""Options of `export`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darts_lite.training.option import Options, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Options of a file with a trained network."""

    format: Literal["onnx", "torch"] = option(
        "onnx",
        "onnx: for ONNX Runtime and others (extra: export); torch: for torch.export.load.",
    )
    out: str | None = option(None, "File to write.", shown="model.onnx or model.pt2 in RUN")
    input: Literal["uint8", "float"] = option(
        "uint8", "Images that the file takes: uint8, 0 to 255; float: float32, 0 to 1."
    )
