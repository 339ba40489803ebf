"""Every experiment starts, and has a help text."""

import runpy
from pathlib import Path

import pytest
from invoking import invoke

FOLDER = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.name)
def test_an_experiment_has_help_and_is_listed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments may import each other, as when they run as scripts."""
    monkeypatch.syspath_prepend(str(FOLDER))
    main = runpy.run_path(str(path))["main"]
    result = invoke(main, "--help")
    assert result.exit_code == 0
    assert path.name in (FOLDER / "README.md").read_text()
