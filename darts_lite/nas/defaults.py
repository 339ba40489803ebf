"""Defaults of a search that depend on the data and the device."""

from __future__ import annotations

from dataclasses import replace

import torch

from darts_lite.architecture.cost import default_channels
from darts_lite.architecture.presets import PRESETS
from darts_lite.data import Dataset
from darts_lite.nas.options import SearchOptions, SpaceOptions
from darts_lite.training.run import is_small


def resolved(options: SearchOptions, dataset: Dataset, device: torch.device) -> SearchOptions:
    """Return the options with a value for every option that the user did not give.

    Arguments:
        options: options of the search.
        dataset: data set of the search.
        device: device of the search.
    """
    limit, channels = size(options, dataset)
    hours = options.budget_hours
    if hours is None and options.steps is None:
        hours = 0.025 if is_small(dataset) else 1.0
    return replace(
        options,
        dataset=dataset.name,
        budget_hours=hours,
        max_params=limit,
        channels=channels,
        search_channels=options.search_channels or search_width(channels, device),
    )


def size(options: SpaceOptions, dataset: Dataset) -> tuple[int, int]:
    """Return the parameter limit and the width; choose each by the data if it is not given.

    Arguments:
        options: options of the space.
        dataset: data set of the search.
    Returns: number of parameters, and channels of the first stage.
    """
    limit = options.max_params or (60_000 if is_small(dataset) else 150_000)
    if options.channels:
        return limit, options.channels
    image, classes = dataset.image, len(dataset.classes)
    preset = PRESETS[options.space]
    return limit, default_channels(lambda c: preset(c, options.cells), image, classes, limit)


def search_width(channels: int, device: torch.device) -> int:
    """Return the width of the supernet: at most 8 channels on a CPU, where a wide one is slow.

    Arguments:
        channels: channels of the first stage of the derived network.
        device: device of the search.
    """
    return min(channels, 8) if device.type == "cpu" else channels
