"""A data set cut into three disjoint stratified parts."""

from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.data.images import Dataset, Images
from darts_lite.errors import UserError

_TEST_SEED = 1_000_003  # carves the test images when there is no official test set, for every seed


class Splits(NamedTuple):
    """Disjoint images: weights learn from `train`, outer variables and model selection from
    `validation`; `test` is touched once, at the end."""

    train: Images
    validation: Images
    test: Images


def split(
    dataset: Dataset,
    *,
    subset: int | None = None,
    validation: float = 0.5,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Cut a data set into three disjoint stratified parts.

    Without an official test set, the test images are carved out first, by a seed of their own:
    they are the same for every `seed`, `subset` and `validation`, so that what one search
    learned from can never be another one's test.  Then the subset, then the validation images
    are drawn, by `seed`.  A class departs from its exact share by less than one image, except
    where it would get none in one of the parts.

    Arguments:
        subset: number of images for training and validation together; None means all.
        validation: fraction of those for validation.
        test: fraction of all images for the test, if there is no official test set.
        seed: of subset and validation.
    """
    for what, fraction in (("validation", validation), ("test", test)):
        if not 0 < fraction < 1:
            raise UserError(f"{what} fraction {fraction} must lie strictly between 0 and 1")
    labels = dataset.train.labels.cpu()
    counts = torch.bincount(labels, minlength=len(dataset.classes))
    rest = torch.arange(len(labels))
    if dataset.test is None:
        _require(counts, 3, dataset, "training, validation and test")
        share = _shares(counts, round(test * len(rest))).clamp(min=1).minimum(counts - 2)
        held_out, rest = _draw(rest, labels, share, torch.Generator().manual_seed(_TEST_SEED))
        test_images = dataset.train.select(held_out)
    else:
        test_images = dataset.test
        test_counts = torch.bincount(test_images.labels.cpu(), minlength=len(dataset.classes))
        _require(test_counts, 1, dataset, "test")
        _require(counts, 2, dataset, "training and validation")

    generator = torch.Generator().manual_seed(seed)
    if subset is not None:
        if not 0 < subset <= len(rest):
            raise UserError(
                f"subset {subset} is out of range: {dataset.name} has {len(rest)} images outside"
                f" the test set; use 1 to {len(rest)}"
            )
        share = _shares(torch.bincount(labels[rest], minlength=len(counts)), subset)
        if share.min() < 2:
            raise UserError(
                f"subset {subset} is too small: class {dataset.classes[int(share.argmin())]!r}"
                f" gets {int(share.min())} images, training and validation need 2;"
                " use a larger subset"
            )
        rest, _ = _draw(rest, labels, share, generator)
    counts = torch.bincount(labels[rest], minlength=len(counts))
    share = _shares(counts, round(validation * len(rest))).clamp(min=1).minimum(counts - 1)
    chosen, rest = _draw(rest, labels, share, generator)
    return Splits(dataset.train.select(rest), dataset.train.select(chosen), test_images)


def stratified(images: Images, fraction: float, seed: int) -> Images:
    """A part of the images with the shares of their classes, at least one image of each."""
    labels = images.labels.cpu()
    counts = torch.bincount(labels)
    share = _shares(counts, round(fraction * len(labels))).clamp(min=1).minimum(counts)
    generator = torch.Generator().manual_seed(seed)
    return images.select(_draw(torch.arange(len(labels)), labels, share, generator)[0])


def _require(counts: Tensor, least: int, dataset: Dataset, purpose: str) -> None:
    if counts.min() < least:
        worst = int(counts.argmin())
        raise UserError(
            f"class {dataset.classes[worst]!r} of {dataset.name} has {int(counts[worst])} images,"
            f" {purpose} need at least {least}; add images or drop the class"
        )


def _shares(counts: Tensor, total: int) -> Tensor:
    """Divide `total` among classes in proportion to `counts`, by largest remainder; int64 [K]."""
    whole = int(counts.sum())
    shares, remainders = counts * total // whole, counts * total % whole
    order = remainders.argsort(descending=True, stable=True)
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def _draw(
    index: Tensor, labels: Tensor, share: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw `share[k]` of class k from `index`; returns what was drawn and the rest, both sorted."""
    shuffled = index[torch.randperm(len(index), generator=generator)]
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[grouped]
    counts = torch.bincount(classes, minlength=len(share))
    rank = torch.arange(len(index)) - (counts.cumsum(0) - counts)[classes]  # within its class
    drawn = rank < share[classes]
    return grouped[drawn].sort().values, grouped[~drawn].sort().values
