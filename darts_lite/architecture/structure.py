"""What a network is, where it is not the one of a space. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from darts_lite.architecture.space import STRICT


@dataclass(frozen=True, kw_only=True)
class ConvLayer:
    """A convolution.

    Arguments:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Height and width of the kernel.
        stride: 1 or 2.
        padding: Padding above and below, and at the sides.
        groups: Groups of channels.
        bias: Whether it has a bias.
    """

    __pydantic_config__ = STRICT
    kind: Literal["conv"] = "conv"
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        sizes = (self.inputs, self.outputs, self.groups, *self.kernel, *self.stride)
        if min(sizes) < 1 or self.inputs % self.groups or self.outputs % self.groups:
            raise ValueError(f"a convolution must have positive sizes and whole groups, got {self}")


@dataclass(frozen=True, kw_only=True)
class NormLayer:
    """A BatchNorm of `channels` channels."""

    __pydantic_config__ = STRICT
    kind: Literal["norm"] = "norm"
    channels: int


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A linear map of `inputs` to `outputs` features."""

    __pydantic_config__ = STRICT
    kind: Literal["linear"] = "linear"
    inputs: int
    outputs: int
    bias: bool = True


Layer = Annotated[ConvLayer | NormLayer | LinearLayer, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class ChangedLayers:
    """The plain network of a space, with other layers in the place of some.

    Arguments:
        layers: Name of a module of `PlainNetwork` -> the layers in its place, in their order.
    """

    __pydantic_config__ = STRICT
    kind: Literal["layers"] = "layers"
    layers: dict[str, tuple[Layer, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A model of the library timm, in the place of the network of the space.

    Arguments:
        name: Name of the model, such as "resnet18" or, with a tag of timm, "resnet18.a1_in1k".
    """

    __pydantic_config__ = STRICT
    kind: Literal["timm"] = "timm"
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"a model of timm must have a plain name, got {self.name!r}")


Structure = Annotated[ChangedLayers | TimmModel, Field(discriminator="kind")]
