"""The joint search in process: exact resuming, phases, learned values, warnings."""

from pathlib import Path

import pytest
import torch

from darts_lite.architecture.cost import default_channels, network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import cells
from darts_lite.architecture.weights import member_weights
from darts_lite.augment.operations.record import OFTEN
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.problem import ALPHA
from darts_lite.nas.task import SETTLING, WARM_UP, SearchTask
from darts_lite.reporting.recorder import Recorder
from darts_lite.schedules import cosine
from darts_lite.training import loop
from darts_lite.training.hyper_learner import CHOICES
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import OPTIMIZERS
from darts_lite.training.task import TrainTask

CPU = torch.device("cpu")


def small(**changes: object) -> SearchOptions:
    settings: dict = {
        "space": "blocks", "cells": 3, "channels": 4, "search_channels": 4,
        "max_params": 3000, "batch_size": 16, "stem_stride": 1,
        "method": "darts",
    }  # fmt: skip
    return SearchOptions(**{**settings, **changes})


def task(digits: tuple[Dataset, Splits], **changes: object) -> SearchTask:
    return SearchTask(small(**changes), *digits, CPU)


def advance(search: SearchTask, first: int, last: int, total: int = 40) -> None:
    for i in range(first, last):
        search.step(i / total)


def bits(search: SearchTask) -> dict[str, bytes]:
    tensors = {**search.hyper.variables.raw, **dict(zip("wb", search.inner.params))}
    return {name: t.numpy().tobytes() for name, t in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"space": "cells"}, {}, {"optimizer": "adamw"}, {"space": "cells", "method": "single_path"}],
    ids=str,
)
def test_a_resumed_search_is_bit_identical_from_any_step(
    digits: tuple[Dataset, Splits], tmp_path: Path, changes: dict[str, str]
) -> None:
    whole = task(digits, **changes)
    advance(whole, 0, 20, 20)
    for stop in (2, 5, 9, 16, 19):
        part = task(digits, **changes)
        advance(part, 0, stop, 20)
        torch.save(part.state_dict(), tmp_path / "s.pt")
        again = task(digits, **changes)
        again.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
        advance(again, stop, 20, 20)
        assert bits(again) == bits(whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_final_training_uses_the_optimizer_of_the_search(
    digits: tuple[Dataset, Splits], name: str
) -> None:
    """The search starts at the usual values; the first AdamW step is the lr for most weights."""
    search = task(digits, optimizer=name, estimator="one_step")
    usual, before = OPTIMIZERS[name], search.inner.params
    values = {n: float(v) for n, v in search.hyper.variables.values().items() if n in usual.start}
    assert values == pytest.approx(usual.start, rel=1e-4)
    search.step(0.0)
    if name == "adamw":
        moved = (search.inner.params[1] - before[1]).abs()
        expected = usual.start["lr"] * cosine(0.0)
        assert float(moved.quantile(0.9)) == pytest.approx(expected, rel=0.01)
    genotype = search.genotype()
    trained = TrainTask(DeriveOptions(batch_size=16), genotype, *digits, CPU)
    assert trained.plain.recipe.optimizer == usual.recipe.optimizer
    assert trained.hyper.schedules()["lr"][-1][1] == pytest.approx(usual.start["lr"], rel=1e-4)


def test_a_resumed_search_restores_the_tangents_of_an_estimator(
    digits: tuple[Dataset, Splits], tmp_path: Path
) -> None:
    """The search stops in the joint phase, where the estimator carries tangents."""
    estimator = "one_step,optimizer=forward"
    whole, again = (task(digits, estimator=estimator) for _ in range(2))
    advance(whole, 5, 7, 20)
    torch.save(whole.state_dict(), tmp_path / "s.pt")
    again.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert set(again.inner.carried) == {"lr", "weight_decay"}
    for one in (whole, again):
        advance(one, 7, 9, 20)
    assert bits(again) == bits(whole)


def test_global_random_state_and_evaluation_do_not_change_a_search(
    digits: tuple[Dataset, Splits], tmp_path: Path
) -> None:
    plain, watched = task(digits), task(digits)
    advance(plain, 0, 12)
    with Recorder(tmp_path) as recorder:
        for i in range(12):
            torch.rand(7)
            watched.step(i / 40)
            if i % 5 == 0:
                watched.evaluate(i, recorder)
                watched.report()
    assert bits(plain) == bits(watched)


def test_warm_up_trains_only_weights_and_the_joint_phase_trains_all_variables(
    digits: tuple[Dataset, Splits],
) -> None:
    """One estimator learns all kinds; variables of a rare operation change only if it is drawn."""
    search = task(digits, estimator="one_step")
    before, weights = bits(search), search.inner.params[0].clone()
    last = int(WARM_UP * 40)
    advance(search, 0, last)
    during = bits(search)
    assert all(during[n] == before[n] for n in search.hyper.variables.raw)
    assert not torch.equal(search.inner.params[0], weights)
    advance(search, last, 40)
    after = bits(search)
    moved = {n for n in search.hyper.variables.raw if after[n] != during[n]}
    often = {n for n, start in search.augment.starts.items() if start == OFTEN}
    chance = {
        n for n in search.hyper.variables.raw if n.split(".")[0] in ("magnitude", "probability")
    }
    always = set(search.hyper.variables.raw) - chance
    assert always | {n.replace("probability", "magnitude") for n in often} <= moved
    assert any(n.startswith("probability.") for n in moved)


def test_by_default_the_lr_is_found_in_the_warm_up_and_the_decay_is_constant(
    digits: tuple[Dataset, Splits],
) -> None:
    """Look-aheads happen in the warm-up only; they change only the learning rate."""
    search = task(digits)
    before, last, total = bits(search), int(WARM_UP * 300), 300
    advance(search, 0, last, total)
    during = bits(search)
    assert {n for n in search.hyper.variables.raw if during[n] != before[n]} == {"lr"}
    looks = search.hyper.finder.done
    assert looks == 3  # of ten steps each: a tenth of all steps
    advance(search, last, last + 60, total)
    after = bits(search)
    moved = {n for n in search.hyper.variables.raw if after[n] != during[n]}
    rates = {n for n in search.hyper.variables.raw if n.startswith("probability.")}
    assert set(search.hyper.variables.raw) - moved - rates == {"lr", "weight_decay"}
    assert moved & rates  # probabilities whose coins were turned
    assert search.hyper.finder.done == looks


@pytest.mark.parametrize(("total", "looks"), [(40, 0), (100, 1), (250, 2)])
def test_look_aheads_take_at_most_a_tenth_of_the_steps(
    digits: tuple[Dataset, Splits], total: int, looks: int
) -> None:
    search = task(digits)
    advance(search, 0, total // 8, total)
    assert search.hyper.finder.done == looks


@pytest.mark.filterwarnings("ignore:ConjugateGradient", "ignore:Neumann")
@pytest.mark.parametrize("name", CHOICES)
def test_every_estimator_learns_an_architecture(digits: tuple[Dataset, Splits], name: str) -> None:
    """An estimator without support gives an error; a NaN hypergradient is skipped.

    In an untrained supernet the loss has negative curvature; implicit estimators warn of it.
    """
    text = f"architecture={name},loss={name},optimizer=annealed"
    if "architecture" not in CHOICES[name].supports:
        with pytest.raises(UserError, match="use OneStep, Unrolled or Forward"):
            task(digits, estimator=text)
        return
    search = task(digits, estimator=text, batch_size=8)
    before, weights = bits(search), search.inner.params[0].clone()
    search.hyper.steps = 6  # the third of three steps learns the magnitudes
    first = int(WARM_UP * 40)
    advance(search, first, first + 3)
    after = bits(search)
    moved = {n for n in search.hyper.variables.raw if after[n] != before[n]}
    assert {n for n in search.hyper.variables.raw if n.startswith("alpha.")} <= moved
    often = {n for n, start in search.augment.starts.items() if start == OFTEN}
    assert {n.replace("probability", "magnitude") for n in often} <= moved
    assert any(n.startswith("probability.") for n in moved)  # probabilities whose coins were turned
    assert "weight_decay" not in moved
    assert not torch.equal(search.inner.params[0], weights)
    assert all(v.isfinite().all() for v in search.hyper.variables.raw.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    ["one_step", "unrolled", "one_step,optimizer=annealed", "one_step,optimizer=forward"],
)
def test_a_search_learns_and_its_genotype_has_the_learned_schedules(
    digits: tuple[Dataset, Splits], tmp_path: Path, estimator: str
) -> None:
    search = task(digits, estimator=estimator)
    advance(search, 0, 30, 30)
    values = search.report()
    assert values["skipped_hypergradients"] == 0
    same = values["learned/lr"] == pytest.approx(OPTIMIZERS["sgd"].start["lr"], rel=1e-3)
    assert same is ("annealed" in estimator)  # the search is too short for a look-ahead
    found = search.genotype()
    found.save(tmp_path / "g.json")
    assert Genotype.load(tmp_path / "g.json") == found
    assert found.parameters <= 3000
    assert found.recipe.schedules["magnitude.rotate"][0] == (0.0, pytest.approx(0.05))
    assert {*OPTIMIZERS["sgd"].start} < {*found.recipe.schedules}


@pytest.mark.slow
def test_training_reduces_the_loss(digits: tuple[Dataset, Splits]) -> None:
    search = task(digits, max_params=10**6)
    advance(search, 0, 10, 200)
    early = search.report()["loss/train"]
    advance(search, 10, 120, 200)
    search.report()
    advance(search, 120, 140, 200)
    assert search.report()["loss/train"] < 0.9 * early


def test_the_target_pulls_the_expected_parameters_down(digits: tuple[Dataset, Splits]) -> None:
    free, bound = task(digits, max_params=10**7), task(digits, max_params=1500)
    for search in (free, bound):
        advance(search, 0, 40)
    parameters = [s.costs.expected(s.weights(1.0))[0] for s in (free, bound)]
    assert parameters[1] < parameters[0]


def test_a_collapse_to_skip_gives_one_warning(
    digits: tuple[Dataset, Splits], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = task(digits)
    for name, raw in search.hyper.variables.raw.items():
        if name.endswith(".operation"):
            raw[:, 3] = 10.0
    search.fraction = 0.6
    with Recorder(tmp_path) as recorder:
        search.evaluate(0, recorder)
        search.evaluate(1, recorder)
    assert capsys.readouterr().err.count("skip holds 3 of 3 edges") == 1


def test_the_cosine_schedule_warms_up_and_falls_to_zero() -> None:
    values = [cosine(i / 200) for i in range(201)]
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[0] > 0
    assert values[-1] == pytest.approx(0, abs=1e-12)


def test_the_default_width_is_the_widest_that_fits_on_average() -> None:
    def average(channels: int) -> float:
        search_space = cells(channels)
        from darts_lite.architecture.cost import CostTable
        from darts_lite.nas.relaxation import logit_shapes, relax

        zeros = {n: torch.zeros(s) for n, s in logit_shapes(search_space).items()}
        table = CostTable(search_space, (1, 8, 8), 10)
        return float(table.expected(relax(search_space, zeros))[0])

    width = default_channels(cells, (1, 8, 8), 10, 100_000)
    assert average(width) <= 100_000 < average(width + 2)


def test_a_search_settles_on_the_network_that_it_returns(
    digits: tuple[Dataset, Splits], tmp_path: Path
) -> None:
    """The last steps train the selected path; logits stay, all other values go on learning."""
    search = task(digits)
    first = round(40 * SETTLING)
    advance(search, 0, first)
    assert search.trained()["block1"].path is None
    before, values = search.discrete(), search.hyper.values()
    logits = {n: v.clone() for n, v in search.hyper.raw.items() if n.startswith(ALPHA)}
    advance(search, first, 40)
    assert search.discrete() == before
    assert float(search.weights()["block1"].operation.max()) < 1  # the pictures show the mixture
    assert all(torch.equal(search.hyper.raw[n], v) for n, v in logits.items())
    assert any(not torch.equal(v, values[n]) for n, v in search.hyper.values().items())
    path = [option for cell in search.trained().values() for option in cell.path or ()]
    assert path == [edge.operations[0] for _, edge in before.edges]
    with Recorder(tmp_path) as recorder:
        found = search.evaluate(40, recorder, last=True)
    assert found["accuracy/mixed"] == pytest.approx(found["accuracy/one_hot"], abs=1e-6)
    smaller = network_cost(before, search.image, 10).parameters - 1
    narrow = task(digits, max_params=smaller)
    narrow.load_state_dict(search.state_dict())
    assert network_cost(narrow.discrete(), search.image, 10).parameters <= smaller


@pytest.mark.parametrize("seed", range(4))
def test_a_search_settles_on_its_selection_whatever_the_step_before(
    digits: tuple[Dataset, Splits], seed: int
) -> None:
    """A step may jump over the annealing, and which edges are kept depends on temperature."""
    search = task(digits, space="cells", max_params=4000)
    generator = torch.Generator().manual_seed(seed)
    for name, value in search.hyper.raw.items():
        if name.startswith(ALPHA):
            value.copy_(torch.randn(value.shape, generator=generator))
    search.step(0.5)
    search.step(0.95)
    expected = member_weights(search.space, search.discrete(), torch.zeros(()))
    assert {n: w.path for n, w in search.trained().items()} == {
        n: w.path for n, w in expected.items()
    }


def test_fill_widens_the_result_to_the_limit(digits: tuple[Dataset, Splits]) -> None:
    plain = task(digits, fill=False, max_params=20_000).genotype()
    wide = task(digits, fill=True, max_params=20_000).genotype()
    more = wide.space.with_channels(wide.space.channels + 1)
    assert plain.space.channels == 4 < wide.space.channels
    assert wide.space.with_channels(4) == plain.space
    assert wide.parameters <= 20_000 < network_cost(more, wide.image, 10).parameters


def test_nan_weights_stop_the_search_with_a_remedy(
    digits: tuple[Dataset, Splits], tmp_path: Path
) -> None:
    from darts_lite.training.budget import Budget

    search = task(digits)
    search.inner.params[0].fill_(float("nan"))
    store = loop.Store(tmp_path / "c.pt", "search", {})
    with (
        Recorder(tmp_path) as recorder,
        pytest.raises(UserError, match="a weight must be finite"),
    ):
        loop.run(search, Budget(steps=20), recorder, store)
    assert not (tmp_path / "c.pt").exists()
