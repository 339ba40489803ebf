"""Model card: what a network is, how good it is, and where it may fail, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.structure import TimmModel
from darts_lite.files import read_json, write_lines

NAME = "MODEL_CARD.md"
FEW = 20  # test images of a class below which its scores say little
WEAK = 0.7  # recall of a class below which it is named
READ = {
    "crop": "cropped to their center and resized",
    "pad": "padded to a square and resized",
    "stretch": "resized, whatever their shape,",
}
Z95 = 1.959964  # of a 95 % interval


def write_card(folder: Path, baseline: Mapping[str, Any] | None = None) -> None:
    """Write MODEL_CARD.md into the folder of a finished training.

    Arguments:
        folder: holds genotype.json and metrics.json.
        baseline: content of random.json of the same recipe; None if no random networks were
            trained.
    """
    genotype = Genotype.load(folder / "genotype.json")
    text = model_card(genotype, read_json(folder / "metrics.json"), baseline)
    write_lines(folder / NAME, [text])


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927).

    >>> wilson(9, 10)
    (0.5958..., 0.9821...)
    """
    share, spread = right / count, Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def model_card(
    genotype: Genotype, metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None = None
) -> str:
    """Return the model card.

    Arguments:
        genotype: genotype of the network.
        metrics: content of metrics.json.
        baseline: content of random.json; None if no random networks were trained.
    """
    name = str(genotype.dataset.get("name", genotype.source.dataset))
    sections = {
        "Data": _data(genotype, metrics),
        "What was searched": _searched(genotype),
        "What was learned": _learned(genotype, metrics),
        "Accuracy": _accuracy(metrics, baseline),
        "Classes": classes_table(metrics["test_classes"])
        + confused_table(metrics["test_confused"]),
        "Speed and size": speed(metrics),
        "Limits": [f"- {each}" for each in limits(genotype, metrics)],
    }
    lines = [f"# Model card: classifier of {_cell(name)}", ""]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def _data(genotype: Genotype, metrics: Mapping[str, Any]) -> list[str]:
    channels, height, width = genotype.image
    about, source = genotype.dataset, genotype.source
    subset = "all" if source.subset is None else str(source.subset)
    return [
        f"- data set {_cell(str(about.get('name', source.dataset)))}, {about.get('images', '?')} "
        f"images, SHA-256 {about.get('sha256', 'unknown')}",
        f"- {len(genotype.classes)} classes: {', '.join(map(_cell, genotype.classes))}",
        f"- images are read as {width}x{height} pixels, {'gray' if channels == 1 else 'color'}",
        f"- training and validation images used: {subset}; test images: {_tested(metrics)}",
    ]


def _searched(genotype: Genotype) -> list[str]:
    given = {n: v for n, v in genotype.search.items() if v is not None}
    settings = ", ".join(f"{name} {value}" for name, value in given.items())
    if isinstance(genotype.structure, TimmModel):
        return [
            f"- not the network: it is the timm model `{genotype.structure.name}`, with the recipe "
            "of a search",
            f"- {genotype.parameters} parameters, {genotype.macs} multiply-accumulates per image",
            f"- settings of that search: {_cell(settings) or 'not recorded'}; seed {genotype.seed}",
        ]
    return [
        f"- space `{genotype.space.preset}`, {len(list(genotype.space.edges))} edges; found: "
        f"{_operations(genotype)}",
        f"- {genotype.parameters} parameters, {genotype.macs} multiply-accumulates per image",
        f"- settings: {_cell(settings) or 'not recorded'}; seed {genotype.seed}"
        + ("" if genotype.finished else "; the search was interrupted"),
    ]


def _operations(genotype: Genotype) -> str:
    labels = [edge.options[0].label for _, edge in genotype.space.edges]
    return ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))


def _learned(genotype: Genotype, metrics: Mapping[str, Any]) -> list[str]:
    recipe = genotype.recipe
    lines = [
        f"- optimizer {recipe.optimizer.name}, loss {_cell(str(recipe.loss))}, batch size "
        f"{recipe.batch_size}; {metrics['epochs']} epochs with {metrics['hyperparameters']} "
        "hyperparameters"
    ]
    rows = [
        [name, f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}"]
        for name, points in recipe.schedules.items()
        if points
    ]
    header = ["learned in the search", "at the start", "at the end"]
    return [*lines, "", *_table(header, rows)]


def _accuracy(metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    count = _tested(metrics)
    low, high = wilson(round(metrics["test_accuracy"] * count), count)
    held = "" if metrics["validation_held_out"] else " (not held out: trained or chosen on them)"
    lines = [
        f"- test accuracy {metrics['test_accuracy']:.2%}, 95 % interval {low:.2%} to {high:.2%} "
        f"(Wilson, {count} images)",
        f"- test macro F1 {metrics['test_macro_f1']:.2%}, calibration error "
        f"{metrics['test_ece']:.2%}, log loss {metrics['test_log_loss']:.4f}",
        f"- validation accuracy {metrics['validation_accuracy']:.2%}{held}",
    ]
    if baseline is None:
        return [*lines, "- random networks of this size: not trained (`derive --random 5` does)"]
    found = [each["test_accuracy"] for each in baseline["random"]]
    mean = sum(found) / len(found)
    return [
        *lines,
        f"- {len(found)} random networks of this size, by the same recipe: test accuracy "
        f"{min(found):.2%} to {max(found):.2%}, mean {mean:.2%}; this network is "
        f"{100 * (metrics['test_accuracy'] - mean):+.2f} points from their mean",
    ]


def classes_table(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return precision, recall, F1 and test images of each class as a Markdown table."""
    rows = [
        [
            _cell(c["class"]),
            *(f"{c[n]:.1%}" for n in ("precision", "recall", "f1")),
            str(c["support"]),
        ]
        for c in classes
    ]
    return _table(["class", "precision", "recall", "F1", "test images"], rows)


def confused_table(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the most confused pairs as a Markdown table, after an empty line; none without any."""
    rows = [
        [_cell(p["true"]), _cell(p["predicted"]), str(p["count"]), f"{p['share']:.1%}"]
        for p in pairs
    ]
    header = ["true class", "taken for", "images", "share of the class"]
    return ["", *_table(header, rows)] if rows else []


def speed(metrics: Mapping[str, Any]) -> list[str]:
    """Return latency and size of the file as lines of Markdown."""
    latency = metrics["latency"]
    return [
        f"- file of the weights: {metrics['model_bytes']} bytes",
        f"- latency in torch on {_cell(latency['processor'])} ({latency['device']}), "
        f"{latency['threads']} threads:",
        *(
            f"  - batch of {b['batch']}: median {b['median_ms']:.2f} ms, 95th percentile "
            f"{b['p95_ms']:.2f} ms"
            for b in latency["batches"]
        ),
    ]


def limits(genotype: Genotype, metrics: Mapping[str, Any]) -> list[str]:
    """Return sentences about what the figures do not show, and where the network is weak."""
    channels, height, width = genotype.image
    found = [
        "Every image gets one of the classes, also an image of something else.",
        "The figures hold for images like the test images. Other cameras, light or backgrounds "
        "were not tested.",
        f"Images are {READ[genotype.source.reading.fit or 'crop']} to {width}x{height} pixels; "
        "details that are lost there cannot count."
        + (" Color does not count." if channels == 1 else ""),
        "The interval is that of the test images. Another seed gives another network.",
    ]
    classes = metrics["test_classes"]
    few = [c["class"] for c in classes if c["support"] < FEW]
    if few:
        found.append(f"Fewer than {FEW} test images: {_named(few)}. Their scores say little.")
    weak = [c["class"] for c in classes if c["support"] and c["recall"] < WEAK]
    if weak:
        found.append(f"Less than {WEAK:.0%} of the images are found: {_named(weak)}.")
    bins = metrics["test_calibration"]
    count = sum(b["images"] for b in bins)
    gap = sum(b["images"] * (b["confidence"] - b["accuracy"]) for b in bins) / count
    if abs(gap) > 0.02:
        how = "too high" if gap > 0 else "too low"
        found.append(
            f"Probabilities of the predicted class are {how}, on average by {abs(gap):.1%}."
        )
    return found


def _tested(metrics: Mapping[str, Any]) -> int:
    return sum(each["support"] for each in metrics["test_classes"])


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(_cell, names[:10])) + more


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _cell(text: str) -> str:
    """Return a text on one line that is no markup of Markdown."""
    plain = " ".join(text.split())
    return "".join("\\" + c if c in "\\`*_|<[#" else c for c in plain)
