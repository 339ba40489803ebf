"""darts_lite: architecture, learning rate, weight decay and augmentation from one training run.

>>> import darts_lite as dl
>>> dl.Genotype.__name__
'Genotype'
"""

from importlib import import_module
from typing import Any

from darts_lite.training import budget as _budget  # first: it notes when the process started

__version__ = "0.1.0"
_PUBLIC = {  # name -> the module that has it, imported when it is asked for
    "fit": "darts_lite.commands.api",
    "search": "darts_lite.commands.api",
    "derive": "darts_lite.commands.api",
    "selftrain": "darts_lite.commands.api",
    "compress": "darts_lite.commands.api",
    "tune": "darts_lite.commands.api",
    "load": "darts_lite.training.predictor",
    "Genotype": "darts_lite.architecture.genotype",
    "Learner": "darts_lite.hypergradient",
    "UserError": "darts_lite.errors",
}
__all__ = [*_PUBLIC, "__version__"]
del _budget


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'darts_lite' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
