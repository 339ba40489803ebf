"""A budget of wall-clock time or of steps, and the fraction of it that is spent. No torch.

Every schedule of darts_lite runs in that fraction, so one setting serves a minute and a night.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

PROCESS_START = time.monotonic()  # the package imports this module before anything else


@dataclass
class Budget:
    """Either `seconds` from `started` on or a number of `steps`.

    Arguments: `started`, on the clock of `time.monotonic`; now, if it is not given (the command
    line gives PROCESS_START). Attributes: `reserve`, seconds kept for what follows the loop
    (discretisation, evaluation, writing), which the loop sets as soon as it has measured its pace;
    `until`, the step at which a run pauses, and `deadline`, on the clock of `time.monotonic`, at
    which it stops: they end it early and leave the fraction, and with it every schedule, as it is.

    >>> Budget(steps=10).fraction(5)
    0.5
    """

    seconds: float | None = None
    steps: int | None = None
    started: float = field(default_factory=time.monotonic)
    reserve: float = 0.0
    until: int | None = None
    deadline: float | None = None
    _spent: float = 0.0  # seconds used by earlier processes of the same run
    _reached: float = 0.0

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("a budget is either seconds or steps")

    @property
    def elapsed(self) -> float:
        """Seconds used so far, earlier processes of the same run included."""
        return self._spent + time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """The spent part of the budget, 0 to 1; never falls, in a resumed run either."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        usable = max(self.seconds - self.reserve, 1e-9)
        self._reached = max(self._reached, min(1.0, self.elapsed / usable))
        return self._reached

    def exhausted(self, step: int) -> bool:
        paused = self.until is not None and step >= self.until
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return paused or late or self.fraction(step) >= 1.0

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.elapsed, "reserve": self.reserve, "reached": self._reached}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._spent, self.reserve = state["spent"], state["reserve"]
        self._reached = state["reached"]
