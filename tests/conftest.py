"""Fixtures of several test files."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from darts_lite.data import Dataset, Splits, load, split

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
