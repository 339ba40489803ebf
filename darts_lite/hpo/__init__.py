"""Rivals of the gradient under the same budget: one space, one evaluator and one clock for all.

`launcher.tune` runs a study, `correlation.correlate` tells whether a cheap fidelity can be trusted.
A method is a pure function of what was measured (`records.Method`); a worker keeps no state
(`worker`); what workers share is in storage (`storage`).
"""
