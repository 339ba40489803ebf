"""The documents agree with the code: links, anchors, tree of rooms, examples of `dl`."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from test_architecture import ORDER

import darts_lite as dl
from darts_lite.hpo.options import TuneOptions
from darts_lite.nas.options import FitOptions, SearchOptions
from darts_lite.training.options import DeriveOptions

ROOT = Path(__file__).parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiments" / "README.md",
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, made as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lower())  # a link's text counts
        anchor = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        seen = sum(re.fullmatch(rf"{anchor}(-\d+)?", each) is not None for each in found)
        found.append(f"{anchor}-{seen}" if seen else anchor)
    return set(found)


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        lost = not target.exists() or not target.is_relative_to(ROOT.resolve())
        if lost or (anchor and anchor not in anchors(prose(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_exist(page: Path) -> None:
    assert not broken(page)


def lost_paths(text: str) -> list[str]:
    """Return the files and modules in backticks that do not exist; a path may begin in a room."""
    paths = re.findall(r"`(?:python )?([\w/]+/[\w.]*\w\.(?:py|txt))[` ]", text)
    modules = re.findall(r"`(darts_lite(?:\.[a-z_]+)+)[.`]", text)
    paths += [module.replace(".", "/") + ".py" for module in modules]
    places = (ROOT, ROOT / "darts_lite", ROOT / "darts_lite" / "augment")
    return [
        path
        for path in paths
        if not any((at / path).exists() or (at / path).with_suffix("").is_dir() for at in places)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_modules_exist(page: Path) -> None:
    text = prose(page)
    if page.name == "CHANGELOG.md":  # says where modules were
        text = text.replace("`darts_lite.space`", "")
    assert not lost_paths(text)


def test_a_lost_path_is_found() -> None:
    there = "`nas/task.py` `tests/flags.txt` `darts_lite.augment` `python experiments/race.py --x`"
    gone = (
        "`nas/gone.py` `tests/gone.txt` `darts_lite.gone.module` `python experiments/gone.py --x`"
    )
    assert not lost_paths(there)
    assert len(lost_paths(gone)) == 4


def test_every_page_and_picture_of_docs_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(prose(page))
    }
    kept = [p for p in (ROOT / "docs").iterdir() if p.suffix in (".md", ".png")]
    assert not [p.name for p in kept if p.resolve() not in linked]


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_docs.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A page: 10 000 [words](x)\n## A\n## A\n[good](#a-page-10-000-words) [a](#a-1) [web](https://x.y/z#q)\n"
        "[lost](#a-page) [gone](none.md) ![gone](none.png) [out](../..)\n    [code](x)\n"
    )
    assert broken(page) == ["x", "#a-page", "none.md", "none.png", "../.."]


def tree(text: str) -> list[str]:
    """Return the paths of a tree that is drawn by indentation, each with a comment."""
    found, parents = [], []
    for line in text.splitlines():
        entry, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        parents[depth:] = [entry.removesuffix("/")]
        path = "/".join(parents)
        assert comment.strip() or entry.endswith("/"), f"{path} has no comment"
        found.append(path)
    return found


def test_the_tree_names_every_module() -> None:
    (block,) = re.findall(r"^    darts_lite/\n(?:    .*\n)+", README, re.M)
    named = tree(block)
    modules = [
        str(p.relative_to(ROOT).as_posix())
        for p in sorted((ROOT / "darts_lite").rglob("*.py"))
        if not p.name.startswith("__")
    ]
    assert not [path for path in named if not (ROOT / path).exists()]
    assert not set(modules) - set(named)
    rooms = [p.split("/")[1].removesuffix(".py") for p in named if p.count("/") == 1]
    assert tuple(r for r in rooms if r in ORDER) == ORDER


def test_the_examples_of_dl_call_what_exists() -> None:
    options = {
        "fit": FitOptions,
        "search": SearchOptions,
        "derive": DeriveOptions,
        "tune": TuneOptions,
    }
    calls = [
        node
        for code in re.findall(r"```py\n(.*?)```", README, re.S)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("dl.")
    ]
    names = [ast.unparse(call.func).removeprefix("dl.") for call in calls]
    assert {"load", *options} <= set(names) <= set(dl.__all__)
    for name, call in zip(names, calls):
        if name in options:
            known = {each.name for each in fields(options[name])} | {"resume", "say"}
            assert {keyword.arg for keyword in call.keywords} <= known
