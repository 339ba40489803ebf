"""Clamping to [0, 1]. Imports nothing of darts_lite."""

import torch
import torch.nn.functional as F
from torch import Tensor


def clamp(values: Tensor) -> Tensor:
    """Clamp to [0, 1]; the derivative is 1 from 0 to 1, both included, and 0 outside.

    In newer versions of torch, the derivative of `clamp` is 0 at the bounds, where many pixels are,
    and its backward pass is slow. The derivative of `hardtanh` is 0 at its bounds too, but fast. So
    the bounds of `hardtanh` are set to the next numbers outside, and the excess is taken away
    without a derivative.

    >>> clamp(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    if not torch.is_grad_enabled():
        return values.clamp(0, 1)
    limits = torch.finfo(values.dtype)
    return clamp_straight(F.hardtanh(values, -limits.tiny, 1 + limits.eps))


def clamp_straight(values: Tensor) -> Tensor:
    """Clamp to [0, 1] with the derivative 1 everywhere: for values that leave it by rounding."""
    if not torch.is_grad_enabled():
        return values.clamp(0, 1)
    excess = values.detach()
    return values + excess.clamp(0, 1).sub_(excess)
