"""Build the objects of a training from a recipe, which is plain data."""

from __future__ import annotations

from darts_lite.architecture.recipe import AdamW, Recipe, Sgd
from darts_lite.hypergradient.optimizers import SGD, Adam


def build_optimizer(recipe: Recipe) -> SGD | Adam:
    """Return the functional optimizer of a recipe.

    >>> build_optimizer(Recipe(optimizer=AdamW(beta1=0.8, beta2=0.99))).betas
    (0.8, 0.99)
    """
    match recipe.optimizer:
        case Sgd(momentum=momentum, nesterov=nesterov):
            return SGD(momentum=momentum, nesterov=nesterov)
        case AdamW(beta1=beta1, beta2=beta2):
            return Adam(betas=(beta1, beta2))
