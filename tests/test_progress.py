"""Progress bars: percentage, time left, what is done while the percentage stands still."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_loop import Counter

from darts_lite.reporting.recorder import Recorder
from darts_lite.training import loop, progress
from darts_lite.training.budget import Budget
from darts_lite.training.progress import Progress


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PIPED", 0.0)
    monkeypatch.setattr(progress, "SHOWN", 0.0)


def drawn(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what was shown, the oldest first: of a bar, or lines of a pipe."""
    return [text.strip() for text in re.split("[\r\n]", capsys.readouterr().err) if text.strip()]


def test_the_bar_says_what_it_does_at_the_same_percentage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("search") as bar:
        bar.doing("reading the data")
        bar.show(0.0, "first steps")
        bar.show(0.5, "loss 1")
        bar.doing("drawing pictures")
    shown = drawn(capsys)
    assert shown == [
        "search   0%: reading the data",
        "search   0%: first steps",
        "search  50%: 0:00:00 left, loss 1",
        "search  50%: drawing pictures",
    ]


def test_parts_share_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("fit") as bar:
        bar.part("search", 0.0, 0.2)
        bar.show(0.5, "a")
        bar.part("derive", 0.2, 1.0)
        bar.doing("b")
        bar.show(0.5, "c")
    assert [text[:12] for text in drawn(capsys)] == ["search  10%:", "derive  20%:", "derive  60%:"]


def test_a_pipe_gets_few_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PIPED", 1000.0)
    with Progress("search") as bar:
        for step in range(100):
            bar.show(step / 100, "loss")
            bar.doing("evaluating")
    assert drawn(capsys) == ["search   0%: loss"]


def test_without_a_name_or_a_text_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None) as bar, Progress("search"):
        bar.doing("reading the data")
        bar.show(0.5, "loss")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_one_bar_and_lines_stand_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("search") as bar:
        bar.doing("reading the data")
        bar.above(lambda text: print(text, file=sys.stderr))("found 3 classes")
        bar.show(0.5, "loss 1")
    text = capsys.readouterr().err
    assert "\rfound 3 classes\n" in text and text.count("\n") == 2  # the bar ends with its line
    shown = [each for each in text.split("\r") if "|" in each]
    assert shown[0].startswith("search   0%|") and shown[0].rstrip().endswith("| reading the data")
    assert shown[-1].startswith("search  50%|") and "reading" not in shown[-1]


def test_the_loop_names_slow_steps_and_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Measuring(Counter):
        def doing(self, fraction: float) -> str:
            return "measuring the speed" if fraction == 0 else ""

    store = loop.Store(tmp_path / "c.pt", "count", {})
    with Recorder(tmp_path) as recorder, Progress("count") as bar:
        loop.run(Measuring(), Budget(steps=30), recorder, store, progress=bar)
    shown = drawn(capsys)
    assert shown[0] == "count   0%: measuring the speed"
    assert any("evaluating and drawing pictures" in text for text in shown)
    assert any("count 30" in text for text in shown)
