"""Small runs on disk, and what their folders hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import darts_lite as dl

SEARCH = {"dataset": "digits", "subset": 400, "space": "blocks", "cells": 3, "channels": 8,
          "max_params": 20_000, "batch_size": 32}  # fmt: skip


def trained(out: Path, epochs: int) -> Path:
    """Search and train on digits; return the folder of the training."""
    dl.search(**SEARCH, steps=4, out=str(out), say=str)
    dl.derive(genotype=str(out / "g.json"), epochs=epochs, say=str)
    return out / "derive"


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a finished training."""
    return torch.load(folder / "model.pt", weights_only=True)


def same(one: Path, two: Path) -> bool:
    """Tell whether two trainings have the same weights, bit for bit."""
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
