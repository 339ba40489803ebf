"""A program as a file for `torch.export.load`: a graph in JSON, and tensors."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

NAME = "darts_lite.json"  # the extra file with the description


def to_bytes(program: torch.export.ExportedProgram, description: Mapping[str, str]) -> bytes:
    """Return the content of the file.

    Arguments:
        program: from `images` to probabilities.
        description: written into the extra file `darts_lite.json`.
    """
    buffer = io.BytesIO()
    extra = {NAME: json.dumps(description, indent=1, ensure_ascii=False)}
    torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the function from images to probabilities of a file."""
    with warnings.catch_warnings():  # torch 2.11 reads weights without a copy, and warns of it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return module(images)

    return run
