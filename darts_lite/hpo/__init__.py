"""Rivals of the gradient under the same budget: one space, one bench and one clock for all.

`launch.tune` runs a study, `correlation.correlate` tells whether a cheap fidelity can be trusted.
A method is a pure function of what was measured (`job.Method`); a worker keeps no state (`worker`);
what they share is in storage (`study`).
"""

from importlib.util import find_spec

from darts_lite.errors import UserError

if find_spec("optuna") is None:
    raise UserError("tune and correlate need Optuna, which is not installed: pip install optuna")
