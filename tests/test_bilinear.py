"""Bilinear sampling: derivatives against those of torch and against central differences."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from darts_lite.augment.operations.bilinear import sample

CASES = {  # channels, size of the images, size of the grid, reach of the grid
    "inside": (3, (5, 7), (4, 6), 0.5),
    "beyond the borders": (2, (6, 5), (3, 4), 1.6),
    "one pixel": (1, (1, 1), (3, 3), 1.3),
    "one row": (2, (1, 6), (2, 5), 1.1),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    channels, (height, width), (rows, columns), reach = CASES[request.param]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64)
    grid = torch.rand(2, rows, columns, 2, generator=generator, dtype=torch.float64)
    return images, reach * (2 * grid - 1)


def torchs(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, align_corners=False)


def cosines(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth function of what was sampled, not linear in it."""
    return lambda images, grid: (3 * function(images, grid)).cos().sum()


def test_values_equal_torch(case):
    assert torch.equal(sample(*case), torchs(*case))


@pytest.mark.parametrize("graph", [False, True], ids=["kernel", "gathers"])
def test_first_derivatives_equal_torch(case, graph):
    own, expected = (
        torch.autograd.grad(
            cosines(f)(*(inputs := [t.clone().requires_grad_() for t in case])),
            inputs,
            create_graph=graph,
        )
        for f in (sample, torchs)
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(own, expected))


def test_derivatives_at_whole_pixels_equal_torch():
    """Where the function has a kink."""
    images = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    line = torch.arange(-2, 6, dtype=torch.float64) / 2 - 0.75  # two pixels outside as well
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    found = []
    for function, graph in ((sample, True), (sample, False), (torchs, False)):
        inputs = [t.clone().requires_grad_() for t in (images, grid)]
        loss = cosines(function)(*inputs)
        found.append(torch.autograd.grad(loss, inputs, create_graph=graph))
    for own in found[:2]:
        assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(own, found[2]))


@pytest.mark.slow
def test_all_derivatives_against_central_differences(case):
    inputs = [t.requires_grad_() for t in case]
    gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    assert gradcheck(sample, inputs, check_forward_ad=True)
    assert gradgradcheck(sample, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_every_order_of_the_modes_gives_the_same_second_derivative(case):
    loss, along = cosines(sample), tuple(torch.ones_like(t) for t in case)
    (of_images, of_grid), (images_moved, grid_moved) = torch.func.jvp(
        torch.func.grad(loss, (0, 1)), case, along
    )
    inputs = [t.clone().requires_grad_() for t in case]
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    backward = torch.autograd.grad(sum(g.sum() for g in first), inputs)
    reverse = torch.func.grad(lambda *xs: torch.func.jvp(loss, xs, along)[1], (0, 1))(*case)
    for a, b in zip((of_images, of_grid), first):
        assert torch.allclose(a, b, rtol=0, atol=1e-13)
    for a, b, c in zip((images_moved, grid_moved), backward, reverse):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
        assert torch.allclose(c, b, rtol=0, atol=1e-11)


def test_a_tangent_is_not_lost_in_a_backward_pass_without_a_graph(case):
    loss, along = cosines(sample), tuple(torch.ones_like(t) for t in case)
    expected = torch.func.jvp(torch.func.grad(loss, (0, 1)), case, along)[1]
    with forward_ad.dual_level():
        inputs = [forward_ad.make_dual(t.clone().requires_grad_(), a) for t, a in zip(case, along)]
        found = torch.autograd.grad(loss(*inputs), inputs)
        moved = [forward_ad.unpack_dual(g).tangent for g in found]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(moved, expected))


@pytest.mark.parametrize("which", [0, 1], ids=["images", "grid"])
def test_one_input_may_be_a_constant(case, which):
    inputs = [t.clone().requires_grad_(i == which) for i, t in enumerate(case)]
    expected = torch.autograd.grad(cosines(torchs)(*inputs), inputs[which])
    for graph in (False, True):
        own = torch.autograd.grad(cosines(sample)(*inputs), inputs[which], create_graph=graph)
        assert torch.allclose(own[0], expected[0], rtol=0, atol=1e-13)
    moved = torch.func.jvp(
        lambda t: sample(*[t if i == which else c for i, c in enumerate(case)]),
        (case[which],),
        (torch.ones_like(case[which]),),
    )[1]
    assert moved.shape == sample(*case).shape


def test_a_place_that_is_not_a_number_is_not_an_error():
    images = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grid = torch.full((1, 1, 1, 2), float("nan"), requires_grad=True)
    found = torch.autograd.grad(sample(images, grid).sum(), (images, grid), create_graph=True)
    assert all(g.shape == t.shape for g, t in zip(found, (images, grid)))


def test_sampling_with_tangents_keeps_the_type():
    for dtype in (torch.float32, torch.bfloat16):
        images, grid = torch.rand(1, 2, 3, 3).to(dtype), torch.zeros(1, 2, 2, 2, dtype=dtype)
        value, moved = torch.func.jvp(sample, (images, grid), (images, grid))
        assert value.dtype == moved.dtype == dtype
