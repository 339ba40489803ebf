"""Bilinear sampling with every derivative, in every torch. Imports nothing of darts_lite.

torch's `grid_sample` is fast, but before torch 2.15 it has no forward-mode derivative and no second
derivative. `sample` computes values and first derivatives with torch's kernels, and all other
derivatives from gathers: the weight of each of the four neighbors of a place is a product of two
linear functions, so the derivatives are sums over the same four neighbors.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images at the places of a grid: bilinear, zero outside of the image.

    Differentiable in both arguments to any order, in backward and in forward mode. At the center of
    a pixel, where a bilinear function has a kink, the derivative is the one to the right and below.

    Arguments:
        images: `[B, C, H, W]`.
        grid: `[B, h, w, 2]`, places (x, y); -1 and 1 are the outer edges of the image.
    Returns: images `[B, C, h, w]`.

    >>> image = torch.tensor([[[[0.0, 1.0]]]])
    >>> sample(image, torch.zeros(1, 1, 1, 2))
    tensor([[[[0.5000]]]])
    """
    return _Sample.apply(images, grid)


class _Neighbor(NamedTuple):
    """One of the four pixels around each place: its weight, and the weight's derivatives."""

    pixel: Tensor  # [B, 1, h · w], the number of the pixel in the image
    weight: Tensor  # [B, 1, h · w]
    by_x: Tensor
    by_y: Tensor


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(images, grid, align_corners=False)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, grid = ctx.saved_tensors
        if not (torch.is_grad_enabled() or _moving(images, grid, gradient)):
            wanted = list(ctx.needs_input_grad)
            backward = torch.ops.aten.grid_sampler_2d_backward  # bilinear, zeros
            of_images, of_grid = backward(gradient, images, grid, 0, 0, False, wanted)
            return (of_images if wanted[0] else None, of_grid if wanted[1] else None)
        neighbors = _neighbors(grid, images)
        flat = gradient.flatten(2)
        of_images = torch.zeros_like(images).flatten(2)
        for n in neighbors:
            index = n.pixel.expand(-1, images.shape[1], -1)
            of_images = of_images.scatter_add(2, index, n.weight * flat)
        by_x, by_y = _slopes(images, neighbors)
        of_grid = torch.stack(((flat * by_x).sum(1), (flat * by_y).sum(1)), -1)
        return of_images.view(images.shape), of_grid.view(grid.shape)

    @staticmethod
    def jvp(ctx: Any, images_moved: Tensor, grid_moved: Tensor) -> Tensor:
        images, grid = ctx.saved_tensors
        neighbors = _neighbors(grid, images)
        by_x, by_y = _slopes(images, neighbors)
        x, y = grid_moved.flatten(1, 2).unsqueeze(1).unbind(-1)
        moved = by_x * x + by_y * y
        for n in neighbors:
            moved = moved + n.weight * _pixels(images_moved, n.pixel)
        return moved.view(*images.shape[:2], *grid.shape[1:3])


def _moving(*tensors: Tensor) -> bool:
    """Return whether one of the tensors carries a tangent, which torch's kernel would drop."""
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _neighbors(grid: Tensor, images: Tensor) -> list[_Neighbor]:
    height, width = images.shape[-2:]
    columns = _axis(grid[..., 0].flatten(1).unsqueeze(1), width)
    rows = _axis(grid[..., 1].flatten(1).unsqueeze(1), height)
    return [
        _Neighbor(row * width + column, weight_x * weight_y, by_x * weight_y, weight_x * by_y)
        for row, weight_y, by_y in rows
        for column, weight_x, by_x in columns
    ]


def _axis(places: Tensor, pixels: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the two neighbors along one side: number, weight, derivative; zero if outside."""
    places = ((places + 1) * pixels - 1) / 2  # as grid_sample computes it
    first = places.detach().floor()
    rest = places - first
    found = []
    for number, weight, slope in ((first, 1 - rest, -pixels / 2), (first + 1, rest, pixels / 2)):
        inside = (number >= 0) & (number < pixels)
        index = torch.where(inside, number, 0).long()
        found.append((index, torch.where(inside, weight, 0), inside.to(weight.dtype) * slope))
    return found


def _slopes(images: Tensor, neighbors: list[_Neighbor]) -> tuple[Tensor, Tensor]:
    """Return the derivatives `[B, C, h · w]` of the sampled values by x and by y."""
    pixels = [_pixels(images, n.pixel) for n in neighbors]
    by_x = torch.stack([n.by_x * p for n, p in zip(neighbors, pixels)]).sum(0)
    by_y = torch.stack([n.by_y * p for n, p in zip(neighbors, pixels)]).sum(0)
    return by_x, by_y


def _pixels(images: Tensor, index: Tensor) -> Tensor:
    return images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1))
