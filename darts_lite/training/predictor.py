"""Predict class names and probabilities of images with a trained network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.networks import network_of
from darts_lite.data.decoding import decode
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


class Part(NamedTuple):
    """Predictions for one batch of files.

    Attributes:
        files: the B files that could be read, in order.
        probabilities: `[B, K]`, in the order of `Predictor.classes`.
        unreadable: one line for each file that could not be read.
    """

    files: list[Path]
    probabilities: Tensor
    unreadable: list[str]


BATCH = 256  # images per forward pass, as in the evaluation of a training


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

    def predict(
        self, images: Tensor | Sequence[str | Path] | str | Path, batch_size: int = BATCH
    ) -> Prediction:
        """Return class names and probabilities.

        Arguments:
            images: `[B, C, H, W]`, uint8 or floating in [0, 1], with the channels, height and
                width of the training images; or paths of image files. Files are read like training
                images (`Source.reading`).
            batch_size: images per forward pass.
        Raises: `UserError` if a file cannot be read, or the shape does not fit.
        """
        parts = list(self._parts(images, batch_size))
        probabilities = torch.cat(parts) if parts else torch.zeros(0, len(self.classes))
        names = [self.classes[i] for i in probabilities.argmax(1).tolist()]
        return Prediction(names, probabilities)

    def stream(self, files: Iterable[Path], batch_size: int = BATCH) -> Iterator[Part]:
        """Yield the predictions for image files, batch by batch, in order.

        Two batches of pixels are in memory at a time: the next one is decoded while the network
        has the current one. A file that cannot be read is reported in its part.

        Arguments:
            files: image files, read like training images.
            batch_size: images per forward pass.
        """
        rest, decoding = iter(files), deque[tuple[list[Path], Iterator[np.ndarray | UserError]]]()
        with ThreadPoolExecutor() as pool:  # PIL releases the interpreter lock while it decodes
            while batch := list(islice(rest, batch_size)):
                decoding.append((batch, pool.map(self._read, batch)))
                if len(decoding) > 1:
                    yield self._part(*decoding.popleft())
            if decoding:
                yield self._part(*decoding.popleft())

    def _parts(
        self, images: Tensor | Sequence[str | Path] | str | Path, batch_size: int
    ) -> Iterator[Tensor]:
        if isinstance(images, Tensor):
            if tuple(images.shape[1:]) != self.genotype.image:
                raise UserError(
                    f"images must be [B, C, H, W] with [C, H, W] = {list(self.genotype.image)}, "
                    f"got {list(images.shape)}; resize them, or give the paths of files"
                )
            yield from map(self._probabilities, images.split(batch_size))
            return
        paths = [images] if isinstance(images, str | Path) else images
        for part in self.stream(map(Path, paths), batch_size):
            for line in part.unreadable:
                raise UserError(line)
            yield part.probabilities

    @torch.no_grad()
    def _probabilities(self, pixels: Tensor) -> Tensor:
        return self.network(_floating(pixels.to(self.device))).softmax(1).cpu()

    def _part(self, files: list[Path], decoded: Iterator[np.ndarray | UserError]) -> Part:
        pairs = list(zip(files, decoded))
        unreadable = [str(found) for _, found in pairs if isinstance(found, UserError)]
        read = [(file, found) for file, found in pairs if not isinstance(found, UserError)]
        if not read:
            return Part([], torch.zeros(0, len(self.classes)), unreadable)
        pixels = np.stack([found for _, found in read])
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        probabilities = self._probabilities(torch.from_numpy(np.ascontiguousarray(pixels)))
        return Part([file for file, _ in read], probabilities, unreadable)

    def _read(self, path: Path) -> np.ndarray | UserError:
        """Return the pixels of a file, uint8 `[H, W]` or `[H, W, 3]`, or why it has none."""
        channels, height, width = self.genotype.image
        try:
            mode = "L" if channels == 1 else "RGB"
            return decode(path, mode, (height, width), self.genotype.source.reading)
        except UserError as error:
            return error


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
        run: the folder, such as "out/derive", or "out" above it; of a cross-validation, the
            ensemble of its folds.
        device: device of the network.
    Raises: `UserError` if the folder holds no finished training.
    """
    folder = Path(run)
    if not (folder / "model.pt").exists() and (folder / "derive" / "model.pt").exists():
        folder = folder / "derive"
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
    network = network_of(genotype)
    try:
        network.load_state_dict(checkpoint.read(path))
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(
            f"{path} must hold the weights of {folder}/genotype.json, got {reason!r}; run derive "
            "again"
        ) from None
    return Predictor(network.to(device).eval(), genotype)
