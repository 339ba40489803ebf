"""The conditional space of configurations that every method of `tune` draws from.

A configuration is an architecture, an optimizer with its settings, a batch size, label smoothing
and an augmentation. The space is a function that asks for one dimension after another. A dimension
therefore exists only where it is used: a skip connection has no kernel, AdamW has no momentum. A
`Chooser` answers: a random generator, a sampler of Optuna, or known values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.architecture.space import Cell, Edge, Operation, SearchSpace
from darts_lite.augment import Augmentation
from darts_lite.augment.policies.policy import Policy
from darts_lite.errors import UserError
from darts_lite.schedules import Schedule

Value = str | int | float | bool
Values = dict[str, Value]

POLICIES = ("none", "standard", "randaugment", "trivialaugment", "learned")
LIMITS: dict[
    str, tuple[float, float]
] = {  # ranges of continuous dimensions with a logarithmic scale
    "sgd.lr": (3e-3, 1.0),
    "sgd.weight_decay": (1e-6, 1e-2),
    "adamw.lr": (1e-4, 3e-2),
    "adamw.weight_decay": (1e-4, 0.5),
    "magnitude": (0.01, 1.0),
}


class Chooser(Protocol):
    """Interface that chooses the value of one dimension at a time."""

    def categorical(self, name: str, choices: Sequence[Value]) -> Any: ...

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int: ...

    def real(self, name: str, low: float, high: float, log: bool = False) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One point of the space, ready to be trained.

    Arguments:
        space: Discrete architecture.
        recipe: Recipe of the training; its schedules are "lr", "weight_decay", and the values of
            the augmentation by name.
        values: Chosen value of every dimension.
    """

    space: SearchSpace
    recipe: Recipe
    values: Values


@dataclass(frozen=True, kw_only=True)
class ConfigurationSpace:
    """The space of all configurations of a study.

    Arguments:
        architecture: Search space at its usual width. If it is not discrete, the width is chosen
            from half to twice the usual width.
        batch_sizes: Batch sizes to choose from, in images.
        learnable: Augmentation whose values are dimensions if "learned" is chosen.
    """

    architecture: SearchSpace
    batch_sizes: tuple[int, ...]
    learnable: Augmentation

    def configure(self, choose: Chooser) -> Configuration:
        """Choose a configuration, dimension by dimension."""
        heard = _Heard(choose)
        space = self._architecture(heard)
        recipe, learned = self._recipe(heard)
        batch_size = heard.categorical("batch_size", self.batch_sizes)
        augment, values = self._augment(heard)
        recipe = replace(
            recipe, batch_size=batch_size, augment=augment, schedules=constant(learned | values)
        )
        return Configuration(space=space, recipe=recipe, values=heard.values)

    def _architecture(self, choose: Chooser) -> SearchSpace:
        if self.architecture.is_discrete:
            return self.architecture
        usual = self.architecture.channels
        low, high = max(2, usual // 4 * 2), 2 * usual
        channels = choose.integer("channels", low, high, step=2)
        cells = tuple(_discrete(cell, choose) for cell in self.architecture.cells)
        return replace(self.architecture, cells=cells, channels=channels)

    def _recipe(self, choose: Chooser) -> tuple[Recipe, dict[str, float]]:
        name = choose.categorical("optimizer", ("sgd", "adamw"))
        learned = {
            each: choose.real(f"{name}.{each}", *LIMITS[f"{name}.{each}"], log=True)
            for each in ("lr", "weight_decay")
        }
        optimizer: Sgd | AdamW
        if name == "sgd":
            momentum = choose.real("sgd.momentum", 0.5, 0.99)
            nesterov = choose.categorical("sgd.nesterov", (False, True))
            optimizer = Sgd(momentum=momentum, nesterov=nesterov)
        else:
            beta1 = choose.real("adamw.beta1", 0.8, 0.99)
            beta2 = choose.real("adamw.beta2", 0.9, 0.9999)
            optimizer = AdamW(beta1=beta1, beta2=beta2)
        smoothing = choose.real("label_smoothing", 0.0, 0.2)
        return Recipe(optimizer=optimizer, label_smoothing=smoothing), learned

    def _augment(self, choose: Chooser) -> tuple[str, dict[str, float]]:
        policy = choose.categorical("augment", POLICIES)
        if policy == "randaugment":
            n = choose.integer("randaugment.n", 1, 3)
            m = choose.real("randaugment.m", 0.0, 30.0)
            return f"randaugment:n={n},m={m:.4g}", {"magnitude.all": m / 30}
        if policy == "learned":
            return policy, augmentation_values(self.learnable.policy, choose)
        return policy, {}


@dataclass(frozen=True, kw_only=True)
class AugmentationSpace:
    """The space of the values of the learned augmentation; all other values are fixed.

    Used by population based augmentation (Ho et al. 2019).

    Arguments:
        fixed: Configuration with all other values.
        learnable: Augmentation whose values are the dimensions.
    """

    fixed: Configuration
    learnable: Augmentation

    def configure(self, choose: Chooser) -> Configuration:
        """Choose the values of the augmentation."""
        heard = _Heard(choose)
        values = augmentation_values(self.learnable.policy, heard, low=0.0)
        fixed = self.fixed.recipe
        own = {name: fixed.last[name] for name in ("lr", "weight_decay")}
        recipe = replace(fixed, augment="learned", schedules=constant(own | values))
        return replace(self.fixed, recipe=recipe, values=heard.values)


Space = ConfigurationSpace | AugmentationSpace


def constant(values: Mapping[str, float]) -> dict[str, Schedule]:
    """Return constant schedules of the given values, by name."""
    return {name: ((0.0, value),) for name, value in values.items()}


def augmentation_values(
    policy: Policy, choose: Chooser, low: float | None = None
) -> dict[str, float]:
    """Choose a magnitude and a probability of each kind of augmentation operation.

    Arguments:
        policy: Augmentation policy with the names of the values.
        choose: Chooser of the values.
        low: Lower end of all ranges, on linear scales. None means logarithmic magnitudes, because
            weak augmentation is usually best.

    Returns:
        Values by name.
    """
    found = {}
    for name in policy.names:
        if low is not None:
            found[name] = choose.real(name, low, 1.0)
        elif name.startswith("magnitude."):
            found[name] = choose.real(name, *LIMITS["magnitude"], log=True)
        else:
            found[name] = choose.real(name, 0.02, 0.98)
    return found


def _discrete(cell: Cell, choose: Chooser) -> Cell:
    edges: list[Edge] = []
    for node in range(cell.inputs, cell.inputs + cell.nodes):
        into = cell.into(node)
        groups = list(itertools.combinations(into, min(cell.keep, len(into))))
        kept = groups[0]
        if len(groups) > 1:
            names = ["+".join(str(cell.edges[i].source) for i in group) for group in groups]
            chosen = choose.categorical(f"{cell.name}.node{node}", names)
            kept = groups[names.index(chosen)]
        for edge in (cell.edges[i] for i in kept):
            edges.append(replace(edge, operations=(_operation(cell, edge, choose),)))
    return replace(cell, edges=tuple(edges))


def _operation(cell: Cell, edge: Edge, choose: Chooser) -> Operation:
    where = f"{cell.name}.{edge.source}-{edge.target}"
    name = choose.categorical(where, [o.name for o in edge.operations])
    (operation,) = (o for o in edge.operations if o.name == name)
    sizes: dict[str, tuple[int, ...]] = {
        choice: (choose.categorical(f"{where}.{name}.{choice}", known),)
        for choice, known in operation.choices.items()
    }
    return Operation(name, sizes)


def values_of(genotype: Genotype) -> Values:
    """Return the values of a genotype; `configure` with `Known` values returns the genotype.

    A schedule counts with its last value.
    """
    recipe, ends = genotype.recipe, genotype.recipe.last
    found: Values = {"channels": genotype.space.channels}
    for cell in genotype.space.cells:
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            into = [cell.edges[i] for i in cell.into(node)]
            found[f"{cell.name}.node{node}"] = "+".join(str(edge.source) for edge in into)
        for edge in cell.edges:
            (operation,) = edge.operations
            where = f"{cell.name}.{edge.source}-{edge.target}"
            found[where] = operation.name
            for choice, sizes in operation.choices.items():
                found[f"{where}.{operation.name}.{choice}"] = sizes[0]
    own = asdict(recipe.optimizer)
    name = own.pop("name")
    found |= {f"{name}.{each}": value for each, value in own.items()}
    for each in ("lr", "weight_decay"):
        if each in ends:
            found[f"{name}.{each}"] = ends.pop(each)
    policy = recipe.augment
    if "+" not in policy:  # the space has no image mixing
        policy, _, rest = policy.partition(":")
        for pair in filter(None, rest.split(",") if policy == "randaugment" else []):
            key, _, value = pair.partition("=")
            found[f"{policy}.{key}"] = int(value) if key == "n" else float(value)
    if policy == "randaugment" and "magnitude.all" in ends:
        found["randaugment.m"] = 30 * ends.pop("magnitude.all")
    return {
        **found,
        **ends,
        "optimizer": name,
        "label_smoothing": recipe.label_smoothing,
        "augment": policy,
        "batch_size": recipe.batch_size,
    }


# --- Choosers ----------------------------------------------------------------------------------


@dataclass
class _Heard:
    """Chooser that asks another chooser and records the values."""

    choose: Chooser

    def __post_init__(self) -> None:
        self.values: Values = {}

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        self.values[name] = self.choose.categorical(name, choices)
        return self.values[name]

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        self.values[name] = value = self.choose.integer(name, low, high, step)
        return value

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        self.values[name] = value = self.choose.real(name, low, high, log)
        return value


@dataclass(frozen=True)
class Random:
    """Chooser that draws uniformly, or uniformly on a logarithmic scale."""

    generator: torch.Generator

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return choices[int(len(choices) * self._uniform())]

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        return low + step * int(((high - low) // step + 1) * self._uniform())

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        if log:
            return math.exp(self.real(name, math.log(low), math.log(high)))
        return low + (high - low) * self._uniform()


@dataclass(frozen=True)
class Known:
    """Chooser of known values.

    Continuous values are clipped to their range, because a gradient may have left the range.

    Raises:
        UserError: A value is missing, or a discrete value is not in the space.
    """

    values: Mapping[str, Value]

    def _get(self, name: str) -> Value:
        if name not in self.values:
            raise UserError(
                f"the configuration must have a value of {name!r}, got none; use one of this space"
            )
        return self.values[name]

    def categorical(self, name: str, choices: Sequence[Value]) -> Any:
        value = self._get(name)
        if value not in choices:
            raise UserError(f"{name} must be one of {list(choices)}, got {value!r}")
        return value

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        value = self._get(name)
        if not isinstance(value, int) or not low <= value <= high or (value - low) % step:
            raise UserError(f"{name} must be {low} to {high} in steps of {step}, got {value!r}")
        return value

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        return min(max(float(self._get(name)), low), high)
