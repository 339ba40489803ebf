"""Final training: schedules, selection of weights, exact resuming, accuracy, online learning."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.augment import RandAugment
from darts_lite.augment.operations.record import OFTEN
from darts_lite.data import Dataset, Splits
from darts_lite.errors import UserError
from darts_lite.nas.random_networks import uniform_random
from darts_lite.reporting.recorder import Recorder
from darts_lite.schedules import cosine, interpolate
from darts_lite.training.hyper_learner import HyperLearner
from darts_lite.training.metrics import evaluate
from darts_lite.training.options import ESTIMATOR, DeriveOptions
from darts_lite.training.replay import DEFAULTS, ONLINE_EVERY
from darts_lite.training.task import TrainTask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def genotype(digits: tuple[Dataset, Splits]) -> Genotype:
    space = uniform_random(blocks(6, 3), torch.Generator().manual_seed(1))
    cost = network_cost(space, (1, 8, 8), 10)
    return Genotype(
        space=space,
        image=(1, 8, 8),
        classes=digits[0].classes,
        parameters=cost.parameters,
        macs=cost.macs,
        recipe=Recipe(
            schedules={
                "lr": ((0.0, 0.02), (1.0, 0.06)),
                "weight_decay": ((0.0, 1e-4),),
                "magnitude.rotate": ((0.0, 0.0), (1.0, 0.4)),
            }
        ),
    )


def test_interpolation_of_a_schedule() -> None:
    schedule = ((0.2, 1.0), (0.4, 3.0), (0.4, 5.0), (0.8, 5.0))
    values = [interpolate(schedule, f) for f in (0.0, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert values == pytest.approx([1.0, 1.0, 2.0, 5.0, 5.0, 5.0])


def test_training_uses_the_learned_schedules_or_the_defaults(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    task = TrainTask(DeriveOptions(), genotype, *digits, CPU)
    task.step(0.5)
    values = task.report()
    assert values["used/lr"] == pytest.approx(0.04)
    assert values["used/magnitude.rotate"] == pytest.approx(0.2)
    assert values["lr"] == pytest.approx(0.04 * cosine(0.5))
    task = TrainTask(DeriveOptions(hyperparameters="default"), genotype, *digits, CPU)
    assert task.hyper.at(0.5) == {name: s[0][1] for name, s in DEFAULTS.items()}


def test_an_unknown_schedule_is_refused(digits: tuple[Dataset, Splits], genotype: Genotype) -> None:
    odd = replace(genotype, recipe=Recipe(schedules={"lr": ((0.0, 0.1),), "magic": ((0.0, 1.0),)}))
    with pytest.raises(UserError, match=r"weight_decay.*magic"):
        TrainTask(DeriveOptions(), odd, *digits, CPU)


def test_the_learned_augmentation_needs_learned_values(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    """Without learned values all magnitudes would be one."""
    bare = replace(genotype, recipe=Recipe(schedules=dict(DEFAULTS)))
    for hyperparameters, found in (("default", genotype), ("learned", bare)):
        config = DeriveOptions(hyperparameters=hyperparameters, augment="learned")  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"must have learned values .* online"):
            TrainTask(config, found, *digits, CPU)
    task = TrainTask(
        DeriveOptions(hyperparameters="default", augment="randaugment"), bare, *digits, CPU
    )
    assert task.plain.augment.policy == RandAugment(channels=1, flips=False, crop=1)


def test_a_trained_network_classifies_digits(
    digits: tuple[Dataset, Splits], genotype: Genotype, tmp_path: Path
) -> None:
    task = TrainTask(DeriveOptions(batch_size=32), genotype, *digits, CPU)
    assert task.images.count == 600
    for i in range(400):
        task.step(i / 400)
    with Recorder(tmp_path) as recorder:
        network = task.finish(400, recorder)
    result = evaluate(network, digits[1].test)
    assert result.accuracy > 0.85
    assert result.confusion.sum() == digits[1].test.count
    assert result.confusion.trace() / result.confusion.sum() == pytest.approx(result.accuracy)


def test_select_best_keeps_the_best_weights_also_after_resuming(
    digits: tuple[Dataset, Splits], genotype: Genotype, tmp_path: Path
) -> None:
    config = DeriveOptions(batch_size=32, select="best")
    task = TrainTask(config, genotype, *digits, CPU)
    assert task.images.count == 300
    with Recorder(tmp_path) as recorder:
        for i in range(60):
            task.step(i / 60)
        good = task.evaluate(60, recorder)["accuracy/validation"]
        state = task.state_dict()
        task = TrainTask(config, genotype, *digits, CPU)
        task.load_state_dict(state)
        task.inner = task.inner._replace(params=tuple(p * 0 for p in task.inner.params))
        network = task.finish(61, recorder)
    assert evaluate(network, digits[1].validation).accuracy == pytest.approx(good, abs=0.03)


# --- Online learning ---------------------------------------------------------------------------


def online(
    digits: tuple[Dataset, Splits], genotype: Genotype, estimator: str = ESTIMATOR
) -> TrainTask:
    config = DeriveOptions(batch_size=16, hyperparameters="online", estimator=estimator)
    return TrainTask(config, genotype, *digits, CPU)


def raw(task: TrainTask) -> dict[str, Tensor]:
    assert isinstance(task.hyper, HyperLearner)
    return dict(task.hyper.variables.raw)


def test_online_trains_the_weights_on_training_images_only(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    """Validation images change only the hypergradients, not the steps of the weights."""
    dataset, splits = digits
    blank = splits.validation._replace(pixels=torch.zeros_like(splits.validation.pixels))
    ends = []
    for validation in (splits.validation, blank):
        task = online((dataset, splits._replace(validation=validation)), genotype, "one_step")
        assert task.images.count == splits.train.count
        assert torch.equal(task.images.pixels, splits.train.pixels)
        before = raw(task)
        for i in range(ONLINE_EVERY):
            task.step(i / 40)
        ends.append((task.inner.params[0], raw(task)))
        moved = {n for n, v in before.items() if not torch.equal(ends[-1][1][n], v)}
        often = {n for n, start in task.plain.augment.starts.items() if start == OFTEN}
        magnitudes = {n.replace("probability", "magnitude") for n in often}
        assert {"lr", "weight_decay"} | magnitudes <= moved
        assert any(
            n.startswith("probability.") for n in moved
        )  # probabilities whose coins were turned
    assert torch.equal(ends[0][0], ends[1][0])
    assert any(not torch.equal(ends[0][1][n], v) for n, v in ends[1][1].items())


def test_online_starts_from_the_values_of_the_genotype_and_learns(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    """One-step learns the magnitudes; decay, and lr in so short a training, are constant."""
    task = online(digits, genotype)
    start = task.hyper.at(0.0)
    assert start["lr"] == pytest.approx(0.06) and start["magnitude.rotate"] == pytest.approx(0.4)
    for i in range(40):
        task.step(i / 40)
    assert task.inner.optimizer.step == 40
    end = task.hyper.at(1.0)
    moved = {n for n in start if end[n] != pytest.approx(start[n], rel=1e-3)}
    assert moved == {n for n in start if n.startswith(("magnitude.", "probability."))}
    learned = task.hyper.schedules()
    assert learned.keys() == start.keys()
    for name, schedule in learned.items():
        assert schedule[0] == (0.0, pytest.approx(start[name], rel=1e-5))
        assert schedule[-1] == (1.0, pytest.approx(end[name], rel=1e-5))
        assert [f for f, _ in schedule] == sorted({f for f, _ in schedule})
    assert task.report()["lr"] == pytest.approx(end["lr"] * cosine(39 / 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "stops"),
    [
        (ESTIMATOR, (2,)),
        ("unrolled", (3, 5, 7)),  # a window starts at step 3
        ("one_step,optimizer=forward", (2,)),
    ],
)
def test_a_resumed_online_training_is_bit_identical(
    digits: tuple[Dataset, Splits],
    genotype: Genotype,
    tmp_path: Path,
    estimator: str,
    stops: tuple[int, ...],
) -> None:
    """The run stops in a window, between steps with tangents, and while the lr is found."""
    whole = online(digits, genotype, estimator)
    for i in range(10):
        whole.step(i / 40)
        if i + 1 in stops:
            torch.save(whole.state_dict(), tmp_path / f"{i + 1}.pt")
    for stop in stops:
        again = online(digits, genotype, estimator)
        again.load_state_dict(torch.load(tmp_path / f"{stop}.pt", weights_only=True))
        for i in range(stop, 10):
            again.step(i / 40)
        for one, two in zip(again.inner.params, whole.inner.params):
            assert torch.equal(one, two)
        assert all(torch.equal(v, raw(whole)[n]) for n, v in raw(again).items())
        assert again.inner.carried.keys() == whole.inner.carried.keys()
        assert again.hyper.schedules() == whole.hyper.schedules()
        assert again.inner.optimizer.step == whole.inner.optimizer.step


def test_a_window_counts_as_its_number_of_steps(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    """A call of `step` returns the steps of the weights; the last window may exceed the budget."""
    task = online(digits, genotype, "unrolled")
    taken = [task.step(i / 40) for i in range(8)]
    assert taken == [1, 1, 1, 25] * 2
    assert task.inner.optimizer.step == sum(taken)


def test_an_unknown_estimator_is_refused(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    with pytest.raises(UserError, match="must be an estimator"):
        online(digits, genotype, "guess")
