"""The README's Python example runs, and its flags exist."""

import re
from pathlib import Path

from darts_lite.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (4, 10)


def test_every_flag_that_it_names_exists() -> None:
    known = {
        o for c in main.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--logdir"}
    assert named <= known
