"""Layers replaced by products of smaller layers: Tucker-2, CP and SVD (extra: compress).

A dense convolution is the matrix W [outputs, inputs * k * k] that acts on a patch x of its input.
Every factorization here is W' = B A, and its error is the exact mean of |W x - W' x|^2 over the
patches of real images, |(W - W') C^(1/2)|^2 with C the mean of x x^T: no further pass through the
network. Without images, C is the identity, and the error is that of the weights.

- svd: A has r outputs and is as large as the layer, B is 1x1. Truncated SVD of W C^(1/2), the
  optimum of rank r (Zhang et al. 2015, without their nonlinear term). A 1x1 convolution and a
  linear layer become two.
- tucker: 1x1, k x k between fewer channels, 1x1 (Kim et al. 2016, section 3.1).
- cp: 1x1, depthwise k x k, 1x1 (Lebedev et al. 2015, section 3, but the two axes of the kernel are
  one mode: k * k numbers per channel in the place of their k + k, and one layer less).

Tucker and CP are those of tensorly, of the weights scaled by the root of C between input channels.
In both, the last factor is then the least-squares fit B = W C A^T (A C A^T)^-1.
"""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from darts_lite.architecture.structure import ConvLayer, Layer, LinearLayer
from darts_lite.errors import UserError

Method = Literal["svd", "tucker", "cp"]
METHODS = ("svd", "tucker", "cp")
BALANCING = 8  # sweeps over the layers; two layers need one
Ranks = tuple[int, ...]  # svd and cp: one; tucker: of the inputs, of the outputs


class Factors(NamedTuple):
    """A layer as a product of smaller layers.

    Attributes:
        weights: Weight of every new layer [outputs, inputs per group, height, width], in order.
        error: Mean squared error of the output, as a share of the mean square of the output.
    """

    weights: tuple[Tensor, ...]
    error: float


def require_packages() -> None:
    """Raise `UserError` if tensorly is not installed."""
    if find_spec("tensorly") is None:
        raise UserError(
            "tucker and cp need tensorly, not installed; run pip install tensorly, or use svd"
        )


def decompose(
    layer: nn.Conv2d | nn.Linear, method: Method, ranks: Ranks, patches: Tensor | None = None
) -> nn.Sequential:
    """Return the layers of given ranks in the place of one.

    Arguments:
        layer: Dense convolution or linear layer.
        method: svd; tucker or cp of a convolution larger than 1x1.
        ranks: svd and cp: (r,); tucker: (r of the inputs, r of the outputs).
        patches: C [inputs * k * k, inputs * k * k]; None for the identity.
    Raises: `UserError` if the layer cannot be decomposed, a rank is out of its range, or tensorly
        is missing.

    >>> [m.kernel_size for m in decompose(nn.Conv2d(8, 8, 3), "tucker", (3, 2))]
    [(1, 1), (3, 3), (1, 1)]
    """
    why = unfit(layer)
    if why:
        raise UserError(f"the layer must be a dense convolution or linear layer, got {why}")
    weight = weight_of(layer)
    if method != "svd" and weight[0, 0].numel() == 1:
        raise UserError(f"{method} needs a kernel larger than 1x1, got 1x1; use svd")
    largest = largest_ranks(weight, method)
    if len(ranks) != len(largest) or not all(1 <= r <= top for r, top in zip(ranks, largest)):
        raise UserError(
            f"ranks of {method} for weights {list(weight.shape)} must be {len(largest)} numbers "
            f"from 1 to {list(largest)}, got {list(ranks)}; choose smaller ones"
        )
    if method != "svd":
        require_packages()
    c = torch.eye(weight[0].numel()).double() if patches is None else patches.double()
    return built(layer, factorize(weight, c, method, ranks).weights)


def described(layers: nn.Sequential) -> tuple[Layer, ...]:
    """Return the description of convolutions and linear layers for a genotype."""
    found: list[Layer] = []
    for each in layers:
        bias = each.bias is not None
        if isinstance(each, nn.Linear):
            found.append(LinearLayer(inputs=each.in_features, outputs=each.out_features, bias=bias))
            continue
        assert isinstance(each, nn.Conv2d) and not isinstance(each.padding, str)
        pairs = (each.kernel_size, each.stride, each.padding)
        kernel, stride, padding = ((a, b) for a, b in pairs)
        found.append(
            ConvLayer(
                inputs=each.in_channels,
                outputs=each.out_channels,
                kernel=kernel,
                stride=stride,
                padding=padding,
                groups=each.groups,
                bias=bias,
            )
        )
    return tuple(found)


def unfit(module: nn.Module) -> str:
    """Return why a layer cannot be decomposed, a phrase; empty if it can."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"a {type(module).__name__}"
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "depthwise" if module.groups == module.in_channels else "grouped"
        if module.dilation != (1, 1) or module.padding_mode != "zeros":
            return "dilated or not padded with zeros"
        if isinstance(module.padding, str):
            return f"padding {module.padding!r}, not in pixels"
    return ""


def weight_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the weight as float64 [outputs, inputs, k, k] on the CPU."""
    weight = layer.weight.detach().double().cpu()
    return weight[:, :, None, None] if weight.dim() == 2 else weight


def built(layer: nn.Conv2d | nn.Linear, weights: tuple[Tensor, ...]) -> nn.Sequential:
    """Return the modules of factors, in the place of a layer; the last one has its bias."""
    modules: list[nn.Module] = []
    for i, weight in enumerate(weights):
        bias = layer.bias is not None and i == len(weights) - 1
        outputs, inputs, height, width = weight.shape
        new: nn.Conv2d | nn.Linear
        if isinstance(layer, nn.Linear):
            new = nn.Linear(inputs, outputs, bias)
        else:
            size, groups = (height, width), 1
            if inputs == 1 and i and modules[-1].out_channels > 1:  # type: ignore[operator]
                inputs = groups = outputs  # depthwise
            spatial = i == _spatial(len(weights))
            stride, padding = (layer.stride, layer.padding) if spatial else (1, 0)
            new = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=bias)  # type: ignore[arg-type]
        new.to(layer.weight)
        with torch.no_grad():
            new.weight.copy_(weight.reshape(new.weight.shape))
            if bias:
                new.bias.copy_(layer.bias)  # type: ignore[union-attr,arg-type]
        modules.append(new)
    return nn.Sequential(*modules).train(layer.training)


def _spatial(count: int) -> int:
    """Return the position of the layer with the kernel: the first of two, the second of three."""
    return count - 2


def largest_ranks(weight: Tensor, method: Method) -> Ranks:
    """Return the largest rank of each mode."""
    outputs, inputs, *kernel = weight.shape
    size = kernel[0] * kernel[1]
    if method == "tucker":
        return min(inputs, outputs * size), min(outputs, inputs * size)
    if method == "cp":
        return (min(outputs * inputs, outputs * size, inputs * size),)
    return (min(outputs, inputs * size),)


def root(c: Tensor, power: float = 0.5) -> Tensor:
    """Return a power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp_min(1e-12 * values.max()).pow(power)) @ vectors.T


def of_channels(weight: Tensor, c: Tensor) -> Tensor:
    """Return the mean of C between input channels [inputs, inputs], over places of the kernel."""
    inputs, size = weight.shape[1], weight[0, 0].numel()
    return torch.einsum("akbk->ab", c.view(inputs, size, inputs, size)) / size


def scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """Return the weight [outputs, inputs, k * k] times a matrix [inputs, inputs]."""
    return torch.einsum("oik,ij->ojk", weight.flatten(2), factor)


def factorize(weight: Tensor, c: Tensor, method: Method, ranks: Ranks) -> Factors:
    """Return the factors of a weight [outputs, inputs, k, k] and their error."""
    matrix = weight.flatten(1)
    first: tuple[Tensor, ...]
    if method == "svd":
        left = torch.linalg.svd(matrix @ root(c), full_matrices=False)[0][:, : ranks[0]]
        head = left.T @ matrix
        first = (head.view(-1, *weight.shape[1:]),)
    else:
        head, first = _tensor_factors(weight, c, method, ranks)
    gram = head @ c @ head.T
    last = torch.linalg.lstsq(gram, head @ c @ matrix.T, driver="gelsd").solution.T
    rest = matrix - last @ head
    error = ((rest @ c) * rest).sum() / ((matrix @ c) * matrix).sum().clamp_min(1e-300)
    weights = _balanced([*first, last[:, :, None, None]])
    return Factors(tuple(weights), float(error.clamp_min(0)))


def _balanced(weights: list[Tensor]) -> list[Tensor]:
    """Return factors of the same product with equal norms per inner channel, for fine-tuning.

    The product leaves the scale of an inner channel open, and one learning rate serves all layers.
    """
    weights = [w.clone() for w in weights]
    for _ in range(BALANCING):
        for one, next_ in itertools.pairwise(weights):
            depthwise = next_.shape[1] == 1 and len(one) > 1
            after = next_ if depthwise else next_.transpose(0, 1)
            norms = one.flatten(1).norm(dim=1), after.flatten(1).norm(dim=1)
            zero = (norms[0] == 0) | (norms[1] == 0)
            scale = (norms[1] / norms[0]).sqrt().masked_fill(zero, 1.0)[:, None, None, None]
            one *= scale
            after /= scale
    return weights


def _tensor_factors(
    weight: Tensor, c: Tensor, method: Method, ranks: Ranks
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return A [r, inputs * k * k] of Tucker or CP, and the weights of its two layers."""
    import tensorly
    from tensorly.decomposition import parafac, partial_tucker

    between = of_channels(weight, c)
    target, inverse = scaled(weight, root(between)), root(between, -0.5)
    with tensorly.backend_context("numpy", local_threadsafe=True):
        if method == "tucker":
            (core, (_, inner)), _ = partial_tucker(
                target.numpy(), rank=list(ranks[::-1]), modes=[0, 1], n_iter_max=20
            )
            core = torch.from_numpy(core)  # [r outputs, r inputs, k * k]
            inner = inverse @ torch.from_numpy(inner.copy())
            head = torch.einsum("abk,ib->aik", core, inner).flatten(1)
            return head, (inner.T[:, :, None, None], core.view(*core.shape[:2], *weight.shape[2:]))
        start = "svd" if ranks[0] <= min(target.shape) else "random"
        _, (_, inner, kernels) = parafac(
            target.numpy(), ranks[0], n_iter_max=200, init=start, random_state=0, tol=0
        )
    inner, kernels = inverse @ torch.from_numpy(inner.copy()), torch.from_numpy(kernels.copy())
    head = torch.einsum("ir,kr->rik", inner, kernels).flatten(1)
    depthwise = kernels.T.reshape(-1, 1, *weight.shape[2:])
    return head, (inner.T[:, :, None, None], depthwise)
