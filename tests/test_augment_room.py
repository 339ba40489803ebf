"""The room `augment` stands alone: what it loads, and what a caller must import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from darts_lite import augment

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/augmentation.md")


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def test_it_loads_no_other_room():
    code = (
        "import sys, darts_lite; before = set(sys.modules); import darts_lite.augment; "
        "new = [n for n in sys.modules if n.startswith('darts_lite.') and n not in before]; "
        "print(*{n.split('.')[1] for n in new})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"augment", "errors", "schedules"}


@pytest.mark.parametrize("page", PAGES)
def test_examples_import_from_the_room_itself(page):
    """Not from a module inside the room."""
    found = [
        (node.module, alias.name)
        for example in examples(page)
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("darts_lite.augment")
        for alias in node.names
    ]
    assert found
    for module, name in found:
        assert module == "darts_lite.augment" and name in augment.__all__


def test_the_examples_of_the_docs_run():
    names: dict = {}
    for example in examples("docs/augmentation.md"):
        exec(compile(example, "docs/augmentation.md", "exec"), names)
    assert names["values"]["magnitude.rotate"].grad is not None
    assert names["values"]["mixing.strength"].grad is not None


def test_public_names_are_sorted_and_exist():
    assert sorted(augment.__all__) == sorted(set(augment.__all__))
    assert all(hasattr(augment, name) for name in augment.__all__)
