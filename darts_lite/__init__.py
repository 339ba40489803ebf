"""darts_lite: architecture, learning rate, weight decay and augmentation from one training run."""

from darts_lite import budget as _budget  # first: it notes when the process started

__version__ = "0.1.0"
__all__ = ["__version__"]
del _budget
