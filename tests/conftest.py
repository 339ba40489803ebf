"""Fixtures of several test files."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import darts_lite as dl
from darts_lite.data import Dataset, Splits, load, split


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shift-seeds", type=int, default=0, help="Is added to every seed.")


def pytest_configure(config: pytest.Config) -> None:
    """With other seeds the tests see other numbers, as with another version of torch."""
    shift: int = config.getoption("--shift-seeds")
    if not shift:
        return
    seed_all = torch.manual_seed

    class Shifted(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            super().manual_seed(seed + shift)
            return self

    torch.Generator = Shifted  # type: ignore[misc]
    torch.manual_seed = lambda seed: seed_all(seed + shift)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Other processes have the usual seeds: what compares with one is left out."""
    if config.getoption("--shift-seeds"):
        mark = "against_another_process"
        chosen = [item for item in items if item.get_closest_marker(mark)]
        config.hook.pytest_deselected(items=chosen)
        items[:] = [item for item in items if item not in chosen]


if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """What a shell runs in the background ignores Ctrl-C, which some tests send."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def digits() -> Iterator[tuple[Dataset, Splits]]:
    """600 digits for training and validation; on one thread, which is faster for small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dataset = load("digits", Path("data"))
    yield dataset, split(dataset, subset=600)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a derive run on `data/train` and `data/test` beside it, PNG files."""
    top = tmp_path_factory.mktemp("trained")
    train, _, test = split(load("digits", Path("data")))
    for name, images in (("train", train), ("test", test)):
        for i, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist())):
            path = top / "data" / name / f"digit {label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(path)
    dl.search(dataset=f"folder:{top / 'data'}", image_size=8, space="blocks", cells=3, channels=4,
              max_params=4000, batch_size=32, steps=4, out=str(top), data_dir=str(top),
              say=str)  # fmt: skip
    dl.derive(genotype=str(top / "g.json"), epochs=4, say=str)
    return top / "derive"
