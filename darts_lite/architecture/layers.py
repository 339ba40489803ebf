"""Layers of the operations: BatchNorm that is a pure function, entangled convolutions.

An operation built with several sizes per choice holds the weights of the largest size and mixes the
sizes by weight entanglement (TangleNAS, Sukthanker et al. 2023; single-path NAS, Stamoulis et al.
2019): a small kernel is the center of the large one, a small width its first channels, and

    sum_k p_k conv(x, W * M_k) = conv(x, W * sum_k p_k M_k)        (exact, convolution is linear)

so a forward pass costs one candidate, however many sizes there are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.space import Operation

ChoiceWeights = Mapping[str, Tensor]  # choice -> probabilities [n], summing to one


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with batch statistics in training; its running statistics are only calibrated.

    Training never touches a buffer, so a training step is a pure function of the parameters.
    `network.calibrate` estimates the statistics that evaluation uses.
    """

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.0)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Gives `scale * BN(x)`, x [B, C, H, W]."""
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


class Entangled(nn.Module):
    """Base: holds the masks of the choices that have more than one size."""

    def __init__(self, operation: Operation, widths: Mapping[str, list[int]]):
        super().__init__()
        self.operation = operation
        for choice, sizes in operation.choices.items():
            if len(sizes) > 1:
                masks = _kernel_masks(sizes) if choice == "kernel" else _width_masks(widths[choice])
                self.register_buffer(f"{choice}_masks", masks, persistent=False)

    def mask(self, choice: str, choices: ChoiceWeights | None) -> Tensor | None:
        """sum_i p_i M_i, or None where the choice has a single size."""
        if len(self.operation.choices[choice]) == 1:
            return None
        assert choices is not None, f"{self.operation.label} needs weights for {choice}"
        return torch.tensordot(choices[choice], getattr(self, f"{choice}_masks"), 1)


def _kernel_masks(sizes: tuple[int, ...]) -> Tensor:
    """[n, k, k]: ones on the central square of each size."""
    largest = sizes[-1]
    offset = torch.arange(largest).sub(largest // 2).abs()
    distance = torch.maximum(offset[:, None], offset[None, :])
    return torch.stack([(distance <= size // 2).float() for size in sizes])


def _width_masks(widths: list[int]) -> Tensor:
    """[n, max(widths)]: ones on the first channels of each width."""
    return torch.stack([(torch.arange(max(widths)) < width).float() for width in widths])


def masked_conv(
    layer: nn.Conv2d, x: Tensor, *, kernel: Tensor | None, inputs: Tensor | None
) -> Tensor:
    """The layer with its weight masked by `kernel` [k, k] and by input channel `inputs` [C]."""
    weight = layer.weight
    if kernel is not None and inputs is not None:
        weight = weight * (inputs[:, None, None] * kernel)
    elif kernel is not None:
        weight = weight * kernel
    elif inputs is not None:
        weight = weight * inputs[:, None, None]
    return F.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups)


def conv_layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
