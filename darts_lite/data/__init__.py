"""Image data sets in memory, their three splits, and mini-batches.

- `load` reads a data set.
- `split` cuts the data set into three disjoint, stratified splits: training, validation, test.
- `Batches` and `evaluation_batches` turn images into float tensors on the device of the images.
"""

from darts_lite.data.batches import Batches, evaluation_batches
from darts_lite.data.images import Dataset, Images, changed, grown
from darts_lite.data.loading import first_available, known, load, resized
from darts_lite.data.splits import Splits, split, stratified

__all__ = [
    "Batches",
    "Dataset",
    "Images",
    "Splits",
    "changed",
    "evaluation_batches",
    "first_available",
    "grown",
    "known",
    "load",
    "resized",
    "split",
    "stratified",
]
