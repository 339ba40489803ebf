"""The report page in a real browser, headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from invoking import call

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
WIDTHS = (390, 1280)  # a phone and a desktop, in CSS pixels
# The page has no script. A page around it shows it in frames of both widths, and measures.
MEASURE = """
addEventListener("load", () => {
  const measured = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, images = [...page.images];
    return {
      width: frame.clientWidth,
      content: page.documentElement.scrollWidth,
      images: images.map(i => [i.alt, i.naturalWidth, i.clientWidth]),
      font: parseFloat(frame.contentWindow.getComputedStyle(page.body).fontSize),
      tables: page.querySelectorAll("table").length,
    };
  });
  document.getElementById("out").textContent = JSON.stringify(measured);
});
"""


def browse(page: str, folder: Path) -> tuple[list[dict], str]:
    """Return what the browser measures of a page in each width, and what it logs."""
    frames = "".join(f'<iframe width="{w}" srcdoc="{escape(page)}"></iframe>' for w in WIDTHS)
    around = folder / "around.html"
    around.write_text(f"<script>{MEASURE}</script>{frames}<pre id=out></pre>", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000",
               "--enable-logging=stderr", around.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r"<pre id=.?out.?>(.*?)</pre>", done.stdout, re.S)
    return json.loads(unescape(found)), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_every_picture_loads_and_the_page_fits_a_phone(trained: Path, tmp_path: Path) -> None:
    result = call("report", trained.parent, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    measured, log = browse(page, tmp_path)
    assert [each["width"] for each in measured] == list(WIDTHS)
    for each in measured:
        assert {name for name, *_ in each["images"]} >= {"confusion", "errors", "calibration"}
        assert all(natural > 200 and shown > 200 for _, natural, shown in each["images"])
        assert each["content"] <= each["width"], "the page must not scroll sideways"
        assert each["font"] >= 14 and each["tables"] >= 4
    assert "CONSOLE" not in log, log


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_bad_page_is_found(tmp_path: Path) -> None:
    page = '<img alt="x" src="data:image/png;base64,AAAA"><p style="width: 3000px">w</p>'
    measured, log = browse(page + "<script>console.error('bad')</script>", tmp_path)
    assert measured[0]["content"] > measured[0]["width"]
    assert measured[0]["images"][0][1] == 0
    assert "CONSOLE" in log
