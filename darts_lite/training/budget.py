"""A budget of wall-clock time or of steps, and its spent fraction. Imports no torch.

Every schedule of darts_lite is a function of the spent fraction, so the same settings are valid for
a run of a minute and of a night.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

PROCESS_START = time.monotonic()  # the package imports this module before anything else


@dataclass
class Budget:
    """A number of `seconds` from `started`, or a number of `steps`.

    Clock values are values of `time.monotonic`. `until` and `deadline` end a run early; they do not
    change the fraction, so they do not change any schedule.

    Arguments:
        seconds: the budget in seconds; None for a budget in steps.
        steps: the budget in steps; None for a budget in seconds.
        started: clock value at the start; now by default (the command line gives PROCESS_START).
        reserve: seconds kept for the work after the loop (discretization, evaluation, writing);
            the loop sets it when it has measured the time per step.
        until: step at which the run pauses; None for no pause.
        deadline: clock value at which the run stops; None for no deadline.
    Raises: ValueError unless exactly one of `seconds` and `steps` is given.

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
            raise ValueError(
                f"a budget must be either seconds or steps, got {self.seconds} seconds and "
                f"{self.steps} steps; give one of them"
            )

    @property
    def elapsed(self) -> float:
        """Seconds used so far, including earlier processes of the same run."""
        return self._spent + time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """Return the spent fraction of the budget, 0 to 1; it never falls, not in a resumed run.

        Arguments:
            step: steps so far.
        """
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        usable = max(self.seconds - self.reserve, 1e-9)
        self._reached = max(self._reached, min(1.0, self.elapsed / usable))
        return self._reached

    def exhausted(self, step: int) -> bool:
        """Tell whether the run ends at a step: by budget, pause or deadline."""
        paused = self.until is not None and step >= self.until
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return paused or late or self.fraction(step) >= 1.0

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.elapsed, "reserve": self.reserve, "reached": self._reached}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._spent, self.reserve = state["spent"], state["reserve"]
        self._reached = state["reached"]
