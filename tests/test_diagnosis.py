"""What a person wants to know of a trained network: numbers, pictures, model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invoking import call
from PIL import Image
from scipy.stats import binomtest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from darts_lite.architecture.genotype import Genotype
from darts_lite.data import Images
from darts_lite.reporting import pictures
from darts_lite.reporting.model_card import limits, model_card, wilson
from darts_lite.training.diagnosis import confused, costliest, diagnosis, pictures_of
from darts_lite.training.latency import latency_of, processor
from darts_lite.training.metrics import calibration, evaluation

CLASSES = ("cat", "dog", "a very long name of a class that no tile has room for")


def drawn(count: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and labels of three classes; the third has no images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    logits = torch.randn(count, 3, generator=generator)
    logits += torch.nn.functional.one_hot(labels, 3)
    return logits.softmax(1), labels


def test_counts_shares_pairs_and_bins_are_of_the_same_images() -> None:
    probabilities, labels = drawn()
    guess = probabilities.argmax(1)
    test = evaluation(probabilities, labels)
    found = diagnosis(test, calibration(probabilities, labels), CLASSES)
    counts, shares = (np.array(found["test_confusion"][n]) for n in ("counts", "shares"))
    for i in range(3):
        for j in range(3):
            assert counts[i, j] == int(((labels == i) & (guess == j)).sum())
    assert np.allclose(shares[:2].sum(1), 1, atol=1e-3) and (shares[2] == 0).all()
    pairs = found["test_confused"]
    assert sum(p["count"] for p in pairs) == int((guess != labels).sum())
    assert [p["count"] for p in pairs] == sorted((p["count"] for p in pairs), reverse=True)
    for p in pairs:
        i, j = CLASSES.index(p["true"]), CLASSES.index(p["predicted"])
        assert i != j and p["count"] == counts[i, j]
        assert p["share"] == pytest.approx(counts[i, j] / counts[i].sum())
    bins = found["test_calibration"]
    assert sum(b["images"] for b in bins) == len(labels)
    gaps = sum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(labels)
    assert gaps == pytest.approx(test.values["ece"], abs=1e-12)
    json.dumps(found, allow_nan=False)


def drawings(probabilities: torch.Tensor, images: Images) -> dict[str, np.ndarray]:
    result = evaluation(probabilities, images.labels)
    bins = calibration(probabilities, images.labels)
    return pictures_of(result, bins, probabilities, images, CLASSES)


def test_no_error_is_no_pair_and_no_gallery() -> None:
    labels = torch.tensor([0, 1, 2])
    probabilities = torch.eye(3)
    assert confused(torch.eye(3, dtype=torch.long), CLASSES) == []
    assert len(costliest(probabilities, labels)) == 0
    images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels)
    made = drawings(probabilities, images)
    assert set(made) == {"confusion", "calibration"}


def test_the_costliest_errors_come_first() -> None:
    probabilities, labels = drawn()
    index = costliest(probabilities, labels)
    own = probabilities[index, labels[index]]
    assert (probabilities[index].argmax(1) != labels[index]).all()
    assert (own.diff() >= 0).all()
    wrong = probabilities.argmax(1) != labels
    assert len(index) == min(24, int(wrong.sum()))
    assert own[0] == probabilities[wrong, labels[wrong]].min()


def test_the_gallery_shows_its_images_and_nothing_is_cut_off() -> None:
    probabilities, labels = drawn()
    pixels = torch.zeros(90, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(1, 91)[:, None, None]  # the color tells which image it is
    made = drawings(probabilities, Images(pixels, labels))
    assert set(made) == {"confusion", "calibration", "errors"}
    gallery = made["errors"]
    shown = {int(r) for r, g, b in gallery.reshape(-1, 3) if 0 < r <= 90 and g == b == 0}
    assert shown == {int(i) + 1 for i in costliest(probabilities, labels)}
    for picture in made.values():
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert picture.dtype == np.uint8 and (border == 255).all()


def test_a_long_caption_is_cut_in_its_middle() -> None:
    images = np.full((1, 1, 8, 8), 0.5)
    short = pictures.captioned_grid(images, [("a",)], "t")
    long = pictures.captioned_grid(images, [("a" * 300,)], "t")
    assert long.shape == short.shape and (long != short).any()
    assert (long[:, :6] == 255).all() and (long[:, -6:] == 255).all()


@pytest.mark.parametrize("right, count", [(0, 5), (5, 5), (88, 100), (9001, 10000)])
def test_the_interval_is_that_of_wilson(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_latency_has_every_batch_size_and_its_machine() -> None:
    seen: list[int] = []
    found = latency_of(lambda images: seen.append(len(images)), (1, 8, 8))
    assert [b["batch"] for b in found["batches"]] == [1, 32] and set(seen) == {1, 32}
    for each in found["batches"]:
        assert 0 <= each["median_ms"] <= each["p95_ms"]
    assert found["threads"] == torch.get_num_threads() and found["processor"] == processor() != ""


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_derive_writes_numbers_pictures_and_a_card(trained: Path) -> None:
    metrics, card = metrics_of(trained), (trained / "MODEL_CARD.md").read_text()
    counts = np.array(metrics["test_confusion"]["counts"])
    assert counts.trace() / counts.sum() == metrics["test_accuracy"]
    assert metrics["model_bytes"] == (trained / "model.pt").stat().st_size
    assert [b["batch"] for b in metrics["latency"]["batches"]] == [1, 32]
    for name in ("confusion", "calibration", "errors"):
        with Image.open(trained / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    genotype = Genotype.load(trained / "genotype.json")
    assert card == model_card(genotype, metrics)
    low, high = wilson(int(counts.trace()), int(counts.sum()))
    assert f"95 % interval {low:.2%} to {high:.2%} (Wilson, {counts.sum()} images)" in card
    for text in ("digit 7", str(genotype.dataset["sha256"]), "| lr |", "not trained (`derive"):
        assert text in card
    events = EventAccumulator(str(trained), size_guidance={"tensors": 0})
    events.Reload()
    assert {"confusion", "calibration", "errors"} <= set(events.Tags()["images"])
    assert "Model card" in str(events.Tensors("model card/text_summary")[0].tensor_proto)


def test_tensorboard_groups_what_is_learned_and_shows_the_result_first(trained: Path) -> None:
    search, derive = (
        EventAccumulator(str(trained.parent / n), size_guidance={"tensors": 0}).Reload()
        for n in ("search", "derive")
    )
    content = derive.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert len(experiment.hparam_infos) <= 4
    columns = [each.name.tag for each in experiment.metric_infos]
    assert columns[:2] == ["test_accuracy", "parameters"]
    assert set(columns) <= set(derive.Tags()["scalars"])
    settings = str(derive.Tensors("settings/text_summary")[0].tensor_proto)
    assert "accumulate" in settings and "final lr" in settings
    for events in (search, derive):
        (event,) = events.Tensors("custom_scalars__config__")
        groups = Layout.FromString(event.tensor_proto.string_val[0]).category
        charts = {f"{g.title}/{c.title}": list(c.multiline.tag) for g in groups for c in g.chart}
        for tag in events.Tags()["scalars"]:
            shown = [n for n, tags in charts.items() if any(re.match(t, tag) for t in tags)]
            named = tag == "lr" or tag.startswith(("learned/", "used/", "hypergradient/", "loss/"))
            assert len(shown) == 1 if named else len(shown) <= 1, tag
        drawn = [
            t for t in events.Tags()["scalars"] if re.match(charts["learned/magnitudes"][0], t)
        ]
        assert len(drawn) > 5


def test_the_card_has_the_random_networks_of_the_same_recipe(trained: Path) -> None:
    baseline = {"random": [{"test_accuracy": 0.25}, {"test_accuracy": 0.75}]}
    metrics = metrics_of(trained) | {"test_accuracy": 0.9}
    card = model_card(Genotype.load(trained / "genotype.json"), metrics, baseline)
    assert "2 random networks" in card and "mean 50.00%" in card and "+40.00 points" in card


def test_the_card_names_rare_and_weak_classes_and_escapes_names(trained: Path) -> None:
    genotype, metrics = Genotype.load(trained / "genotype.json"), metrics_of(trained)
    rows = [
        {"class": "a|b\n*", "precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 7},
        {"class": "fine", "precision": 1.0, "recall": 0.9, "f1": 0.9, "support": 700},
    ]
    sure = [{"images": 707, "confidence": 0.95, "accuracy": 0.9}]
    changed = metrics | {"test_classes": rows, "test_calibration": sure}
    found = " ".join(limits(genotype, changed))
    assert "Fewer than 20 test images: a\\|b \\*." in found
    assert "Less than 70% of the images are found: a\\|b \\*." in found
    assert "too high, on average by 5.0%" in found
    lines = model_card(genotype, changed).splitlines()
    assert "| a\\|b \\* | 100.0% | 50.0% | 60.0% | 7 |" in lines


def test_the_report_page_shows_what_is_confused(trained: Path, tmp_path: Path) -> None:
    result = call("report", trained.parent, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text()
    pair = metrics_of(trained)["test_confused"][0]
    for text in (
        f"<td>{pair['true']}</td><td>{pair['predicted']}</td><td>{pair['count']}</td>",
        "<td>digit 7</td>",
        "<th>95th percentile</th>",
        'alt="confusion"',
        'alt="calibration"',
        'alt="errors"',
    ):
        assert text in page, text
