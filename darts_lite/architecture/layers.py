"""Layers of the operations: BatchNorm as a pure function, and entangled convolutions.

An operation with several sizes per choice holds the weights of the largest size. It mixes the
sizes by weight entanglement (TangleNAS, Sukthanker et al. 2023; single-path NAS, Stamoulis et al.
2019): a small kernel is the center of the large kernel, a small width its first channels, and

    sum_k p_k conv(x, W * M_k) = conv(x, W * sum_k p_k M_k)        (exact, convolution is linear)

A forward pass therefore costs one pass per operation, for any number of sizes. If a single size is
sampled, the pass takes slices of the weights, and costs no more than the concrete operation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_lite.architecture.depthwise import depthwise_conv
from darts_lite.architecture.space import Operation

# choice -> probabilities [n], summing to one, or the index of the sampled size
ChoiceWeights = Mapping[str, Tensor] | Mapping[str, int]
Mask = Tensor | int | None  # mask of a mixture of sizes; a sampled size; None for a single size


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses batch statistics in training and never updates buffers there.

    A training step is therefore a pure function of the parameters. Evaluation uses the running
    statistics that `network.calibrate` sets.
    """

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.0)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return `scale * BN(x)`.

        Arguments:
            x: Features [B, C, H, W]; C may be a sampled width, of the first channels.
            scale: Scalar; None means 1.
        """
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if len(weight) > x.shape[1]:  # a sampled width is the first channels
            weight, bias = weight[: x.shape[1]], bias[: x.shape[1]]
        if scale is not None:
            weight, bias = weight * scale, bias * scale
        if self.training and not self.momentum:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        mean, variance = mean[: len(weight)], variance[: len(weight)]  # views, to be updated
        momentum = self.momentum or 0.0
        return F.batch_norm(x, mean, variance, weight, bias, self.training, momentum, self.eps)


class Entangled(nn.Module):
    """Base class of operations: holds the masks of every choice with more than one size.

    Arguments:
        operation: Operation with its choices.
        widths: Channels of each size, per choice other than the kernel.
    """

    def __init__(self, operation: Operation, widths: Mapping[str, list[int]]):
        super().__init__()
        self.operation = operation
        self.widths = widths
        for choice, sizes in operation.choices.items():
            if len(sizes) > 1:
                masks = _kernel_masks(sizes) if choice == "kernel" else _width_masks(widths[choice])
                self.register_buffer(f"{choice}_masks", masks, persistent=False)

    def mask(self, choice: str, choices: ChoiceWeights | None) -> Mask:
        """Return the mixed mask sum_i p_i M_i, or a sampled size; None if there is one size only.

        The size of a kernel is in pixels, all others are in channels.
        """
        sizes = self.operation.choices[choice]
        if len(sizes) == 1:
            return None
        assert choices is not None, f"{self.operation.label} needs weights for {choice}"
        weights = choices[choice]
        if isinstance(weights, int):
            return (sizes if choice == "kernel" else self.widths[choice])[weights]
        return torch.tensordot(weights, getattr(self, f"{choice}_masks"), 1)


def _kernel_masks(sizes: tuple[int, ...]) -> Tensor:
    """Return masks [n, k, k]: ones on the central square of each size."""
    largest = sizes[-1]
    offset = torch.arange(largest).sub(largest // 2).abs()
    distance = torch.maximum(offset[:, None], offset[None, :])
    return torch.stack([(distance <= size // 2).float() for size in sizes])


def _width_masks(widths: list[int]) -> Tensor:
    """Return masks [n, max(widths)]: ones on the first channels of each width."""
    return torch.stack([(torch.arange(max(widths)) < width).float() for width in widths])


def masked_conv(
    layer: nn.Conv2d, x: Tensor, *, kernel: Mask = None, inputs: Mask = None, outputs: Mask = None
) -> Tensor:
    """Return the output of a convolution with a masked or sliced weight.

    Arguments:
        layer: Convolution without bias; one with groups is depthwise.
        x: Features [B, C, H, W].
        kernel: Mask [k, k] of the kernel, or the size of a central slice; None for all of it.
        inputs: Mask [C] of the input channels, or the number of the first ones; None for all.
        outputs: Number of the first output channels; None for all. A mask has no effect: the mask
            on the inputs of the next convolution is enough.
    """
    weight = layer.weight
    depthwise = layer.groups > 1
    if isinstance(kernel, int):
        first = (weight.shape[2] - kernel) // 2
        weight = weight[:, :, first : first + kernel, first : first + kernel]
        kernel = None
    if isinstance(inputs, int):
        weight = weight[:, :inputs]
        inputs = None
    if isinstance(outputs, int):
        weight = weight[:outputs]
    if kernel is not None and inputs is not None:
        weight = weight * (inputs[:, None, None] * kernel)
    elif kernel is not None:
        weight = weight * kernel
    elif inputs is not None:
        weight = weight * inputs[:, None, None]
    if depthwise:
        return depthwise_conv(x, weight, layer.stride[0])
    return F.conv2d(x, weight, None, layer.stride, weight.shape[2] // 2)


def conv_layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
