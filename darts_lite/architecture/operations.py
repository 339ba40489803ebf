"""The operations of an edge; one class serves the entangled and the concrete form.

An operation with several sizes per choice holds the weights of the largest size. It mixes the
sizes by weight entanglement (TangleNAS, Sukthanker et al. 2023; single-path NAS, Stamoulis et al.
2019): a small kernel is the center of the large kernel, a small width its first channels, and

    sum_k p_k conv(x, W * M_k) = conv(x, W * sum_k p_k M_k)        (exact, convolution is linear)

A forward pass therefore costs one pass per operation, for any number of sizes. With one size per
choice, the operation is concrete and has no masks.

Each operation reads an *activated* input [B, C_in, H, W] and returns a branch
[B, C_out, H/stride, W/stride]. It ends in a BatchNorm whose affine map absorbs the mixing weight:
p * BN(h) costs nothing and saves no activation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darts_lite.architecture.space import Operation

ChoiceWeights = Mapping[str, Tensor]  # choice -> probabilities [n], summing to one


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses batch statistics in training and never updates buffers there.

    A training step is therefore a pure function of the parameters. Evaluation uses the running
    statistics that `darts_lite.architecture.network.calibrate` sets.
    """

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.0)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return `scale * BN(x)`.

        Arguments:
            x: Features [B, C, H, W].
            scale: Scalar; None means 1.
        """
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if scale is not None:
            weight, bias = weight * scale, bias * scale
        if self.training and not self.momentum:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            weight,
            bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class _Entangled(nn.Module):
    """Base class of operations: holds the masks of every choice with more than one size."""

    def __init__(self, operation: Operation, widths: Mapping[str, list[int]]):
        super().__init__()
        self.operation = operation
        for choice, sizes in operation.choices.items():
            if len(sizes) > 1:
                masks = _kernel_masks(sizes) if choice == "kernel" else _width_masks(widths[choice])
                self.register_buffer(f"{choice}_masks", masks, persistent=False)

    def mask(self, choice: str, choices: ChoiceWeights | None) -> Tensor | None:
        """Return the mixed mask sum_i p_i M_i; None if the choice has a single size."""
        if len(self.operation.choices[choice]) == 1:
            return None
        assert choices is not None, f"{self.operation.label} needs weights for {choice}"
        return torch.tensordot(choices[choice], getattr(self, f"{choice}_masks"), 1)


def _kernel_masks(sizes: tuple[int, ...]) -> Tensor:
    """Return masks [n, k, k]: ones on the central square of each size."""
    largest = sizes[-1]
    offset = torch.arange(largest).sub(largest // 2).abs()
    distance = torch.maximum(offset[:, None], offset[None, :])
    return torch.stack([(distance <= size // 2).float() for size in sizes])


def _width_masks(widths: list[int]) -> Tensor:
    """Return masks [n, max(widths)]: ones on the first channels of each width."""
    return torch.stack([(torch.arange(max(widths)) < width).float() for width in widths])


def _conv(layer: nn.Conv2d, x: Tensor, *, kernel: Tensor | None, inputs: Tensor | None) -> Tensor:
    """Apply the layer with its weight masked by `kernel` [k, k] and input channels `inputs` [C]."""
    weight = layer.weight
    if kernel is not None and inputs is not None:
        weight = weight * (inputs[:, None, None] * kernel)
    elif kernel is not None:
        weight = weight * kernel
    elif inputs is not None:
        weight = weight * inputs[:, None, None]
    return F.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups)


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Conv(_Entangled):
    """k x k convolution with BatchNorm."""

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        super().__init__(operation, {})
        kernel = operation.choices["kernel"][-1]
        self.conv = _layer(in_channels, out_channels, kernel, stride)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        h = _conv(self.conv, x, kernel=self.mask("kernel", choices), inputs=None)
        return self.norm(h, scale)


class Bottleneck(_Entangled):
    """1x1 to C_out/ratio, k x k, 1x1 to C_out (He et al. 2016), each with BatchNorm.

    The middle convolution is dense, so the mask of the ratio acts on both sides of it.
    """

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        widths = [max(1, out_channels // ratio) for ratio in operation.choices["ratio"]]
        super().__init__(operation, {"ratio": widths})
        middle, kernel = max(widths), operation.choices["kernel"][-1]
        self.reduce = _layer(in_channels, middle, 1)
        self.norm1 = BatchNorm(middle)
        self.conv = _layer(middle, middle, kernel, stride)
        self.norm2 = BatchNorm(middle)
        self.expand = _layer(middle, out_channels, 1)
        self.norm3 = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        width = self.mask("ratio", choices)
        h = F.silu(self.norm1(self.reduce(x)))
        h = _conv(self.conv, h, kernel=self.mask("kernel", choices), inputs=width)
        h = F.silu(self.norm2(h))
        return self.norm3(_conv(self.expand, h, kernel=None, inputs=width), scale)


class InvertedResidual(_Entangled):
    """1x1 to expansion*C_in, depthwise k x k, linear 1x1 (Sandler et al. 2018), with BatchNorm."""

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        widths = [in_channels * expansion for expansion in operation.choices["expansion"]]
        super().__init__(operation, {"expansion": widths})
        middle, kernel = max(widths), operation.choices["kernel"][-1]
        self.expand = _layer(in_channels, middle, 1)
        self.norm1 = BatchNorm(middle)
        self.depthwise = _layer(middle, middle, kernel, stride, groups=middle)
        self.norm2 = BatchNorm(middle)
        self.project = _layer(middle, out_channels, 1)
        self.norm3 = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        h = F.silu(self.norm1(self.expand(x)))
        h = _conv(self.depthwise, h, kernel=self.mask("kernel", choices), inputs=None)
        h = F.silu(self.norm2(h))
        width = self.mask("expansion", choices)
        return self.norm3(_conv(self.project, h, kernel=None, inputs=width), scale)


class Skip(_Entangled):
    """Skip connection where shapes change: average pooling, and a 1x1 convolution for the width.

    The 1x1 convolution exists only if the width changes. Where shapes do not change, the residual
    connection of the edge is the skip connection, and the edge does not use this class.
    """

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        super().__init__(operation, {})
        self.stride = stride
        self.project = _layer(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.norm(x if self.project is None else self.project(x), scale)


CLASSES: dict[str, type[Conv | Bottleneck | InvertedResidual | Skip]] = {
    "conv": Conv,
    "bottleneck": Bottleneck,
    "inverted_residual": InvertedResidual,
    "skip": Skip,
}


def has_residual(in_channels: int, out_channels: int, stride: int) -> bool:
    """Tell whether an edge of this shape has a residual (identity) connection."""
    return stride == 1 and in_channels == out_channels


class Cost(NamedTuple):
    """Cost of a network or an operation.

    Attributes:
        parameters: Number of trainable parameters.
        macs: Multiply-accumulate operations per image.
    """

    parameters: int
    macs: int

    def __add__(self, other: tuple) -> Cost:  # type: ignore[override]
        return Cost(self[0] + other[0], self[1] + other[1])


def count(module: nn.Module, *inputs: Tensor) -> Cost:
    """Return the exact cost of a module on the meta device.

    Arguments:
        module: Module to count; it is in evaluation mode afterwards.
        inputs: Inputs of one image, for torch's count of floating-point operations.
    """
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)


@cache
def option_cost(
    option: Operation, in_channels: int, out_channels: int, stride: int, size: tuple[int, int]
) -> Cost:
    """Return the exact cost of a concrete operation on one edge.

    Arguments:
        option: Operation with one size per choice.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.
        size: Height and width of the input.
    """
    if option.name == "skip" and has_residual(in_channels, out_channels, stride):
        return Cost(0, 0)
    with torch.device("meta"):
        module = CLASSES[option.name](option, in_channels, out_channels, stride)
        return count(_Plain(module), torch.empty(1, in_channels, *size))


class _Plain(nn.Module):
    def __init__(self, operation: nn.Module):
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, None, None)
