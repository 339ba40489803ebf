"""Depthwise convolution with a fast gradient of large kernels on the CPU.

oneDNN has a fast kernel for the weight gradient of a depthwise convolution of up to three columns;
of five columns it is some 20 times slower. The gradient of five columns is here that of two blocks
of three columns. See experiments/benchmark_depthwise.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

COLUMNS = 3  # of the widest fast kernel


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the depthwise convolution of features, padded to keep their size at stride 1.

    Every derivative, of any order and mode, is that of `F.conv2d` to rounding.

    Arguments:
        x: Features [B, C, H, W].
        weight: Kernels [C, 1, k, k], k odd.
        stride: 1 or 2.

    >>> x, weight = torch.rand(2, 4, 6, 6), torch.rand(4, 1, 5, 5)
    >>> torch.allclose(depthwise_conv(x, weight, 1), F.conv2d(x, weight, padding=2, groups=4))
    True
    """
    kernel, width = weight.shape[3], x.shape[3]
    slow = x.device.type == "cpu" and kernel > COLUMNS and width >= kernel // 2
    if slow and torch.is_grad_enabled():
        return _Depthwise.apply(x, weight, stride)
    return _conv(x, weight, stride)


def _conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return _conv(x, weight, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _input_gradient(x, weight, gradient, ctx.stride)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, weight.shape[2], gradient, ctx.stride)
        return of_x, of_weight, None

    @staticmethod
    def jvp(ctx: Any, x_moved: Tensor | None, weight_moved: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = []
        if x_moved is not None:
            parts.append(_conv(x_moved, weight, ctx.stride))
        if weight_moved is not None:
            parts.append(_conv(x, weight_moved, ctx.stride))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    padding, groups = weight.shape[2] // 2, len(weight)
    mask = [True, False, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, mask
    )[0]


def _weight_gradient(x: Tensor, kernel: int, gradient: Tensor, stride: int) -> Tensor:
    """Return the gradient [C, 1, k, k], in blocks of three columns.

    A block that begins at column a reads the features from a - k // 2 on: padded, or cropped, to
    the columns that it reads. Rows are padded to at least k, below which oneDNN is slow too.
    """
    channels, middle = x.shape[1], kernel // 2
    height, width = x.shape[2:]
    rows = max(0, -(-(kernel - height) // 2))
    read = (gradient.shape[3] - 1) * stride + COLUMNS
    blocks: list[Tensor] = []
    for first in [*range(0, kernel - COLUMNS, COLUMNS), kernel - COLUMNS]:
        left = middle - first
        padded = F.pad(x, (left, read - width - left, rows, rows))
        block = conv2d_weight(
            padded,
            (channels, 1, kernel, COLUMNS),
            gradient,
            stride,
            (middle - rows, 0),
            groups=channels,
        )
        new = first - sum(b.shape[3] for b in blocks)  # negative: columns that the last block has
        blocks.append(block[..., -new:])
    return torch.cat(blocks, 3)
