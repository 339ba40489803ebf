"""Every Python example of docs/hypergradients.md runs; extra libraries may be absent."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "hypergradients.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
EXTRAS = ("timm", "lightning")


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
@pytest.mark.filterwarnings("ignore:.* learns the lr greedily")
def test_an_example_runs(code: str) -> None:
    for extra in EXTRAS:
        if f"import {extra}\n" in code:
            pytest.importorskip(extra)
    names: dict = {}
    exec(compile(code, "hypergradients.md", "exec"), names)
    learner = names.get("learner") or getattr(names.get("module"), "learner", None)
    if learner is not None:
        specs = {s.name: s.bijection.inverse(s.init) for s in learner.variables.specs}
        assert all((raw != specs[n]).any() for n, raw in learner.variables.raw.items())
    if "accuracy" in names:
        assert names["accuracy"] > 0.85  # plain training: 0.69
    if "clean" in names:
        wrong, clean = names["wrong"], names["clean"]
        assert wrong[clean].float().mean() < 0.3 * wrong.float().mean()
        assert (clean & ~wrong).sum() > 0.7 * (~wrong).sum()
