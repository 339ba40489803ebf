"""Trained networks made smaller: low-rank layers, int8."""
