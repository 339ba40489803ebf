"""What may be wrong with labelled images: copies, imbalance, a narrow range, and flips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from darts_lite.data.images import Dataset, Images
from darts_lite.data.layout import listed
from darts_lite.data.splits import Splits, stratified

RARE = 5.0  # images of the largest class per image of the smallest, from which it is imbalance
NARROW = 64  # of 255: smaller ranges of nearly all pixels are named
SAMPLE = 2000  # images that decide about flips and range
SIDE = 16  # pixels per side of these images
NEIGHBORS = 3
WORSE = 0.02  # loss of accuracy by flips that counts
ERRORS = 3.0  # standard errors of this loss that count


def surveyed(dataset: Dataset) -> Dataset:
    """Return the data set with sentences about its problems, and with its flips decided.

    Arguments:
        dataset: images of a user; `reading.flips` is None if the images decide.
    """
    problems, notes = list(dataset.found.problems), list(dataset.found.notes)
    problems += [*_imbalance(dataset), *_copies(dataset), *_narrow(dataset)]
    flips = dataset.reading.flips
    if flips is None:
        flips, note = flips_keep_labels(dataset.train)
        notes.append(note)
    found = dataset.found._replace(problems=problems, notes=notes)
    how = replace(dataset.reading, flips=flips)
    return replace(dataset, found=found, flips=flips, reading=how)


def _imbalance(dataset: Dataset) -> Iterator[str]:
    counts = torch.bincount(dataset.train.labels, minlength=len(dataset.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= RARE * counts[least]:
        yield (
            f"the classes are imbalanced: {int(counts[most])} images of "
            f"{dataset.classes[most]!r}, {int(counts[least])} of {dataset.classes[least]!r}; "
            "consider --class-weights balanced, --sampling balanced and --select-by macro_f1"
        )


def _copies(dataset: Dataset) -> Iterator[str]:
    """Name equal images with different labels, and equal images in two splits."""
    images = np.concatenate([image_hashes(part) for part in dataset.parts.values()])
    labels = np.concatenate([part.labels.numpy() for part in dataset.parts.values()])
    places = np.repeat(np.arange(len(dataset.parts)), [p.count for p in dataset.parts.values()])
    if mixed := _differing(images, labels):
        first = [dataset.classes[i] for i in mixed[0]]
        yield (
            f"{len(mixed)} images are in several classes, the first in {', '.join(first)}; "
            "correct their labels"
        )
    if shared := _differing(images, places):
        first = [list(dataset.parts)[i] for i in shared[0]]
        yield (
            f"{len(shared)} images are in several splits, the first in {' and '.join(first)}; test "
            "figures come out too high"
        )


def image_hashes(images: Images) -> np.ndarray:
    """Return a hash of every image, uint64 [N]."""
    rows = images.pixels.numpy()
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, np.uint64)


def _differing(keys: np.ndarray, values: np.ndarray) -> list[list[int]]:
    """Return the values of every key that has several of them."""
    pairs = np.unique(np.stack((keys, values.astype(np.uint64))), axis=1)
    _, first, counts = np.unique(pairs[0], return_index=True, return_counts=True)
    several = counts > 1
    starts, ends = first[several], first[several] + counts[several]
    return sorted(pairs[1, a:b].astype(int).tolist() for a, b in zip(starts, ends))


def _narrow(dataset: Dataset) -> Iterator[str]:
    pixels = _sample(dataset.train).pixels.flatten()
    low, high = np.percentile(pixels[:: max(1, len(pixels) // 1_000_000)], (0.5, 99.5))
    if high - low < NARROW:
        yield (
            f"the images use little of their range: nearly all values lie in {low:.0f} to "
            f"{high:.0f} of 255; look at them, and scale the files"
        )


def flips_keep_labels(images: Images) -> tuple[bool, str]:
    """Measure whether a horizontal flip keeps the labels; return the answer and a line.

    Half of the images are classified by their nearest neighbors in the other half, once with
    flipped copies of these. If the copies bring clearly more errors (McNemar's paired errors), a
    flip changes labels, as it does for left and right arrows.

    Arguments:
        images: training images.
    """
    some = _sample(images)
    small = adaptive_avg_pool2d(some.pixels.float() / 255, SIDE)
    order = torch.randperm(some.count, generator=torch.Generator().manual_seed(0))
    known, new = order[::2], order[1::2]
    x, mirrored, labels = small.flatten(1), small.flip(3).flatten(1), some.labels
    plain = _nearest(x[known], labels[known], x[new]) == labels[new]
    with_copies = _nearest(torch.cat((x[known], mirrored[known])), labels[known].repeat(2), x[new])
    both = with_copies == labels[new]
    lost, won = int((plain & ~both).sum()), int((~plain & both).sum())
    worse = (lost - won) / max(1, len(new))
    if worse <= WORSE or lost - won <= ERRORS * (lost + won) ** 0.5:
        return True, "images may be flipped left to right; --no-flips if that changes a label"
    return False, (
        f"images are not flipped: flipped copies of others cost a nearest-neighbor classifier "
        f"{worse:.0%} of accuracy; --flips to flip them all the same"
    )


def _nearest(known: Tensor, labels: Tensor, new: Tensor) -> Tensor:
    """Return the most frequent label of the nearest known images, `[M]`."""
    near = torch.cdist(new, known).topk(min(NEIGHBORS, len(known)), largest=False).indices
    return labels[near].mode(1).values


def _sample(images: Images) -> Images:
    return images if images.count <= SAMPLE else stratified(images, SAMPLE / images.count, 0)


def description(dataset: Dataset, splits: Splits) -> Iterator[str]:
    """Yield lines about a user's own images: classes, counts, choices and problems.

    Arguments:
        dataset: the data set.
        splits: its splits.
    """
    labels = torch.cat([part.labels.cpu() for part in splits])
    counts = torch.bincount(labels, minlength=len(dataset.classes))
    classes = [f"{name} {count}" for name, count in zip(dataset.classes, counts.tolist())]
    parts = ", ".join(f"{name} {part.count}" for name, part in splits._asdict().items())
    yield (
        f"{dataset.name}: {len(classes)} classes ({listed(classes)}); {parts}; images "
        f"{list(dataset.image)}"
    )
    yield from dataset.found.notes
    for reason, count in dataset.found.passed_over.items():
        yield f"passed over: {count} x {reason}"
    for problem in dataset.found.problems:
        yield f"warning: {problem}"
