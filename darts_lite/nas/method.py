"""A method of architecture search: one relaxation, some regularizers, one selector."""

from __future__ import annotations

from dataclasses import dataclass, field

from darts_lite.architecture.cost import CostTable
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.regularizers import BetaDecay, ParameterHinge, Regularizer
from darts_lite.nas.relaxation import Relaxation, Softmax
from darts_lite.nas.select import Selector, knapsack
from darts_lite.nas.single_path import UniformPath


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of a search that differ between methods.

    `MixedOp`, the costs and the final training do not depend on the method.

    Arguments:
        relaxation: maps logits to mixing weights.
        regularizers: terms added to the loss of the architecture.
        selector: maps the space and its mixing weights to a discrete space.
        scored: whether the logits are scores of sampled paths (`single_path.PathScores`) instead of
            outer variables with hypergradients.
        settles: whether the last part of the search trains the selected path alone.
        timed: whether, in a budget of hours, the time of training limits the result
            (`select.TimedKnapsack` instead of `selector`).
    """

    relaxation: Relaxation = field(default_factory=Softmax)
    regularizers: tuple[Regularizer, ...] = ()
    selector: Selector = knapsack
    scored: bool = False
    settles: bool = False
    timed: bool = False


def method_of(options: SearchOptions, costs: CostTable) -> Method:
    """Return the method of the options, with entangled weights and an exact selection.

    Arguments:
        options: options of the search, with a parameter limit.
        costs: costs of the search space.
    """
    if options.method == "single_path":
        return Method(relaxation=UniformPath(), scored=True, timed=True)
    decay = (BetaDecay(),) if options.protect else ()
    return Method(regularizers=(*decay, ParameterHinge(costs, float(options.limit))), settles=True)
