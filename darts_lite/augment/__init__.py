"""Differentiable augmentation of images, in batch, on their device."""

from darts_lite.augment.fused import OPERATIONS, operate
from darts_lite.augment.mixing import MixedLabels, Mixing, Targets
from darts_lite.augment.pipeline import Augmentation, Augmented, Choices, Criterion
from darts_lite.augment.policies.fixed import AutoAugment, RandAugment, TrivialAugment
from darts_lite.augment.policies.learned import CLASSIC, Learned, Scheduled
from darts_lite.augment.policies.policy import Draws, Nothing, Policy
from darts_lite.augment.registry import POLICIES, augmentation, load, to_json

__all__ = [
    "CLASSIC",
    "OPERATIONS",
    "POLICIES",
    "Augmentation",
    "Augmented",
    "AutoAugment",
    "Choices",
    "Criterion",
    "Draws",
    "Learned",
    "MixedLabels",
    "Mixing",
    "Nothing",
    "Policy",
    "RandAugment",
    "Scheduled",
    "Targets",
    "TrivialAugment",
    "augmentation",
    "load",
    "operate",
    "to_json",
]
