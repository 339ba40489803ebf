"""Hand-made studies with known curves, fronts and medians; then the report as a whole."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.space import Edge, Operation, SearchSpace
from darts_lite.errors import UserError
from darts_lite.reporting import comparison as report
from darts_lite.reporting import pictures
from darts_lite.reporting.comparison import Measurement, Settings, Study, Trial
from darts_lite.reporting.pictures import Point, Step
from darts_lite.reporting.pictures import studies as drawn

CAP = 1000
SETTINGS = {
    "method": "random",
    "seed": 0,
    "objective": "accuracy",
    "max_params": CAP,
    "epochs": 9,
    "fidelity": "epochs",
    "dataset": {"name": "digits", "sha256": "a" * 64, "shape": [1, 8, 8]},
    "budget_hours": 0.1,
    "workers": 1,
    "trials": 12,
}
METRICS = {"parameters": 900, "macs": 9000, "test_accuracy": 0.85, "test_macro_f1": 0.84}


def trial(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a line of trials.jsonl; by default complete at 10 s, 100 parameters, 50% accuracy."""
    usual = {
        "trial": number,
        "state": "complete",
        "accuracy": 0.5,
        "parameters": 100,
        "macs": 1000,
        "fidelity": 1.0,
        "elapsed": 10.0,
        "seconds": 10.0,
        "measurements": [],
        "configuration": {"lr": 0.1},
    }
    return {**usual, **changes}


def measured(number: int, *measurements: tuple[float, float, float], **changes: Any) -> dict:
    """Return a trial with measurements (elapsed, fidelity, accuracy); the last one ends it."""
    elapsed, fidelity, accuracy = measurements[-1]
    ended = {"elapsed": elapsed, "fidelity": fidelity, "accuracy": accuracy}
    return trial(number, **ended, measurements=measurements, **changes)


def save(
    folder: Path, *lines: dict[str, Any], final: dict[str, Any] | None = None, **settings: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({**SETTINGS, **settings}, indent=1))
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if final is not None:
        (folder / "derive").mkdir(exist_ok=True)
        (folder / "derive" / "metrics.json").write_text(json.dumps(final))
    return folder


def searched(folder: Path, sha256: str = "a" * 64) -> Path:
    """Make a folder as `search` leaves it, before `derive`."""
    space = blocks(length=1)
    edge = Edge(0, 1, (Operation("skip"),))
    cell = space.cells[0].__class__("block1", 1, 1, 1, False, (edge,))
    genotype = Genotype(
        space=SearchSpace("blocks", (cell,), ("block1",), 4),
        image=(1, 8, 8),
        classes=("a", "b"),
        parameters=50,
        macs=500,
        seed=3,
        dataset={"name": "digits", "sha256": sha256},
    )
    folder.mkdir(parents=True)
    genotype.save(folder / "g.json")
    return folder


def cells(text: str, row: str) -> dict[str, str]:
    """Return one row of a Markdown table by the names of its columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return dict(zip(lines[0], next(line for line in lines if line[0] == row), strict=True))


# --- reading ---------------------------------------------------------------------------------


def test_a_study_is_read(tmp_path: Path) -> None:
    line = measured(4, (3.0, 0.5, 0.25), (6.0, 1, 0.75), configuration={"lr": 0.1, "ops": ["a"]})
    study = report.read_study(save(tmp_path / "a", line, final=METRICS, seed=2, budget_hours=None))
    (only,) = study.trials
    assert (study.settings.method, study.settings.seed, study.settings.max_params) == (
        "random",
        2,
        CAP,
    )
    assert only.trial == 4 and only.configuration == {"lr": 0.1, "ops": ["a"]}
    assert only.measurements == (Measurement(3.0, 0.5, 0.25), Measurement(6.0, 1.0, 0.75))
    assert study.final is not None and study.final.test_accuracy == 0.85
    assert study.seconds == 6.0


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", trial(0), trial(1))
    whole = report.read_study(folder)
    with (folder / "trials.jsonl").open("ab") as file:
        file.write('{"trial": 2, "state": "é'.encode()[:-1])
    assert report.read_study(folder) == whole and len(whole.trials) == 2


def test_the_latest_line_of_a_trial_counts(tmp_path: Path) -> None:
    lines = trial(0, state="paused", fidelity=0.1), trial(1), trial(0, accuracy=0.9)
    study = report.read_study(save(tmp_path / "a", *lines))
    assert [(t.trial, t.state, t.accuracy) for t in study.trials] == [
        (0, "complete", 0.9),
        (1, "complete", 0.5),
    ]


def test_a_search_is_a_study_without_trials(tmp_path: Path) -> None:
    folder = searched(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"must contain derive/metrics.json, .*run `derive --genotype .*g.json"
    ):
        report.read_study(folder)
    (folder / "derive").mkdir()
    (folder / "derive" / "metrics.json").write_text(json.dumps(METRICS))
    study = report.read_study(folder)
    assert (study.settings.method, study.settings.seed, study.trials) == ("search", 3, ())
    assert study.settings.dataset["sha256"] == "a" * 64
    assert study.final is not None and study.final.parameters == 900
    assert report.best_so_far(study) == []


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "study.json",
            None,
            "must contain study.json .* or g.json .*, got neither; give the --out",
        ),
        (
            "study.json",
            "{",
            "study.json: the JSON: Invalid JSON: EOF .*; repair the file, or leave",
        ),
        ("study.json", '{"seed": 0, "dataset": {}}', "study.json: method: Field required; repair"),
        ("trials.jsonl", None, "must contain trials.jsonl, got none: .*; report later"),
        (
            "trials.jsonl",
            "{}\n\n",
            r"trials.jsonl line 1: trial: Field required; repair the file, or",
        ),
        (
            "trials.jsonl",
            json.dumps(trial()) + '\n{"trial": 1,}\n{}\n',
            r"trials.jsonl line 2: the JSON: Invalid JSON: trailing comma at column \d+; repair",
        ),
        ("trials.jsonl", json.dumps(trial(accuracy=85.0)) + "\n", "line 1: accuracy: Input should"),
        ("trials.jsonl", json.dumps(trial(accuracy=math.nan)) + "\n", "line 1: accuracy: Input"),
        ("trials.jsonl", json.dumps(trial(elapsed=math.inf)) + "\n", "line 1: elapsed: Input"),
        ("trials.jsonl", json.dumps(trial(parameters=0)) + "\n", "line 1: parameters: Input shoul"),
        ("trials.jsonl", json.dumps(trial(state="odd")) + "\n", "line 1: state: Input should be"),
        (
            "trials.jsonl",
            json.dumps(trial(measurements=[[1.0, 0.5, 0.5], [2.0, 1.0, 1.5]])) + "\n",
            r"line 1: measurements\.1\.",
        ),
        ("derive/metrics.json", "{}", "metrics.json: parameters: Field required; repair the file"),
    ],
)
def test_an_unreadable_study_gives_a_one_line_error(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = save(tmp_path / "bad", trial(), final=METRICS)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        report.read_study(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# --- numbers ---------------------------------------------------------------------------------


def studies(tmp_path: Path, method: str, *seeds: list[dict[str, Any]], **settings: Any):
    """Write one study per seed and read the studies from disk."""
    return [
        report.read_study(
            save(tmp_path / f"{method}{seed}", *lines, method=method, seed=seed, **settings)
        )
        for seed, lines in enumerate(seeds)
    ]


def test_best_so_far_and_time_to(tmp_path: Path) -> None:
    lines = [
        measured(0, (8.0, 0.5, 0.4), (20.0, 1, 0.6)),  # overlaps with the next trial: two workers
        measured(1, (5.0, 0.1, 0.3), (9.0, 0.3, 0.55), (12.0, 0.5, 0.5), state="pruned"),
        trial(2, elapsed=30.0, accuracy=0.7),  # without measurements: the end counts
        trial(3, elapsed=31.0, accuracy=0.7),  # no improvement
        trial(4, elapsed=33.0, accuracy=0.8, parameters=CAP),
        trial(5, elapsed=34.0, accuracy=0.9, parameters=CAP + 1),
        trial(6, elapsed=35.0, accuracy=0.9, parameters=None),
        trial(7, elapsed=36.0, accuracy=0.9, state="infeasible"),
        trial(8, elapsed=None, accuracy=0.9, state="running"),
        trial(9, elapsed=50.0, accuracy=None, state="failed"),
    ]
    (study,) = studies(tmp_path, "asha", lines)
    assert report.best_so_far(study) == [
        (5, 0.3),
        (8, 0.4),
        (9, 0.55),
        (20, 0.6),
        (30, 0.7),
        (33, 0.8),
    ]
    assert study.seconds == 50
    assert report.time_to(study, 0.3) == 5 and report.time_to(study, 0.56) == 20
    assert report.time_to(study, 0.8) == 33 and report.time_to(study, 0.81) is None


def test_the_best_of_simultaneous_measurements_counts(tmp_path: Path) -> None:
    lines = [trial(0, accuracy=0.3), trial(1, accuracy=0.5), trial(2, accuracy=0.4)]
    (study,) = studies(tmp_path, "random", lines)
    assert report.best_so_far(study) == [(10, 0.5)]


def test_median_best_so_far_of_three_seeds(tmp_path: Path) -> None:
    """It starts at 3 s, with the first result of the last seed."""
    three = studies(
        tmp_path,
        "bohb",
        [measured(0, (1.0, 0.5, 0.2), (4.0, 1, 0.8))],
        [measured(0, (2.0, 0.5, 0.4), (5.0, 1, 0.6)), trial(1, elapsed=9.0, accuracy=0.1)],
        [measured(0, (3.0, 0.5, 0.3), (6.0, 1, 0.9))],
    )
    assert report.median_best_so_far(three) == [
        (3, 0.3, 0.2, 0.4),
        (4, 0.4, 0.3, 0.8),
        (5, 0.6, 0.3, 0.8),
        (6, 0.8, 0.6, 0.9),
        (9, 0.8, 0.6, 0.9),  # the end of the longest study
    ]
    assert report.median_best_so_far(three[:1]) == [
        (1, 0.2, 0.2, 0.2),
        (4, 0.8, 0.8, 0.8),
        (4, 0.8, 0.8, 0.8),
    ]
    assert report.median_best_so_far([]) == []


def test_a_late_seed_with_a_low_result_does_not_lower_the_median(tmp_path: Path) -> None:
    two = studies(
        tmp_path,
        "bohb",
        [trial(0, elapsed=1.0, accuracy=0.9)],
        [trial(0, elapsed=5.0, accuracy=0.1)],
    )
    assert report.median_best_so_far(two) == [(5, 0.5, 0.1, 0.9), (5, 0.5, 0.1, 0.9)]


Results = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6)


@given(st.lists(Results, max_size=4))
def test_the_median_best_so_far_never_falls(seeds: list[list[tuple[int, int]]]) -> None:
    own = [
        Study(
            Path(),
            Settings(method="random", seed=seed, dataset={}),
            tuple(
                Trial(**trial(n, elapsed=float(time), accuracy=accuracy / 10))
                for n, (time, accuracy) in enumerate(results)
            ),
        )
        for seed, results in enumerate(seeds)
    ]
    steps = report.median_best_so_far(own)
    assert bool(steps) == any(seeds)
    for before, after in itertools.pairwise(steps):
        assert all(old <= new for old, new in zip(before, after, strict=True))


def test_a_seed_without_a_result_is_left_out(tmp_path: Path) -> None:
    two = studies(tmp_path, "bohb", [trial()], [trial(state="infeasible")])
    assert report.median_best_so_far(two) == [(10, 0.5, 0.5, 0.5)] * 2


def test_pareto_front(tmp_path: Path) -> None:
    sizes = [(300, 0.7), (100, 0.5), (200, 0.5), (100, 0.4), (400, 0.69), (500, 0.9), (300, 0.6)]
    lines = [trial(n, parameters=p, accuracy=a) for n, (p, a) in enumerate(sizes)]
    lines += [
        trial(90, parameters=10, accuracy=0.99, fidelity=0.99),
        trial(91, parameters=10, accuracy=0.99, state="infeasible"),
        trial(92, parameters=None, accuracy=0.99),
        trial(93, parameters=10, accuracy=None),
    ]
    (study,) = studies(tmp_path, "random", lines)
    assert [t.trial for t in report.pareto_front(study.trials)] == [1, 0, 5]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=20))
def test_the_front_is_not_dominated_and_dominates_the_rest(
    points: list[tuple[int, int]],
) -> None:
    trials = [Trial(**trial(n, parameters=p, accuracy=a / 10)) for n, (p, a) in enumerate(points)]
    front = [t.point for t in report.pareto_front(trials)]
    assert front == sorted(set(front))
    for size, accuracy in [(p, a / 10) for p, a in points]:
        beaten = [
            (s, a) for s, a in front if s <= size and a >= accuracy and (s, a) != (size, accuracy)
        ]
        assert ((size, accuracy) in front) == (not beaten)


def test_studies_that_differ_in_more_than_the_seed_are_separate_groups() -> None:
    def study(method: str, seed: int, **settings: Any) -> Study:
        return Study(Path(), Settings(method=method, seed=seed, dataset={}, **settings))

    three = [study("asha", 0, workers=1), study("asha", 1, workers=2), study("asha", 1, workers=1)]
    other = study("random", 0, workers=7, max_params=5)
    assert report.by_method([*three, other]) == {
        "asha, workers 1": [three[0], three[2]],
        "asha, workers 2": [three[1]],
        "random": [other],
    }
    assert list(report.by_method([study("tpe", 0, max_params=n) for n in (5, 6)])) == [
        "tpe, max params 5",
        "tpe, max params 6",
    ]


# --- the table -------------------------------------------------------------------------------


def several(tmp_path: Path) -> list[Study]:
    """BOHB ends at 0.6, 0.8 and 0.9 after 100, 200 and 400 s; random reaches 0.8 in one of two."""
    bohb = studies(
        tmp_path,
        "bohb",
        [trial(0, elapsed=50.0, accuracy=0.6, parameters=300), trial(1, elapsed=100.0)],
        [trial(0, elapsed=200.0, accuracy=0.8, parameters=400)],
        [trial(0, elapsed=150.0, accuracy=0.9, parameters=200), trial(1, elapsed=400.0)],
    )
    random = studies(
        tmp_path,
        "random",
        [
            trial(0, elapsed=60.0, accuracy=0.7),
            trial(1, elapsed=80.0, accuracy=0.8),
            trial(2, state="pruned", accuracy=None),
            trial(3, state="infeasible", accuracy=None),
            trial(4, state="diverged", accuracy=None),
        ],
        [trial(0, elapsed=60.0, accuracy=0.7), trial(1, state="paused", accuracy=0.1)],
    )
    return [*bohb, *random]


def test_table(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.81, 0.85, 0.9)):
        final = {**METRICS, "test_accuracy": accuracy}
        save(tmp_path / f"bohb{seed}", final=final)
    text = report.results_table(several(tmp_path))
    assert cells(text, "bohb") == {
        "method": "bohb",
        "seeds": "3",
        "trials: complete / cut short / infeasible / failed": "2 / 0 / 0 / 0",
        "best on validation": "80.00% (60.00%–90.00%)",
        "its parameters": "300 (200–400)",
        "time to best": "2.5 min (50 s–3.3 min)",
        "test accuracy": "85.00% (81.00%–90.00%)",
        "time to bohb's 80.00%": "3.3 min (2.5 min–never)",
        "ratio to its 3.3 min": "1.00 (0.75–never)",
    }
    row = cells(text, "random")
    assert row["seeds"] == "2"
    assert row["trials: complete / cut short / infeasible / failed"] == "1.5 / 1 / 0.5 / 0.5"
    assert row["test accuracy"] == "–"
    assert row["best on validation"] == "75.00% (70.00%–80.00%)"
    assert row["time to bohb's 80.00%"] == "never (80 s–never)"
    assert row["ratio to its 3.3 min"] == "never (0.40–never)"


def test_the_reference_of_the_results_table(tmp_path: Path) -> None:
    both = several(tmp_path)
    text = report.results_table(both, reference="random")
    assert cells(text, "bohb")["time to random's 75.00%"] == "3.3 min (2.5 min–never)"
    assert cells(text, "bohb")["ratio to its 70 s"] == "2.86 (2.14–never)"
    assert "time to" not in report.results_table(both[3:]).replace("time to best", "")
    with pytest.raises(
        UserError, match=r"must be a method with a result, got 'tpe'; choose from bohb, random"
    ):
        report.results_table(both, reference="tpe")


def test_the_results_table_of_a_search_and_of_studies_without_results(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    (folder / "derive").mkdir()
    (folder / "derive" / "metrics.json").write_text(json.dumps(METRICS))
    bohb = studies(tmp_path, "bohb", [trial(accuracy=None, state="infeasible", elapsed=0.0)])
    text = report.results_table([report.read_study(folder), *bohb])
    assert list(cells(text, "search").values()) == ["search", "1", "–", "–", "900", "–", "85.00%"]
    assert list(cells(text, "bohb").values())[2:] == ["0 / 0 / 1 / 0", "–", "–", "–", "–"]
    quick = studies(tmp_path / "quick", "bohb", [trial(elapsed=0.0)])
    text = report.results_table([report.read_study(folder), *quick])
    assert list(cells(text, "search").values())[-2:] == ["–", "–"]
    assert list(cells(text, "bohb").values())[-2:] == ["0 s", "0.00"]


# --- the report ------------------------------------------------------------------------------


class Page(HTMLParser):
    """Parser that collects the tags and attributes of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    several(tmp_path / "studies")
    nasty = {"note": "<script src='http://x.y'>&amp;", "dollar": "$x$"}
    lines = [trial(n, elapsed=n + 1.0, accuracy=n / 50, configuration=nasty) for n in range(40)]
    lines.append(measured(50, (9.0, 0.5, 0.5), state="running", parameters=30_000))
    settings = {**SETTINGS, "dataset": {"name": "<b>$d$", "sha256": "a" * 64}}
    save(tmp_path / "studies" / "a", *lines, final=METRICS, **{**settings, "method": "<i>"})
    return sorted((tmp_path / "studies").iterdir())


def test_files_of_a_report(folders: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "new" / "report"
    report.write_report(folders, out, said.append)
    text = (out / "table.md").read_text()
    assert said == [text, f"{out / 'index.html'}: studies 6, trials 53"]
    assert cells(text, "bohb")["best on validation"] == "80.00% (60.00%–90.00%)"
    html = (out / "index.html").read_text()
    page = Page(html)
    assert page.open == []
    assert [tag for tag, _ in page.tags if tag in ("script", "link", "b", "i", "iframe")] == []
    sources = [a["src"] for _, a in page.tags if "src" in a]
    assert len(sources) == 2 and all(
        (s or "").startswith("data:image/png;base64,") for s in sources
    )
    assert "href" not in html and "url(" not in html and "@import" not in html
    assert "&lt;b&gt;$d$" in html and "&lt;script src=&#x27;http://x.y&#x27;&gt;&amp;amp;" in html
    assert "prefers-color-scheme: dark" in html
    assert sum(tag == "details" for tag, _ in page.tags) == 30
    best = re.findall(r"<td>(\d+\.\d\d)%</td>", html[html.index("The best trials") :])
    assert best[:3] == ["90.00", "80.00", "80.00"] and sorted(best, key=float)[::-1] == best


def test_a_report_replaces_an_earlier_one(folders: list[Path], tmp_path: Path) -> None:
    report.write_report(folders[:1], tmp_path / "out", lambda _: None)
    files = sorted(
        path.name for path in (tmp_path / "out").iterdir() if "tfevents" not in path.name
    )
    report.write_report([*folders[1:4], folders[1]], tmp_path / "out", lambda _: None)
    alone = tmp_path / "alone"
    report.write_report(folders[1:4], alone, lambda _: None)
    assert files == [
        "best_so_far.png",
        "index.html",
        "metrics.jsonl",
        "pictures",
        "scatter.png",
        "table.md",
    ]
    for name in ("best_so_far.png", "scatter.png", "index.html", "table.md"):
        assert (tmp_path / "out" / name).read_bytes() == (alone / name).read_bytes()
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    for name in ("scatter", "best_so_far"):
        (image,) = events.Images(f"report/{name}")
        shown = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert (image.height, image.width) == shown.shape[:2]
    (record,) = events.Tensors("report/table/text_summary")
    assert record.tensor_proto.string_val[0].decode() == (alone / "table.md").read_text()


def test_studies_of_different_data_are_refused(tmp_path: Path) -> None:
    one = save(tmp_path / "one", trial())
    other = save(tmp_path / "other", trial(), dataset={"name": "digits", "sha256": "b" * 64})
    message = r"same data, got digits a{8} in .*one and digits b{8} in .*other; write one report"
    with pytest.raises(UserError, match=message):
        report.write_report([one, one, other], tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_a_report_is_about_one_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finals: list[Any] = []
    monkeypatch.setattr(
        pictures,
        "trial_scatter",
        lambda t, f, *rest: finals.extend([*f, rest[-1]]) or np.zeros((2, 2, 3), np.uint8),
    )
    one = save(tmp_path / "one", trial(), select_by="macro_f1", final=METRICS)
    other = save(tmp_path / "other", trial())
    report.write_report([one], tmp_path / "out", lambda _: None)
    assert finals == [Point("random", 900, 0.84), "macro_f1"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "is the macro f1 on validation images" in page
    cells = re.findall("<th>(.*?)</th>|<td>(.*?)</td>", page.split("<h2>Final trainings")[1])
    found = [a or b for a, b in cells[:8]]
    assert found[:4] == ["method", "seed", "accuracy", "macro f1"]
    assert found[4:] == ["random", "0", "85.00%", "84.00%"]
    with pytest.raises(UserError, match=r"same --select-by, got macro_f1 in .* and accuracy in"):
        report.write_report([one, other], tmp_path / "two", lambda _: None)


def test_content_of_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def scatter(
        trials: Any, finals: Any, front: Any, limits: Any, title: str, metric: str
    ) -> pictures.Image:
        drawn.update(trials=trials, finals=finals, front=front, limits=limits, title=title)
        drawn["metric"] = metric
        return np.zeros((2, 2, 3), np.uint8)

    def over_time(curves: Any, title: str, metric: str) -> pictures.Image:
        drawn["curves"] = curves
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(pictures, "trial_scatter", scatter)
    monkeypatch.setattr(pictures, "best_so_far_plot", over_time)
    lines = [
        trial(0, elapsed=30.0, accuracy=0.7, parameters=300),
        trial(1, elapsed=None, accuracy=0.1, fidelity=0.1, state="running"),
        trial(2, elapsed=10.0, accuracy=0.6, parameters=400),
        trial(3, elapsed=20.0, accuracy=0.5, state="infeasible"),
        trial(4, elapsed=20.0, accuracy=None, state="failed"),
    ]
    one = save(tmp_path / "a", *lines, method="tpe", max_params=500)
    two = save(tmp_path / "b", trial(parameters=200), method="asha", final=METRICS)
    last = save(tmp_path / "c", method="asha", seed=1)
    report.write_report([one, two, last], tmp_path / "out", lambda _: None)
    assert drawn["trials"] == [
        Point("tpe", 400, 0.6, 1.0, 0.0),
        Point("tpe", 300, 0.7, 1.0, 0.5),
        Point("tpe", 100, 0.1, 0.1, 1.0),
        Point("asha", 200, 0.5, 1.0, 0.0),
    ]
    assert drawn["finals"] == [Point("asha", 900, 0.85)]
    assert drawn["front"] == [(200, 0.5), (300, 0.7)]
    assert drawn["limits"] == [500, CAP]
    assert drawn["title"].startswith("digits: ") and drawn["metric"] == "accuracy"
    assert list(drawn["curves"]) == ["tpe, 1 seed", "asha, 1 of 2 seeds"]
    assert drawn["curves"]["tpe, 1 seed"] == [
        (10, 0.6, 0.6, 0.6),
        (30, 0.7, 0.7, 0.7),
        (30, 0.7, 0.7, 0.7),
    ]


@pytest.mark.parametrize("name", ["study.json", "g.json", "checkpoint.pt"])
def test_the_folder_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "one", trial())
    out = tmp_path / "out"
    out.mkdir()
    (out / name).touch()
    with pytest.raises(
        UserError, match=r"--out must not be the folder of a run, got .*out; choose another"
    ):
        report.write_report([folder], out, print)


# --- the pictures ----------------------------------------------------------------------------


def inked(image: pictures.Image) -> bool:
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return image.dtype == np.uint8 and image.std() > 0 and bool((border == 255).all())


def test_pictures_of_extreme_studies() -> None:
    assert inked(pictures.best_so_far_plot({}, "nothing"))
    assert inked(pictures.trial_scatter([], [], [], [], "nothing"))
    assert inked(pictures.trial_scatter([Point("$a_$", 7, 1.0)], [], [(7, 1.0)], [], "$a_$"))
    steps = [Step(0.0, 0.0, 0.0, 0.0), Step(9000.0, 1.0, 0.5, 1.0)]
    assert inked(pictures.best_so_far_plot({f"$a_$ {n}": steps for n in range(25)}, "many"))
    points = [Point(str(n), 10**n, n / 12, n / 12, n / 12) for n in range(1, 12)]
    image = pictures.trial_scatter(points, points, [(10, 0.1), (1000, 0.9)], [10**5, 10**6], "all")
    assert inked(image)


@pytest.mark.parametrize("last, scale", [(101.0, "log"), (100.0, "linear")])
def test_the_time_axis_is_logarithmic_for_long_studies(last: float, scale: str) -> None:
    figure, axes = drawn._accuracy_figure("", empty=False)
    drawn._scale_x(axes, [0.0, 1.0, last], decades=2)
    assert axes.get_xscale() == scale and figure.axes == [axes]


def test_the_accuracy_axis_ends_at_one() -> None:
    values = np.linspace(0, 1, 21)
    assert np.allclose(drawn._from_log_error(drawn._log_error(values)), values)
    assert (np.diff(drawn._log_error(values)) > 0).all()
