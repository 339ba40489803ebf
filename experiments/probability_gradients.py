"""Comparison of hypergradient estimators for the probability of an augmentation.

    OMP_NUM_THREADS=1 python experiments/probability_gradients.py    # 3 minutes of a free core

Operation j acts on image i if its coin z_ij ~ Bernoulli(p_j) says so. The one-step hypergradient of
p_j is the derivative of E[s], where s is the mean over the batch of s_i(z_i): the derivative of the
loss of image i along the validation gradient. If the network does not couple images, all 2^J
patterns of an image's coins are enumerated, and the truth is exact. Sizes, signs and places are
drawn once for every image and kept: here only coins, and batches, are random.

An estimator is a *surrogate loss*: made of losses of images at drawn coins, with a derivative in p
that estimates the truth. All are linear in these losses, so s_i may be put in their place: then the
derivative in p is what the mixed derivative of the surrogate of losses is. s_i is a central
difference, in float64.

A pass is the whole batch once, at one draw of coins. Bias, standard deviation, error and cosine are
those of one estimate against the exact derivative for its batch, relative to the length of that for
all images; error² × passes is given for all p together and for each. "All images" is error² ×
passes against the derivative for all images, to which the choice of the batch adds its part. Errors
average out and a bias does not (to say zero has an error of one and costs nothing), so the last
column is what counts: how many passes it takes until the mean of estimates is 25 % off.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import Places, operate
from darts_lite.data import load

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

REACH = {  # the largest value of each operation
    "translate_x": 0.3,
    "rotate": 0.5,
    "brightness": 0.8,
    "contrast": 0.8,
    "cutout": 0.5,
    "translate_y": 0.3,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "scale": 0.3,
}
DRAWS = 2  # of J uniform random numbers for every image
BATCH = 32
STATES = {"early": 30, "late": 600}  # steps of training
TRIALS = 2000  # estimates from a table
REAL = 100  # estimates for which the network has to run
ENOUGH = 0.25  # relative error
STEP = 1e-4  # of weights, for the difference of losses

# --- estimators: surrogate losses -----------------------------------------------------------------

Loss = Callable[..., Tensor]
"""`loss(coins [T, B, J]) -> [T, B]`: of each image of T batches; `weights [T, B]`, an option, are
the images' in the statistics of a network that couples them."""

Surrogate = Callable[[Loss, Tensor, Tensor], Tensor]
"""`surrogate(loss, p [T, J], uniform [T, B, DRAWS, J]) -> [T]`, a scalar for each batch."""


def toss(p: Tensor, uniform: Tensor, k: int = 0) -> Tensor:
    return (uniform[:, :, k] < p[:, None]).to(p)


def fresh(x: Tensor) -> Tensor:
    """Return zero with the derivative of x."""
    return x - x.detach()


def log_probability(coins: Tensor, p: Tensor) -> Tensor:
    return torch.where(coins > 0, p[:, None], 1 - p[:, None]).log().sum(-1)


def with_slope(losses: Tensor, p: Tensor, slope: Tensor) -> Tensor:
    """Return the mean loss with the derivative `slope [T, J]` in p."""
    return losses.mean(1) + (fresh(p) * slope).sum(1)


def score(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """The score function or REINFORCE (Williams 1992)."""
    coins = toss(p, uniform)
    losses = loss(coins)
    return (losses + losses * fresh(log_probability(coins, p))).mean(1)


def baseline(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Score function with a baseline: subtract from each loss the mean of the other losses."""
    coins = toss(p, uniform)
    losses = loss(coins)
    others = (losses.sum(1, keepdim=True) - losses) / (losses.shape[1] - 1)
    return (losses + (losses - others) * fresh(log_probability(coins, p))).mean(1)


def regression(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Coefficients of the regression of losses on coins. Biased, by the order of 1/B."""
    coins = toss(p, uniform)
    losses, ones = loss(coins), torch.ones_like(coins[..., :1])
    slope = torch.linalg.pinv(torch.cat((ones, coins), -1)) @ losses[..., None]
    return with_slope(losses, p, slope[:, 1:, 0])


def control(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Score function of the residual of a regression on the other images, plus its slopes."""
    coins, variance = toss(p, uniform), (p * (1 - p)).detach()
    losses, centered = loss(coins), coins - p[:, None].detach()
    x = torch.cat((torch.ones_like(coins[..., :1]), centered), -1)
    ridge = F.pad(variance, (1, 0)).diag_embed()  # as one more image would
    inverse = torch.linalg.solve(x.mT @ x + ridge, x.mT).mT
    fit = losses[:, None] @ inverse  # of all images; below, of all but one
    left = (losses - (x * fit).sum(-1)) / (1 - (x * inverse).sum(-1))
    slopes = (fit - inverse * left[..., None])[..., 1:]
    slopes = slopes + left[..., None] * centered / variance[:, None]
    return with_slope(losses, p, slopes.mean(1))


def pairs(antithetic: bool) -> Surrogate:
    """Two draws of an image's coins: the difference of its losses times that of its coins.

    Independent, they are a leave-one-out baseline within the image; antithetic, made of u and of
    1 - u, they are DisARM (Dong et al. 2020).
    """

    def surrogate(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
        one = toss(p, uniform)
        two = toss(p, 1 - uniform) if antithetic else toss(p, uniform, 1)
        first, second = loss(one), loss(two)
        variance = 2 * (torch.minimum(p, 1 - p) if antithetic else p * (1 - p)).detach()
        slopes = (first - second)[..., None] * (one - two) / variance[:, None]
        return with_slope((first + second) / 2, p, slopes.mean(1))

    return surrogate


def flips(count: int) -> Surrogate:
    """Both sides of `count` coins of an image, chosen by chance, alike often in a batch.

    With all: the local expectation gradient (Titsias and Lázaro-Gredilla 2015).
    """

    def surrogate(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
        coins = toss(p, uniform)
        losses, number = loss(coins), coins.shape[-1]
        rank = uniform[:, :, 1, 0].argsort(1).argsort(1)
        slope, chosen = torch.zeros_like(p), torch.zeros_like(p)
        for k in range(min(count, number)):
            flipped = F.one_hot((rank + k) % number, number).to(p)
            other = loss((coins - flipped).abs())
            gains = flipped * (losses - other)[..., None] * (2 * coins - 1)  # on less off
            slope, chosen = slope + gains.sum(1), chosen + flipped.sum(1)
        return with_slope(losses, p, slope / chosen.clamp(min=1))

    return surrogate


def switches(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """One operation after the other on for all images, or off for all if it is likely.

    The change of the mean loss is divided by the share of coins that turned. It needs no losses of
    single images and, with images that are coupled, is a finite difference in p. It says zero if no
    coin turns, and that is its bias: min(p, 1 - p)^B of the truth at most.
    """
    coins = toss(p, uniform)
    losses, slopes = loss(coins), []
    for j in range(coins.shape[-1]):
        side = (p[:, j] < 0.5).to(p)[:, None]
        switched = coins.clone()
        switched[:, :, j] = side
        turned = (switched - coins)[:, :, j].sum(1)  # all the same way
        change = (loss(switched) - losses).sum(1)
        slopes.append(change / torch.where(turned == 0, 1.0, turned))
    return with_slope(losses, p, torch.stack(slopes, 1))


def mean_field(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Mean field: every operation acts partially, without coins. Biased."""
    return loss(p[:, None].expand_as(uniform[:, :, 0])).mean(1)


def muprop(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Score function of the residual of a tangent at the mean field (Gu et al. 2016)."""
    coins, mean = toss(p, uniform), p[:, None].expand_as(uniform[:, :, 0])
    mean = mean.detach().requires_grad_()
    losses, middle = loss(coins), loss(mean)
    (slope,) = torch.autograd.grad(middle.sum(), mean, create_graph=True)
    left = losses - middle - (slope * (coins - mean)).sum(-1)
    left = left * fresh(log_probability(coins, p))
    return (losses + left + (slope * fresh(p)[:, None]).sum(-1)).mean(1)


def relaxed(temperature: float) -> Surrogate:
    """Concrete coins (Maddison et al. 2017): between zero and one. Biased."""

    def surrogate(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
        return loss(concrete(p, uniform, temperature)).mean(1)

    return surrogate


def concrete(p: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    return ((p.logit()[:, None] - uniform[:, :, 0].logit()) / temperature).sigmoid()


def straight(temperature: float | None = None, trapezoid: bool = False) -> Surrogate:
    """Real coins with the derivative of concrete ones, or with one of 1 (Bengio 2013). Biased.

    The derivative in a coin is taken where it fell and stands for the whole way to the other side.
    `trapezoid` weighs both ends alike, as ReinMax does (Liu et al. 2023).
    """

    def surrogate(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
        coins = toss(p, uniform)
        slope = fresh(p)[:, None]
        if temperature:
            slope = fresh(concrete(p, uniform, temperature))
        if trapezoid:
            end = torch.where(coins > 0, p[:, None], 1 - p[:, None])
            slope = slope * (0.5 / end).detach()
        return loss(coins + slope).mean(1)

    return surrogate


def reweighted(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """Each image counts by its likelihood ratio, also in the statistics that couple images."""
    coins = toss(p, uniform)
    weights = 1 + fresh(log_probability(coins, p))
    losses = loss(coins, weights=weights)
    return (losses * weights).sum(1) / weights.sum(1)


def total(loss: Loss, p: Tensor, uniform: Tensor) -> Tensor:
    """The score function of whole batches, two drawn; right however images are coupled."""
    one, two = toss(p, uniform), toss(p, uniform, 1)
    first, second = loss(one).mean(1), loss(two).mean(1)
    ratio = fresh(log_probability(one, p) - log_probability(two, p)).sum(1)
    return (first + second) / 2 + (first - second) / 2 * ratio


class Row(NamedTuple):
    """An estimator. `path`: what a coin between zero and one does, mix pixels or scale sizes."""

    surrogate: Surrogate
    unbiased: bool = True
    path: str = ""


ESTIMATORS: Mapping[str, Row] = {
    "score function": Row(score),
    "score function, batch baseline": Row(baseline),
    "score function, regression": Row(control),
    "regression": Row(regression, unbiased=False),
    "pairs": Row(pairs(antithetic=False)),
    "antithetic pairs (DisARM)": Row(pairs(antithetic=True)),
    "1 flip": Row(flips(1)),
    "2 flips": Row(flips(2)),
    "all flips": Row(flips(len(REACH))),
    "switches": Row(switches),
    "MuProp": Row(muprop, path="pixels"),
    "mean field": Row(mean_field, False, "pixels"),
    "mean field, sizes": Row(mean_field, False, "sizes"),
    "concrete 0.1": Row(relaxed(0.1), False, "pixels"),
    "concrete 0.5": Row(relaxed(0.5), False, "pixels"),
    "concrete 1": Row(relaxed(1.0), False, "pixels"),
    "straight-through 0.1": Row(straight(0.1), False, "pixels"),
    "straight-through 0.5": Row(straight(0.5), False, "pixels"),
    "straight-through 1": Row(straight(1.0), False, "pixels"),
    "straight-through": Row(straight(), False, "pixels"),
    "straight-through, sizes": Row(straight(), False, "sizes"),
    "straight-through, trapezoid": Row(straight(trapezoid=True), False, "pixels"),
}
COUPLED: Mapping[str, Row] = {
    "score function of batches": Row(total),
    "score function, reweighted": Row(reweighted, unbiased=False),
    **{
        name: ESTIMATORS[name]._replace(unbiased=False)
        for name in (
            "score function, batch baseline",
            "antithetic pairs (DisARM)",
            "1 flip",
            "all flips",
            "switches",
            "mean field",
            "concrete 1",
            "straight-through",
        )
    },
}

# --- the problem ----------------------------------------------------------------------------------

Weights = Sequence[Tensor]


@dataclass(frozen=True)
class Images:
    """Pixels `[N, 1, 8, 8]` and labels, with the sizes `[N, J]` and places of all operations."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    sizes: Tensor
    places: Places

    def __len__(self) -> int:
        return len(self.labels)

    def augment(self, index: Tensor, coins: Tensor, path: str = "") -> Tensor:
        """Images at `index [n]` and coins `[n, J]`, which may be anything from zero to one."""
        images, places = self.pixels[index], Places(*(part[index] for part in self.places))
        for name, coin, size in zip(self.names, coins.unbind(1), self.sizes[index].unbind(1)):
            if path == "sizes":
                images = operate(name, images, size * coin, places)
            else:
                other = operate(name, images, size, places)
                images = torch.lerp(images, other, coin[:, None, None, None])
        return images

    def part(self, rows: slice) -> Images:
        places = Places(*(part[rows] for part in self.places))
        return Images(self.pixels[rows], self.labels[rows], self.names, self.sizes[rows], places)


def digits(names: Sequence[str], full: bool) -> tuple[Images, Images]:
    """Images to train and to validate with; sizes uniform or, if `full`, all of their reach."""
    generator = torch.Generator().manual_seed(0)
    data = load("digits", Path("data"), download=False).train
    order = torch.randperm(len(data.labels), generator=generator)
    shape = (len(order), len(names))
    sizes = torch.tensor([REACH[n] for n in names]) * torch.ones(shape, dtype=torch.float64)
    if not full:
        sizes = sizes * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = torch.rand(shape, generator=generator).sub(0.5).sign()
    sizes = sizes * torch.where(torch.tensor([n != "cutout" for n in names]), sign, 1.0)
    center = torch.rand(len(order), 2, generator=generator).double()
    places = Places(center, torch.zeros(len(order), dtype=torch.long))
    pixels, labels = data.pixels[order].double() / 255, data.labels[order].long()
    every = Images(pixels, labels, tuple(names), sizes, places)
    return every.part(slice(1200)), every.part(slice(1200, None))


def network(weights: Weights, images: Tensor, coupled: bool, shares: Tensor) -> Tensor:
    """Logits `[T, B, 10]` of images `[T, B, 1, 8, 8]`: two convolutions, SiLU.

    With GroupNorm or, `coupled`, BatchNorm of each of T, in which images count by their `shares`.
    """
    one, gain_one, two, gain_two, last = weights

    def normal(x: Tensor, gain: Tensor) -> Tensor:
        x = x.unflatten(0, images.shape[:2])
        if coupled:
            share = (shares / shares.sum(1, keepdim=True))[:, :, None, None, None]
            x = x - (share * x).sum(1, keepdim=True).mean((3, 4), keepdim=True)
            square = (share * x**2).sum(1, keepdim=True).mean((3, 4), keepdim=True)
            x = x * (square + 1e-5).rsqrt()
        else:
            x = F.group_norm(x.flatten(0, 1), 4).view_as(x)
        return F.silu(gain * x)

    x = normal(F.conv2d(images.flatten(0, 1), one, padding=1), gain_one)
    x = normal(F.conv2d(x.flatten(0, 1), two, stride=2, padding=1), gain_two)
    return x.flatten(2) @ last


def losses_at(
    weights: Weights, x: Tensor, y: Tensor, coupled: bool, shares: Tensor | None = None
) -> Tensor:
    """Return the losses of images `[T, B, 1, 8, 8]` with labels `[T, B]`."""
    shares = torch.ones(y.shape, dtype=x.dtype) if shares is None else shares
    logits = network(weights, x, coupled, shares)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)


def gradient(weights: Weights, x: Tensor, y: Tensor, coupled: bool) -> Weights:
    leaves = [w.detach().requires_grad_() for w in weights]
    return torch.autograd.grad(losses_at(leaves, x[None], y[None], coupled).mean(), leaves)


def train(images: Images, coupled: bool) -> dict[str, Weights]:
    """Weights at the `STATES` of SGD with momentum, where every operation acts on every other."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((8, 1, 3, 3), (8, 1, 1), (16, 8, 3, 3), (16, 1, 1), (256, 10))
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    weights = [w * f**-0.5 for w, f in zip(weights, (9, 1, 72, 1, 256))]
    weights[1], weights[3] = torch.ones_like(weights[1]), torch.ones_like(weights[3])
    found: dict[str, Weights] = {}
    velocity = [torch.zeros_like(w) for w in weights]
    for t in range(max(STATES.values())):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        coins = torch.rand(BATCH, len(images.names), generator=generator).lt(0.5).double()
        g = gradient(weights, images.augment(index, coins), images.labels[index], coupled)
        velocity = [0.9 * v + d for v, d in zip(velocity, g)]
        weights = [w - 0.03 * v for w, v in zip(weights, velocity)]
        found |= {name: weights for name, step in STATES.items() if step == t + 1}
    return found


@dataclass(frozen=True)
class Problem:
    """Images, weights, and the validation gradient, along which losses are differentiated."""

    images: Images
    weights: Weights
    along: Weights
    coupled: bool = False

    def losses(
        self, weights: Weights, index: Tensor, coins: Tensor, path: str, shares: Tensor | None
    ) -> Tensor:
        """Return losses `[T, B]` of the images at index `[T, B]`."""
        images = self.images.augment(index.flatten(), coins.flatten(0, 1), path)
        x, y = images.unflatten(0, index.shape), self.images.labels[index]
        return losses_at(weights, x, y, self.coupled, shares)

    def slopes(
        self, index: Tensor, coins: Tensor, path: str = "", shares: Tensor | None = None
    ) -> Tensor:
        """`losses`, differentiated along the validation gradient."""
        sides = [[w + step * d for w, d in zip(self.weights, self.along)] for step in (STEP, -STEP)]
        ahead, behind = (self.losses(w, index, coins, path, shares) for w in sides)
        return (ahead - behind) / (2 * STEP)

    def table(self) -> Tensor:
        """`slopes [N, 2^J]` of every image at every pattern of coins, the first the lowest bit."""
        index = torch.arange(len(self.images))[None]
        with torch.no_grad():
            columns = [self.slopes(index, z.expand(*index.shape, -1))[0] for z in self.patterns()]
        return torch.stack(columns, 1)

    def patterns(self) -> Tensor:
        bit = torch.arange(len(self.images.names))
        return (torch.arange(2 ** len(bit))[:, None] >> bit & 1).double()

    def exact(self, table: Tensor, p: Tensor) -> Tensor:
        """`[N, J]`: the derivative in p of each image's expected slope."""
        coins = self.patterns()
        chance = torch.where(coins > 0, p, 1 - p).prod(1)
        return table @ (chance[:, None] * (coins - p) / (p * (1 - p)))


# --- measuring ------------------------------------------------------------------------------------


def estimate(
    row: Row, problem: Problem, p: Tensor, index: Tensor, uniform: Tensor, table: Tensor | None
) -> tuple[Tensor, int]:
    """Estimates `[T, J]` for batches `index [T, B]`, and passes: how often they were looked at."""
    passes, leaf = 0, p.expand(len(index), -1).clone().requires_grad_()

    def loss(coins: Tensor, weights: Tensor | None = None) -> Tensor:
        nonlocal passes
        passes += 1
        if table is None or coins.requires_grad:
            return problem.slopes(index, coins, row.path, weights)
        return table[index, (coins.long() << torch.arange(len(p))).sum(-1)]

    (found,) = torch.autograd.grad(row.surrogate(loss, leaf, uniform).sum(), leaf)
    return found, passes


class Found(NamedTuple):
    """Results of an estimator at one problem and p: squared lengths of vectors in p."""

    probability: str
    passes: int
    truth: float
    bias: float  # less what chance adds to it
    chance: float
    variance: float
    of_all: float  # variance, that of the choice of the batch included
    cosine: float


Results = dict[str, list[Found]]  # by estimator


def compare(
    found: Tensor, exact: Tensor, truth: Tensor, trusted: float, name: str, passes: int
) -> Found:
    """Estimates `[T, J]` against what is exact for their batches and for all images.

    Arguments: `trusted`, the squared error of the truth itself.
    """
    error = found - exact
    variance = float(error.var(0).sum())
    chance = variance / len(error) + trusted
    bias = float(error.mean(0).square().sum()) - chance
    cosine = float(F.cosine_similarity(found, exact).mean())
    length, of_all = float(truth.square().sum()), float(found.var(0).sum())
    return Found(name, passes, length, bias, chance, variance, of_all, cosine)


def problems(names: Sequence[str], full: bool, coupled: bool, count: int) -> Iterator[Problem]:
    """Early and late in training, each with two validation batches; of the first `count` images."""
    images, held_out = digits(names, full)
    for weights in train(images, coupled).values():
        for batch in (held_out.part(slice(64)), held_out.part(slice(64, 128))):
            along = gradient(weights, batch.pixels, batch.labels, coupled)
            length = torch.cat([d.flatten() for d in along]).norm()
            along = [d / length for d in along]
            yield Problem(images.part(slice(count)), weights, along, coupled)


def probabilities(number: int) -> dict[str, Tensor]:
    """Return probabilities: equal for all operations, and a mixture."""
    same = {f"p = {p}": torch.full((number,), p, dtype=torch.float64) for p in (0.1, 0.5, 0.9)}
    return same | {"mixed": torch.linspace(0.1, 0.9, number, dtype=torch.float64)}


def choose(trials: int, images: int, generator: torch.Generator) -> Tensor:
    """Draw batches `[trials, BATCH]`, each without repeated images."""
    return torch.rand(trials, images, generator=generator).argsort(1)[:, :BATCH]


def study(names: Sequence[str], full: bool) -> Results:
    """Run the study without coupling, where the truth is exact."""
    results: Results = {}
    for problem in problems(names, full, coupled=False, count=256):
        table, generator = problem.table(), torch.Generator().manual_seed(0)
        for label, p in probabilities(len(names)).items():
            exact = problem.exact(table, p)
            index = choose(TRIALS, len(exact), generator)
            shape = (*index.shape, DRAWS, len(names))
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            for name, row in ESTIMATORS.items():
                n = REAL if row.path else TRIALS
                found, passes = estimate(row, problem, p, index[:n], uniform[:n], table)
                here, truth = exact[index[:n]].mean(1), exact.mean(0)
                results.setdefault(name, []).append(compare(found, here, truth, 0.0, label, passes))
    return results


def flip_each(problem: Problem, index: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the effect of each flipped coin on all losses of the batch, and on its own loss.

    For coins `[T, B, J]`, `[T, J]` each: an unbiased estimate of the derivative in p, whatever the
    coupling, in B J passes; and the same if other images did not notice.
    """
    base, everything = problem.slopes(index, coins), torch.zeros_like(coins[:, 0])
    own = torch.zeros_like(everything)
    for i in range(coins.shape[1]):
        for j in range(coins.shape[2]):
            other = coins.clone()
            other[:, i, j] = 1 - coins[:, i, j]
            change = (base - problem.slopes(index, other)) * (2 * coins[:, i, j, None] - 1)
            everything[:, j] += change.mean(1)
            own[:, j] += change[:, i] / coins.shape[1]
    return everything, own


def study_coupled(names: Sequence[str], full: bool, draws: int) -> Results:
    """BatchNorm: 64 images, dealt into batches of 16 anew for every estimate, which is their mean.

    So the choice of images adds nothing. The truth is a mean, too, of `draws` deals; its error is
    taken from the biases, and counts for what may be hidden.
    """
    results: Results = {}
    generator = torch.Generator().manual_seed(0)

    def deal(trials: int) -> tuple[Tensor, Tensor]:
        index = torch.rand(trials, 64, generator=generator).argsort(1).view(-1, 16)
        shape = (*index.shape, DRAWS, len(names))
        return index, torch.rand(shape, generator=generator, dtype=torch.float64)

    for problem in list(problems(names, full, coupled=True, count=64))[::2]:
        for label, p in list(probabilities(len(names)).items())[:2]:
            index, uniform = deal(draws)
            with torch.no_grad():
                parts = flip_each(problem, index, toss(p.expand(len(index), -1), uniform))
            true, own = (x.view(draws, 4, -1).mean(1) for x in parts)
            truth, trusted = true.mean(0), float(true.var(0).sum() / draws)
            index, uniform = deal(REAL)
            for name, row in COUPLED.items():
                found, passes = estimate(row, problem, p, index, uniform, None)
                found = found.view(REAL, 4, -1).mean(1)
                here = truth.expand_as(found)
                result = compare(found, here, truth, trusted, label, passes)
                results.setdefault(name, []).append(result)
            # of the same draws: what they miss is known better than either
            missed = compare(own, true, truth, 0.0, label, 16 * len(names) + 1)
            results.setdefault("truth", []).append(missed)
    return results


# --- table and picture ----------------------------------------------------------------------------


class Summary(NamedTuple):
    """Means over problems and probabilities, relative to the mean squared truth."""

    unbiased: bool
    passes: int
    bias: float
    chance: float
    variance: float
    of_all: float
    cosine: float

    @property
    def squared(self) -> float:
        return max(self.bias, 0.0) + self.variance

    @property
    def known(self) -> bool:
        return not self.unbiased and self.bias > 3 * self.chance

    @property
    def largest(self) -> float:
        """Return the largest squared bias that chance may hide."""
        return max(self.bias, 0.0) + 2 * self.chance

    def left(self, passes: float) -> float:
        """Error² of the mean of as many estimates as take so many passes, for all images."""
        return (self.bias if self.known else 0.0) + self.of_all * self.passes / passes

    @property
    def enough(self) -> float:
        """Passes until the error is `ENOUGH`, the bias at its largest; nan if that may be never."""
        bias = 0.0 if self.unbiased else self.bias if self.known else self.largest
        room = ENOUGH**2 - bias
        if room <= 0:
            return math.inf if self.known else math.nan
        return self.passes * self.of_all / room

    @property
    def rank(self) -> tuple[float, float]:
        return math.inf if math.isnan(self.enough) else self.enough, self.merit

    @property
    def merit(self) -> float:
        return self.squared * self.passes


def summary(found: Sequence[Found], row: Row) -> Summary:
    _, passes, *rest = zip(*found)
    truth, bias, chance, variance, of_all, cosine = map(statistics.mean, rest)
    bias, chance = bias / truth, chance / truth / len(found) ** 0.5
    return Summary(row.unbiased, passes[0], bias, chance, variance / truth, of_all / truth, cosine)


def show(title: str, results: Results, rows: Mapping[str, Row]) -> None:
    labels = list(dict.fromkeys(f.probability for found in results.values() for f in found))
    columns = ["passes", "bias", "sd", "error", "cosine", "error² × passes", *labels]
    columns += ["all images", f"passes to {ENOUGH:.0%}"]
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    sums = {name: summary(results[name], row) for name, row in rows.items()}
    for name in sorted(sums, key=lambda n: sums[n].rank):
        s = sums[name]
        bias = f"{s.bias**0.5:.2f}" if s.known else f"< {s.largest**0.5:.2f}"
        cells = [f"{s.passes}", bias, f"{s.variance**0.5:.2f}", f"{s.squared**0.5:.2f}"]
        cells += [f"{s.cosine:.2f}", f"{s.merit:.3g}"]
        for label in labels:
            part = [f for f in results[name] if f.probability == label]
            cells.append(f"{summary(part, rows[name]).merit:.3g}")
        cells.append(f"{(max(s.bias, 0) + s.of_all) * s.passes:.3g}")
        cells.append(f"{s.enough:.0f}".replace("inf", "never").replace("nan", "?"))
        print(f"| {name}{'' if s.unbiased else ' (biased)'} | {' | '.join(cells)} |")
    best, first = (min(sums, key=key) for key in (lambda n: sums[n].merit, lambda n: sums[n].rank))
    print(f"\nLowest error² × passes: {best}; fewest passes to {ENOUGH:.0%}: {first}.")


SHOWN = {  # color, marker and, of means, the line
    "score function of batches": "tab:gray X",
    "score function, batch baseline": "tab:gray o -",
    "score function, regression": "tab:gray s",
    "antithetic pairs (DisARM)": "tab:blue o -",
    "pairs": "tab:blue s",
    "1 flip": "tab:cyan ^ -",
    "2 flips": "tab:cyan D",
    "all flips": "tab:green * -",
    "switches": "tab:olive P -",
    "MuProp": "tab:brown v",
    "mean field": "tab:red D --",
    "concrete 0.1": "tab:orange v",
    "concrete 0.5": "tab:orange o",
    "concrete 1": "tab:orange ^ --",
    "straight-through 0.5": "tab:purple o",
    "straight-through 1": "tab:purple ^",
    "straight-through": "tab:purple s --",
}


def paint(free: Results, coupled: Results, path: Path) -> None:
    """Cost against error for each kind of network, and what becomes of the mean of estimates."""
    plt.rcParams.update({"font.size": 11, "axes.grid": True, "grid.alpha": 0.25})
    figure, axes = plt.subplots(1, 3, figsize=(15, 7))
    handles: dict[str, Line2D] = {}
    for axis, results, rows in zip(axes, (free, coupled), (ESTIMATORS, COUPLED)):
        sums = {n: summary(results[n], rows[n]) for n in SHOWN if n in rows}
        errors = [s.squared**0.5 for s in sums.values()]
        axis.set(xscale="log", yscale="log", xlim=(0.75, 13), xlabel="passes for an estimate")
        axis.set_xticks([1, 2, 3, 6, 10], ["1", "2", "3", "6", "10"])
        axis.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axis.set_ylim(0.7 * min(errors), 1.4 * max(errors))
        axis.minorticks_off()
        for level in (10**k for k in range(-3, 4)):  # of error² × passes
            axis.plot([0.1, 100], [(level / x) ** 0.5 for x in (0.1, 100)], "k:", lw=0.8, alpha=0.5)
        for name, s in sums.items():
            color, marker, *line = SHOWN[name].split()
            x = s.passes * (1 + 0.08 * (color == "tab:red") - 0.08 * (color == "tab:orange"))
            hollow = name in ESTIMATORS and ESTIMATORS[name].path and not s.unbiased
            style = {"ms": 15 if marker == "*" else 9, "mfc": "white" if hollow else color}
            (handle,) = axis.plot(x, s.squared**0.5, marker, color=color, mew=1.8, **style)
            handles.setdefault(name, handle)
            if line and axis is axes[0]:
                means = [(10 ** (k / 10), s.left(10 ** (k / 10)) ** 0.5) for k in range(41)]
                axes[2].loglog(*zip(*means), line[0], color=color, lw=2)
    axes[0].set(title="no coupling (hollow, dashed: biased)", ylabel="error of an estimate / truth")
    axes[1].set(title="BatchNorm (dotted: the same error² × passes)")
    axes[2].set(
        title="no coupling, means of estimates",
        xlabel="passes in all",
        ylabel="error for all images / truth",
    )
    axes[2].axhline(ENOUGH, color="black", lw=0.8, ls=":")
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


@click.command()
@click.option("--operations", default=5, show_default=True, help=f"The first of {list(REACH)}.")
@click.option("--full", is_flag=True, help="Every operation at its reach.")
@click.option("--draws", default=20, show_default=True, help="Of the truth with BatchNorm.")
@click.option("--picture", default="docs/probability_gradients.png", show_default=True)
def main(operations: int, full: bool, draws: int, picture: str) -> None:
    """Compare estimators of probability gradients with the truth; see the module docstring."""
    torch.set_num_threads(1)
    began, names = time.perf_counter(), list(REACH)[:operations]
    print(
        f"{', '.join(names)}, {'full' if full else 'uniform'} sizes; batches of {BATCH}; steps "
        f"{STATES}, two validation batches each; torch {torch.__version__}"
    )
    free, coupled = study(names, full), study_coupled(names, full, draws)
    show("No coupling", free, ESTIMATORS)
    show("BatchNorm", coupled, COUPLED)
    missed = summary(coupled["truth"], Row(total, unbiased=False))
    print(f"An image's own loss alone: bias {missed.bias**0.5:.2f} ± {missed.chance**0.5:.2f}.")
    paint(free, coupled, Path(picture))
    print(f"\n{time.perf_counter() - began:.0f} s; {picture}")


if __name__ == "__main__":
    main()
