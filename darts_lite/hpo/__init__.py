"""Hyperparameter optimization within one budget: other search methods, and ours beside them.

All methods share one space, one bench and one clock.

- `launcher.tune` runs a study.
- `correlation.correlate` measures whether a cheap fidelity ranks configurations correctly.
- A method (`records.Method`) is a pure function of the records.
- A worker (`worker.Worker`) keeps no state; the storage (`storage.Study`) keeps the shared state.
"""
