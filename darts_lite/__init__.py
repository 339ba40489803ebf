"""darts_lite: architecture, learning rate, weight decay and augmentation from one training run."""

from darts_lite.training import budget as _budget

__version__ = "0.1.0"
__all__ = ["__version__"]
del _budget
