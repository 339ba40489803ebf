"""Check of the optional dependency of hpo; it is imported before Optuna."""

from importlib.util import find_spec

from darts_lite.errors import UserError

if find_spec("optuna") is None:
    raise UserError(
        "tune and correlate need Optuna, which is not installed; run pip install optuna"
    )
