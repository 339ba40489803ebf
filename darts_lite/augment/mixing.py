"""CutMix and mixup: pairs of images and their labels, mixed with a learnable strength.

`Mixing.sample` makes all random choices, `Mixing.apply` is a pure function of images, draws and
strength. `MixedLabels` says what the mixed images show; the loss is up to the caller. Image i takes
something of image j = partner[i]. With s the share of the partner that was drawn and t in [0, 1]
the strength,

    p = s t                                  the share that is asked for,
    out_i = (1 - w) image_i + w image_j      with a weight w for each pixel,
    share = mean of w over the pixels        the weight of the label of j.

**mixup** (Zhang et al. 2018): w = p everywhere, so that ∂out/∂t = s (image_j - image_i).

**CutMix** (Yun et al. 2019): w = cover_y · cover_x, a box of the sides √p·H and √p·W, antialiased
as in `cutout`, about a center that is uniform on the image. The image clips the box, so share is
the area that was really pasted: at most p, and p if nothing was clipped. The border moves with
∂√p/∂t = s / (2 √p), so that

    ∂w/∂t = s / (2 √p) · (∂cover_y/∂√p · cover_x + cover_y · ∂cover_x/∂√p),

and ∂share/∂t is its mean, s if nothing was clipped. Both stay finite where √p does not have a
derivative: as p → 0 the box lies in one pixel, w = H W p, and ∂w/∂t = H W s there.

No draw depends on t, and out is continuous in t: these are pathwise derivatives, and their mean
over draws is the derivative of the mean. Departures from the papers: the share is drawn per image
instead of per batch, and the box is not rounded to whole pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from darts_lite.augment.operations.cutout import coverage
from darts_lite.augment.operations.geometry import Size
from darts_lite.augment.policies.policy import STRICT
from darts_lite.errors import UserError

KINDS = ("cutmix", "mixup")

TINY = 2.0**-40
"""Share of the image below which a box grows as if inside one pixel, linearly: see `_weights`."""


class MixDraws(NamedTuple):
    """The random choices for one batch. Tensors only, so that they can be stored and moved.

    partner: `[B]` long, a permutation. share: `[B]` in [0, 1], the share of the partner at strength
    one; zero where an image is not mixed. center: `[B, 2]`, the center of the box, (x, y) as
    fractions of width and height. box: `[B]` bool, CutMix instead of mixup.
    """

    partner: Tensor
    share: Tensor
    center: Tensor
    box: Tensor


class MixedLabels(NamedTuple):
    """The labels of a batch of mixed images.

    labels: `[B]` long, or soft `[B, K]`. partners: the same, of each image's partner. share: `[B]`
    in [0, 1], the weight of the partner's label; that of the image's own label is 1 - share.
    """

    labels: Tensor
    partners: Tensor
    share: Tensor


Targets = Tensor | MixedLabels
"""Labels `[B]` long or soft labels `[B, K]`, or the labels of mixed images."""


@dataclass(frozen=True)
class Mixing:
    """Mix each image with another image of the batch, after all other augmentation.

    Arguments:
        kinds: "cutmix", "mixup" or both; with both, a fair coin for each image.
        alpha: above 0; the share is Beta(alpha, alpha), drawn for each image; 1 is uniform.
        probability: probability that an image is mixed, in [0, 1].
        strength: strength where it is not learned, in [0, 1]; 1 is as published.
    Raises: UserError if a knob is out of its range.

    >>> mixing = Mixing(("cutmix", "mixup"))
    >>> draws = mixing.sample(4, torch.Generator().manual_seed(0))
    >>> images, strength = torch.rand(4, 3, 8, 8), torch.tensor(0.5, requires_grad=True)
    >>> mixed, share = mixing.apply(images, draws, strength)
    >>> share.shape, torch.autograd.grad(mixed.sum(), strength)[0].shape
    (torch.Size([4]), torch.Size([]))
    """

    __pydantic_config__ = STRICT

    kinds: tuple[str, ...] = ("cutmix",)
    alpha: float = 1.0
    probability: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        known = isinstance(self.kinds, (tuple, list)) and set(self.kinds) <= set(KINDS)
        if not known or len(set(self.kinds)) != len(self.kinds) or not self.kinds:
            raise UserError(
                f"mixing: kinds must be one or both of {KINDS}, got {self.kinds!r}; give each once"
            )
        if not 0 < self.alpha < float("inf"):
            raise UserError(
                f"mixing: alpha must be finite and above 0, got {self.alpha}; 1 is uniform"
            )
        if not 0 <= self.probability <= 1:
            raise UserError(
                f"mixing: probability must be in [0, 1], got {self.probability}; 1 mixes all"
            )
        if not 0 <= self.strength <= 1:
            raise UserError(
                f"mixing: strength must be in [0, 1], got {self.strength}; 1 is as published"
            )

    def sample(
        self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> MixDraws:
        """Make all random choices for one batch: one call to the generator, one transfer.

        A Beta variate is the inverse of its distribution function at a uniform variate.

        Arguments:
            batch: images.
            generator: on the CPU.
            device: of the draws.
        Returns: MixDraws on `device`.

        >>> Mixing(alpha=0.2).sample(5, torch.Generator().manual_seed(0)).partner.sort().values
        tensor([0, 1, 2, 3, 4])
        """
        uniform = torch.rand(batch, 6, generator=generator, dtype=torch.float64)
        order, share, chance, coin = uniform[:, :4].unbind(1)
        if self.alpha != 1:
            from scipy.special import betaincinv  # here: it would slow down every start

            share = torch.from_numpy(betaincinv(self.alpha, self.alpha, share.numpy()))
        share = share * (chance < self.probability)
        box = coin < self.kinds.count("cutmix") / len(self.kinds)
        packed = torch.stack((order.argsort(), share, box), 1)
        packed = torch.cat((packed, uniform[:, 4:]), 1).float().to(device, non_blocking=True)
        partner, share, box = packed[:, :3].unbind(1)
        return MixDraws(partner.long(), share, packed[:, 3:], box.bool())

    def apply(
        self, images: Tensor, draws: MixDraws, strength: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed images and the weights of their partners' labels: a pure function.

        Differentiable in images and strength, twice and in forward mode too. Nothing waits for the
        device. A strength of zero is exactly the identity, one is as published.

        Arguments:
            images: `[B, C, H, W]` floating.
            draws: of `sample`, on the same device.
            strength: in [0, 1], one for all or `[B]`; by default `self.strength`.
        Returns: images `[B, C, H, W]`, channels_last if `images` is; share `[B]`, in the dtype of
            the images but at least float32.
        Raises: UserError if images, draws and strength do not fit together.

        >>> half = MixDraws(  # image 1 fills the left half of image 0
        ...     partner=torch.tensor([1, 0]),
        ...     share=torch.tensor([1.0, 0.0]),
        ...     center=torch.tensor([[0.0, 0.5], [0.5, 0.5]]),
        ...     box=torch.tensor([True, True]),
        ... )
        >>> images = torch.stack((torch.zeros(1, 2, 4), torch.ones(1, 2, 4)))
        >>> mixed, share = Mixing().apply(images, half)
        >>> mixed[0, 0], share
        (tensor([[1., 1., 0., 0.],
                [1., 1., 0., 0.]]), tensor([0.5000, 0.0000]))
        """
        strength = self.strength if strength is None else strength
        _check(images, draws, strength)
        channels, height, width = images.shape[1:]
        rows, columns = _weights(draws, strength, (height, width))
        share = (rows.mean(1) * columns.mean(1)).to(torch.promote_types(images.dtype, torch.float))
        rows, columns = rows.to(images.dtype), columns.to(images.dtype)
        # lerp is exact at the weights 0 and 1, and fast if it does not broadcast within rows.
        if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
            weight = (rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)
            return torch.lerp(images, images.index_select(0, draws.partner), weight), share
        pixels = images.permute(0, 2, 3, 1).flatten(2)
        columns = columns.unsqueeze(2).expand(-1, -1, channels).flatten(1)
        weight = rows.unsqueeze(2) * columns.unsqueeze(1)
        mixed = torch.lerp(pixels, pixels.index_select(0, draws.partner), weight)
        return mixed.unflatten(2, (width, channels)).permute(0, 3, 1, 2), share


def _check(images: Tensor, draws: MixDraws, strength: Tensor | float) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"mixing: images must be floating [B, C, H, W], got shape {tuple(images.shape)} and "
            f"{images.dtype}; divide bytes by 255"
        )
    if len(draws.partner) != len(images):
        raise UserError(
            f"mixing: draws must be for {len(images)} images, got {len(draws.partner)}; "
            "sample as many"
        )
    if isinstance(strength, Tensor):
        if strength.shape not in ((), images.shape[:1]):
            raise UserError(
                f"mixing: strength must be [] or [B], got {tuple(strength.shape)}; give "
                f"one number, or one for each of {len(images)} images"
            )
    elif not 0 <= strength <= 1:
        raise UserError(f"mixing: strength must be in [0, 1], got {strength}; 1 is as published")


def _weights(draws: MixDraws, strength: Tensor | float, size: Size) -> tuple[Tensor, Tensor]:
    """Return rows `[B, H]` and columns `[B, W]`, float64, whose products are the pixels' weights.

    √p has no derivative at p = 0. So a box has an area of at least `TINY`, and below that its
    weight is scaled by p / TINY. That is exact for a box inside one pixel. Boxes so small that
    cross the border of a pixel have their centers in a share of about W √TINY + H √TINY of the
    image.
    """
    height, width = size
    asked = (draws.share.double() * strength).unsqueeze(1)
    half = asked.clamp(min=TINY).sqrt() / 2
    center = draws.center.double()
    cover_y = coverage(center[:, 1:] * height, half * height, height)
    cover_x = coverage(center[:, :1] * width, half * width, width)
    box = draws.box.unsqueeze(1)
    rows = torch.where(box, cover_y * (asked / TINY).clamp(max=1), asked)
    return rows, torch.where(box, cover_x, torch.ones_like(cover_x))
