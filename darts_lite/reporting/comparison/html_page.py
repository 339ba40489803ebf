"""Self-contained HTML page of a report: embedded pictures, light and dark theme, no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from darts_lite.reporting.comparison.compare import by_method, metric_of
from darts_lite.reporting.comparison.roads import Roads, omissions, rows_of
from darts_lite.reporting.comparison.study import Final, Study, Trial
from darts_lite.reporting.comparison.tables import NOTHING, duration, percent, rows

BEST = 30  # trials in the list
HEADER = (
    "method",
    "seed",
    "trial",
    "state",
    "accuracy",
    "trained",
    "parameters",
    "MACs",
    "ended at",
    "configuration",
)
STYLE = """
:root { color-scheme: light dark; --line: #d8d8d4; --pale: #6a6a6a; }
@media (prefers-color-scheme: dark) { :root { --line: #45454a; --pale: #a0a0a0; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-weight: 500; }
p { color: var(--pale); }
img { max-width: 100%; background: white; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; }
td { vertical-align: top; white-space: nowrap; }
th { vertical-align: bottom; font-weight: 500; color: var(--pale); }
summary { cursor: pointer; }
pre { margin: 0.3rem 0; white-space: pre-wrap; }
"""


def html_page(
    studies: Sequence[Study],
    title: str,
    pictures: Sequence[Path],
    comparisons: Sequence[Roads] = (),
) -> str:
    """Return the HTML page; every text that comes from a study is escaped.

    Arguments:
        studies: of the report.
        title: of the page.
        pictures: paths of PNG files.
        comparisons: comparisons of roads to a smaller network.
    """
    methods = [[escape(cell) for cell in row] for row in rows(studies)]
    images = "\n".join(_image(path) for path in pictures)
    metric = escape(metric_of(studies).replace("_", " "))
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
{_table(methods)}
<p>Each value is the median over seeds, with the lowest and the highest in brackets. "Best on
validation" is the {metric} on validation images, of networks under the parameter limit of their
study; only the column "test accuracy" is on test images.</p>
{images}
{_compared(comparisons)}
{_tested(studies)}
{_diagnosed(studies)}
<h2>The best trials</h2>
{_table(_best(studies))}
</html>
"""


def _compared(comparisons: Sequence[Roads]) -> str:
    """Return a table for every comparison of roads; empty without one."""
    parts = []
    for roads in comparisons:
        cells = [[escape(cell) for cell in row] for row in rows_of(roads)]
        title = escape(f"Roads to a smaller network than {roads.run}")
        parts += [f"<h2>{title}</h2>", _table(cells)]
        parts += [f"<p>{escape(line)}</p>" for line in omissions(roads)]
    return "\n".join(parts)


def _tested(studies: Sequence[Study]) -> str:
    """Return a table of the test metrics of every final training; empty without one."""
    found = [
        (name, study.settings.seed, study.final)
        for name, own in by_method(studies).items()
        for study in own
        if study.final is not None
    ]
    names = list(dict.fromkeys(n for *_, final in found for n in final.metrics))
    header = ["method", "seed", *(n.replace("_", " ") for n in names)]
    body = [
        [escape(name), str(seed), *(_metric(n, final.metrics.get(n)) for n in names)]
        for name, seed, final in found
    ]
    return f"<h2>Final trainings on test images</h2>\n{_table([header, *body])}" if body else ""


def _diagnosed(studies: Sequence[Study]) -> str:
    """Return classes, confused pairs, latency and pictures of every final training."""
    found = []
    for name, own in by_method(studies).items():
        for study in own:
            if study.final is not None:
                parts = [*_details(study.final), *map(_image, study.pictures)]
                title = escape(f"{name}, seed {study.settings.seed}: errors, classes and latency")
                shown = " open" if len(studies) == 1 else ""
                if parts:
                    found.append(f"<details{shown}><summary>{title}</summary>")
                    found += [*parts, "</details>"]
    return "\n".join(found)


def _details(final: Final) -> list[str]:
    """Return tables of a final training as HTML."""
    parts = []
    if final.latency is not None:
        about = final.latency
        size = "" if final.model_bytes is None else f"; file of {final.model_bytes} bytes"
        machine = f"{about.processor} ({about.device}), {about.threads} threads{size}"
        body = [
            [str(t.batch), f"{t.median_ms:.2f} ms", f"{t.p95_ms:.2f} ms"] for t in about.batches
        ]
        parts += [f"<p>Latency in torch on {escape(machine)}</p>"]
        parts += [_table([["batch", "median", "95th percentile"], *body])]
    if final.test_confused:
        body = [
            [escape(c.true), escape(c.predicted), str(c.count), percent(c.share)]
            for c in final.test_confused
        ]
        parts += ["<p>Most confused classes on test images</p>"]
        parts += [_table([["true class", "taken for", "images", "share of the class"], *body])]
    if final.test_classes:
        body = [
            [escape(c.name), *map(percent, (c.precision, c.recall, c.f1)), str(c.support)]
            for c in final.test_classes
        ]
        parts += ["<p>Each class on test images</p>"]
        parts += [_table([["class", "precision", "recall", "F1", "images"], *body])]
    return parts


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4f}" if name == "log_loss" else percent(value)


def _best(studies: Sequence[Study]) -> list[list[str]]:
    """Return the most accurate trials of all studies: a header, then a row of HTML per trial."""
    found = [
        (trial.point[1], [escape(name), *_cells(study, trial)])
        for name, own in by_method(studies).items()
        for study in own
        for trial in study.trials
        if trial.point
    ]
    found.sort(key=lambda pair: -pair[0])
    return [list(HEADER), *(cells for _, cells in found[:BEST])]


def _cells(study: Study, trial: Trial) -> list[str]:
    configuration = escape(json.dumps(trial.configuration, indent=1, ensure_ascii=False))
    numbers = [NOTHING if n is None else str(n) for n in (trial.parameters, trial.macs)]
    return [
        str(study.settings.seed),
        str(trial.trial),
        trial.state,
        percent(trial.accuracy or 0),
        f"{trial.fidelity:.0%}",
        *numbers,
        NOTHING if trial.elapsed is None else duration(trial.elapsed),
        f"<details><summary>{len(trial.configuration)} settings</summary>"
        f"<pre>{configuration}</pre></details>",
    ]


def _image(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{path.stem}" src="data:image/png;base64,{content}"></p>'


def _table(cells: Sequence[Sequence[str]]) -> str:
    header, *body = cells
    lines = ["".join(f"<th>{cell}</th>" for cell in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    inner = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n{inner}\n</table></div>'
