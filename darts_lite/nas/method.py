"""A method of architecture search, as a few small objects."""

from __future__ import annotations

from dataclasses import dataclass, field

from darts_lite.architecture.cost import CostTable
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.regularizers import BetaDecay, ParameterHinge, Regularizer
from darts_lite.nas.relaxation import Relaxation, Softmax
from darts_lite.nas.select import Selector, knapsack


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a search needs of a method; `MixedOp`, costs and the final training know none of it.

    Arguments:
        relaxation: how logits become mixing weights.
        regularizers: terms of the architecture's loss.
        selector: how the space becomes discrete.
    """

    relaxation: Relaxation = field(default_factory=Softmax)
    regularizers: tuple[Regularizer, ...] = ()
    selector: Selector = knapsack


def method_of(options: SearchOptions, costs: CostTable) -> Method:
    """Return the method of a search: DARTS with entangled sizes and an exact selection."""
    decay = (BetaDecay(),) if options.protect else ()
    return Method(regularizers=(*decay, ParameterHinge(costs, float(options.limit))))
