"""Everything that happens to a batch: a policy, then perhaps mixing, and the loss of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment.mixing import MixDraws, Mixing, mixed_cross_entropy
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import Draws, Policy, Values
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

STRENGTH = "mixing.strength"


class Choices(NamedTuple):
    """The random choices for one batch."""

    policy: Draws
    mixing: MixDraws | None


class Augmented(NamedTuple):
    """Images `[B, C, H, W]`, and the weight `[B]` of the partner's label where they are mixed."""

    images: Tensor
    share: Tensor | None


@dataclass(frozen=True)
class Augmentation:
    """A policy with CutMix or mixup behind it.

    `names` are the values that can be learned; "mixing.strength" in [0, 1] is one of them, and
    without it mixing is as published.

    >>> augment = Augmentation(Policy(channels=1, crop=1), Mixing(("mixup",)))
    >>> images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> choices = augment.sample(4, (8, 8), torch.Generator().manual_seed(0))
    >>> loss, logits = augment.loss(
    ...     lambda x: x.mean((2, 3)).repeat(1, 2), images, labels, choices
    ... )
    >>> loss.shape, logits.shape
    (torch.Size([]), torch.Size([4, 2]))
    """

    policy: Policy
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        if self.mixing and any(n.startswith("probability.") for n in self.policy.names):
            raise UserError(
                "augment: probabilities cannot be learned together with mixing, which makes an "
                "image's operations matter for its partner; use Learned(probabilities=False)"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.policy.names, *((STRENGTH,) if self.mixing else ()))

    @property
    def starts(self) -> dict[str, float]:
        """Where learning begins, by name."""
        return self.policy.starts | ({STRENGTH: 0.5} if self.mixing else {})

    @property
    def plain(self) -> Augmentation:
        """Its flips and shifts alone."""
        own = self.policy
        return Augmentation(Policy(channels=own.channels, flips=own.flips, crop=own.crop))

    def replayed(self, schedules: Mapping[str, Schedule]) -> Augmentation:
        """With what was learned of it, by name, in the place of what it would learn."""
        mixing = self.mixing
        if mixing and STRENGTH in schedules:
            mixing = replace(mixing, strength=schedules[STRENGTH][-1][1])
        return Augmentation(self.policy.replayed(schedules), mixing)

    def sample(
        self,
        batch: int,
        size: Size,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        values: Values | None = None,
        fraction: float = 0.0,
        turn: bool = False,
    ) -> Choices:
        """See `Policy.sample`."""
        draws = self.policy.sample(batch, size, generator, device, values, fraction, turn)
        mixing = self.mixing.sample(batch, generator, device) if self.mixing else None
        return Choices(draws, mixing)

    def apply(self, images: Tensor, choices: Choices, values: Values | None = None) -> Augmented:
        """The augmented images: a pure function, differentiable in images and values.

        Raises: UserError if the images are none.
        """
        out = self.policy.apply(images, choices.policy, values)
        if self.mixing is None or choices.mixing is None:
            return Augmented(out, None)
        strength = (values or {}).get(STRENGTH)
        return Augmented(*self.mixing.apply(out, choices.mixing, strength))

    def loss(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        choices: Choices,
        values: Values | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Mean cross entropy on augmented images; differentiable in learned probabilities too.

        Where the choices have turned a coin of each image, that of operation j, the model sees
        the images a second time, and with l_i the losses, l_i' those with the coin turned,

            loss = mean_i l_i + mean_i (p_j - p_j when drawn) n (2 z_ij - 1) (l_i - l_i')

        for n coins, z_ij the one drawn. The second term is zero in value and changes no gradient in
        the weights; its derivative in p_j is an unbiased estimate of that of the expected loss, and
        so is the mixed one that a hypergradient needs. Of the estimators that were compared, those
        that turn coins have the least error for their cost (docs/augmentation.md). If the images
        influence each other through BatchNorm, that influence is left out.

        Arguments: model, from images to logits `[B, classes]`; labels `[B]`.
        Returns: the loss, and the logits.
        """
        seen = self.apply(images, choices, values)
        logits = model(seen.images)
        if seen.share is not None and choices.mixing is not None:
            each = mixed_cross_entropy(logits, labels, choices.mixing, seen.share, label_smoothing)
            return each.mean(), logits
        each = _cross_entropy(logits, labels, label_smoothing)
        turned = choices.policy.turned
        if turned is None or not values:
            return each.mean(), logits
        other = model(self.policy.apply(images, choices.policy, values, turned=True))
        slope = turned.weight * (each - _cross_entropy(other, labels, label_smoothing))
        moved = self.policy.chance(turned.operation, values) - turned.chance
        return (each + moved * slope).mean(), logits


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
