"""The augmentation of a batch: a policy, then perhaps mixing.

The loss is up to the caller: `Augmentation.loss` is given a criterion and knows none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.augment.mixing import MixDraws, MixedLabels, Mixing, Targets
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import Draws, Policy, Values
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

STRENGTH = "mixing.strength"

Criterion = Callable[[Tensor, Targets], Tensor]
"""From logits `[B, K]` and targets to the loss `[B]` of each example."""


class Choices(NamedTuple):
    """The random choices for one batch: of the policy, and of the mixing if there is any."""

    policy: Draws
    mixing: MixDraws | None


class Augmented(NamedTuple):
    """Augmented images, and what is needed to mix their labels as the images were mixed.

    images: `[B, C, H, W]`. share: `[B]`, the weight of the partner's label, and partner: `[B]`, its
    place in the batch; None where nothing is mixed.
    """

    images: Tensor
    share: Tensor | None = None
    partner: Tensor | None = None

    def targets(self, labels: Tensor) -> Targets:
        """Return the labels `[B]` or `[B, K]` as they are, or mixed as the images are."""
        if self.share is None or self.partner is None:
            return labels
        return MixedLabels(labels, labels[self.partner], self.share)


@dataclass(frozen=True)
class Augmentation:
    """A policy, then CutMix or mixup if `mixing` is given.

    `names` are the values that can be learned. With mixing, "mixing.strength" in [0, 1] is one of
    them; where it is not given, the strength is that of `mixing`.

    Arguments:
        policy: which operations, and how strong.
        mixing: None for no mixing.
    Raises: UserError if probabilities would be learned together with mixing.

    >>> augment = Augmentation(Policy(channels=1, crop=1), Mixing(("mixup",)))
    >>> images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> choices = augment.sample(4, (8, 8), torch.Generator().manual_seed(0))
    >>> loss, logits = augment.loss(
    ...     model=lambda x: x.mean((2, 3)).repeat(1, 2),
    ...     criterion=lambda logits, targets: logits.square().sum(1),
    ...     images=images,
    ...     labels=labels,
    ...     choices=choices,
    ... )
    >>> loss.shape, logits.shape
    (torch.Size([]), torch.Size([4, 2]))
    """

    policy: Policy
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        if self.mixing and any(n.startswith("probability.") for n in self.policy.names):
            raise UserError(
                "augment: probabilities must not be learned together with mixing, because the "
                "operations of an image then matter for its partner; use "
                "Learned(probabilities=False)"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values that can be learned."""
        return (*self.policy.names, *((STRENGTH,) if self.mixing else ()))

    @property
    def starts(self) -> dict[str, float]:
        """The values where learning begins, by name."""
        return self.policy.starts | ({STRENGTH: 0.5} if self.mixing else {})

    @property
    def plain(self) -> Augmentation:
        """The same flips and shifts, without operations and mixing."""
        own = self.policy
        same = ("channels", "flips", "crop", "vertical_flips")
        return Augmentation(Policy(**{name: getattr(own, name) for name in same}))

    def replayed(self, schedules: Mapping[str, Schedule]) -> Augmentation:
        """Return the augmentation that follows the learned schedules instead of learning."""
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
        """Make all random choices for one batch.

        If the values have probabilities on another device, waits for that device once.

        Arguments: see `Policy.sample`.
        Returns: Choices on `device`.
        """
        draws = self.policy.sample(batch, size, generator, device, values, fraction, turn)
        mixing = self.mixing.sample(batch, generator, device) if self.mixing else None
        return Choices(draws, mixing)

    def apply(self, images: Tensor, choices: Choices, values: Values | None = None) -> Augmented:
        """Return the augmented images: a pure function, differentiable in images and values.

        Nothing in it waits for the device.

        Arguments:
            images: `[B, C, H, W]` floating, in [0, 1].
            choices: of `sample`, on the same device.
            values: the learned values, by name.
        Raises: UserError if the images have another shape or dtype.
        """
        out = self.policy.apply(images, choices.policy, values)
        if self.mixing is None or choices.mixing is None:
            return Augmented(out)
        strength = (values or {}).get(STRENGTH)
        out, share = self.mixing.apply(out, choices.mixing, strength)
        return Augmented(out, share, choices.mixing.partner)

    def loss(
        self,
        model: Callable[[Tensor], Tensor],
        criterion: Criterion,
        images: Tensor,
        labels: Tensor,
        choices: Choices,
        values: Values | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss on augmented images, differentiable in learned probabilities too.

        If `sample` turned a coin of each image, that of operation j, the model sees the images a
        second time. With l_i the losses, and l_i' the losses with the coin turned,

            loss = mean_i l_i + mean_i (p_j - p_j when drawn) n (2 z_ij - 1) (l_i - l_i')

        for n coins, z_ij the coin drawn. The second term is zero in value and changes no gradient
        in the weights. Its derivative in p_j is an unbiased estimate of the derivative of the
        expected loss, whatever the criterion, and so is the mixed derivative that a hypergradient
        needs. Of the estimators that were compared, turned coins have the least error for their
        cost (docs/augmentation.md). Images that influence each other through BatchNorm are treated
        as if they did not.

        Arguments:
            model: from images `[B, C, H, W]` to logits `[B, K]`.
            criterion: from logits `[B, K]` and targets to the loss `[B]` of each example.
            images: `[B, C, H, W]` in [0, 1].
            labels: `[B]` long, or soft `[B, K]`.
            choices: of `sample`.
            values: the learned values, by name.
        Returns: the loss `[]`; the logits `[B, K]`.
        """
        seen = self.apply(images, choices, values)
        targets = seen.targets(labels)
        logits = model(seen.images)
        each = criterion(logits, targets)
        turned = choices.policy.turned
        if seen.share is not None or turned is None or not values:
            return each.mean(), logits
        other = model(self.policy.apply(images, choices.policy, values, turned=True))
        slope = turned.weight * (each - criterion(other, targets))
        moved = self.policy.chance(turned.operation, values) - turned.chance
        return (each + moved * slope).mean(), logits
