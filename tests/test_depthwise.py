"""Depthwise convolution: every derivative is that of torch's, for all shapes and modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.architecture.depthwise import depthwise_conv

every_shape = pytest.mark.parametrize("stride", [1, 2])
sizes = pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (3, 2), (4, 4), (5, 7), (8, 6), (9, 14)], ids=str
)
kernels = pytest.mark.parametrize("kernel", [3, 5, 7, 9])


def reference(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))


def drawn(kernel: int, size: tuple[int, int], channels: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(kernel)
    x = torch.randn(2, channels, *size, generator=g, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, kernel, kernel, generator=g, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_()


@every_shape
@sizes
@kernels
def test_first_and_second_derivatives(kernel: int, size: tuple[int, int], stride: int) -> None:
    x, weight = drawn(kernel, size)
    found = []
    for function in (depthwise_conv, reference):
        out = function(x, weight, stride)
        first = torch.autograd.grad(out.sin().sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), (x, weight))
        found.append((out, *first, *second))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_wanted_gradient(wanted: tuple[bool, bool]) -> None:
    x, weight = drawn(5, (6, 6))
    x.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    inputs = [t for t in (x, weight) if t.requires_grad]
    pair = [torch.autograd.grad(f(x, weight, 1).sin().sum(), inputs)
            for f in (depthwise_conv, reference)]  # fmt: skip
    torch.testing.assert_close(*pair)


def _total(function: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Tensor:
    return function(x, weight, 2).sin().sum()


def test_forward_over_reverse() -> None:
    x, weight = drawn(5, (6, 5))
    moved = torch.randn_like(x), torch.randn_like(weight)
    pair = []
    for function in (depthwise_conv, reference):
        total = partial(_total, function)
        gradient = torch.func.grad(total, (0, 1))
        pair.append(torch.func.jvp(gradient, (x, weight), moved))
    torch.testing.assert_close(*pair)


def test_forward_mode_of_one_input() -> None:
    x, weight = (t.detach() for t in drawn(5, (6, 5)))
    move = torch.randn_like(weight)
    pair = [torch.func.jvp(partial(f, x, stride=1), (weight,), (move,))
            for f in (depthwise_conv, reference)]  # fmt: skip
    torch.testing.assert_close(*pair)


@torch.no_grad()
def test_without_gradients_it_is_torch_itself() -> None:
    x, weight = drawn(5, (6, 6))
    assert torch.equal(depthwise_conv(x, weight, 1), reference(x, weight, 1))


def test_the_gradient_keeps_the_memory_format() -> None:
    x, weight = drawn(5, (6, 6), channels=8)
    (of_x,) = torch.autograd.grad(depthwise_conv(x, weight, 1).sum(), x)
    assert of_x.is_contiguous(memory_format=torch.channels_last)
