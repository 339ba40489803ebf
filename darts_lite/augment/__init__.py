"""Differentiable augmentation of images, in batch, on their device.

Imports no other room, and knows no network and no loss. Everything a caller needs is named here.
"""

from darts_lite.augment.fused import OPERATIONS, Places, operate
from darts_lite.augment.mixing import MixDraws, MixedLabels, Mixing, Targets
from darts_lite.augment.operations.record import Operation
from darts_lite.augment.pipeline import Augmentation, Augmented, Choices, Criterion
from darts_lite.augment.policies.fixed import AutoAugment, RandAugment, TrivialAugment
from darts_lite.augment.policies.learned import CLASSIC, Learned, Scheduled
from darts_lite.augment.policies.policy import Draws, Nothing, Policy, Strength, Values, check
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
    "MixDraws",
    "MixedLabels",
    "Mixing",
    "Nothing",
    "Operation",
    "Places",
    "Policy",
    "RandAugment",
    "Scheduled",
    "Strength",
    "Targets",
    "TrivialAugment",
    "Values",
    "augmentation",
    "check",
    "load",
    "operate",
    "to_json",
]
