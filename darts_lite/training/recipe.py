"""How a network is trained, apart from what a schedule says: the optimiser and label smoothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from darts_lite.errors import UserError
from darts_lite.hypergradient.optimizers import SGD, Adam

Setting = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The optimiser, whose learning rate and weight decay are schedules, and label smoothing.

    >>> Recipe.read({"optimizer": "adamw", "beta1": 0.8, "beta2": 0.99}).optimizer.betas
    (0.8, 0.99)
    """

    optimizer: SGD | Adam = field(default_factory=lambda: SGD(momentum=0.9, nesterov=True))
    label_smoothing: float = 0.1

    @staticmethod
    def read(settings: Mapping[str, Setting]) -> Recipe:
        """From the settings of a genotype; what they do not name is as usual.

        Raises: `UserError` if a value is none of this kind.
        """

        def number(name: str, usual: float, below: float = 1.0) -> float:
            value = settings.get(name, usual)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"settings.{name} is no number but {value!r}; search again")
            if not 0 <= value < below:
                raise UserError(f"settings.{name} is {value}, outside 0 to {below}; search again")
            return float(value)

        name = settings.get("optimizer", "sgd")
        optimizer: SGD | Adam
        if name == "sgd":
            nesterov = settings.get("nesterov", True)
            if not isinstance(nesterov, bool):
                raise UserError(f"settings.nesterov is {nesterov!r}, not true or false")
            optimizer = SGD(momentum=number("momentum", 0.9), nesterov=nesterov)
        elif name == "adamw":
            optimizer = Adam(betas=(number("beta1", 0.9), number("beta2", 0.999)))
        else:
            raise UserError(f"settings.optimizer is {name!r}, neither sgd nor adamw; search again")
        return Recipe(optimizer=optimizer, label_smoothing=number("label_smoothing", 0.1))

    def settings(self) -> dict[str, Setting]:
        """What `read` reads.

        >>> Recipe.read(Recipe().settings()) == Recipe()
        True
        """
        if isinstance(self.optimizer, SGD):
            own: dict[str, Setting] = {
                "optimizer": "sgd",
                "momentum": float(self.optimizer.momentum),
                "nesterov": self.optimizer.nesterov,
            }
        else:
            beta1, beta2 = self.optimizer.betas
            own = {"optimizer": "adamw", "beta1": beta1, "beta2": beta2}
        return {**own, "label_smoothing": self.label_smoothing}
