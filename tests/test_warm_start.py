"""Warm starts of a search from earlier searches, and the time that they save."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spaces import random_member
from torch.testing import assert_close

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks, cells
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.augment import Learned
from darts_lite.data import Dataset, Images, Splits, split
from darts_lite.errors import UserError
from darts_lite.hypergradient import LearningRateFinder
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.problem import logit_specs
from darts_lite.nas.relaxation import logit_shapes, relax
from darts_lite.nas.task import INHERITED_WARM_UP, WARM_UP, SearchTask
from darts_lite.nas.warm_start import Warm, compare, prior, read, starts
from darts_lite.training import checkpoint
from darts_lite.training.problem import OPTIMIZERS, outer_variables

CPU = torch.device("cpu")
CONV3, CONV5 = (Operation("conv", {"kernel": (k,)}) for k in (3, 5))
SKIP = Operation("skip")
INVERTED = Operation("inverted_residual", {"kernel": (5,), "expansion": (4,)})


def genotype(space: SearchSpace, **changes: Any) -> Genotype:
    found: dict[str, Any] = {"image": (1, 8, 8), "classes": ("a", "b"), "parameters": 9, "macs": 9}
    return Genotype(space=space, **{**found, **changes})


def chain(*operations: Operation) -> Genotype:
    """Return the genotype of a discrete chain of blocks."""
    space = blocks(4, len(operations))
    return genotype(
        replace(
            space,
            cells=tuple(
                replace(cell, edges=(Edge(0, 1, (operation,)),))
                for cell, operation in zip(space.cells, operations)
            ),
        )
    )


def normal(*edges: tuple[int, int, Operation]) -> Genotype:
    """Return a genotype of the preset `cells` whose normal cell has the given edges."""
    space = random_member(cells(4, 4), seed=0)
    cell = space.cell("normal")
    made = replace(cell, edges=tuple(Edge(s, t, (o,)) for s, t, o in edges))
    return genotype(replace(space, cells=(made, space.cell("reduction"))))


# --- the prior --------------------------------------------------------------------------------


def test_a_unanimous_choice_of_four_operations_starts_at_a_half() -> None:
    space = blocks(4, 3)
    weights = relax(space, prior(space, [chain(CONV5, SKIP, INVERTED)] * 2))
    one, two, three = (weights[f"block{i}"] for i in (1, 2, 3))
    assert_close(one.operation, torch.tensor([[1 / 2, 1 / 6, 1 / 6, 1 / 6]]))
    assert_close(two.operation, torch.tensor([[1 / 6, 1 / 6, 1 / 6, 1 / 2]]))
    assert_close(three.operation, torch.tensor([[1 / 6, 1 / 6, 1 / 2, 1 / 6]]))
    assert_close(one.choices["conv"]["kernel"], torch.tensor([[1 / 3, 2 / 3]]))
    assert_close(three.choices["conv"]["kernel"], torch.tensor([[1 / 2, 1 / 2]]))
    found = three.choices["inverted_residual"]
    assert_close(found["kernel"], torch.tensor([[1 / 3, 2 / 3]]))
    assert_close(found["expansion"], torch.tensor([[2 / 9, 5 / 9, 2 / 9]]))


def test_genotypes_share_the_head_start_and_a_missing_choice_votes_for_all() -> None:
    space = blocks(4, 3)
    found = [chain(o, SKIP, SKIP) for o in (CONV3, CONV3, CONV5, SKIP)]
    weights = relax(space, prior(space, found))["block1"]
    assert_close(weights.operation, torch.tensor([[5 / 12, 1 / 6, 1 / 6, 1 / 4]]))
    # of the four votes on the kernel, two are for 3, one is for 5, and one for both
    assert_close(weights.choices["conv"]["kernel"], torch.tensor([[13 / 24, 11 / 24]]))


def test_an_edge_that_was_kept_has_a_higher_probability_to_be_kept() -> None:
    """An edge that was not kept gives no vote on its operation."""
    space = cells(4, 4)
    earlier = normal((0, 2, SKIP), (1, 2, CONV5), (0, 3, SKIP), (2, 3, INVERTED))
    weights = relax(space, prior(space, [earlier]))["normal"]
    assert weights.edge is not None
    expected = [1.0, 1.0, 7 / 9, 4 / 9, 7 / 9]  # node 3 keeps two of three
    assert_close(weights.edge, torch.tensor(expected))
    skip = torch.tensor([1 / 2, 1 / 6, 1 / 4, 1 / 4, 1 / 6])[[0, 1, 0, 2, 4]]
    assert_close(weights.operation[:, 3], skip)
    other = normal((0, 2, SKIP), (1, 2, CONV5), (0, 3, SKIP), (1, 3, SKIP))
    edge = relax(space, prior(space, [earlier, other]))["normal"].edge
    assert edge is not None
    assert_close(edge[2:], torch.tensor([7 / 9, 11 / 18, 11 / 18]))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_prior_exists_for_any_number_of_kept_edges(keep: int) -> None:
    """The logits of edges have no closed form in general; `prior` iterates."""
    ends = [(0, 1), (0, 2), (0, 3), *((s, 4) for s in range(4))]

    def space(count: int, *operations: Operation) -> SearchSpace:
        edges = tuple(Edge(s, t, operations) for s, t in ends[:count])
        return SearchSpace("own", (Cell("c", 1, 4, keep, False, edges),), ("c",), 4)

    whole = space(7, CONV3, SKIP)
    edge = relax(whole, prior(whole, [genotype(space(3 + keep, SKIP))]))["c"].edge
    assert edge is not None
    even = 2 / 3 * keep / 4
    assert_close(edge[3:], torch.tensor([even + (i < keep) / 3 for i in range(4)]))


def test_a_node_that_kept_an_edge_outside_the_space_gives_no_vote() -> None:
    ends = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 4))
    now, then = (
        SearchSpace("own", (Cell("c", 1, 4, 2, False, edges),), ("c",), 4)
        for edges in (
            tuple(Edge(s, t, (CONV3, SKIP)) for s, t in ends[:6]),
            tuple(Edge(s, t, (SKIP,)) for s, t in (*ends[:4], ends[6])),
        )
    )
    edge = relax(now, prior(now, [genotype(then)]))["c"].edge
    assert edge is not None
    assert_close(edge[3:], torch.full((3,), 2 / 3))


def test_only_cells_of_the_same_kind_vote() -> None:
    """Name and reduction must be equal; in a longer chain other blocks reduce."""
    five, three = blocks(4, 5), chain(SKIP, SKIP, SKIP)
    logits = prior(five, [three, normal((0, 2, SKIP), (1, 2, SKIP), (0, 3, SKIP), (1, 3, SKIP))])
    assert {n: tuple(v.shape) for n, v in logits.items()} == logit_shapes(five)
    known = {name.partition(".")[0] for name, value in logits.items() if value.any()}
    assert known == {"block1", "block2"}
    assert_close(logits["block1.operation"].softmax(1)[0, 3], torch.tensor(1 / 2))
    for space in (five, cells(4, 4)):
        for nothing in ([], [chain(SKIP)] if space.preset == "cells" else [normal_only()]):
            assert not any(value.any() for value in prior(space, nothing).values())


def normal_only() -> Genotype:
    return normal((0, 2, SKIP), (1, 2, SKIP), (0, 3, SKIP), (1, 3, SKIP))


# --- hyperparameters --------------------------------------------------------------------------


def learned(optimizer: str = "sgd", **ends: float) -> Genotype:
    schedules = {name.replace("_of_", "."): ((0.0, 0.3), (1.0, end)) for name, end in ends.items()}
    kind = {"sgd": Sgd(), "adamw": AdamW()}[optimizer]
    return replace(chain(SKIP), recipe=Recipe(optimizer=kind, schedules=schedules))


def test_the_last_values_of_schedules_are_averaged() -> None:
    found = starts(
        [
            learned(lr=0.01, weight_decay=1e-5, magnitude_of_rotate=0.2),
            learned(lr=0.04, weight_decay=1e-3, magnitude_of_rotate=0.4, mixing=0.5),
        ]
    )
    assert found == pytest.approx(
        {"lr": 0.02, "weight_decay": 1e-4, "magnitude.rotate": 0.3, "mixing": 0.5}
    )
    assert starts([learned(lr=-1.0)])["lr"] > 0


def test_the_lr_of_another_optimizer_is_ignored() -> None:
    found = starts([learned("adamw", lr=1e-3, weight_decay=0.1, magnitude_of_rotate=0.2)])
    assert found == {"magnitude.rotate": pytest.approx(0.2)}
    both = starts([learned("adamw", lr=1e-3), learned(lr=0.2)])
    assert both == {"lr": pytest.approx(0.2)}
    both = starts([learned("adamw", lr=1e-3), learned(lr=0.2)], "adamw")
    assert both == {"lr": pytest.approx(1e-3)}


def test_outer_variables_start_at_known_values_only() -> None:
    policy = Learned(channels=1)
    start = {"lr": 0.2, "magnitude.rotate": 0.4, "magnitude.unknown": 0.4}
    space = blocks(4, 3)
    alpha = {"block1.operation": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    from darts_lite.augment import Augmentation

    values = outer_variables(Augmentation(policy), start, first=logit_specs(space, alpha)).values()
    assert_close(values["lr"], torch.tensor(0.2))
    assert_close(values["magnitude.rotate"], torch.tensor(0.4))
    assert "magnitude.unknown" not in values
    assert_close(values["alpha.block1.operation"], alpha["block1.operation"])
    assert not values["alpha.block2.operation"].any()


# --- a search ---------------------------------------------------------------------------------


def options(**changes: Any) -> SearchOptions:
    small: dict[str, Any] = {
        "dataset": "digits", "space": "blocks", "cells": 3, "channels": 4, "search_channels": 4,
        "max_params": 3000, "batch_size": 16, "subset": 600, "stem_stride": 1, "method": "darts",
    }  # fmt: skip
    return SearchOptions(**{**small, **changes})


def task(data: tuple[Dataset, Splits], warm: Warm | None = None, **changes: Any) -> SearchTask:
    return SearchTask(options(**changes), *data, CPU, *([] if warm is None else [warm]))


@pytest.fixture(scope="module")
def earlier(digits: tuple[Dataset, Splits]) -> SearchTask:
    search = task(digits)
    for i in range(16):
        search.step(i / 16)
    search.hyper.variables.multiply("lr", torch.tensor(1.5))  # as if a look-ahead had found it
    return search


def test_a_search_starts_from_the_values_of_the_warm_start(
    digits: tuple[Dataset, Splits], earlier: SearchTask
) -> None:
    """The values are choices, hyperparameters and weights; no files are used."""
    found = earlier.genotype()
    warm = Warm(prior(earlier.space, [found]), starts([found]), earlier.inner.params)
    search = task(digits, warm)
    then, now = earlier.hyper.variables.values(), search.hyper.variables.values()
    for name in now:
        if not name.startswith("alpha."):
            assert_close(now[name].clamp(0, 0.97), then[name].clamp(0, 0.97), rtol=1e-3, atol=0.03)
    assert_close(now["lr"], then["lr"], rtol=1e-4, atol=0)
    assert not math.isclose(float(then["lr"]), OPTIMIZERS["sgd"].start["lr"], rel_tol=1e-3)
    for name, logits in warm.alpha.items():
        assert_close(now[f"alpha.{name}"], logits)
    best = [int(w.operation.argmax()) for w in search.weights(1.0).values()]
    names = [o.name for o in earlier.space.cells[0].edges[0].operations]
    assert [names[i] for i in best] == [e.operations[0].name for _, e in found.space.edges]
    for mine, theirs in zip(search.inner.params, earlier.inner.params):
        assert torch.equal(mine, theirs)
    assert not any(vector.any() for vector in search.inner.optimizer.moments[0])


def test_a_warm_start_shortens_the_warm_up_and_saves_look_aheads(
    digits: tuple[Dataset, Splits], earlier: SearchTask
) -> None:
    """Weights shorten the warm-up; a known lr saves some look-aheads, with weights all of them."""
    rate = {"lr": 0.1}
    for warm, warm_up, known in (
        (Warm(), WARM_UP, 0),
        (Warm(params=earlier.inner.params), INHERITED_WARM_UP, 0),
        (Warm(starts=rate), WARM_UP, 10),
        (
            Warm(starts=rate, params=earlier.inner.params),
            INHERITED_WARM_UP,
            LearningRateFinder.looks,
        ),
    ):
        search = task(digits, warm)
        assert (search.hyper.begin, search.hyper.finder.done) == (warm_up, known)
        search.fraction = 0.1
        before = search.hyper.variables.raw["alpha.block1.operation"].clone()
        search.step(0.12)
        moved = not torch.equal(search.hyper.variables.raw["alpha.block1.operation"], before)
        assert moved == (warm_up < 0.12)


@pytest.mark.parametrize("inherits", [False, True])
def test_the_outer_variables_can_travel_their_whole_distance(
    digits: tuple[Dataset, Splits],
    earlier: SearchTask,
    monkeypatch: pytest.MonkeyPatch,
    inherits: bool,
) -> None:
    search = task(digits, Warm({}, {}, earlier.inner.params if inherits else None))
    search.hyper.finder.done = LearningRateFinder.looks
    progress: list[float] = []
    monkeypatch.setattr(search.hyper.variables, "update", lambda _, part: progress.append(part))
    for i in range(13):  # the last step learns the magnitudes
        search.step(i / 12)
    assert sum(progress) == pytest.approx(1)


def test_a_search_resumes_without_its_warm_start(
    digits: tuple[Dataset, Splits], earlier: SearchTask, tmp_path: Path
) -> None:
    found = earlier.genotype()
    warm = Warm(prior(earlier.space, [found]), starts([found]), earlier.inner.params)
    whole, part, again = task(digits, warm), task(digits, warm), task(digits)
    for search in (whole, part):
        for i in range(2):
            search.step(i / 20)
    torch.save(part.state_dict(), tmp_path / "s.pt")
    again.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    for search in (whole, again):
        for i in range(2, 5):
            search.step(i / 20)
    assert torch.equal(whole.inner.params[0], again.inner.params[0])
    for name, raw in whole.hyper.variables.raw.items():
        assert torch.equal(raw, again.hyper.variables.raw[name]), name


def test_weights_of_another_size_are_an_error(digits: tuple[Dataset, Splits]) -> None:
    with pytest.raises(UserError, match="must have the sizes of this supernet"):
        task(digits, Warm(params=(torch.zeros(3), torch.zeros(4))))


# --- files ------------------------------------------------------------------------------------


def write(
    out: Path, search: SearchTask, said: SearchOptions, rows: Sequence[Mapping[str, float]] = ()
) -> Path:
    """Write the files of a search into a folder."""
    (out / "search").mkdir(parents=True)
    search.genotype().save(out / "g.json")
    config = {"options": asdict(said), "data": dict(search.dataset.fingerprint), "threads": 1}
    path = out / "search" / "checkpoint.pt"
    checkpoint.save(path, "search", config, {"task": search.state_dict()})
    metrics(out / "search", *rows)
    return out


def metrics(folder: Path, *rows: Mapping[str, float]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows))
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def fewer(dataset: Dataset, count: int, name: str = "digits") -> Dataset:
    train = Images(dataset.train.pixels[:count], dataset.train.labels[:count])
    return Dataset(name, train, dataset.test, dataset.classes, dataset.flips)


@pytest.mark.parametrize(
    ("changes", "images", "said"),
    [
        ({}, None, "data unchanged; all cells known; weights taken"),
        ({"augment": "none", "batch_size": 32}, None, "; weights taken"),
        ({"seed": 1}, None, "with seed 0 they were trained on today's validation images"),
        ({"subset": 500}, None, "not taken: with subset 600 they were trained"),
        ({"search_channels": 8}, None, "not taken: search_channels must be 4, got 8"),
        ({"cells": 4}, None, "nothing known of block4; weights not taken: cells must be 3"),
        ({"space": "cells"}, None, "none of its cells is in this space: hyperparameters only"),
        ({}, 1500, "297 fewer images (10 classes shrank); all cells known; weights not taken"),
    ],
)
def test_a_warm_start_reports_what_it_uses_of_a_folder(
    digits: tuple[Dataset, Splits],
    earlier: SearchTask,
    tmp_path: Path,
    changes: dict[str, Any],
    images: int | None,
    said: str,
) -> None:
    out = write(tmp_path / "out", earlier, options())
    dataset = digits[0] if images is None else fewer(digits[0], images)
    now = options(**changes)
    lines: list[str] = []
    space = task((dataset, split(dataset, subset=400)), **changes).space
    for path in (out, out / "g.json"):
        warm = read([str(path)], now, space, dataset, lines.append)
        assert (warm.params is not None) == ("weights taken" in said)
        assert set(warm.starts) == set(earlier.hyper.variables.raw) - {
            name for name in earlier.hyper.variables.raw if name.startswith("alpha.")
        }
        known = any(value.any() for value in warm.alpha.values())
        assert known == (now.space == "blocks")
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith(f"warm start from {out / 'g.json'}: ") and said in lines[0]


def test_weights_come_from_the_first_path_with_weights(
    digits: tuple[Dataset, Splits], earlier: SearchTask, tmp_path: Path
) -> None:
    other = task(digits)
    first, second, third = (
        write(tmp_path / n, s, options()) for n, s in (("a", other), ("b", earlier), ("c", other))
    )
    (first / "search" / "checkpoint.pt").unlink()
    lines: list[str] = []
    paths = [str(p) for p in (first, second, third)]
    warm = read(paths, options(), other.space, digits[0], lines.append)
    assert warm.params is not None and torch.equal(warm.params[0], earlier.inner.params[0])
    said = ["weights not taken: there is no", "weights taken", "all cells known"]
    assert [s in line for s, line in zip(said, lines)] == [True] * 3
    assert lines[2].endswith("all cells known")


def test_a_damaged_checkpoint_is_an_error(
    digits: tuple[Dataset, Splits], earlier: SearchTask, tmp_path: Path
) -> None:
    out = write(tmp_path / "out", earlier, options())
    path = out / "search" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["config"]["options"]["stem_stride"]
    torch.save(content, path)
    for what in ("must be a checkpoint of this version", "must be a readable checkpoint"):
        with pytest.raises(UserError, match=what):
            read([str(out)], options(), earlier.space, digits[0], print)
        path.write_bytes(path.read_bytes()[:2000])


# --- the time saved ---------------------------------------------------------------------------

BEFORE = (
    {"seconds": 10.0, "accuracy/mixed": 0.2},
    {"seconds": 15.0, "accuracy/train": 0.99},
    {"seconds": 20.0, "accuracy/mixed": 0.8},
    {"seconds": 30.0, "accuracy/mixed": 0.7},
)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(4.0, 0.5), (7.0, 0.7), (9.0, 0.9)], "after 7 s; it took 20 s then: 13 s saved"),
        ([(4.0, 0.5), (35.0, 0.71)], "after 35 s; it took 20 s then: 15 s more"),
        ([(4.0, 0.65), (9.0, 0.6)], "did not reach the earlier search's 70.0%"),
        ([], None),
    ],
)
def test_the_comparison_reports_the_saved_time(
    digits: tuple[Dataset, Splits],
    earlier: SearchTask,
    tmp_path: Path,
    rows: list[tuple[float, float]],
    said: str | None,
) -> None:
    """It compares when each search first had the final accuracy of the earlier search."""
    out = write(tmp_path / "out", earlier, options(), BEFORE)
    mine = metrics(tmp_path / "new", *({"seconds": s, "accuracy/mixed": a} for s, a in rows))
    found = compare(str(out), mine, options(), digits[0])
    if said is None:
        assert found is None
        return
    assert found is not None and said in str(found)
    assert "70.0% (of the supernet, on the same validation images)" in str(found)
    numbers = {"13 s saved": 13.0, "15 s more": -15.0}
    expected = {"warm_saved_seconds": numbers[said[-10:].strip(": ")]} if "after" in said else {}
    assert found.scalars == expected
    if not expected:
        assert str(found).endswith("its best is 65.0%")


def test_the_conditions_of_a_comparison(
    digits: tuple[Dataset, Splits], earlier: SearchTask, tmp_path: Path
) -> None:
    """The data must be the same or more, with times; the report names another split."""
    part = fewer(digits[0], 1500)
    mine = metrics(tmp_path / "new", {"seconds": 5.0, "accuracy/mixed": 0.9})
    said = options()
    out = write(tmp_path / "a", earlier, options(), BEFORE)
    assert "other validation" in str(compare(str(out), mine, replace(said, seed=1), digits[0]))
    assert compare(str(out), mine, said, part) is None  # fewer images than in the earlier search
    assert compare(str(tmp_path / "gone"), mine, said, digits[0]) is None
    metrics(out / "search", {"accuracy/mixed": 0.7})  # an earlier version recorded no seconds
    assert compare(str(out), mine, said, digits[0]) is None
    (out / "search" / "metrics.jsonl").unlink()
    assert compare(str(out), mine, said, digits[0]) is None

    small = task((part, split(part, subset=600)))
    out = write(tmp_path / "b", small, options(), BEFORE)
    assert "other validation images) after 5 s" in str(compare(str(out), mine, said, digits[0]))
