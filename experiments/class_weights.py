"""Weights of classes in the loss, learned in one training, against a grid; rare classes.

Digits: 100 images of the most frequent class down to 3 of the rarest (the order of the classes is
random per seed), 200 held out of all classes, 597 for the test. One hidden layer of 128 units, 300
steps of Adam over all training images. The grid sets the weight of a class to (number of its
images)^-power. The learned weights start at 1 and know no numbers of images. The grid is judged by
the test digits, which favors the grid.

    python experiments/class_weights.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import click
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from darts_lite.hypergradient import Estimator, HyperSpec, Learner, Log, OneStep, Unrolled

CLASSES, TRAIN, HELD_OUT, STEPS = 10, 1000, 200, 300
COUNTS = tuple(round(100 * 0.03 ** (rank / (CLASSES - 1))) for rank in range(CLASSES))
POWERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ESTIMATORS: dict[str, Estimator] = {
    "OneStep": OneStep("one_sided", radius=1e-3),
    "Unrolled(10)": Unrolled(10, product="one_sided", radius=1e-3),
}
Batch = tuple[Tensor, Tensor]


def data(seed: int) -> tuple[Batch, Batch, Batch]:
    """Return training digits with rare classes, held-out digits, and test digits."""
    inputs, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    inputs, labels = inputs[order].float() / 16, labels[order]
    rank = torch.randperm(CLASSES, generator=generator).tolist()
    kept = torch.cat(
        [torch.where(labels[:TRAIN] == c)[0][: COUNTS[rank[c]]] for c in range(CLASSES)]
    )
    end = TRAIN + HELD_OUT
    return (
        (inputs[kept], labels[kept]),
        (inputs[TRAIN:end], labels[TRAIN:end]),
        (inputs[end:], labels[end:]),
    )


def weighted(model: nn.Module, batch: Batch, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the cross entropy, with a weight per class; only ratios of weights count."""
    weight = learned["weight"] / learned["weight"].mean()
    return (weight[batch[1]] * cross_entropy(model(batch[0]), batch[1], reduction="none")).mean()


def plain(model: nn.Module, batch: Batch, learned: object = None) -> Tensor:
    """Return the cross entropy."""
    return cross_entropy(model(batch[0]), batch[1])


def network(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the network and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, CLASSES))
    return model, torch.optim.Adam(model.parameters(), lr=3e-3)


def fixed(seed: int, power: float = 0.0, add: bool = False) -> tuple[float, float]:
    """Train with fixed weights; return test accuracy and test cross entropy.

    Arguments:
        seed: seed of the data and of the network.
        power: power of the number of images of a class in its weight.
        add: whether the held-out digits are training digits too.
    """
    train, held_out, test = data(seed)
    if add:
        train = torch.cat([train[0], held_out[0]]), torch.cat([train[1], held_out[1]])
    weight = train[1].bincount(minlength=CLASSES).float() ** -power
    model, optimizer = network(seed)
    for _ in range(STEPS):
        optimizer.zero_grad()
        weighted(model, train, {"weight": weight}).backward()
        optimizer.step()
    return quality(model, test)


def learned(seed: int, estimator: Estimator) -> tuple[float, float]:
    """Train and learn the weights; return test accuracy and test cross entropy."""
    train, held_out, test = data(seed)
    model, optimizer = network(seed)
    spec = HyperSpec("weight", torch.ones(CLASSES), Log(), "loss", travel=10.0)
    learner = Learner(model, optimizer, weighted, [spec], STEPS, estimator, plain)
    each = estimator.steps
    for _ in range(STEPS // each):
        learner.step([train] * each if each > 1 else train, held_out)
    return quality(model, test)


@torch.no_grad()
def quality(model: nn.Module, test: Batch) -> tuple[float, float]:
    """Return accuracy and cross entropy of the test digits."""
    scores = model(test[0])
    right = (scores.argmax(1) == test[1]).double().mean()
    return float(right), float(cross_entropy(scores, test[1]))


@click.command()
@click.option("--seeds", default=5, show_default=True)
def main(seeds: int) -> None:
    """Print the table; see the docstring of the module."""
    methods: dict[str, Callable[[int], tuple[float, float]]] = {
        f"power {p:g}": lambda seed, p=p: fixed(seed, p) for p in POWERS
    }
    methods["equal weights, held-out digits added"] = lambda seed: fixed(seed, add=True)
    for name, estimator in ESTIMATORS.items():
        methods[f"learned, {name}"] = lambda seed, e=estimator: learned(seed, e)
    click.echo(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {seeds} seeds\n")
    click.echo("| weights | test accuracy | test cross entropy | seconds |\n|---|---|---|---|")
    for name, method in methods.items():
        start = time.perf_counter()
        accuracy, entropy = zip(*(method(seed) for seed in range(seeds)))
        seconds = (time.perf_counter() - start) / seeds
        click.echo(
            f"| {name} | {100 * statistics.mean(accuracy):.1f} ± "
            f"{100 * statistics.stdev(accuracy):.1f} % | {statistics.mean(entropy):.3f} ± "
            f"{statistics.stdev(entropy):.3f} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
