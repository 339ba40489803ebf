"""Records are read back with TensorBoard's own reader; pictures are checked for shape and ink."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from darts_lite.architecture.presets import OPERATIONS, blocks, cells
from darts_lite.architecture.space import Cell, Edge, SearchSpace
from darts_lite.reporting import pictures
from darts_lite.reporting.pictures import genotypes
from darts_lite.reporting.recorder import Recorder


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def records(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def discrete(space: SearchSpace, seed: int = 0) -> SearchSpace:
    """Draw a random genotype of a space."""
    draw = random.Random(seed)

    def some(cell: Cell) -> Cell:
        edges = []
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            into = cell.into(node)
            for i in sorted(draw.sample(into, min(cell.keep, len(into)))):
                option = draw.choice(draw.choice(cell.edges[i].operations).options)
                edges.append(replace(cell.edges[i], operations=(option,)))
        return replace(cell, edges=tuple(edges))

    return replace(space, cells=tuple(some(cell) for cell in space.cells))


def graph(inputs: int, nodes: int, keep: int) -> SearchSpace:
    targets = range(inputs, inputs + nodes)
    edges = tuple(Edge(s, t, OPERATIONS) for t in targets for s in range(t))
    cell = Cell("normal", inputs, nodes, keep, False, edges)
    return SearchSpace("graph", (cell,), ("normal",) * 3, 8)


def test_scalars_pictures_and_text_are_read_back(tmp_path: Path) -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with Recorder(tmp_path) as recorder:
        recorder.scalars(0, {"loss": 2.5})
        recorder.scalars(1, {"loss": 1.5, "accuracy": 0.25})
        recorder.picture(1, "search/genotype", np.zeros_like(image))
        recorder.picture(2, "search/genotype", image)
        recorder.text(1, "note", "two *words*")
        recorder.flush()
        assert len(records(tmp_path)) == 2
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 2.5), (1, 1.5)]
    assert [e.step for e in events.Images("search/genotype")] == [1, 2]
    assert events.Tensors("note/text_summary")
    assert records(tmp_path)[1] == {"step": 1, "loss": 1.5, "accuracy": 0.25}
    saved = np.asarray(Image.open(tmp_path / "pictures" / "search_genotype.png"))
    assert np.array_equal(saved, image)
    assert not list(tmp_path.rglob("*.tmp"))


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.scalars(3, {"loss": float("nan"), "top": float("inf")})
    assert records(tmp_path) == [{"step": 3, "loss": None, "top": None}]
    assert np.isnan(read(tmp_path).Scalars("loss")[0].value)


def wait_for_the_next_file_name() -> None:
    """TensorBoard sorts files of the same second by a counter as text: 10 comes before 9."""
    time.sleep(1)


def test_resume_drops_records_after_the_checkpoint(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        for step in range(5):
            recorder.scalars(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')  # torn by a crash
    wait_for_the_next_file_name()
    with Recorder(tmp_path, resume_step=2) as recorder:
        recorder.scalars(3, {"loss": 7.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(0, 1), (1, 1), (2, 1), (3, 7)]
    values = [(e.step, e.value) for e in read(tmp_path).Scalars("loss")]
    assert values == [(0, 1), (1, 1), (2, 1), (3, 7)]


def test_without_a_resume_step_old_records_are_dropped(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Recorder(tmp_path) as recorder:
            recorder.scalars(0, {"loss": value})
        wait_for_the_next_file_name()
    assert records(tmp_path) == [{"step": 0, "loss": 2.0}]
    assert [e.value for e in read(tmp_path).Scalars("loss")] == [2.0]


def test_hparams_are_one_row_per_run(tmp_path: Path) -> None:
    settings = {"seed": 1, "exact": True, "dataset": "digits", "subset": None, "sizes": (3, 5)}
    for run in ("a", "b"):
        with Recorder(tmp_path / run) as recorder:
            recorder.scalars(9, {"loss": 1.0})
            recorder.hparams(settings, {"test/accuracy": 0.5})
        assert [path for path in (tmp_path / run).iterdir() if path.is_dir()] == []
        events = read(tmp_path / run)
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
        assert content.plugin_name == "hparams"
        assert all(name.encode() in content.content for name in ("seed", "dataset", "sizes"))
        assert [(e.step, e.value) for e in events.Scalars("test/accuracy")] == [(9, 0.5)]


def test_the_columns_of_hparams_have_the_given_order(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.hparams({"zeta": 1, "alpha": "x"}, {"test_accuracy": 0.5, "a": 1.0})
    content = read(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [each.name for each in experiment.hparam_infos] == ["zeta", "alpha"]
    assert [each.name.tag for each in experiment.metric_infos] == ["test_accuracy", "a"]


def test_charts_group_scalars(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.charts({"learned": {"magnitudes": [r"learned/magnitude\\."]}})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    (chart,) = category.chart
    assert (category.title, chart.title) == ("learned", "magnitudes")
    assert list(chart.multiline.tag) == [r"learned/magnitude\\."]


@pytest.mark.parametrize(
    "space",
    [
        cells(),
        cells(length=20),
        blocks(length=3),
        blocks(stem_stride=2),
        blocks(length=12),
        graph(1, 1, 1),
        graph(1, 3, 2),
        graph(2, 1, 2),
        graph(2, 5, 4),
    ],
    ids=lambda space: f"{space.preset}-{len(space.sequence)}-{len(list(space.edges))}",
)
def test_genotypes_are_drawn(space: SearchSpace) -> None:
    image = pictures.draw_genotype(discrete(space), "a title with $ and $")
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert min(image.shape[:2]) > 100 and max(image.shape[:2]) < 4000
    assert image.std() > 0
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all(), "something is cut off"


def test_links_of_a_cell_never_share_a_lane() -> None:
    cell = discrete(graph(2, 6, 9)).cells[0]
    taken: set[tuple[int, int]] = set()
    for (source, target), lane in zip(genotypes._links(cell), genotypes._lanes(cell), strict=True):
        gaps = range(max(0, source - 1), target - 1)
        assert lane or len(gaps) == 1, "the line runs through a node"
        assert taken.isdisjoint({(gap, lane) for gap in gaps})
        taken |= {(gap, lane) for gap in gaps}


def test_only_a_genotype_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="one option per edge"):
        pictures.draw_genotype(cells())


@pytest.mark.parametrize("rows, columns", [(1, 2), (6, 13), (40, 6)])
def test_heat_maps(rows: int, columns: int) -> None:
    values = np.random.default_rng(0).random((rows, columns))
    values[0, 0] = np.nan
    names = [f"edge {i}" for i in range(rows)], [f"operation k{i}" for i in range(columns)]
    image = pictures.heat_map(*names, values, "probabilities")
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 0


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_confusion_matrices(classes: int) -> None:
    matrix = np.eye(classes, dtype=int) * 50
    matrix[1] = 0  # a class without images
    image = pictures.confusion_matrix(matrix, [f"${i}" for i in range(classes)], "test")
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 0


def test_image_grid() -> None:
    images = torch.rand(5, 1, 8, 8)
    grid = pictures.image_grid(images, columns=3)
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3) and grid.dtype == np.uint8
    assert (grid[2:10, 2:10] == round(images[0, 0, 0, 0].item() * 255)).all()
    assert pictures.image_grid(np.zeros((2, 3, 40, 32)), zoom=1).shape == (44, 70, 3)
    with pytest.raises(ValueError, match="shape"):
        pictures.image_grid(np.zeros((2, 4, 8, 8)))


def test_parameter_plots() -> None:
    line = [(0.0, 0.1), (0.5, 0.05), (1.0, 0.01)]
    for names in ([], ["lr"], ["lr", "weight_decay", "momentum", "rotate", "shear_x"]):
        image = pictures.parameter_plot(dict.fromkeys(names, line), "learned schedules")
        assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 0
    assert pictures.parameter_plot({"lr": [(0.0, 0.0), (1.0, 1.0)]}, "zero").std() > 0


def test_noise_beside_learning_is_drawn_flat() -> None:
    """Panels of one kind share their scale; with scales of their own, 6 % of the pixels differ."""
    learned = [(0.0, 0.1), (0.5, 0.5), (1.0, 1.0)]
    noise = [(0.0, 0.5), (0.5, 0.501), (1.0, 0.499)]
    flat = [(f, 0.5) for f, _ in noise]

    def differing(kind: str) -> float:
        pair = [
            pictures.parameter_plot({"magnitude.a": learned, f"{kind}.b": line}, "t")
            for line in (noise, flat)
        ]
        return float((pair[0] != pair[1]).mean())

    assert differing("magnitude") < 0.01 and differing("other") < 0.02


def test_tables_and_grids_do_without_matplotlib_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure takes 0.3 s, and an evaluation of a search draws up to ten tables."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a figure is made")

    monkeypatch.setattr(Figure, "__init__", refuse)
    names = ["a", "b"]
    pictures.heat_map(names, names, np.eye(2), "heat map")
    pictures.confusion_matrix(np.eye(2, dtype=int), names, "confusion matrix")
    pictures.labeled_grid(np.zeros((2, 2, 1, 8, 8)), names, names, "grid")


@pytest.mark.parametrize("title", ["", "short", "a title that is much wider than its table"])
def test_a_table_shows_its_colors_and_nothing_is_cut_off(title: str) -> None:
    image = pictures.heat_map(["row"], ["0", "1", "nothing"], [[0.0, 1.0, np.nan]], title)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()
    colors = matplotlib.colormaps["Blues"]([0.0, 1.0], bytes=True)[:, :3]
    for color in colors:
        assert (image == color).all(2).sum() > 36 * 52 / 2


def test_characters_without_a_glyph_raise_no_warning() -> None:
    """Warnings are errors here."""
    name = "猫 \n$x"
    pictures.confusion_matrix(np.eye(2, dtype=int), [name, "犬"], name)
    pictures.labeled_grid(np.zeros((1, 1, 1, 8, 8)), [name], [name], name)
    pictures.parameter_plot({name: [(0.0, 0.1), (1.0, 0.2)]}, "犬")
    pictures.draw_genotype(discrete(cells()), "犬")
    pictures.best_so_far_plot({name: [pictures.Step(1.0, 0.5, 0.5, 0.5)]}, "犬")


def test_pyplot_is_never_imported() -> None:
    program = (
        "import sys, darts_lite.reporting.recorder, darts_lite.reporting.pictures as p\n"
        "p.heat_map(['a'], ['b'], [[0.5]], 't')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
