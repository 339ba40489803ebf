"""The space of configurations: what it asks, what it makes of the answers, and who answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch.overrides import TorchFunctionMode

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.network import Network
from darts_lite.architecture.presets import blocks, cells
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.architecture.space import SearchSpace
from darts_lite.augment import Augmentation, Learned
from darts_lite.data import Dataset, Images, Splits
from darts_lite.errors import UserError
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.space import (
    LIMITS,
    POLICIES,
    AugmentationSpace,
    Configuration,
    ConfigurationSpace,
    Known,
    Random,
    Space,
    Value,
    constant,
    values_of,
)
from darts_lite.nas.random_networks import uniform_random
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import augmentation_for
from darts_lite.training.task import TrainTask

LEARNABLE = Augmentation(Learned(channels=1, crop=1))
PRESETS: dict[str, SearchSpace] = {"cells": cells(4, 4), "blocks": blocks(6, 3)}
PRESET = pytest.mark.parametrize("preset", PRESETS)
SEEDS = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space_of(preset: str, learnable: Augmentation = LEARNABLE) -> ConfigurationSpace:
    return ConfigurationSpace(
        architecture=PRESETS[preset], batch_sizes=(16, 32), learnable=learnable
    )


@dataclass
class Asked:
    """Answers at random, but for what is forced, and remembers every question."""

    seed: int
    forced: Mapping[str, Value] = field(default_factory=dict)
    questions: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    answers: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = Random(generator(self.seed))

    def _answer(self, name: str, answer: Callable[..., Any], *range_: Any) -> Any:
        self.questions.append((name, range_))
        self.answers[name] = self.forced.get(name, answer(name, *range_))
        return self.answers[name]

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self._answer(name, self._random.categorical, choices)

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        return self._answer(name, self._random.integer, low, high, step)

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        return self._answer(name, self._random.real, low, high, log)


def needed(found: Configuration, whole: SearchSpace, learnable: Augmentation) -> set[str]:
    """The dimensions that a configuration depends on, read off the configuration."""
    names = {"channels", "optimizer", "label_smoothing", "batch_size", "augment"}
    for cell in whole.cells:
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            if len(cell.into(node)) > cell.keep:
                names.add(f"{cell.name}.node{node}")
    for cell, edge in found.space.edges:
        (operation,) = edge.operations
        where = f"{cell.name}.{edge.source}-{edge.target}"
        names |= {where, *(f"{where}.{operation.name}.{c}" for c in operation.choices)}
    if isinstance(found.recipe.optimizer, Sgd):
        names |= {f"sgd.{each}" for each in ("lr", "weight_decay", "momentum", "nesterov")}
    else:
        names |= {f"adamw.{each}" for each in ("lr", "weight_decay", "beta1", "beta2")}
    if found.recipe.augment == "learned":
        names |= set(learnable.names)
    if found.recipe.augment.startswith("randaugment"):
        names |= {"randaugment.n", "randaugment.m"}
    return names


# --- what is asked ----------------------------------------------------------------------------


@PRESET
@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_dimension_is_used_and_asked_once(preset: str, seed: int) -> None:
    asked = Asked(seed)
    found = space_of(preset).configure(asked)
    names = [name for name, _ in asked.questions]
    assert sorted(names) == sorted(needed(found, PRESETS[preset], LEARNABLE))
    assert found.values == asked.answers


@PRESET
@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_configuration_equals_the_answers(preset: str, seed: int) -> None:
    asked = Asked(seed)
    found = space_of(preset).configure(asked)
    answers, optimizer = asked.answers, found.recipe.optimizer
    assert found.recipe.batch_size == answers["batch_size"]
    assert found.space.channels == answers["channels"]
    assert found.recipe.label_smoothing == answers["label_smoothing"]
    kind = answers["optimizer"]
    assert type(optimizer) is {"sgd": Sgd, "adamw": AdamW}[str(kind)]
    if isinstance(optimizer, Sgd):
        own = (answers["sgd.momentum"], answers["sgd.nesterov"])
        assert (optimizer.momentum, optimizer.nesterov) == own
    else:
        assert (optimizer.beta1, optimizer.beta2) == (
            answers["adamw.beta1"],
            answers["adamw.beta2"],
        )
    learned: dict[str, Any] = {n: answers[f"{kind}.{n}"] for n in ("lr", "weight_decay")}
    if answers["augment"] == "learned":
        learned |= {n: answers[n] for n in LEARNABLE.names}
    if answers["augment"] == "randaugment":
        n, m = answers["randaugment.n"], float(answers["randaugment.m"])
        learned["magnitude.all"] = m / 30
        assert found.recipe.augment == f"randaugment:n={n},m={m:.4g}"
    else:
        assert found.recipe.augment == answers["augment"]
    assert found.recipe.last == learned
    assert found.recipe.schedules == {n: ((0.0, v),) for n, v in learned.items()}


@PRESET
@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_network_is_a_member_of_the_space(preset: str, seed: int) -> None:
    """Every node keeps as many edges as it may, and each edge what was answered for it."""
    asked, whole = Asked(seed), PRESETS[preset]
    found = space_of(preset).configure(asked).space
    assert found.is_discrete
    assert replace(found, cells=whole.cells, channels=whole.channels) == whole
    for mine, theirs in zip(found.cells, whole.cells):
        assert replace(mine, edges=theirs.edges) == theirs
        for node in range(mine.inputs, mine.inputs + mine.nodes):
            sources = [mine.edges[i].source for i in mine.into(node)]
            assert len(sources) == min(mine.keep, len(theirs.into(node)))
            chosen = asked.answers.get(f"{mine.name}.node{node}")
            assert chosen in (None, "+".join(map(str, sources)))
        for edge in mine.edges:
            (operation,) = edge.operations
            where = f"{mine.name}.{edge.source}-{edge.target}"
            assert operation in theirs.edges[0].options
            assert operation.name == asked.answers[where]
            for choice, sizes in operation.choices.items():
                assert sizes == (asked.answers[f"{where}.{operation.name}.{choice}"],)


def test_ranges_of_the_training_dimensions() -> None:
    """The scales of learning rates, decays and magnitudes are logarithmic."""
    ranges = {}
    for seed, optimizer, augment in ((0, "sgd", "learned"), (1, "adamw", "randaugment")):
        asked = Asked(seed, {"optimizer": optimizer, "augment": augment})
        space_of("blocks").configure(asked)
        ranges |= dict(asked.questions)
    for name, limits in LIMITS.items():
        if name != "magnitude":
            assert ranges[name] == (*limits, True)
    assert ranges["sgd.momentum"] == (0.5, 0.99, False)
    assert ranges["adamw.beta1"] == (0.8, 0.99, False)
    assert ranges["adamw.beta2"] == (0.9, 0.9999, False)
    assert ranges["label_smoothing"] == (0.0, 0.2, False)
    assert ranges["randaugment.n"] == (1, 3, 1) and ranges["randaugment.m"] == (0.0, 30.0, False)
    assert ranges["magnitude.rotate"] == (0.01, 1.0, True)
    assert ranges["probability.rotate"] == (0.02, 0.98, False)
    assert ranges["batch_size"] == ((16, 32),) and ranges["augment"] == (POLICIES,)


@pytest.mark.parametrize(
    ("usual", "low", "high"),
    [(2, 2, 4), (3, 2, 6), (4, 2, 8), (6, 2, 12), (8, 4, 16), (16, 8, 32), (20, 10, 40)],
)
def test_the_width_is_even_and_between_half_and_twice_the_usual(
    usual: int, low: int, high: int
) -> None:
    architecture = blocks(usual, 3)
    asked = Asked(0)
    space = ConfigurationSpace(architecture=architecture, batch_sizes=(32,), learnable=LEARNABLE)
    space.configure(asked)
    assert dict(asked.questions)["channels"] == (low, high, 2)
    found = {space.configure(Asked(seed)).space.channels for seed in range(200)}
    assert found == set(range(low, high + 1, 2))


def test_a_discrete_architecture_asks_no_questions() -> None:
    fixed = uniform_random(blocks(7, 3), generator(0))
    space = ConfigurationSpace(architecture=fixed, batch_sizes=(32,), learnable=LEARNABLE)
    asked = Asked(0, {"optimizer": "adamw", "augment": "none"})
    assert space.configure(asked).space == fixed
    assert {name for name, _ in asked.questions} == {
        "optimizer", "adamw.lr", "adamw.weight_decay", "adamw.beta1", "adamw.beta2",
        "label_smoothing", "batch_size", "augment",
    }  # fmt: skip


def test_an_augmentation_space_changes_only_the_augmentation() -> None:
    space = space_of("blocks")
    for seed in range(10):
        fixed = space.configure(Asked(seed))
        asked = Asked(seed)
        found = AugmentationSpace(fixed=fixed, learnable=LEARNABLE).configure(asked)
        own = {n: getattr(fixed.recipe, n) for n in ("augment", "schedules")}
        recipe = replace(found.recipe, **own)
        assert replace(found, recipe=recipe, values=fixed.values) == fixed
        assert found.recipe.augment == "learned"
        assert asked.questions == [(n, (0.0, 1.0, False)) for n in LEARNABLE.policy.names]
        assert found.values == asked.answers
        kept = {n: fixed.recipe.last[n] for n in ("lr", "weight_decay")}
        assert found.recipe.last == kept | asked.answers


# --- genotypes --------------------------------------------------------------------------------


def bench_of(dataset: Dataset, splits: Splits) -> Bench:
    return Bench(
        dataset=dataset,
        splits=splits,
        device=torch.device("cpu"),
        epochs=1,
        fidelity="epochs",
        seed=3,
        folder=Path("unused"),
        source=Source(dataset="digits", subset=600),
        record={"method": "random"},
    )


@pytest.fixture(scope="module")
def bench(digits: tuple[Dataset, Splits]) -> Bench:
    return bench_of(*digits)


def tiny_bench() -> Bench:
    images = Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2))
    dataset = Dataset("tiny", images, images, ("a", "b"), flips=False)
    return bench_of(dataset, Splits(images, images, images))


@pytest.mark.parametrize(("preset", "channels"), [("cells", 8), ("blocks", 2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_configuration_can_be_trained(
    bench: Bench, policy: str, optimizer: str, preset: str, channels: int
) -> None:
    """And its genotype says all that the training needs."""
    space = space_of(preset, augmentation_for(bench.dataset, "learned"))
    forced = {"augment": policy, "optimizer": optimizer, "channels": channels}
    found = space.configure(Asked(len(policy), forced))
    genotype = bench.genotype(found)
    cost = network_cost(found.space, (1, 8, 8), 10)
    assert (genotype.space, genotype.parameters, genotype.macs) == (found.space, *cost)
    assert genotype.recipe == found.recipe and genotype.finished
    assert (genotype.source, genotype.search) == (bench.source, bench.record)
    assert (genotype.seed, genotype.dataset) == (3, bench.dataset.fingerprint)
    config = DeriveOptions(batch_size=found.recipe.batch_size, select="held_out")
    task = TrainTask(config, genotype, bench.dataset, bench.splits, bench.device)
    assert task.plain.recipe == found.recipe
    for fraction in (0.0, 0.7):
        assert task.hyper.at(fraction) == found.recipe.last
        task.step(fraction)
    assert math.isfinite(task.report()["loss/train"])
    assert task.plain.augment.policy.name == ("schedule" if policy == "learned" else policy)


class Convolutions(TorchFunctionMode):
    """The weights and strides that convolutions were called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Size, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.conv2d:
            self.seen.append((args[1].shape, args[3]))
        return func(*args, **(kwargs or {}))


def test_the_narrowest_cells_avoid_convolutions_that_crash() -> None:
    """A 1x1 convolution with a stride, of fewer channels than a block of oneDNN: 8, or 16."""
    forced = {"channels": 2, "optimizer": "sgd", "augment": "none"}
    space = space_of("cells").configure(Asked(4, forced)).space
    network = Network(space, (1, 8, 8), 10, generator(0))
    with Convolutions() as convolutions, torch.no_grad():
        network(torch.rand(4, 1, 8, 8).contiguous(memory_format=torch.channels_last))
    assert len(convolutions.seen) > 10
    assert [
        shape
        for shape, stride in convolutions.seen
        if shape[2:] == (1, 1) and stride != (1, 1) and shape[1] < 16
    ] == []


def test_randaugment_has_the_chosen_strength(bench: Bench) -> None:
    forced = {"augment": "randaugment", "randaugment.n": 1, "randaugment.m": 15.0}
    genotype = bench.genotype(space_of("blocks").configure(Asked(0, forced)))
    config = DeriveOptions(batch_size=256, select="held_out")
    task = TrainTask(config, genotype, bench.dataset, bench.splits, bench.device)
    choices = task.batch().choices
    assert choices is not None
    values = {
        n: torch.tensor(v) for n, v in task.hyper.at(0.0).items() if n in task.plain.augment.names
    }
    units, reach = choices.policy.units, task.plain.augment.policy.reach(values)
    largest = (units if reach is None else units * reach).abs().amax((0, 1))
    assert float(largest.sort().values[-3]) == pytest.approx(0.5)  # solarize, of two that know none


def same(found: Configuration, expected: Configuration) -> None:
    """Equal, floats up to rounding."""
    assert found.space == expected.space
    assert replace(found.recipe, schedules={}) == replace(expected.recipe, schedules={})
    assert found.recipe.last == pytest.approx(expected.recipe.last, rel=1e-12)
    assert {n: len(s) for n, s in found.recipe.schedules.items()} == dict.fromkeys(
        expected.recipe.schedules, 1
    )
    assert found.values.keys() == expected.values.keys()
    for name, value in expected.values.items():
        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert found.values[name] == close


@PRESET
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_values_of_a_genotype_give_its_configuration_back(preset: str, seed: int) -> None:
    """Through its JSON."""
    space, bench = space_of(preset), tiny_bench()
    found = space.configure(Asked(seed))
    adapter = TypeAdapter(Genotype)
    genotype = adapter.validate_json(adapter.dump_json(bench.genotype(found)))
    same(space.configure(Known(values_of(genotype))), found)
    same(space.configure(Known(found.values)), found)
    augmentation = AugmentationSpace(fixed=found, learnable=LEARNABLE)
    other = augmentation.configure(Asked(seed))
    same(augmentation.configure(Known(values_of(bench.genotype(other)))), other)


def searched(preset: str = "blocks", **changes: Any) -> Genotype:
    """As a search writes it: the usual recipe, and what was learned as schedules."""
    bench = tiny_bench()
    found = bench.genotype_of(uniform_random(PRESETS[preset], generator(1)))
    ends = {"lr": 0.2, "weight_decay": 1e-3, **dict.fromkeys(LEARNABLE.names, 0.3)}
    schedules = {n: ((0.0, 0.9), (0.5, 0.8), (1.0, v)) for n, v in ends.items()}
    usual = Recipe(augment="learned", batch_size=16, schedules=schedules)
    return replace(found, recipe=replace(usual, **changes))


@PRESET
def test_a_genotype_of_a_search_is_a_configuration(preset: str) -> None:
    """With what its schedules end at."""
    genotype = searched(preset)
    found = space_of(preset).configure(Known(values_of(genotype)))
    assert found.space == genotype.space
    assert replace(found.recipe, schedules={}) == Recipe(batch_size=16, augment="learned")
    assert found.recipe.last == genotype.recipe.last


def test_learned_values_beyond_the_range_are_clamped() -> None:
    far = {"lr": 9.0, "weight_decay": 1e-9, **dict.fromkeys(LEARNABLE.names, 0.0)}
    genotype = searched(schedules=constant(far))
    found = space_of("blocks").configure(Known(values_of(genotype)))
    assert found.recipe.last == {
        "lr": 1.0,
        "weight_decay": 1e-6,
        **{n: 0.01 if n.startswith("magnitude") else 0.02 for n in LEARNABLE.names},
    }


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("learned+cutmix", r"augment must be one of \['none', .*, got 'learned\+cutmix'"),
        ("mixup:alpha=0.2", "augment must be one of .*, got 'mixup'"),
        ("augment.json", r"augment must be one of .*, got 'augment\.json'"),
        ("randaugment", r"a value of 'randaugment\.n'"),
        pytest.param(
            "randaugment:n=2,m=15+cutmix",
            r"augment must be one of .*, got 'randaugment:?.*\+cutmix'",
        ),
        pytest.param("cutmix+autoaugment:dataset=svhn", "augment must be one of .*, got 'cutmix"),
    ],
)
def test_an_augmentation_outside_the_space_gives_a_one_line_error(
    augment: str, message: str
) -> None:
    """All of these are possible with `search --augment`."""
    own = searched(augment=augment)
    with pytest.raises(UserError, match=message) as error:
        space_of("blocks").configure(Known(values_of(own)))
    assert "\n" not in str(error.value)


def test_a_genotype_of_another_space_is_refused() -> None:
    values = values_of(searched("cells"))
    with pytest.raises(UserError, match=r"must have a value of 'block1\.0-1', got none"):
        space_of("blocks").configure(Known(values))
    wide = space_of("blocks")
    wide = replace(wide, architecture=blocks(20, 3))
    with pytest.raises(UserError, match="channels must be 10 to 40 in steps of 2, got 6"):
        wide.configure(Known(values_of(searched())))


# --- who answers ------------------------------------------------------------------------------


def around(share: float, count: int) -> Any:
    """A share of many draws, within four standard deviations."""
    return pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))


def test_random_answers_are_uniform() -> None:
    chooser, count = Random(generator(0)), 4000
    letters = [chooser.categorical("x", "abc") for _ in range(count)]
    assert [letters.count(c) / count for c in "abc"] == [around(1 / 3, count)] * 3
    whole = [chooser.integer("x", 2, 8, step=2) for _ in range(count)]
    assert [whole.count(n) / count for n in (2, 4, 6, 8)] == [around(1 / 4, count)] * 4
    odd = [chooser.integer("x", 1, 4, step=2) for _ in range(count)]
    assert [odd.count(n) / count for n in (1, 3)] == [around(1 / 2, count)] * 2
    for log in (False, True):
        real = [chooser.real("x", 1e-4, 1.0, log=log) for _ in range(count)]
        assert min(real) >= 1e-4 and max(real) <= 1.0
        edges = [10 ** (i - 4) if log else 1e-4 + (1 - 1e-4) * i / 4 for i in range(5)]
        shares = [sum(a <= x < b for x in real) / count for a, b in itertools.pairwise(edges)]
        assert shares == [around(1 / 4, count)] * 4


def test_random_configurations_are_spread_over_the_choices() -> None:
    count = 400
    drawn = [space_of("cells").configure(Asked(seed)).values for seed in range(count)]
    for name, choices in (
        ("channels", (2, 4, 6, 8)),
        ("optimizer", ("sgd", "adamw")),
        ("augment", POLICIES),
        ("normal.node3", ("0+1", "0+2", "1+2")),
        ("normal.0-2", ("conv", "bottleneck", "inverted_residual", "skip")),
    ):
        known = [values[name] for values in drawn]
        shares = [known.count(choice) / count for choice in choices]
        assert shares == [around(1 / len(choices), count)] * len(choices), name
    kept = [values["normal.0-3"] for values in drawn if "normal.0-3" in values]
    assert len(kept) / count == around(2 / 3, count)


def test_random_answers_depend_only_on_the_generator() -> None:
    space = space_of("cells")
    one, two, other = (space.configure(Random(generator(s))) for s in (5, 5, 6))
    assert one == two
    assert one.values != other.values


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda k: k.categorical("gone", (1, 2)), "must have a value of 'gone', got none; use one"),
        (lambda k: k.integer("gone", 1, 2), "a value of 'gone'"),
        (lambda k: k.real("gone", 1, 2), "a value of 'gone'"),
        (lambda k: k.categorical("word", ("a", "b")), r"word must be one of \['a', 'b.*, got 'c'"),
        (lambda k: k.integer("whole", 1, 4), "whole must be 1 to 4 in steps of 1, got 5"),
        (lambda k: k.integer("whole", 6, 8), "whole must be 6 to 8 .*, got 5"),
        (lambda k: k.integer("whole", 2, 8, 2), "whole must be 2 to 8 in steps of 2, got 5"),
        (lambda k: k.integer("real", 0, 8), "real must be 0 to 8 .*, got 0.5"),
        (lambda k: k.integer("word", 0, 8), "word must be 0 to 8 .*, got 'c'"),
    ],
)
def test_a_known_value_that_does_not_fit_is_refused(
    ask: Callable[[Known], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        ask(Known({"word": "c", "whole": 5, "real": 0.5}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "found"), [(0.5, 0.5), (2, 1.0), (-3.0, 0.1), (0.1, 0.1), (1, 1.0), (math.inf, 1.0)]
)
def test_a_known_real_value_is_clamped_to_its_range(value: float, found: float) -> None:
    answer = Known({"x": value}).real("x", 0.1, 1.0, log=True)
    assert answer == found and isinstance(answer, float)


def test_known_values_are_returned() -> None:
    known = Known({"word": "c", "whole": 6, "flag": False})
    assert known.categorical("word", ("a", "c")) == "c"
    assert known.categorical("flag", (False, True)) is False
    assert known.integer("whole", 2, 8, step=2) == 6


def test_spaces_are_plain_data() -> None:
    """Workers make them anew from the options: the same ones."""
    spaces: tuple[Space, Space] = (space_of("cells"), space_of("cells"))
    assert spaces[0] == spaces[1] and repr(spaces[0]) == repr(spaces[1])
