"""A policy, then mixing: composition, the loss, and its derivative in probabilities."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.augment import (
    Augmentation,
    AutoAugment,
    Choices,
    Criterion,
    Learned,
    MixedLabels,
    Mixing,
    Nothing,
    Policy,
    RandAugment,
    Scheduled,
    Targets,
    TrivialAugment,
)
from darts_lite.augment.fused import NAMES, select
from darts_lite.augment.mixing import KINDS
from darts_lite.augment.policies.learned import KIND
from darts_lite.augment.policies.policy import Turned
from darts_lite.errors import UserError
from darts_lite.hypergradient import Bilevel, InnerState, OneStep
from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.optimizers import SGD
from darts_lite.hypergradient.problem import Hyper, Loss, Params
from darts_lite.training.losses import cross_entropy, expected_cost

SIZE = (6, 5)
CLASSES = 3
SMOOTHED = partial(cross_entropy, label_smoothing=0.1)
POLICIES = (Policy, Nothing, Learned, RandAugment, TrivialAugment, AutoAugment, Scheduled)
MIXINGS = (None, Mixing(("mixup",)), Mixing(("cutmix",)), Mixing(KINDS, probability=0.7))

Model = Callable[[Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=seeded(seed), dtype=torch.float64)


def halves(augment: Augmentation, low: float = 0.3) -> dict[str, Tensor]:
    """Generic learned values, all different, float64."""
    steps = torch.linspace(low, 0.7, len(augment.names), dtype=torch.float64)
    return dict(zip(augment.names, steps))


def make(policy: type[Policy], mixing: Mixing | None, **knobs: Any) -> Augmentation:
    """Probabilities are not learned together with mixing."""
    if policy is Learned and mixing:
        knobs["probabilities"] = False
    return Augmentation(policy(**knobs), mixing)


def leaves(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.clone().requires_grad_() for n, v in values.items()}


def labels(batch: int) -> Tensor:
    return torch.arange(batch) * 2 % CLASSES


def weights(channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return the weights of a smooth network that does not couple images."""
    inputs = channels * SIZE[0] * SIZE[1]
    first, second = random(inputs, 4, seed=11) - 0.5, random(4, CLASSES, seed=12) - 0.5
    return first, 4 * second


def network(params: Params, images: Tensor) -> Tensor:
    first, second = params
    return (images.flatten(1) @ first).tanh() @ second


def bounded(logits: Tensor, targets: Targets) -> Tensor:
    """Return one minus the probability of the target: a criterion unlike cross entropy."""
    return expected_cost(1 - logits.softmax(1), targets)


# --- composition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_comes_first_then_mixing(policy, mixing):
    crop = {} if policy is Nothing else {"crop": 1}
    augment = make(policy, mixing, channels=3, **crop)
    values, images = halves(augment), random(7, 3, *SIZE)
    assert ("mixing.strength" in values) == (mixing is not None)
    generator, ambient = seeded(5), torch.get_rng_state()
    choices = augment.sample(7, SIZE, generator, values=values)
    state, before = generator.get_state(), images.clone()
    out, share, _ = augment.apply(images, choices, values)
    again = augment.apply(images, choices, values)
    assert torch.equal(again.images, out) and torch.equal(images, before)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)
    expected = augment.policy.apply(images, choices.policy, values)
    if mixing is None:
        assert share is None and choices.mixing is None
    else:
        assert not torch.equal(out, expected)
        strength = values["mixing.strength"]
        expected, expected_share = mixing.apply(expected, choices.mixing, strength)
        assert torch.equal(share, expected_share)
    assert torch.equal(out, expected)
    repeated = augment.sample(7, SIZE, seeded(5), values=values)
    assert torch.equal(augment.apply(images, repeated, values).images, out)


def test_without_a_learned_strength_mixing_is_as_set():
    for strength in (0.25, 1.0):
        mixing = Mixing(("mixup",), strength=strength)
        augment, images = Augmentation(Nothing(channels=1), mixing), random(5, 1, *SIZE)
        choices = augment.sample(5, SIZE, seeded())
        _, share, _ = augment.apply(images, choices)
        assert torch.allclose(share, strength * choices.mixing.share.double())
        learned = {"mixing.strength": torch.tensor(0.5, dtype=torch.float64)}
        _, share, _ = augment.apply(images, choices, learned)
        assert torch.allclose(share, 0.5 * choices.mixing.share.double())


def test_names_and_starts():
    policy = RandAugment(channels=1, m=6)
    assert Augmentation(policy).names == ("magnitude.all",)
    both = Augmentation(policy, Mixing())
    assert both.names == ("magnitude.all", "mixing.strength")
    assert both.starts == {"magnitude.all": pytest.approx(0.2), "mixing.strength": 0.5}
    assert Augmentation(Policy(channels=1)).names == ()
    learned = make(Learned, Mixing(), channels=3)
    assert learned.names[-1] == tuple(learned.starts)[-1] == "mixing.strength"


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_probabilities_are_not_learned_together_with_mixing(mixing):
    with pytest.raises(UserError, match="must not be learned together with mixing") as error:
        Augmentation(Learned(channels=3), mixing)
    assert "\n" not in str(error.value)
    for policy in (Learned(channels=3, probabilities=False), Scheduled(channels=3)):
        assert not any("prob" in n for n in Augmentation(policy, mixing).names)


def test_plain_is_flips_and_shifts_alone():
    augment = Augmentation(RandAugment(channels=3, flips=False, crop=2), Mixing())
    assert augment.plain == Augmentation(Policy(channels=3, flips=False, crop=2))


def test_replayed_takes_what_was_learned():
    schedules = {
        "lr": ((0.0, 0.1),),
        "magnitude.all": ((0.0, 0.1), (1.0, 0.5)),
        "mixing.strength": ((0.0, 0.9), (1.0, 0.25)),
    }
    augment = Augmentation(RandAugment(channels=1), Mixing(("mixup",), alpha=0.3))
    assert augment.replayed(schedules) == Augmentation(
        RandAugment(channels=1, m=15), Mixing(("mixup",), alpha=0.3, strength=0.25)
    )
    assert augment.replayed({}) == augment
    knots = {"magnitude.rotate": ((0.0, 0.5),), "probability.rotate": ((0.0, 0.5),)}
    replayed = Augmentation(Learned(channels=1)).replayed(knots)
    assert replayed == Augmentation(Learned(channels=1).replayed(knots))
    learned = make(Learned, Mixing(), channels=1)
    replayed = learned.replayed(knots | {"mixing.strength": ((0.0, 0.75),)})
    assert replayed.policy.knots == {"magnitude.rotate": ((0.0, 0.5),)}
    assert replayed.mixing == Mixing(strength=0.75)
    with pytest.raises(UserError, match="must have learned values"):
        learned.replayed({"mixing.strength": ((0.0, 0.75),)})


@pytest.mark.parametrize("mixing", [None, Mixing(KINDS)])
def test_all_choices_move_to_the_device(mixing):
    augment = make(Learned, mixing, channels=1)
    values = {n: torch.tensor(0.5) for n in augment.names}
    choices = augment.sample(9, SIZE, seeded(), "meta", values, turn=True)
    assert choices.policy.units.is_meta
    assert all(t.is_meta for t in choices.mixing or ()) and (choices.mixing is None) != bool(mixing)
    images, there = torch.empty(9, 1, *SIZE), {n: v.to("meta") for n, v in values.items()}
    model: Model = lambda x: x.flatten(1)[:, :CLASSES]  # noqa: E731
    y = labels(9).to("meta")
    loss, logits = augment.loss(model, SMOOTHED, images.to("meta"), y, choices, there)
    assert loss.is_meta and loss.shape == () and logits.is_meta


# --- the value of the loss ------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("criterion", [cross_entropy, SMOOTHED, bounded])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("policy", [Policy, Learned, RandAugment])
def test_the_loss_is_the_mean_of_the_criterion(policy, mixing, criterion, turn):
    """The value and the derivative in the weights, whatever is learned; logits are returned."""
    augment = make(policy, mixing, channels=1)
    values, images, y = leaves(halves(augment)), random(8, 1, *SIZE), labels(8)
    choices = augment.sample(8, SIZE, seeded(1), values=values, turn=turn)
    seen = augment.apply(images, choices, values)
    params = tuple(w.requires_grad_() for w in weights())
    calls = []

    def model(x: Tensor) -> Tensor:
        calls.append(x)
        return network(params, x)

    loss, logits = augment.loss(model, criterion, images, y, choices, values)
    assert torch.equal(logits, network(params, seen.images))
    targets = seen.targets(y)
    expected = criterion(logits, targets).mean()
    assert isinstance(targets, MixedLabels) == (mixing is not None)
    assert (targets is y) == (mixing is None)
    assert mixing is None or not torch.isclose(expected, criterion(logits, y).mean())
    assert loss.shape == () and loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    slopes = (torch.autograd.grad(x, params, retain_graph=True) for x in (loss, expected))
    for a, b in zip(*slopes):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    second = turn and policy is Learned and mixing is None
    assert len(calls) == 1 + second  # another pass only where probabilities are learned
    if second:
        turned = augment.policy.apply(images, choices.policy, values, turned=True)
        assert torch.equal(calls[1], turned)


def test_probabilities_have_a_derivative_only_if_their_coins_are_turned():
    augment, images, y = Augmentation(Learned(channels=1)), random(8, 1, *SIZE), labels(8)
    values = leaves(halves(augment))
    for turn, given in ((False, values), (True, None), (True, values)):
        choices = augment.sample(8, SIZE, seeded(1), values=values, turn=turn)
        loss, _ = augment.loss(
            lambda x: network(weights(), x), cross_entropy, images, y, choices, given
        )
        if given is None:
            assert not loss.requires_grad
            continue
        found = torch.autograd.grad(loss, values.values(), allow_unused=True)
        for name, slope in zip(values, found):
            assert (slope is not None) == (turn or name.startswith("magnitude."))


# --- its derivative in the probabilities ----------------------------------------------------------


def all_coins(augment: Augmentation, batch: int, seed: int = 1) -> Choices:
    """Return draws in which every operation acts; sizes and places stay the same."""
    ones = {n: torch.ones((), dtype=torch.float64) for n in augment.names}
    return augment.sample(batch, SIZE, seeded(seed), values=ones)


def probabilities(augment: Augmentation, values: Mapping[str, Tensor]) -> Tensor:
    """Return the probability of each operation in use, in order."""
    return torch.stack([values[f"probability.{KIND[n]}"] for n in augment.policy.active])


def with_coins(base: Choices, columns: list[int], coins: Tensor) -> Choices:
    """Return the choices in which the operations act by the coins `[B, columns]`."""
    units = base.policy.units.double()
    units[0, :, columns] *= coins
    draws = base.policy._replace(units=units, selections=(select(units[0] != 0),))
    return Choices(draws, base.mixing)


def patterns(augment: Augmentation, base: Choices, values: Mapping[str, Tensor]) -> Iterator:
    """Yield every pattern of coins, with every choice of the coin to be turned.

    Yields the probability as a function of the values, and the choices.
    """
    batch, count = base.policy.units.shape[1], len(augment.policy.active)
    columns = [NAMES.index(n) for n in augment.policy.active]
    p, rows = probabilities(augment, values), torch.arange(batch)
    for pattern in product((0.0, 1.0), repeat=batch * count):
        coins = torch.tensor(pattern, dtype=torch.float64).view(batch, count)
        chance = torch.where(coins > 0, p, 1 - p).prod() / count**batch
        drawn = with_coins(base, columns, coins).policy
        for chosen in map(torch.tensor, product(range(count), repeat=batch)):
            other = coins.clone()
            other[rows, chosen] = 1 - coins[rows, chosen]
            there = with_coins(base, columns, other).policy
            sign = 2 * coins[rows, chosen] - 1
            turned = Turned(
                there.units, torch.tensor(columns)[chosen], count * sign, p.detach()[chosen]
            )
            yield (
                chance,
                Choices(
                    drawn._replace(turned=turned, turned_selections=there.selections), base.mixing
                ),
            )


def quantities(
    augment: Augmentation,
    choices: Choices,
    values: Mapping[str, Tensor] | None,
    images: Tensor,
    criterion: Criterion,
) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative in the weights along a direction."""
    params = tuple(w.requires_grad_() for w in weights())
    y = labels(len(images))
    loss, _ = augment.loss(lambda x: network(params, x), criterion, images, y, choices, values)
    slopes = torch.autograd.grad(loss, params, create_graph=True)
    along = [random(*w.shape, seed=20 + i) - 0.3 for i, w in enumerate(params)]
    return loss, torch.stack([(s * a).sum() for s, a in zip(slopes, along)]).sum()


def derivative(value: Tensor, leaf: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, leaf, allow_unused=True, retain_graph=True)
    return torch.stack([torch.zeros_like(a) if f is None else f for a, f in zip(leaf, found)])


@pytest.mark.parametrize(
    "batch, operations",
    [
        (1, ("cutout",)),
        (2, ("brightness", "cutout")),
        (3, ("autocontrast",)),
        (1, ("translate_x", "translate_y", "invert")),  # one probability of two coins
        (1, ("rotate", "gaussian_noise", "sharpness")),
    ],
)
@pytest.mark.parametrize("criterion", [SMOOTHED, bounded])
def test_the_derivative_in_probabilities_equals_the_derivative_of_the_expectation(
    batch, operations, criterion
):
    """Sum over all patterns of the coins, hence without an error: the loss and its slope."""
    augment = Augmentation(Learned(channels=1, flips=False, operations=operations))
    base, images = all_coins(augment, batch), random(batch, 1, *SIZE) * 0.6 + 0.1
    values = leaves(halves(augment))
    wanted = [v for n, v in values.items() if n.startswith("probability.")]
    fixed = {n: v.detach() for n, v in values.items()}
    found, expected = torch.zeros(2, len(wanted)).double(), torch.zeros(2).double()
    for chance, choices in patterns(augment, base, values):
        given = fixed | {n: v for n, v in values.items() if n.startswith("probability.")}
        surrogate = quantities(augment, choices, given, images, criterion)
        slopes = torch.stack([derivative(value, wanted) for value in surrogate])
        found = found + chance.detach() * slopes
        plain = Choices(choices.policy._replace(turned=None), None)
        both = torch.stack(quantities(augment, plain, fixed, images, criterion)).detach()
        expected = expected + chance * both
    truth = torch.stack([derivative(value, wanted) for value in expected])
    assert truth.abs().min() > 1e-8
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def test_the_mean_over_draws_is_the_derivative_of_the_expectation():
    """Draw with `sample`; the truth enumerates all coins at the same sizes and places."""
    operations = ("brightness", "autocontrast", "invert")
    augment = Augmentation(Learned(channels=1, crop=1, operations=operations))
    values = {f"magnitude.{n}": torch.ones(()).double() for n in operations}
    values |= {f"probability.{n}": torch.tensor(p) for n, p in zip(operations, (0.8, 0.3, 0.6))}
    values = leaves({n: v.double() for n, v in values.items()})
    wanted = [values[f"probability.{n}"] for n in operations]
    columns = [NAMES.index(n) for n in operations]
    images, p = random(8, 1, *SIZE) ** 2 / 3, torch.stack(wanted)  # dark and pale ones
    y, plain = torch.zeros(8, dtype=torch.long), {n: v.detach() for n, v in values.items()}

    def model(x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) * 9
        return torch.stack((-bright, bright), 1)

    found, truth = [], []
    for seed in range(200):
        choices = augment.sample(8, SIZE, seeded(seed), values=values, turn=True)
        loss, _ = augment.loss(model, cross_entropy, images, y, choices, values)
        found.append(derivative(loss, wanted))
        base, total = all_coins(augment, 8, seed), torch.zeros(()).double()
        for pattern in product((0.0, 1.0), repeat=3):  # all images alike: they are independent
            coins = torch.tensor(pattern, dtype=torch.float64)
            same = with_coins(base, columns, coins.expand(8, 3))
            loss, _ = augment.loss(model, cross_entropy, images, y, same, plain)
            total = total + torch.where(coins > 0, p, 1 - p).prod() * loss.detach()
        truth.append(derivative(total, wanted))
    estimates, exact = torch.stack(found), torch.stack(truth)
    error = (estimates - exact).std(0) / len(found) ** 0.5
    assert ((estimates - exact).mean(0).abs() < 4 * error).all()
    assert (exact.mean(0).abs() > 8 * error)[1:].all()  # there is something to see


def test_an_operation_that_changes_nothing_has_no_derivative():
    """The score function would have noise here."""
    augment = Augmentation(Learned(channels=1, operations=("invert", "cutout", "rotate")))
    values = leaves(halves(augment) | {"magnitude.invert": torch.zeros(()).double()})
    choices = augment.sample(30, SIZE, seeded(1), values=values, turn=True)
    images, y = random(30, 1, *SIZE), labels(30)
    loss, _ = augment.loss(
        lambda x: network(weights(), x), cross_entropy, images, y, choices, values
    )
    wanted = [values[f"probability.{n}"] for n in ("rotate", "invert", "cutout")]
    rotate, invert, cutout = derivative(loss, wanted).abs()
    assert invert < 1e-14 and min(rotate, cutout) > 1e-4


@pytest.mark.parametrize("mixing", [None, Mixing(KINDS)])
def test_differences_at_fixed_draws_agree_with_autograd(mixing):
    """The loss is a function of the values; the draws keep the values of the time of drawing."""
    operations = ("rotate", "contrast", "sharpness", "gaussian_noise", "cutout")
    augment = make(Learned, mixing, channels=3, operations=operations)
    values, images = halves(augment), random(6, 3, *SIZE) * 0.4 + 0.3
    choices = augment.sample(6, SIZE, seeded(2), values=values, turn=True)

    def loss(given: Mapping[str, Tensor]) -> Tensor:
        model: Model = lambda x: network(weights(3), x)  # noqa: E731
        return augment.loss(model, SMOOTHED, images, labels(6), choices, given)[0]

    given = leaves(values)
    slopes = dict(zip(given, torch.autograd.grad(loss(given), list(given.values()))))
    step, seen = 1e-6, 0
    for name, slope in slopes.items():
        one, two = (loss(values | {name: values[name] + d}) for d in (step, -step))
        assert float(slope) == pytest.approx(float((one - two) / (2 * step)), rel=1e-5, abs=1e-9)
        seen += bool(slope)
    assert seen > len(slopes) - 3  # six images may not turn every coin


# --- hypergradients -------------------------------------------------------------------------------


class Small:
    """A smooth bilevel problem that learns its augmentation."""

    def __init__(self, mixing: Mixing | None, operations: tuple[str, ...]) -> None:
        self.augment = make(Learned, mixing, channels=1, crop=1, operations=operations)
        self.values = halves(self.augment)
        self.choices = self.augment.sample(20, SIZE, seeded(3), values=self.values, turn=True)
        self.images, self.held_out = random(20, 1, *SIZE), random(10, 1, *SIZE, seed=1)
        optimizer = SGD(momentum=0.0)
        self.state = InnerState(weights(), optimizer.init(weights()))
        self.problem = Bilevel(self.inner, self.outer, optimizer, lambda _: {"lr": 0.5})

    def inner(self, params: Params, values: Hyper, t: int) -> Loss:
        model: Model = lambda x: network(params, x)  # noqa: E731
        y = labels(len(self.images))
        loss, _ = self.augment.loss(model, SMOOTHED, self.images, y, self.choices, values)
        return loss, loss.detach()

    def outer(self, params: Params, values: Hyper) -> Loss:
        loss = F.cross_entropy(network(params, self.held_out), labels(10))
        return loss, loss.detach()

    def after(self, values: Hyper) -> Tensor:
        """The outer loss after a training step."""
        state, _, _ = self.problem.advance(self.state, values, 0)
        return self.outer(state.params, values)[0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, inside of jvp
@pytest.mark.parametrize("mixing", [None, Mixing(KINDS)])
@pytest.mark.parametrize(
    "operations",
    [
        ("rotate", "brightness", "gaussian_blur", "cutout"),
        ("contrast", "autocontrast", "invert", "sharpness", "gaussian_noise", "cutout"),
    ],
)
def test_every_method_finds_the_same_hypergradients(operations, mixing):
    small = Small(mixing, operations)
    methods: dict[Method, tuple[float, float]] = {  # radius, tolerance
        "double_backward": (0.0, 1e-6),
        "finite_difference": (1e-3, 1e-5),
        "one_sided": (1e-6, 1e-4),
        "jvp": (0.0, 1e-6),
    }
    step, expected = 1e-5, {}
    for name, value in small.values.items():
        one, two = (small.after(small.values | {name: value + d}) for d in (step, -step))
        expected[name] = float((one - two) / (2 * step))
    felt = [name for name, slope in expected.items() if abs(slope) > 1e-6]  # the others did not act
    assert 2 * len(felt) > len(expected)
    scale = max(map(abs, expected.values()))
    kinds = dict.fromkeys(small.values, "loss")
    for method, (radius, tolerance) in methods.items():
        estimator = OneStep(method, radius=radius)
        found = estimator(small.problem, small.state, leaves(small.values), kinds).hypergradient
        assert found.keys() == expected.keys()
        for name, slope in found.items():
            assert float(slope) == pytest.approx(expected[name], abs=tolerance * scale), method
