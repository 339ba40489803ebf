"""Spaces: presets, options, errors. Genotypes: JSON round trip, strict reading."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spaces import random_member

from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.operations import check
from darts_lite.architecture.presets import OPERATIONS, PRESETS, blocks, cells
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.errors import UserError
from darts_lite.files import write_json


def genotype(preset: str = "cells", seed: int = 0, **changes: Any) -> Genotype:
    """Return a genotype with values that are easy to lose, in every field."""
    values: dict[str, Any] = {
        "space": random_member(PRESETS[preset](8, 4, 2), seed),
        "image": (3, 28, 30),
        "classes": ("Kätzchen", 'a "dog"', "bird\n"),
        "parameters": 123,
        "macs": 4567,
        "recipe": Recipe(
            optimizer=AdamW(beta2=0.98),
            augment='Kätzchen "1"',
            schedules={"lr": ((0.0, 0.1), (0.5, 1 / 3), (0.5, 0.01), (1.0, 1e-30))},
        ),
        "source": Source(dataset="folder:Ü", subset=7),
        "dataset": {"name": "digits", "images": 1797, "split": [1, 2, 3]},
        "search": {"lr": 0.1, "steps": 10, "amp": False, "cap": None, "preset": "cells"},
        "finished": False,
        "seed": 2**40,
        "versions": {"torch": "2"},
    }
    return Genotype(**(values | changes))


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, 11))
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_any_length_reduce_at_thirds(preset: str, length: int) -> None:
    space = PRESETS[preset](8, length, 2)
    assert (space.preset, space.channels, space.stem_stride) == (preset, 8, 2)
    assert len(space.sequence) == length
    at = [i for i, name in enumerate(space.sequence) if space.cell(name).reduction]
    assert at == sorted({length // 3, 2 * length // 3})
    assert not space.is_discrete
    assert random_member(space, length).is_discrete


def test_default_presets() -> None:
    assert [i for i, name in enumerate(cells().sequence) if name == "reduction"] == [2, 4]
    for cell in cells().cells:
        pairs = [(edge.source, edge.target) for edge in cell.edges]
        assert pairs == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
        assert [cell.into(node) for node in (2, 3)] == [[0, 1], [2, 3, 4]]
        assert (cell.inputs, cell.nodes, cell.keep) == (2, 2, 2)
    assert [cell.name for cell in blocks().cells] == [f"block{i}" for i in range(1, 8)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_edge_has_twelve_options_and_skip(preset: str) -> None:
    for _, edge in PRESETS[preset]().edges:
        assert len(edge.options) == len(set(edge.options)) == 13
        assert sum(option.name != "skip" for option in edge.options) == 12
        assert all(option.options == [option] for option in edge.options)


def test_last_choice_varies_fastest() -> None:
    operation = Operation("inverted_residual", {"kernel": (3, 5), "expansion": (2, 4)})
    assert operation.label == "inverted_residual k3/5 e2/4"
    assert [option.label.removeprefix("inverted_residual ") for option in operation.options] == [
        "k3 e2",
        "k3 e4",
        "k5 e2",
        "k5 e4",
    ]


def test_equal_operations_have_equal_hashes() -> None:
    one, two = (Operation("conv", {"kernel": (3,)}) for _ in range(2))
    assert one == two and len({one, two, Operation("conv", {"kernel": (5,)})}) == 2


def test_with_channels_changes_only_the_width() -> None:
    space = cells(8)
    assert space.with_channels(12) == cells(12)
    assert space.channels == 8


# --- Errors ---------------------------------------------------------------------------------------

CONV, SKIP = Operation("conv", {"kernel": (3,)}), Operation("skip")


def cell(*edges: Edge, inputs: int = 1, nodes: int = 1, keep: int = 1) -> Cell:
    return Cell("c", inputs, nodes, keep, False, edges or (Edge(0, 1, OPERATIONS),))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: check(Operation("pool")),
            "operation must be one of conv, bottleneck, .*, got 'pool'",
        ),
        (lambda: check(Operation("conv")), r"must be \['kernel'\], got \[\]"),
        (
            lambda: check(Operation("conv", {"kernel": (3,), "ratio": (2,)})),
            "got .*'kernel', 'ratio'",
        ),
        (lambda: Operation("conv", {"kernel": ()}), "ascending positive"),
        (lambda: Operation("conv", {"kernel": (5, 3)}), "ascending positive"),
        (lambda: Operation("conv", {"kernel": (3, 3)}), "ascending positive"),
        (lambda: Operation("conv", {"kernel": (-1,)}), "ascending positive"),
        (lambda: Operation("conv", {"kernel": (3, 4)}), "must be odd"),
        (lambda: Operation("bottleneck", {"kernel": (3,), "ratio": (0,)}), "ascending positive"),
        (lambda: cell(inputs=3), "1 or 2 inputs, .*, got inputs 3"),
        (lambda: cell(nodes=0), "1 or 2 inputs"),
        (lambda: cell(keep=0), "keep at least 1 edge, got .* keep 0"),
        (lambda: cell(Edge(1, 1, (CONV,))), "must have 0 <= source < target"),
        (lambda: cell(Edge(-1, 1, (CONV,))), "must have 0 <= source < target"),
        (lambda: cell(Edge(0, 1, ())), "at least one operation"),
        (lambda: cell(Edge(0, 1, (CONV, SKIP, CONV))), "must have each operation once"),
        (
            lambda: cell(Edge(0, 1, (CONV,)), Edge(0, 1, (SKIP,)), keep=2),
            "at most one edge between two nodes",
        ),
        (lambda: cell(Edge(0, 1, (CONV,)), Edge(0, 2, (CONV,))), "must end in nodes 1 to 1, got 2"),
        (lambda: cell(Edge(0, 1, (CONV,)), inputs=2), "must end in nodes 2 to 2, got 1"),
        (
            lambda: cell(Edge(0, 1, (CONV,)), nodes=2),
            "must have an incoming edge, got none for node 2",
        ),
        (
            lambda: cell(Edge(0, 1, (CONV, SKIP)), Edge(0, 2, (CONV,)), nodes=2),
            "must have the same operations",
        ),
        (lambda: SearchSpace("x", (cell(),), ("c", "d"), 8), "must use each of the cells"),
        (lambda: SearchSpace("x", (cell(), cell()), ("c",), 8), "must use each of the cells"),
        (lambda: SearchSpace("x", (cell(),), (), 8), "must use each of the cells"),
        (lambda: SearchSpace("x", (), (), 8), "must use each of the cells"),
        (lambda: SearchSpace("x", (cell(),), ("c",), 0), "channels must be at least 1"),
        (lambda: SearchSpace("x", (cell(),), ("c",), 8, 3), "stem_stride 1 or 2"),
        (lambda: genotype(space=cells()), "one option per edge"),
        (lambda: genotype(version=3), "version must be 2, got version 3"),
    ],
)
def test_malformed_values_raise(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(tmp_path: Path, preset: str, seed: int) -> None:
    path = tmp_path / "g.json"
    saved = genotype(preset, seed)
    saved.save(path)
    loaded = Genotype.load(path)
    assert loaded == saved
    assert type(loaded.search["amp"]) is bool and type(loaded.search["steps"]) is int
    assert [p.name for p in tmp_path.iterdir()] == ["g.json"]  # the temporary file is gone


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == 1


Json = dict[str, Any]


def first_edge(document: Json) -> Json:
    return document["space"]["cells"][0]["edges"][0]


def first_operation(document: Json) -> Json:
    return first_edge(document)["operations"][0]


def edges(document: Json) -> list[Json]:
    return [edge for cell in document["space"]["cells"] for edge in cell["edges"]]


SEVERAL = [{"name": "conv", "choices": {"kernel": [3, 5]}}]


STRICT: dict[str, tuple[Callable[[Json], object], str]] = {
    "another format": (lambda d: d.update(format="other"), "format"),
    "a later version": (lambda d: d.update(version=3), "version 3"),
    "a version of the wrong type": (lambda d: d.update(version="1"), "version"),
    "an unknown operation": (lambda d: first_operation(d).update(name="pool"), "got 'pool'"),
    "a missing field": (lambda d: d.pop("space"), "space: Field required"),
    "a missing inner field": (lambda d: first_edge(d).pop("source"), "source: Field required"),
    "a string for a number": (lambda d: d.update(parameters="123"), "parameters: .*integer"),
    "a fraction for a number": (lambda d: d.update(macs=1.5), "macs: .*integer"),
    "a boolean for a number": (lambda d: d.update(seed=True), "seed: .*integer"),
    "a number for a boolean": (
        lambda d: d["space"]["cells"][0].update(reduction=1),
        "reduction: .*boolean",
    ),
    "a list of the wrong length": (lambda d: d.update(image=[3, 8]), "image"),
    "an extra field": (lambda d: d.update(note=""), "note: Unexpected"),
    "an extra inner field": (lambda d: first_operation(d).update(note=""), "note: Unexpected"),
    "an operation with a line break": (
        lambda d: first_operation(d).update(name="a\nb"),
        "must be one of",
    ),
    "several operations on an edge": (
        lambda d: first_edge(d)["operations"].extend(SEVERAL),
        "cells.0: all edges of cell 'normal' must have the same operations",
    ),
    "several sizes on every edge": (
        lambda d: [edge.update(operations=SEVERAL) for edge in edges(d)],
        "a genotype must have one option per edge",
    ),
    "more than `keep` edges into a node": (
        lambda d: (
            [cell.update(keep=1) for cell in d["space"]["cells"]]
            + [edge.update(operations=[{"name": "skip", "choices": {}}]) for edge in edges(d)]
        ),
        "a genotype must have one option per edge",
    ),
    "an unordered schedule": (
        lambda d: d["recipe"]["schedules"].update(lr=[[0.5, 1.0], [0.0, 1.0]]),
        "schedule of 'lr'",
    ),
    "an empty schedule": (lambda d: d["recipe"]["schedules"].update(lr=[]), "schedule of 'lr'"),
    "a schedule with NaN": (
        lambda d: d["recipe"]["schedules"].update(lr=[[0.0, float("nan")]]),
        "lr.0.1: .* finite",
    ),
}


def check_error(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Genotype.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", STRICT)
def test_wrong_document_gives_one_line_error(tmp_path: Path, case: str) -> None:
    change, message = STRICT[case]
    path = tmp_path / "g.json"
    genotype().save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    check_error(path, message)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not\nJSON\n", b"\xff\xfe\x00", b"[]", b"null", b'{"a":\n\n', b"[" * 10_000],
)
def test_file_without_genotype_gives_one_line_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(content)
    check_error(path, "must be a genotype of this version")


@pytest.mark.parametrize("name", ["missing.json", "folder", "folder/missing.json", "file/g.json"])
def test_unreadable_file_gives_one_line_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    check_error(tmp_path / name, "^cannot read ")


# --- Older files ----------------------------------------------------------------------------------


def version_1(**changes: Any) -> Json:
    """Return a file of format version 1, which kept everything in `settings`."""
    now = genotype().to_json()
    old = {n: v for n, v in now.items() if n not in ("recipe", "source", "search", "finished")}
    settings = {
        "dataset": "digits", "data_dir": "data", "image_size": None, "subset": 600,
        "budget_hours": 0.1, "steps": None, "augment": "randaugment", "warm_start": None,
        "finished": True, "space": "cells", "cells": 4, "channels": 8, "search_channels": 8,
        "stem_stride": 2, "max_params": 3000, "batch_size": 32, "optimizer": "sgd",
        "estimator": "one_step", "protect": True, "seed": 3,
    }  # fmt: skip
    schedules = now["recipe"]["schedules"]
    return {**old, "version": 1, "hyperparameters": schedules, "settings": {**settings, **changes}}


def read_json(document: Json) -> Genotype:
    return Genotype.read(json.dumps(document), "g.json")


def test_version_1_of_a_search_is_read() -> None:
    found = read_json(version_1())
    schedules = genotype().recipe.schedules
    assert found.recipe == Recipe(batch_size=32, augment="randaugment", schedules=schedules)
    assert found.source == Source(dataset="digits", subset=600)
    assert found.finished and found.search["cells"] == 4
    assert not read_json(version_1(finished=False)).finished


def test_version_1_of_a_study_is_read() -> None:
    own: Json = {"momentum": 0.5, "nesterov": False, "label_smoothing": 0.0}
    assert read_json(version_1(**own)).recipe.optimizer == Sgd(momentum=0.5, nesterov=False)
    assert read_json(version_1(**own)).recipe.label_smoothing == 0
    adam = version_1(optimizer="adamw", beta1=0.8, beta2=0.9)
    assert read_json(adam).recipe.optimizer == AdamW(beta1=0.8, beta2=0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "rmsprop"}, "recipe.optimizer"),
        ({"label_smoothing": 2}, "recipe.label_smoothing"),
        ({"batch_size": "many"}, "recipe.batch_size"),
        ({"dataset": 3}, "source.dataset"),
        ({"dataset": None}, "source.dataset"),
    ],
)
def test_faults_of_version_1_are_one_line(changes: Json, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_json(version_1(**changes))
