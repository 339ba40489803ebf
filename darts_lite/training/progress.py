"""Progress bar of a command, from its start to its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

PIPED = 15.0  # seconds between two lines in a file or pipe
SHOWN = 0.2  # seconds between two updates on a terminal


class Progress:
    """Progress bar in percent, with what the command does now; in a file or pipe, some lines.

    Arguments:
        name: name of the command; None for no bar.
    """

    def __init__(self, name: str | None) -> None:
        self._name, self._part = name, (0.0, 1.0)
        self._fraction = 0.0
        self._began: tuple[float, float] | None = None  # clock and fraction of the first step
        self._drawn = float("-inf")
        self._bar: tqdm | None = None  # made when there is something to show

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def part(self, name: str, begin: float, end: float) -> None:
        """Name a part of the command; its fractions are from `begin` to `end` of the bar."""
        self._name, self._part, self._began = name, (begin, end), None
        self._fraction, self._drawn = begin, float("-inf")

    def doing(self, text: str) -> None:
        """Show what the command does now, where the percentage stands still.

        Arguments:
            text: such as "reading the data".
        """
        self._draw(text, at_once=True)

    def show(self, fraction: float, text: str) -> None:
        """Show the spent fraction of the part, the time left, and a text.

        Arguments:
            fraction: from 0 to 1.
            text: short figures, such as the loss.
        """
        begin, end = self._part
        now, fraction = time.monotonic(), begin + (end - begin) * fraction
        self._fraction = fraction
        self._began = self._began or (now, fraction)
        began, first = self._began
        if fraction > first:
            left = int((now - began) * (1 - fraction) / (fraction - first))
            text = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left, {text}"
        self._draw(text)

    def _draw(self, text: str, at_once: bool = False) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        early = now - self._drawn < (SHOWN if terminal else PIPED)
        if self._name is None or (early and not (at_once and terminal)):
            return
        self._drawn = now
        percent = 100 * self._fraction
        if not terminal:
            print(f"{self._name} {percent:3.0f}%: {text}", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            layout = "{desc} {percentage:3.0f}%|{bar:20}| {unit}"
            self._bar = tqdm(total=100, desc=self._name, unit=text, bar_format=layout)
        self._bar.n, self._bar.unit = percent, text
        self._bar.set_description_str(self._name)

    def above(self, say: Callable[[str], object]) -> Callable[[str], None]:
        """Return a function that prints a line above the bar.

        Arguments:
            say: prints a line for the user.
        """

        def printed(text: str) -> None:
            with tqdm.external_write_mode():
                say(text)

        return printed


def warn(message: str) -> None:
    """Print a warning on stderr without breaking the progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)
    sys.stderr.flush()
