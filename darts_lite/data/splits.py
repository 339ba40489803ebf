"""Training, validation and test: three disjoint, stratified splits of a data set."""

from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.data.images import Dataset, Images
from darts_lite.errors import UserError

_TEST_SEED = 1_000_003  # draws the test images if there is no official test set; same for all seeds


class Splits(NamedTuple):
    """Three disjoint sets of images.

    Attributes:
        train: The weights learn from these images.
        validation: The outer variables and the model selection learn from these images.
        test: These images are used once, at the end.
    """

    train: Images
    validation: Images
    test: Images

    @property
    def learned(self) -> Images:
        """Training and validation images together, in this order."""
        return Images(*(torch.cat(pair) for pair in zip(self.train, self.validation)))


def split(
    dataset: Dataset,
    *,
    subset: int | None = None,
    validation: float = 0.5,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Cut a data set into three disjoint, stratified splits.

    The order of the draws:

    1. The test images, if there is no official test set. Their seed is fixed, so they are the
       same for every `seed`, `subset` and `validation`. An image that one search learned from
       is never a test image of another search.
    2. The subset, by `seed`.
    3. The validation images, by `seed`.

    Each class differs from its exact share by less than one image, except where the class would
    get no image in one split.

    Arguments:
        dataset: Data set to cut.
        subset: Number of training and validation images together; None means all.
        validation: Fraction of the training and validation images that are for validation.
        test: Fraction of all images that are for the test, if there is no official test set.
        seed: Seed of the subset and the validation images.

    Raises:
        UserError: A fraction or the subset is out of range, or a class has too few images.
    """
    for what, fraction in (("validation", validation), ("test", test)):
        if not 0 < fraction < 1:
            raise UserError(
                f"{what} fraction must be above 0 and below 1, got {fraction}; change it"
            )
    labels = dataset.train.labels.cpu()
    test_images, rest, _, generator = _cut(dataset, subset, test, seed)
    official = dataset.validation
    if official is not None:
        if subset is not None:
            whole = subset / (_available(dataset, test) + official.count)
            official = stratified(official, whole, seed)
        return Splits(dataset.train.select(rest), official, test_images)
    counts = torch.bincount(labels[rest], minlength=len(dataset.classes))
    share = _shares(counts, round(validation * len(rest))).clamp(min=1).minimum(counts - 1)
    chosen, rest = _draw(rest, labels, share, generator)
    return Splits(dataset.train.select(rest), dataset.train.select(chosen), test_images)


def _cut(
    dataset: Dataset, subset: int | None, test: float, seed: int
) -> tuple[Images, Tensor, Tensor, torch.Generator]:
    """Return test images, the subset and the rest as indices, and the generator after the draws."""
    labels = dataset.train.labels.cpu()
    counts = torch.bincount(labels, minlength=len(dataset.classes))
    rest = torch.arange(len(labels))
    drawn = [s for s in ("validation", "test") if s not in dataset.parts]
    _require(counts, 1 + len(drawn), dataset, " and ".join(["training", *drawn]))
    if dataset.test is None:
        share = _shares(counts, round(test * len(rest))).clamp(min=1).minimum(counts - len(drawn))
        held_out, rest = _draw(rest, labels, share, torch.Generator().manual_seed(_TEST_SEED))
        test_images = dataset.train.select(held_out)
    else:
        test_images = dataset.test

    generator, left = torch.Generator().manual_seed(seed), rest[:0]
    if subset is not None:
        official = 0 if dataset.validation is None else dataset.validation.count
        if not 0 < subset <= len(rest) + official:
            raise UserError(
                f"subset must be 1 to {len(rest) + official}, the images of {dataset.name} outside"
                f" the test set, got {subset}; change it"
            )
        subset = round(subset * len(rest) / (len(rest) + official))
        share = _shares(torch.bincount(labels[rest], minlength=len(counts)), subset)
        least = 1 if official else 2
        if share.min() < least:
            raise UserError(
                f"subset must give every class {least} images outside the test set, got"
                f" {int(share.min())} of {dataset.classes[int(share.argmin())]!r} with subset"
                f" {subset}; use a larger subset"
            )
        rest, left = _draw(rest, labels, share, generator)
    return test_images, rest, left, generator


def _available(dataset: Dataset, test: float) -> int:
    """Return the number of images of `dataset.train` that are not drawn for the test."""
    return len(_cut(dataset, None, test, 0)[1])


def left_over(dataset: Dataset, subset: int, seed: int, test: float = 0.2) -> Images:
    """Return the images that `split` with the same arguments leaves out of the subset."""
    return dataset.train.select(_cut(dataset, subset, test, seed)[2])


def fold_of(splits: Splits, fold: int, count: int, seed: int) -> Splits:
    """Return the splits of one fold of a stratified cross-validation; the test images stay.

    Arguments:
        splits: Splits whose training and validation images are divided into folds.
        fold: Number of the fold, from 0; its images are the validation images.
        count: Number of folds, at least 2.
        seed: Seed of the folds; every fold must have the same.

    Raises:
        UserError: `fold` is out of range, or a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold  # the import takes a second

    if not 0 <= fold < count:
        raise UserError(f"--fold must be 0 to {count - 1}, got {fold}; leave it out for all folds")
    whole = splits.learned
    labels = whole.labels.cpu()
    counts = torch.bincount(labels)
    if counts[counts > 0].min() < count:
        raise UserError(
            f"--folds must be at most {int(counts[counts > 0].min())}, the images of the rarest"
            f" class, got {count}; use fewer folds"
        )
    cut = StratifiedKFold(count, shuffle=True, random_state=seed)
    rest, chosen = list(cut.split(labels, labels))[fold]
    train, validation = (whole.select(torch.from_numpy(index)) for index in (rest, chosen))
    return Splits(train, validation, splits.test)


def stratified(images: Images, fraction: float, seed: int) -> Images:
    """Draw a part of the images that keeps the shares of the classes.

    Arguments:
        images: Images to draw from.
        fraction: Fraction of the images to draw, 0 to 1; every class keeps at least one image.
        seed: Seed of the draw.
    """
    labels = images.labels.cpu()
    counts = torch.bincount(labels)
    share = _shares(counts, round(fraction * len(labels))).clamp(min=1).minimum(counts)
    generator = torch.Generator().manual_seed(seed)
    return images.select(_draw(torch.arange(len(labels)), labels, share, generator)[0])


def _require(counts: Tensor, least: int, dataset: Dataset, purpose: str) -> None:
    """Raise `UserError` unless every class has images for every split that is drawn."""
    if counts.min() < least:
        worst = int(counts.argmin())
        raise UserError(
            f"every class must have at least {least} images for {purpose},"
            f" got {int(counts[worst])} of {dataset.classes[worst]!r} in {dataset.name};"
            " add images or remove the class"
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
    """Draw `share[k]` images of class k from `index`; return drawn and other indices, sorted."""
    shuffled = index[torch.randperm(len(index), generator=generator)]
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[grouped]
    counts = torch.bincount(classes, minlength=len(share))
    rank = torch.arange(len(index)) - (counts.cumsum(0) - counts)[classes]  # rank within the class
    drawn = rank < share[classes]
    return grouped[drawn].sort().values, grouped[~drawn].sort().values
