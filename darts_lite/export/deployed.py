"""A network in use as one module, and its description as text."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

import darts_lite
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.architecture.plain import PlainNetwork, folded
from darts_lite.architecture.reading import Reading
from darts_lite.training.predictor import Ensemble, Predictor

FITS = {
    "crop": "crop its center to a square, ",
    "pad": "pad it to a square with the background, ",
    "stretch": "",
}


class Deployed(nn.Module):
    """Preprocessing, the network without BatchNorm, and softmax.

    Arguments:
        network: network in evaluation mode; maps images `[B, C, H, W]` in [0, 1] to logits.
        uint8: whether the images are uint8; otherwise float32 in [0, 1].
    """

    def __init__(self, network: nn.Module, uint8: bool):
        super().__init__()
        self.network = _without_norms(network)
        self.uint8 = uint8

    def forward(self, images: Tensor) -> Tensor:
        """Return the class probabilities `[B, K]` of images `[B, C, H, W]`."""
        pixels = images.float() / 255 if self.uint8 else images
        return self.network(pixels).softmax(1)


def _without_norms(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose convolutions have taken over the maps of BatchNorm."""
    if isinstance(network, Ensemble):
        return Ensemble(map(_without_norms, network.members))
    if isinstance(network, Network):
        return network.plain(fold=True)
    return folded(network) if isinstance(network, PlainNetwork) else network


def program_of(predictor: Predictor, uint8: bool) -> torch.export.ExportedProgram:
    """Return the graph of a network in use, for any number of images."""
    module = Deployed(predictor.network, uint8).eval()
    example = torch.zeros(2, *predictor.genotype.image, dtype=_dtype(uint8))
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})


def _dtype(uint8: bool) -> torch.dtype:
    return torch.uint8 if uint8 else torch.float32


def _deep(how: Reading) -> str:
    """Return a phrase about files of more than 8 bits; empty if the training had none."""
    if how.low is None or how.high is None:
        return ""
    return f"scale values {how.low:g} to {how.high:g} of more than 8 bits to 0 to 255, "


def description(genotype: Genotype, uint8: bool) -> dict[str, str]:
    """Return what a user of the file must know; classes, image and data are JSON.

    Arguments:
        genotype: genotype of the network.
        uint8: whether the images are uint8; otherwise float32 in [0, 1].
    """
    channels, height, width = genotype.image
    how = genotype.source.reading
    fit = how.fit or "crop"
    mode = "L" if channels == 1 else "RGB"
    values = "uint8, 0 to 255" if uint8 else "float32, 0 to 1"
    return {
        "producer": f"darts_lite {darts_lite.__version__}",
        "preprocessing": f"turn the image upright, put it over {how.background} if it is "
        f"transparent, {_deep(how)}convert it to {mode}, {FITS[fit]}resize it (bicubic) to "
        f"{width}x{height}; images are [B, {channels}, {height}, {width}], {values}",
        "fit": fit,
        "background": how.background,
        "classes": json.dumps(genotype.classes, ensure_ascii=False),
        "image": json.dumps(genotype.image),
        "data": json.dumps(genotype.dataset, ensure_ascii=False),
    }
