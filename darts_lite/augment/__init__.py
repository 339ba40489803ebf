"""Differentiable augmentation of images, in batch, on their device."""

from darts_lite.augment.policy import OPERATIONS, Draws, LearnedMagnitudes

__all__ = ["OPERATIONS", "Draws", "LearnedMagnitudes"]
