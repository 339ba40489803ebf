"""Differentiable image operations, one family a module."""
