"""Smaller networks from trained ones: pruning, low-rank factors, int8, distillation."""
