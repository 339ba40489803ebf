"""Time from images to probabilities, and the processor that took it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_lite.data.images import floats

BATCHES = (1, 32)  # images per call
CALLS, SECONDS = 200, 0.25  # most calls, and the time after which calls end, per batch size
LEAST, WARM_UP = 5, 3  # fewest timed calls, and calls before them


def latency_of(call: Callable[[Tensor], object], image: tuple[int, int, int]) -> dict[str, Any]:
    """Return the latency of a function of images, for JSON.

    Arguments:
        call: takes images uint8 `[B, C, H, W]`; returns when its result is in memory.
        image: channels, height and width.
    """
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "batches": [_timed(call, torch.zeros(n, *image, dtype=torch.uint8)) for n in BATCHES],
    }


def of_network(network: Callable[[Tensor], Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Return the function from images uint8 `[B, C, H, W]` to probabilities on the CPU."""

    @torch.no_grad()
    def call(pixels: Tensor) -> Tensor:
        return network(floats(pixels.to(device))).softmax(1).cpu()

    return call


def _timed(call: Callable[[Tensor], object], images: Tensor) -> dict[str, float]:
    times: list[float] = []
    for _ in range(WARM_UP):
        call(images)
    began = now = time.perf_counter()
    while len(times) < LEAST or (len(times) < CALLS and now - began < SECONDS):
        call(images)
        before, now = now, time.perf_counter()
        times.append(1000 * (now - before))
    median, late = torch.tensor(times).quantile(torch.tensor([0.5, 0.95])).tolist()
    return {"batch": len(images), "median_ms": round(median, 4), "p95_ms": round(late, 4)}


def processor() -> str:
    """Return the name of the processor, as well as it is known."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
