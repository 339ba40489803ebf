"""Image data sets resident in memory, three disjoint stratified splits, and mini-batches.

`load` reads a data set, `split` cuts it into training, validation and test images, `Batches` and
`evaluation_batches` turn images into float tensors on the device where the images live.
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
