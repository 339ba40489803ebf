"""A budget of wall-clock time or of steps, and the fraction of it that is spent. No torch.

Every schedule of darts_lite runs in that fraction, so one setting serves a minute and a night.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

PROCESS_START = time.monotonic()  # the package imports this module before anything else


@dataclass
class Budget:
    """Either `seconds` since the process started or a number of `steps`.

    Attributes: `spent`, seconds used before this process by the run that it resumes; `reserve`,
    seconds kept for what follows the loop (discretisation, evaluation, writing), which the loop's
    owner sets as soon as it has measured them.

    >>> Budget(steps=10).fraction(5)
    0.5
    """

    seconds: float | None = None
    steps: int | None = None
    spent: float = 0.0
    reserve: float = 0.0
    _last: float = 0.0

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("a budget is either seconds or steps")

    @property
    def elapsed(self) -> float:
        """Seconds used so far, earlier processes of the same run included."""
        return self.spent + time.monotonic() - PROCESS_START

    def fraction(self, step: int) -> float:
        """The spent part of the budget, 0 to 1; never falls."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        usable = max(self.seconds - self.reserve, 1e-9)
        self._last = max(self._last, min(1.0, self.elapsed / usable))
        return self._last

    def exhausted(self, step: int) -> bool:
        return self.fraction(step) >= 1.0
