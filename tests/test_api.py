"""The front door and the back door: `import darts_lite`."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import darts_lite as dl
from darts_lite.data import load, split
from darts_lite.data.images import floats
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import DeriveOptions

SMALL = {"dataset": "digits", "space": "blocks", "cells": 3, "channels": 4, "max_params": 3000,
         "batch_size": 16, "subset": 200}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a search and its derive, both through the front door."""
    out = tmp_path_factory.mktemp("api")
    genotype = dl.search(**SMALL, steps=4, out=str(out), say=str)
    metrics = dl.derive(genotype=str(out / "g.json"), epochs=2, say=str)
    assert metrics["parameters"] == genotype.parameters
    return out / "derive"


def test_names_load_when_they_are_asked_for() -> None:
    code = "import sys, darts_lite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert {"search", "derive", "selftrain", "tune", "load", "Genotype", "Learner"} <= set(dir(dl))
    for name in dl.__all__:
        assert getattr(dl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        dl.fly  # noqa: B018


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="stepps"):
        dl.search(stepps=3)


def test_an_interrupted_or_finished_run_resumes(run: Path) -> None:
    said: list[str] = []
    again = dl.search(out=str(run.parent), resume=True, say=said.append)
    assert said == [f"{run.parent / 'g.json'} is finished"]
    assert again == dl.Genotype.load(run.parent / "g.json")


def test_a_loaded_network_gives_the_accuracy_of_its_test(run: Path) -> None:
    """To the last image."""
    predictor = dl.load(run)
    test = split(load("digits", Path("data")), subset=200).test
    found = predictor.predict(test.pixels)
    expected = evaluate(predictor.network, test).accuracy
    labels = [predictor.classes[i] for i in test.labels.tolist()]
    right = sum(a == b for a, b in zip(found.classes, labels)) / len(labels)
    assert right == pytest.approx(expected, abs=0.1 / len(labels))
    stored = (run / "metrics.json").read_text()
    assert f'"test_accuracy": {expected}' in stored
    assert torch.allclose(found.probabilities.sum(1), torch.ones(len(labels)))


def test_pixels_floats_and_files_are_the_same_images(run: Path, tmp_path: Path) -> None:
    predictor = dl.load(str(run))
    pixels: Tensor = load("digits", Path("data")).train.pixels[:3]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, pixels):
        Image.fromarray(image[0].numpy()).save(path)
    for images in (floats(pixels), paths, [str(p) for p in paths]):
        assert torch.allclose(
            predictor.predict(images).probabilities, predictor.predict(pixels).probabilities
        )
    assert predictor.predict(paths[0]).classes == predictor.predict(pixels[:1]).classes
    assert predictor.predict([]).classes == []


def test_bad_images_and_folders_are_one_line(run: Path, tmp_path: Path) -> None:
    predictor = dl.load(run)
    with pytest.raises(dl.UserError, match=r"\[C, H, W\] = \[1, 8, 8\], got \[1, 3, 8, 8\]"):
        predictor.predict(torch.zeros(1, 3, 8, 8))
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(dl.UserError, match=r"page\.jpg"):
        predictor.predict(tmp_path / "page.jpg")
    with pytest.raises(dl.UserError, match="got no model"):
        dl.load(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"torn")
    (tmp_path / "genotype.json").write_bytes((run / "genotype.json").read_bytes())
    with pytest.raises(dl.UserError, match=r"model\.pt"):
        dl.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ema": 1.0}, "--ema must be at least 0 and below 1, got 1.0"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"budget_hours": math.nan}, "--budget-hours must be a finite number, got nan"),
        ({"budget_hours": math.inf}, "--budget-hours must be a finite number, got inf"),
        ({"budget_hours": 0.0}, "--budget-hours must be above 0, got 0.0"),
        ({"tta": "mirror"}, "--tta must be one of none, flip, crops, got 'mirror'"),
        ({"schedule": "spiral"}, "--schedule must be one of cosine, one-cycle"),
        ({"layer_decay": 0}, "--layer-decay must be above 0 and at most 1, got 0"),
    ],
)
def test_a_bad_option_is_refused_as_on_the_command_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(dl.UserError, match=re.escape(said)):
        dl.derive(**options)
    with pytest.raises(dl.UserError):
        replace(DeriveOptions(), **options)
