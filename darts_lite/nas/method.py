"""A method of architecture search: one relaxation, some regularizers, one selector."""

from __future__ import annotations

from dataclasses import dataclass, field

from darts_lite.architecture.cost import CostTable
from darts_lite.nas.gdas import Gdas
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.regularizers import BetaDecay, ParameterHinge, Regularizer
from darts_lite.nas.relaxation import Relaxation, Softmax
from darts_lite.nas.select import Selector, knapsack


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of a search that differ between methods.

    `MixedOp`, the costs and the final training do not depend on the method.

    Arguments:
        relaxation: maps logits to mixing weights.
        regularizers: terms added to the loss of the architecture.
        selector: maps the space and its mixing weights to a discrete space.
    """

    relaxation: Relaxation = field(default_factory=Softmax)
    regularizers: tuple[Regularizer, ...] = ()
    selector: Selector = knapsack


RELAXATIONS: dict[str, type[Relaxation]] = {"darts": Softmax, "gdas": Gdas}
"""The relaxations by the name of their method."""


def method_of(options: SearchOptions, costs: CostTable) -> Method:
    """Return the method of the options, with entangled weights and an exact selection.

    Arguments:
        options: options of the search, with a parameter limit.
        costs: costs of the search space.
    """
    decay = (BetaDecay(),) if options.protect else ()
    return Method(
        relaxation=RELAXATIONS[options.method](),
        regularizers=(*decay, ParameterHinge(costs, float(options.limit))),
    )
