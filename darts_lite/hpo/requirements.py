"""What the room needs beyond the core. Imported before Optuna."""

from importlib.util import find_spec

from darts_lite.errors import UserError

if find_spec("optuna") is None:
    raise UserError(
        "tune and correlate need Optuna, which is not installed: pip install 'darts_lite[tune]'"
    )
