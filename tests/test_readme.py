"""The README's Python examples run, its command lines are accepted, and its flags exist."""

import re
import shlex
from pathlib import Path

import pytest

from darts_lite.commands.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.filterwarnings("ignore:OneStep learns the lr greedily")
def test_the_examples_run() -> None:
    names: dict = {}
    for code in CODE:
        exec(compile(code, "README.md", "exec"), names)
    assert names["augmented"].shape == names["turned"].shape == (64, 3, 32, 32)
    assert names["values"]["magnitude.rotate"].grad is not None
    learned = names["learner"].values()
    assert learned["lr"] != 0.01 and learned["weight_decay"] != 1e-3


def test_learning_takes_less_than_ten_lines() -> None:
    (example,) = (code for code in CODE if "Learner(" in code)
    before, added = example.split("# yours so far\n")
    lines = [line for line in added.splitlines() if line.strip()]
    assert "Learner" not in before and len(lines) < 10


def test_its_command_lines_are_accepted_and_fit_is_the_first() -> None:
    lines = re.findall(r"^    .*python run\.py (.*)$", README, re.M)
    assert lines[0].startswith("fit ")
    for line in lines:
        for each in re.split(r" && python run\.py ", line):
            name, *arguments = shlex.split(each)
            main.commands[name].make_context(name, arguments).close()


def test_every_flag_that_it_names_exists() -> None:
    known = {
        o for c in main.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--logdir"}
    assert named <= known
