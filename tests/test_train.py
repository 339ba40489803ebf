"""Training a genotype: schedules, selection, exact resuming, and that it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from darts_lite.data import Dataset, Splits
from darts_lite.derive import uniform_random
from darts_lite.errors import UserError
from darts_lite.evaluation import evaluate
from darts_lite.joint import cosine
from darts_lite.network import network_cost
from darts_lite.record import Recorder
from darts_lite.space import Genotype, blocks
from darts_lite.train import DEFAULTS, TrainConfig, TrainTask, interpolate

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
        hyperparameters={
            "lr": ((0.0, 0.02), (1.0, 0.06)),
            "weight_decay": ((0.0, 1e-4),),
            "magnitude.rotate": ((0.0, 0.0), (1.0, 0.4)),
        },
    )


def test_interpolation() -> None:
    schedule = ((0.2, 1.0), (0.4, 3.0), (0.4, 5.0), (0.8, 5.0))
    values = [interpolate(schedule, f) for f in (0.0, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert values == pytest.approx([1.0, 1.0, 2.0, 5.0, 5.0, 5.0])


def test_it_uses_the_learned_schedules_or_the_defaults(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    task = TrainTask(TrainConfig(), genotype, *digits, CPU)
    task.step(0.5)
    values = task.report()
    assert values["used/lr"] == pytest.approx(0.04)
    assert values["used/magnitude.rotate"] == pytest.approx(0.2)
    assert values["lr"] == pytest.approx(0.04 * cosine(0.5))
    task = TrainTask(TrainConfig(hyperparameters="default"), genotype, *digits, CPU)
    assert task.values(0.5) == {name: s[0][1] for name, s in DEFAULTS.items()}


def test_a_schedule_nobody_knows_is_refused(
    digits: tuple[Dataset, Splits], genotype: Genotype
) -> None:
    odd = replace(genotype, hyperparameters={"lr": ((0.0, 0.1),), "magic": ((0.0, 1.0),)})
    with pytest.raises(UserError, match=r"weight_decay.*magic"):
        TrainTask(TrainConfig(), odd, *digits, CPU)


def test_it_learns_digits(
    digits: tuple[Dataset, Splits], genotype: Genotype, tmp_path: Path
) -> None:
    task = TrainTask(TrainConfig(batch_size=32), genotype, *digits, CPU)
    assert task.images.count == 600
    for i in range(250):
        task.step(i / 250)
    with Recorder(tmp_path) as recorder:
        network = task.finish(250, recorder)
    result = evaluate(network, digits[1].test)
    assert result.accuracy > 0.85
    assert result.confusion.sum() == digits[1].test.count
    assert result.confusion.trace() / result.confusion.sum() == pytest.approx(result.accuracy)


def test_the_best_weights_on_validation_are_kept_and_survive_resuming(
    digits: tuple[Dataset, Splits], genotype: Genotype, tmp_path: Path
) -> None:
    config = TrainConfig(batch_size=32, select="best")
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
