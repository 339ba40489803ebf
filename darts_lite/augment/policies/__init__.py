"""Augmentation policies: how the values of the operations are drawn."""
