"""Choose the shape of training images from the shapes of the files and the budget."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from darts_lite.architecture.reading import Fit
from darts_lite.data.decoding import Look
from darts_lite.data.images import MIN_SIZE

SQUARE = 1.5  # longest over shortest side, up to which the center is most of an image
ALIKE = 1.1  # ratio of the aspects of images that are called equal
SIZES = (32, 48, 64, 96, 128)  # pixels per side of training images; smaller files keep their size
EPOCHS = 30  # epochs that a budget must allow at the chosen size
PIXELS = 1.0e6  # pixels per second in the training of a small network on a CPU core


def chosen_fit(seen: Sequence[Look]) -> tuple[Fit, str | None]:
    """Return how images become square, and a line if it is not the usual crop.

    The center of most images is most of the image: crop. Else the whole image is needed: stretched
    if all images have one shape, because a network does not mind; padded if they differ.

    Arguments:
        seen: headers of the images.
    """
    aspects = sorted(each.width / each.height for each in seen)
    long = median(max(a, 1 / a) for a in aspects)
    if long <= SQUARE:
        return "crop", None
    middle = aspects[len(aspects) // 20 : len(aspects) - len(aspects) // 20]
    fit: Fit = "stretch" if middle[-1] / middle[0] <= ALIKE else "pad"
    return fit, (
        f"the images are {long:.1f} times as long as wide, so they are made square by --fit {fit}"
    )


def chosen_size(seen: Sequence[Look], count: int, seconds: float | None) -> tuple[int, str]:
    """Return the pixels per side of training images, and a line that says why.

    Arguments:
        seen: headers of the images.
        count: number of images.
        seconds: budget of the training; None if there is none in time.
    """
    side = median(min(each.width, each.height) for each in seen)
    allowed = SIZES if seconds is None else _affordable(count, seconds)
    if side < SIZES[0]:
        size = max(MIN_SIZE, int(side) // 4 * 4)
        return size, f"image size {size}, from files of {side:g} pixels"
    size = max(s for s in allowed if s <= side)
    short = size < max(s for s in SIZES if s <= side)
    why = ", which this budget allows" if short else ""
    return size, f"image size {size}, from files of {side:g} pixels{why}; change it by --image-size"


def _affordable(count: int, seconds: float) -> tuple[int, ...]:
    """Return the sizes at which a budget allows `EPOCHS`; at least the smallest."""
    most = seconds * PIXELS / (EPOCHS * count)
    return tuple(s for s in SIZES if s == SIZES[0] or s * s <= most)
