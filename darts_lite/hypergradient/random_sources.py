"""State of everything that a loss may draw from, to read, restore and advance.

These are torch (on the CPU and on every CUDA device in use), numpy and Python, and the generators
that the caller names.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy
import torch

Generator = torch.Generator | numpy.random.Generator | random.Random


@dataclass(frozen=True)
class RandomSources:
    """The global random states, and generators.

    Arguments:
        generators: generators of torch, numpy or Python.

    >>> g = torch.Generator()
    >>> sources = RandomSources((g,))
    >>> begin, first = sources.state(), torch.rand(1, generator=g)
    >>> sources.restore(begin)
    >>> torch.equal(torch.rand(1, generator=g), first)
    True
    """

    generators: tuple[Generator, ...] = ()

    def state(self) -> tuple[Any, ...]:
        """Return the states; the same sources can `restore` them."""
        used = torch.cuda.is_available() and torch.cuda.is_initialized()
        return (
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if used else [],
            numpy.random.get_state(),
            random.getstate(),
            [_state(g) for g in self.generators],
        )

    def restore(self, state: tuple[Any, ...]) -> None:
        """Set the states that `state` returned."""
        cpu, cuda, of_numpy, of_python, own = state
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        numpy.random.set_state(of_numpy)
        random.setstate(of_python)
        for generator, each in zip(self.generators, own):
            _restore(generator, each)


def _state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _restore(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
