"""The hypergradient package alone: what it loads, what it exports, and the examples of its docs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import darts_lite
from darts_lite import hypergradient

ROOT = Path(darts_lite.__file__).parent
DOCS = (ROOT.parent / "docs" / "hypergradients.md").read_text(encoding="utf-8")
README = (ROOT.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.S)
LEARNER_EXAMPLES = [e for e in re.findall(r"```python\n(.*?)```", README, re.S) if "Learner" in e]
ROOM = "darts_lite.hypergradient"


def test_the_package_loads_no_other_room() -> None:
    code = (
        "import sys, darts_lite; before = set(sys.modules); import darts_lite.hypergradient; "
        "print(*(m for m in set(sys.modules) - before if m.startswith('darts_lite.')))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert ROOM in loaded
    assert all(name == ROOM or name.startswith(f"{ROOM}.") for name in loaded)


def test_every_public_name_exists() -> None:
    assert all(hasattr(hypergradient, name) for name in hypergradient.__all__)


def imported(source: str) -> dict[str, set[str]]:
    """Names imported from each module of darts_lite."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("darts_lite"):
            found.setdefault(node.module or "", set()).update(a.name for a in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("darts_lite"):
                    found.setdefault(alias.name, set())
    return found


@pytest.mark.parametrize("example", [*EXAMPLES, *LEARNER_EXAMPLES])
def test_examples_import_public_names_of_this_package_only(example: str) -> None:
    names = imported(example)
    names.pop("darts_lite.augment", None)  # a loss that augments, as the README suggests
    assert set(names) == {ROOM}
    assert names[ROOM] <= set(hypergradient.__all__)


def test_names_in_the_docs_exist() -> None:
    """Every `Name` and `Name(...)` in CamelCase is public, or torch's."""
    named = set(re.findall(r"`([A-Z]+[a-z]\w*)[`(]", DOCS))
    named -= {"DataParallel", "DistributedDataParallel"}
    assert named and named <= set(hypergradient.__all__)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if "unrolled" in e])
def test_examples_that_compare_print_a_table(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(example, "hypergradients.md", "exec"), {})
    assert "unrolled" in capsys.readouterr().out
