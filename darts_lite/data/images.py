"""Labeled images in memory as uint8, and the data set of these images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darts_lite.architecture.reading import Reading

MIN_SIZE = 8  # pixels per side; the network halves an image twice


class Images(NamedTuple):
    """Labeled images on one device.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N]; of pseudo-labels, floating [N, K].
    """

    pixels: Tensor
    labels: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]  # `len` and `tuple.count` see two fields
        """Number of images, N."""
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def select(self, index: Tensor) -> "Images":
        """Return a copy of the images at `index`, int64 [M]."""
        index = index.to(self.labels.device)
        return Images(self.pixels[index], self.labels[index])


class Found(NamedTuple):
    """What was found while a user's own images were read.

    Attributes:
        passed_over: number of entries that are not used, by reason.
        problems: sentences about what may be wrong.
        notes: sentences about what was chosen from the images.
    """

    passed_over: dict[str, int]
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as it was published; `split` cuts it into training, validation and test.

    Attributes:
        name: Name as given to `load`.
        train: All images outside the official validation and test sets.
        test: The official test set; None if there is no official test set.
        classes: Class names; `classes[label]`.
        flips: Whether a horizontal flip keeps the label.
        validation: The official validation set; None if there is none.
        reading: How image files became these images, for prediction.
        found: What was found while a user's own images were read.
    """

    name: str
    train: Images
    test: Images | None
    classes: tuple[str, ...]
    flips: bool
    validation: Images | None = None
    reading: Reading = field(default_factory=Reading)
    found: Found = field(default_factory=lambda: Found({}, [], []))

    @property
    def parts(self) -> dict[str, Images]:
        """The official splits by name: train, and validation and test if there are any."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in every.items() if images is not None}

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        height, width = self.train.pixels.shape[2:]
        return height, width

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return (self.channels, *self.image_size)

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """Identity of the data, for JSON: counts, shape, and a hash of every byte."""
        parts = list(self.parts.values())
        digest = hashlib.sha256(repr(([part.count for part in parts], self.classes)).encode())
        for tensor in (tensor for part in parts for tensor in part):
            digest.update(tensor.cpu().contiguous().numpy().data)
        labels = torch.cat([part.labels.cpu() for part in parts])
        return {
            "name": self.name,
            "images": len(labels),
            "classes": len(self.classes),
            "counts": torch.bincount(labels, minlength=len(self.classes)).tolist(),
            "shape": [self.channels, *self.image_size],
            "sha256": digest.hexdigest(),
        }


def floats(pixels: Tensor) -> Tensor:
    """Convert pixels uint8 [B, C, H, W] to float32 in [0, 1], channels_last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)


def grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether the new data may be the old data plus more images.

    True if name (of a published data set), classes and shape agree, some class has more images
    and no class has fewer.

    Arguments:
        old: Fingerprint of the old data.
        new: Fingerprint of the new data.
    """
    alike = all(old.get(what) == new[what] for what in ("classes", "shape")) and _same(old, new)
    changes = _changes(old, new)
    return alike and max(changes, default=0) > 0 and min(changes) >= 0


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Describe the difference between two fingerprints in words; None if the data are the same.

    Arguments:
        old: Fingerprint of the old data.
        new: Fingerprint of the new data.

    >>> old = {"name": "a", "images": 5, "classes": 2, "counts": [3, 2], "shape": [1, 8, 8]}
    >>> changed(old, {**old, "images": 9, "counts": [3, 6], "sha256": "0"})
    '4 more images (1 class grew)'
    """
    if all(old.get(what) == new.get(what) for what in ("sha256", "shape")):
        return None  # the name may differ: the folder was moved
    if old.get("shape") != new["shape"]:
        return f"images of {_size(new)}, were {_size(old)}"
    if old.get("classes") != new["classes"]:
        return f"other classes ({new['classes']}, were {old.get('classes')})"
    if not _same(old, new):
        return f"other data set ({new['name']}, was {old.get('name')})"
    changes = _changes(old, new)
    if not changes:  # earlier versions did not count images per class
        return f"other images ({new['images']}, were {old.get('images')})"
    more, fewer = [c for c in changes if c > 0], [-c for c in changes if c < 0]
    parts = [
        f"{sum(some)} {how} image{'s' * (sum(some) > 1)} "
        f"({len(some)} class{'es' * (len(some) > 1)} {did})"
        for some, how, did in ((more, "more", "grew"), (fewer, "fewer", "shrank"))
        if some
    ]
    return " and ".join(parts) or "other pixels or labels, as many as before"


def is_own(name: str) -> bool:
    """Tell whether the name of a data set stands for a user's own images."""
    return name.startswith(("folder:", "csv:"))


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two data sets have one name; own images may lie anywhere."""
    names = str(old.get("name")), str(new["name"])
    return names[0] == names[1] or all(map(is_own, names))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[int]:
    """Return the added images per class; empty if a fingerprint has no counts per class."""
    was, now = (one.get("counts") for one in (old, new))
    if not isinstance(was, list) or not isinstance(now, list):
        return []
    return [b - a for a, b in zip(was, now)]


def _size(fingerprint: Mapping[str, Any]) -> str:
    shape = fingerprint.get("shape")
    return "x".join(map(str, shape)) if isinstance(shape, list) else "unknown size"
