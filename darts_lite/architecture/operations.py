"""The candidate operations of an edge: one class per operation, registered with its record.

One class serves the entangled and the concrete form of an operation (see `layers`). With one size
per choice, the operation is concrete and has no masks.

Each operation reads an *activated* input [B, C_in, H, W] and returns a branch
[B, C_out, H/stride, W/stride]. It ends in a BatchNorm whose affine map absorbs the mixing weight:
p * BN(h) costs nothing and saves no activation of its own. A convolution that feeds a BatchNorm is
assigned directly before it; `plain.folded` relies on this order. `plain()` returns the same layers,
of a concrete operation, as ordinary modules.

To add an operation, write a class below, with `plain`, and decorate it with `candidate`. The
presets then contain the operation, and the tables of tests/test_operations.py test it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.layers import (
    BatchNorm,
    ChoiceWeights,
    Entangled,
    conv_layer,
    masked_conv,
)
from darts_lite.architecture.space import Operation


class Candidate(NamedTuple):
    """The record of an operation.

    Attributes:
        name: Name in spaces and genotypes.
        sizes: Sizes of each conditional choice in the presets, ascending.
        colors: Fill color and line color in pictures.
        label: Short name in pictures.
        build: Returns the module of (operation, input channels, output channels, stride).
    """

    name: str
    sizes: dict[str, tuple[int, ...]]
    colors: tuple[str, str]
    label: str
    build: Callable[[Operation, int, int, int], nn.Module]


CANDIDATES: dict[str, Candidate] = {}
"""The operations by name, in the order of the presets."""


def candidate(
    name: str, sizes: dict[str, tuple[int, ...]], colors: tuple[str, str], label: str | None = None
) -> Callable[[Any], Any]:
    """Register the decorated class as a candidate operation; see `Candidate` for the arguments."""

    def register(build: Any) -> Any:
        CANDIDATES[name] = Candidate(name, sizes, colors, label or name, build)
        return build

    return register


def check(operation: Operation) -> None:
    """Raise `ValueError` unless an operation is registered and has the choices of its record."""
    if operation.name not in CANDIDATES:
        known = ", ".join(CANDIDATES)
        raise ValueError(f"operation must be one of {known}, got {operation.name!r}")
    choices = list(CANDIDATES[operation.name].sizes)
    if list(operation.choices) != choices:
        raise ValueError(
            f"the choices of operation {operation.name!r} must be {choices}, "
            f"got {list(operation.choices)}"
        )


@candidate("conv", {"kernel": (3, 5)}, colors=("#d6e6f5", "#2f6fab"))
class Conv(Entangled):
    """k x k convolution with BatchNorm."""

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        super().__init__(operation, {})
        kernel = operation.choices["kernel"][-1]
        self.conv = conv_layer(in_channels, out_channels, kernel, stride)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        h = masked_conv(self.conv, x, kernel=self.mask("kernel", choices))
        return self.norm(h, scale)

    def plain(self) -> nn.Sequential:
        """Return the layers."""
        return nn.Sequential(self.conv, self.norm)


@candidate("bottleneck", {"kernel": (3, 5), "ratio": (2, 4)}, colors=("#fde3c8", "#c26a12"))
class Bottleneck(Entangled):
    """1x1 to C_out/ratio, k x k, 1x1 to C_out (He et al. 2016), each with BatchNorm.

    The middle convolution is dense, so the mask of the ratio acts on both sides of it.
    """

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        widths = [max(1, out_channels // ratio) for ratio in operation.choices["ratio"]]
        super().__init__(operation, {"ratio": widths})
        middle, kernel = max(widths), operation.choices["kernel"][-1]
        self.reduce = conv_layer(in_channels, middle, 1)
        self.norm1 = BatchNorm(middle)
        self.conv = conv_layer(middle, middle, kernel, stride)
        self.norm2 = BatchNorm(middle)
        self.expand = conv_layer(middle, out_channels, 1)
        self.norm3 = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        width = self.mask("ratio", choices)
        h = F.silu(self.norm1(masked_conv(self.reduce, x, outputs=width)))
        kernel = self.mask("kernel", choices)
        h = masked_conv(self.conv, h, kernel=kernel, inputs=width, outputs=width)
        h = F.silu(self.norm2(h))
        return self.norm3(masked_conv(self.expand, h, inputs=width), scale)

    def plain(self) -> nn.Sequential:
        """Return the layers."""
        reduce, middle = (self.reduce, self.norm1, nn.SiLU()), (self.conv, self.norm2, nn.SiLU())
        return nn.Sequential(*reduce, *middle, self.expand, self.norm3)


@candidate(
    "inverted_residual",
    {"kernel": (3, 5), "expansion": (2, 4, 6)},
    colors=("#d5edd6", "#2f8a43"),
    label="inv. residual",
)
class InvertedResidual(Entangled):
    """1x1 to expansion*C_in, depthwise k x k, linear 1x1 (Sandler et al. 2018), with BatchNorm."""

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        widths = [in_channels * expansion for expansion in operation.choices["expansion"]]
        super().__init__(operation, {"expansion": widths})
        middle, kernel = max(widths), operation.choices["kernel"][-1]
        self.expand = conv_layer(in_channels, middle, 1)
        self.norm1 = BatchNorm(middle)
        self.depthwise = conv_layer(middle, middle, kernel, stride, groups=middle)
        self.norm2 = BatchNorm(middle)
        self.project = conv_layer(middle, out_channels, 1)
        self.norm3 = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        width = self.mask("expansion", choices)
        h = F.silu(self.norm1(masked_conv(self.expand, x, outputs=width)))
        h = masked_conv(self.depthwise, h, kernel=self.mask("kernel", choices), outputs=width)
        h = F.silu(self.norm2(h))
        return self.norm3(masked_conv(self.project, h, inputs=width), scale)

    def plain(self) -> nn.Sequential:
        """Return the layers."""
        expand = self.expand, self.norm1, nn.SiLU()
        return nn.Sequential(
            *expand, self.depthwise, self.norm2, nn.SiLU(), self.project, self.norm3
        )


@candidate("skip", {}, colors=("#ececec", "#757575"))
class Skip(Entangled):
    """Skip connection where shapes change: average pooling, and a 1x1 convolution for the width.

    The 1x1 convolution exists only if the width changes. Where shapes do not change, the residual
    connection of the edge is the skip connection, and the edge does not use this class.
    """

    def __init__(self, operation: Operation, in_channels: int, out_channels: int, stride: int):
        super().__init__(operation, {})
        self.stride = stride
        self.project = (
            conv_layer(in_channels, out_channels, 1) if in_channels != out_channels else None
        )
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None, choices: ChoiceWeights | None) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.norm(x if self.project is None else self.project(x), scale)

    def plain(self) -> nn.Sequential:
        """Return the layers."""
        pool = [nn.AvgPool2d(self.stride, ceil_mode=True)] if self.stride > 1 else []
        project = [] if self.project is None else [self.project]
        return nn.Sequential(*pool, *project, self.norm)


def has_residual(in_channels: int, out_channels: int, stride: int) -> bool:
    """Tell whether an edge of this shape has a residual (identity) connection."""
    return stride == 1 and in_channels == out_channels
