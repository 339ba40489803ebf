"""Measured training time of every option of a space, on the device where it will be trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from darts_lite.architecture.network import stages_of
from darts_lite.architecture.operations import CANDIDATES, has_residual
from darts_lite.architecture.space import Operation, SearchSpace

BATCH = 32  # images of a measurement
REPEATS = 4  # passes, after one to warm up; the fastest counts, because other jobs only slow down

Shape = tuple[int, int, int, tuple[int, int]]  # input and output channels, stride, input size
Seconds = dict[str, Tensor]  # cell name -> seconds per image [E, options], summed over positions


def training_seconds(space: SearchSpace, size: tuple[int, int], device: torch.device) -> Seconds:
    """Return the seconds per image of forward and backward pass of every option of every edge.

    The options of a shape are measured one after the other, which takes a few seconds in all.

    Arguments:
        space: the search space.
        size: height and width of an input image.
        device: device of the training.
    """
    known: dict[tuple[Operation, Shape], float] = {}
    found: Seconds = {}
    for stage in stages_of(space, size)[0]:
        rows = []
        for edge in stage.cell.edges:
            channels, stride, pixels = stage.shape(edge.source)
            shape = (channels, stage.channels, stride, pixels)
            for option in edge.options:
                if (option, shape) not in known:
                    known[option, shape] = _measured(option, shape, device)
            rows.append([known[option, shape] for option in edge.options])
        table = torch.tensor(rows, dtype=torch.float64)
        name = stage.cell.name
        found[name] = table if name not in found else found[name] + table
    return found


def _measured(option: Operation, shape: Shape, device: torch.device) -> float:
    channels, out, stride, (height, width) = shape
    if option.name == "skip" and has_residual(channels, out, stride):
        return 0.0
    module = CANDIDATES[option.name].build(option, channels, out, stride).to(device)
    images = torch.rand(BATCH, channels, height, width, device=device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    step = partial(_pass, partial(module, scale=None, choices=None), images)
    step()
    return min(_timed(step, device) for _ in range(REPEATS)) / BATCH


def _pass(function: Callable[[Tensor], Tensor], images: Tensor) -> None:
    function(images).sum().backward()


def _timed(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
