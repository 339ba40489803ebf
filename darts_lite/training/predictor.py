"""Predict class names and probabilities of images with a trained network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network
from darts_lite.data.folder import read_images
from darts_lite.data.images import floats
from darts_lite.errors import UserError
from darts_lite.files import read_json
from darts_lite.training import checkpoint
from darts_lite.training.distillation import ensemble


class Prediction(NamedTuple):
    """Predictions for B images and K classes.

    Attributes:
        classes: name of the most probable class per image.
        probabilities: `[B, K]`, in the order of `Predictor.classes`.
    """

    classes: list[str]
    probabilities: Tensor


@dataclass(frozen=True)
class Predictor:
    """A trained network with its class names and preprocessing.

    Attributes:
        network: network in evaluation mode; maps images `[B, C, H, W]` in [0, 1] to logits
            `[B, K]`. That of a cross-validation gives the mean probabilities of all folds.
        genotype: genotype of the network.
    """

    network: nn.Module
    genotype: Genotype

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.genotype.classes

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def predict(
        self, images: Tensor | Sequence[str | Path] | str | Path, batch_size: int = 256
    ) -> Prediction:
        """Return class names and probabilities.

        Arguments:
            images: `[B, C, H, W]`, uint8 or floating in [0, 1], with the channels, height and
                width of the training images; or paths of image files. Files are read like training
                images (`Source.reading`).
            batch_size: images per forward pass.
        Raises: `UserError` if a file cannot be read, or the shape does not fit.
        """
        pixels = images if isinstance(images, Tensor) else self._read(images)
        if tuple(pixels.shape[1:]) != self.genotype.image:
            raise UserError(
                f"images must be [B, C, H, W] with [C, H, W] = {list(self.genotype.image)}, got "
                f"{list(pixels.shape)}; resize them, or give the paths of files"
            )
        parts = [
            self.network(_floating(part.to(self.device))).softmax(1).cpu()
            for part in pixels.split(batch_size)
        ]
        probabilities = torch.cat(parts) if parts else torch.zeros(0, len(self.classes))
        names = [self.classes[i] for i in probabilities.argmax(1).tolist()]
        return Prediction(names, probabilities)

    def _read(self, paths: Sequence[str | Path] | str | Path) -> Tensor:
        """Return the pixels of image files, uint8 `[B, C, H, W]`."""
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        return read_images(
            [Path(p) for p in listed], self.genotype.image, self.genotype.source.reading
        )


def _floating(pixels: Tensor) -> Tensor:
    if pixels.is_floating_point():
        return pixels.float().contiguous(memory_format=torch.channels_last)
    return floats(pixels)


class Ensemble(nn.Module):
    """Several networks; the logits are the logarithm of their mean probabilities.

    Arguments:
        members: networks that map images `[B, C, H, W]` to logits `[B, K]`.
    """

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return ensemble(list(self.members))(images)


def load(run: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Load a trained network from the folder that `derive` wrote.

    Loading runs no code from the files: they hold JSON and tensors only.

    Arguments:
        run: the folder, such as "out/derive"; of a cross-validation, the ensemble of its folds.
        device: device of the network.
    Raises: `UserError` if the folder holds no finished training.
    """
    folder = Path(run)
    path, folds = folder / "model.pt", folder / "folds.json"
    if folds.exists():
        names = [Path(name).name for name in read_json(folds).get("folders", [])]
        members = [load(folder / name, device) for name in names]
        if not members:
            raise UserError(f"{folds} must be of a finished cross-validation; continue it first")
        return Predictor(Ensemble(m.network for m in members), members[0].genotype)
    if not path.exists():
        raise UserError(
            f"{folder} must hold a finished training, got no {path.name}; run derive, or give the "
            "folder of a finished training"
        )
    genotype = Genotype.load(folder / "genotype.json")
    network = Network(genotype.space, genotype.image, len(genotype.classes))
    try:
        network.load_state_dict(checkpoint.read(path))
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(
            f"{path} must hold the weights of {folder}/genotype.json, got {reason!r}; run derive "
            "again"
        ) from None
    return Predictor(network.to(device).eval(), genotype)
