"""Operations × invariants: entangled against concrete, derivatives, buffers, shapes, cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spaces import MacCounter
from torch import Tensor, nn

from darts_lite.architecture.cost import Cost, option_cost
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.operations import (
    CANDIDATES,
    Bottleneck,
    Conv,
    InvertedResidual,
    has_residual,
)
from darts_lite.architecture.presets import OPERATIONS
from darts_lite.architecture.space import Operation

TABLE = {  # three kernels, so that there is a middle size
    "conv": Operation("conv", {"kernel": (1, 3, 5)}),
    "bottleneck": Operation("bottleneck", {"kernel": (3, 5), "ratio": (1, 2, 4)}),
    "inverted_residual": Operation("inverted_residual", {"kernel": (3, 5), "expansion": (1, 2, 3)}),
    "skip": Operation("skip"),
}
every_operation = pytest.mark.parametrize("name", TABLE)
every_stride = pytest.mark.parametrize("stride", [1, 2])
every_width = pytest.mark.parametrize("width", [(4, 4), (4, 6)], ids=["same", "wider"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(operation: Operation, width: tuple[int, int], stride: int, seed: int = 0) -> Any:
    """Return the module in float64 with random parameters and statistics."""
    module = CANDIDATES[operation.name].build(operation, *width, stride).double()
    generator = seeded(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *statistics(module)]:
            tensor.copy_(0.3 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
            if tensor.dim() == 4:
                tensor.sub_(0.8)
    return module


def statistics(module: nn.Module) -> list[Tensor]:
    norms = (m for m in module.modules() if isinstance(m, BatchNorm))
    return [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]


def images(channels: int = 4, size: tuple[int, int] = (7, 6), seed: int = 1) -> Tensor:
    return torch.randn(3, channels, *size, generator=seeded(seed), dtype=torch.float64)


def mixed(operation: Operation, seed: int = 2) -> dict[str, Tensor]:
    """Return random weights of every choice with several sizes."""
    generator = seeded(seed)
    return {
        choice: torch.randn(len(sizes), generator=generator, dtype=torch.float64).softmax(0)
        for choice, sizes in operation.choices.items()
        if len(sizes) > 1
    }


def one_hot(operation: Operation, option: Operation) -> dict[str, Tensor]:
    return {
        choice: torch.eye(len(sizes), dtype=torch.float64)[sizes.index(option.choices[choice][0])]
        for choice, sizes in operation.choices.items()
        if len(sizes) > 1
    }


def central(kernel: Tensor, size: int) -> Tensor:
    """Return the central square of a convolution's weight [.., k, k]."""
    rim = (kernel.shape[-1] - size) // 2
    return kernel[..., rim : rim + size, rim : rim + size]


def take_slice(concrete: nn.Module, entangled: nn.Module) -> None:
    """Copy parameters: the first channels, and the center of each kernel."""
    with torch.no_grad():
        for small, large in zip(concrete.parameters(), entangled.parameters(), strict=True):
            part = large[tuple(slice(n) for n in small.shape[:2])]
            small.copy_(central(part, small.shape[-1]) if small.dim() == 4 else part)


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of every call of `module`."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    yield seen
    handle.remove()


# --- Entanglement ---------------------------------------------------------------------------------


@every_width
@every_stride
@every_operation
def test_one_hot_choices_give_the_concrete_operation(
    name: str, stride: int, width: tuple[int, int]
) -> None:
    entangled = build(TABLE[name], width, stride)
    x, scale = images(width[0]), torch.tensor(0.7, dtype=torch.float64)
    for option in TABLE[name].options:
        concrete = build(option, width, stride, seed=9)
        take_slice(concrete, entangled)
        expected = concrete(x, scale, None)
        torch.testing.assert_close(
            entangled(x, scale, one_hot(TABLE[name], option)), expected, rtol=0, atol=1e-10
        )


@every_width
@every_stride
def test_kernel_mixture_is_a_sum_of_convolutions(stride: int, width: tuple[int, int]) -> None:
    module: Conv = build(TABLE["conv"], width, stride)
    choices, x = mixed(TABLE["conv"]), images(width[0])
    with inputs_of(module.norm) as seen:
        module(x, None, choices)
    expected = sum(
        p * F.conv2d(x, central(module.conv.weight, size), stride=stride, padding=size // 2)
        for p, size in zip(choices["kernel"], (1, 3, 5))
    )
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-10)


@every_width
@every_stride
def test_expansion_mixture_is_a_sum_of_projections(stride: int, width: tuple[int, int]) -> None:
    module: InvertedResidual = build(TABLE["inverted_residual"], width, stride)
    choices, x = mixed(TABLE["inverted_residual"]), images(width[0])
    with inputs_of(module.norm2) as middle, inputs_of(module.norm3) as last:
        module(x, None, choices)
    h = F.silu(module.norm2(middle[0]))
    expected = sum(
        p * F.conv2d(h[:, :n], module.project.weight[:, :n])
        for p, n in zip(choices["expansion"], (width[0], 2 * width[0], 3 * width[0]))
    )
    torch.testing.assert_close(last[0], expected, rtol=0, atol=1e-10)


@every_stride
def test_ratio_mixture_masks_both_sides_of_the_dense_convolution(stride: int) -> None:
    module: Bottleneck = build(TABLE["bottleneck"], (4, 8), stride)
    choices, x = mixed(TABLE["bottleneck"]), images(4)
    with (
        inputs_of(module.norm1) as first,
        inputs_of(module.norm2) as second,
        inputs_of(module.norm3) as third,
    ):
        module(x, None, choices)
    h1, h2 = F.silu(module.norm1(first[0])), F.silu(module.norm2(second[0]))
    widths = list(zip(choices["ratio"], (8, 4, 2)))
    middle = sum(
        p * q * F.conv2d(h1[:, :n], small[:, :n], stride=stride, padding=size // 2)
        for p, n in widths
        for q, size in zip(choices["kernel"], (3, 5))
        for small in [central(module.conv.weight, size)]
    )
    last = sum(p * F.conv2d(h2[:, :n], module.expand.weight[:, :n]) for p, n in widths)
    torch.testing.assert_close(second[0], middle, rtol=0, atol=1e-10)
    torch.testing.assert_close(third[0], last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("outputs", [1, 2, 3, 5])
def test_narrowest_bottleneck_keeps_a_channel(outputs: int) -> None:
    operation = Operation("bottleneck", {"kernel": (3,), "ratio": (2, 4)})
    module: Bottleneck = build(operation, (4, outputs), 1)
    widths = dict(module.named_buffers())["ratio_masks"].sum(1).tolist()
    assert widths == [max(1, outputs // 2), max(1, outputs // 4)]
    assert module(images(4), None, mixed(operation)).shape == (3, outputs, 7, 6)


@every_operation
def test_masks_are_nested_and_not_saved(name: str) -> None:
    module = build(TABLE[name], (4, 8), 1)
    masks = dict(module.named_buffers())
    for choice, sizes in TABLE[name].choices.items():
        mask = masks[f"{choice}_masks"].flatten(1)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        if choice == "ratio":
            mask = mask.flip(0)  # a larger ratio means fewer middle channels
        assert (mask.diff(dim=0) >= 0).all() and (mask[-1] == 1).all()
        ones = {
            "kernel": [k * k for k in sizes],
            "ratio": [8 // r for r in reversed(sizes)],
            "expansion": [4 * e for e in sizes],
        }
        assert mask.sum(1).tolist() == ones[choice]
        if choice != "kernel":
            assert (mask.diff(dim=1) <= 0).all()  # ones come first
    assert not any("mask" in key for key in module.state_dict())


@every_operation
def test_concrete_operation_has_no_masks_and_needs_no_weights(name: str) -> None:
    for option in TABLE[name].options:
        module = build(option, (4, 6), 1)
        assert not any("mask" in key for key, _ in module.named_buffers())
        module(images(), None, None)


def test_choice_without_weights_is_an_error() -> None:
    with pytest.raises(AssertionError, match="conv k1/3/5 needs weights for kernel"):
        build(TABLE["conv"], (4, 4), 1)(images(), None, None)


# --- BatchNorm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@every_stride
@every_operation
def test_scale_multiplies_the_branch(name: str, stride: int, training: bool) -> None:
    module = build(TABLE[name], (4, 6), stride).train(training)
    x, scale, choices = images(), torch.tensor(0.3, dtype=torch.float64), mixed(TABLE[name])
    torch.testing.assert_close(module(x, scale, choices), scale * module(x, None, choices))


@pytest.mark.parametrize("training", [True, False])
@every_operation
def test_forward_pass_changes_no_buffer(name: str, training: bool) -> None:
    module = build(TABLE[name], (4, 6), 2).train(training)
    before = {key: value.clone() for key, value in module.named_buffers()}
    module(images(), None, mixed(TABLE[name])).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in module.named_buffers())
    assert not any("num_batches_tracked" in key for key in module.state_dict())


def test_batch_norm_by_its_formula() -> None:
    norm = BatchNorm(4).double()
    reference = nn.BatchNorm2d(4, momentum=1.0).double()
    for tensor in (norm.weight, norm.bias):
        nn.init.uniform_(tensor, generator=seeded())
    reference.load_state_dict(norm.state_dict(), strict=False)
    x = images()
    torch.testing.assert_close(norm.forward(x), reference(x))
    norm.load_state_dict(reference.state_dict(), strict=False)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x))


# --- Derivatives ----------------------------------------------------------------------------------


@every_width
@every_stride
@every_operation
def test_every_parameter_element_receives_a_gradient(
    name: str, stride: int, width: tuple[int, int]
) -> None:
    module = build(TABLE[name], width, stride)
    out = module(images(width[0]), torch.tensor(0.5), mixed(TABLE[name]))
    out.backward(torch.randn(out.shape, generator=seeded(3), dtype=out.dtype))
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).all(), key


@every_stride
@every_operation
def test_mixing_weights_pass_gradcheck(name: str, stride: int) -> None:
    operation = TABLE[name]
    module, x = build(operation, (2, 4), stride), images(2, (4, 3))
    choices = mixed(operation)
    probe = torch.randn(module(x, None, choices).shape, generator=seeded(4), dtype=torch.float64)

    def objective(scale: Tensor, *values: Tensor) -> Tensor:
        return (probe * module(x, scale, dict(zip(choices, values)))).sum()

    weights = [torch.tensor(0.6, dtype=torch.float64), *choices.values()]
    assert torch.autograd.gradcheck(objective, [w.requires_grad_() for w in weights])


# --- Shapes and cost ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (8, 8), (1, 9)])
@every_width
@every_stride
@every_operation
def test_shapes(name: str, stride: int, width: tuple[int, int], size: tuple[int, int]) -> None:
    out = build(TABLE[name], width, stride)(images(width[0], size), None, mixed(TABLE[name]))
    assert out.shape == (3, width[1], -(-size[0] // stride), -(-size[1] // stride))
    assert out.isfinite().all()


def test_pooling_ignores_pixels_outside_the_image() -> None:
    module = build(TABLE["skip"], (4, 4), 2)
    with inputs_of(module.norm) as seen:
        module(torch.ones(2, 4, 3, 5, dtype=torch.float64), None, None)
    assert (seen[0] == 1).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (1, 1)])
@every_width
@every_stride
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_option_cost_equals_the_cost_of_the_module(
    operation: Operation, stride: int, width: tuple[int, int], size: tuple[int, int]
) -> None:
    for option in operation.options:
        cost = option_cost(option, *width, stride, size)
        if option.name == "skip" and has_residual(*width, stride):
            assert cost == (0, 0)
            continue
        module = build(option, width, stride)
        with MacCounter() as counter:
            module(images(width[0], size)[:1].expand(2, -1, -1, -1), None, None)
        assert cost == (sum(p.numel() for p in module.parameters()), counter.macs / 2)
        assert all(type(value) is int for value in cost)


@pytest.mark.parametrize(
    "option, inputs, outputs, stride, parameters, macs",
    [
        (Operation("conv", {"kernel": (3,)}), 4, 8, 2, 9 * 32 + 16, 9 * 32 * 20),
        (
            Operation("bottleneck", {"kernel": (5,), "ratio": (4,)}),
            *(4, 8, 1),
            4 * 2 + 25 * 4 + 2 * 8 + 2 * (2 + 2 + 8),
            (4 * 2 + 25 * 4 + 2 * 8) * 63,
        ),
        (
            Operation("inverted_residual", {"kernel": (3,), "expansion": (2,)}),
            *(4, 8, 2),
            4 * 8 + 9 * 8 + 8 * 8 + 2 * (8 + 8 + 8),
            4 * 8 * 63 + (9 * 8 + 8 * 8) * 20,
        ),
        (Operation("skip"), 4, 8, 2, 32 + 16, 32 * 20),
        (Operation("skip"), 4, 4, 2, 8, 0),
        (Operation("skip"), 4, 8, 1, 32 + 16, 32 * 63),
        (Operation("skip"), 4, 4, 1, 0, 0),
    ],
    ids=lambda value: value.label if isinstance(value, Operation) else "",
)
def test_cost_by_hand(
    option: Operation, inputs: int, outputs: int, stride: int, parameters: int, macs: int
) -> None:
    """Count on 9 x 7 pixels: 63 positions, or 20 after a stride of two."""
    assert option_cost(option, inputs, outputs, stride, (9, 7)) == (parameters, macs)


def test_costs_add() -> None:
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
