"""Defaults of a search that depend on the data and the device."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from darts_lite.architecture.cost import default_channels
from darts_lite.architecture.presets import PRESETS
from darts_lite.data import Dataset
from darts_lite.data.images import is_own
from darts_lite.nas.options import SearchOptions, SpaceOptions
from darts_lite.training.run import is_small

Shaped = TypeVar("Shaped", bound=SpaceOptions)
STRIDED = 24  # pixels of the shorter side from which the first convolution has a stride on a CPU
MIXED_CHANNELS = 8  # largest default width of a mixture of all operations on a CPU


def resolved(options: SearchOptions, dataset: Dataset, device: torch.device) -> SearchOptions:
    """Return the options with a value for every option that the user did not give.

    Arguments:
        options: options of the search.
        dataset: data set of the search.
        device: device of the search.
    """
    options = shaped(options, dataset, device)
    hours = options.budget_hours
    if hours is None and options.steps is None:
        hours = 0.025 if is_small(dataset) else 1.0
    assert options.channels is not None
    return replace(
        options,
        dataset=dataset.name,
        budget_hours=hours,
        search_channels=options.search_channels
        or search_width(options.method, options.channels, device),
    )


def shaped(options: Shaped, dataset: Dataset, device: torch.device) -> Shaped:
    """Return the options with parameter limit, width, stride of the stem and image size.

    A strided stem takes a quarter of the time per image. On Fashion-MNIST and a CPU, the many more
    epochs of the same time are worth more than the resolution (docs/results.md).

    Arguments:
        options: options of the space.
        dataset: data set of the search.
        device: device of the search.
    """
    limit = options.max_params or (60_000 if is_small(dataset) else 150_000)
    large = min(dataset.image_size) >= STRIDED
    stride = options.stem_stride or (2 if large and device.type == "cpu" else 1)
    channels, preset = options.channels, PRESETS[options.space]
    if channels is None:
        image, classes = dataset.image, len(dataset.classes)
        channels = default_channels(
            lambda c: preset(c, options.cells, stride), image, classes, limit
        )
    size = dataset.image_size[0] if is_own(dataset.name) else options.image_size
    return replace(
        options, max_params=limit, channels=channels, stem_stride=stride, image_size=size
    )


def search_width(method: str, channels: int, device: torch.device) -> int:
    """Return the width of the supernet: that of its result, if a step is affordable.

    Arguments:
        method: name of the method; the step of a mixture is slow on a CPU.
        channels: channels of the first stage of the derived network.
        device: device of the search.
    """
    slow = method == "darts" and device.type == "cpu"
    return min(channels, MIXED_CHANNELS) if slow else channels
