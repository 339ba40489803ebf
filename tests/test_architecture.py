"""The syntax trees of darts_lite: imports run downward only, and some things are never written."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import darts_lite

ORDER = (  # a room may import from itself and from the rooms before it
    "errors",
    "schedules",
    "files",
    "architecture",
    "hypergradient",
    "augment",
    "data",
    "reporting",
    "training",
    "export",
    "nas",
    "compression",
    "hpo",
    "commands",
)
BASE = {"errors", "schedules", "files"}
ONLY: dict[str, set[str]] = {  # rooms that import less than what lies before them
    "errors": set(),
    "schedules": set(),
    "files": {"errors"},
    "architecture": BASE,
    "hypergradient": set(),
    "augment": BASE,
    "data": BASE,
    "reporting": BASE | {"architecture", "augment"},
}
CARRIED = ("darts_lite.architecture.reading",)  # what a genotype carries; any room may import it
IMPORTERS = {  # library -> the modules that may import it
    "tensorboard": ("darts_lite.reporting.recorder",),
    "matplotlib": (
        "darts_lite.reporting.pictures.calibration",
        "darts_lite.reporting.pictures.canvas",
        "darts_lite.reporting.pictures.genotypes",
        "darts_lite.reporting.pictures.heat_maps",
        "darts_lite.reporting.pictures.roads",
        "darts_lite.reporting.pictures.schedules",
        "darts_lite.reporting.pictures.studies",
    ),
    "higher": ("darts_lite.hypergradient.torch_optimizers",),
    "click": ("darts_lite.commands.cli", "darts_lite.commands.flags"),
    "onnx": ("darts_lite.export.onnx_file",),
    "onnxruntime": ("darts_lite.export.onnx_file",),
    "timm": ("darts_lite.architecture.timm_network",),
    "safetensors": ("darts_lite.training.checkpoint",),
    "torch_pruning": (),
    "tensorly": ("darts_lite.compression.factors",),
    "optuna": ("darts_lite.hpo.storage", "darts_lite.hpo.optuna_adapters"),
}
WITHOUT_TORCH = (
    "errors",
    "schedules",
    "files",
    "architecture.space",
    "architecture.recipe",
    "training.options",
    "export.options",
    "nas.options",
    "hpo.options",
    "compression.options",
    "training.budget",
    "training.memory",
    "commands.cli",
)

ROOT = Path(darts_lite.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}


def part(module: str) -> str:
    """`augment` of `darts_lite.augment.policies.policy`; nothing for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Dotted name and line of everything imported, at any depth of the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def own(name: str) -> str | None:
    """The module of darts_lite that an imported name belongs to, if any."""
    words = name.split(".")
    prefixes = (".".join(words[:n]) for n in range(len(words), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), None)


def import_violations(module: str, source: str) -> list[str]:
    """What `module` imports and should not."""
    mine = part(module)
    found = []
    for name, line in imports(source):
        target, words = own(name), name.split(".")
        wrong = [
            name.startswith(".") and "imports are absolute",
            words[-1] == "*" and "no import *",
            words[0] == "experiments" and "the core never imports experiments",
            module.removeprefix("darts_lite.") in WITHOUT_TORCH
            and words[0] in ("torch", "torchvision")
            and "no torch here",
            *(
                library in words
                and module not in importers
                and f"only {' and '.join(importers)} imports {library}"
                for library, importers in IMPORTERS.items()
            ),
        ]
        if target and mine in ORDER and part(target) not in (mine, ""):
            below = set(ORDER[: ORDER.index(mine)])
            allowed = ONLY.get(mine, below)
            allowed = allowed | {"architecture"} if name.startswith(CARRIED) else allowed
            wrong.append(part(target) not in allowed and f"{mine} does not import {part(target)}")
        found += [f"{module}:{line}: {name}: {why}" for why in wrong if why]
    return found


def style_violations(module: str, source: str) -> list[str]:
    """Calls and handlers that are never written."""
    found = []
    for node in ast.walk(ast.parse(source)):
        why = ""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                why = f"{node.func.id}()"
            if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                why = ".cuda(): use the device that was chosen"
            for keyword in node.keywords:
                if keyword.arg == "weights_only" and not _is_true(keyword.value):
                    why = "weights_only is always True"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            why = "bare except"
        if why:
            found.append(f"{module}:{node.lineno}: {why}")  # type: ignore[attr-defined]
    return found


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


# --- The package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_module(module: str) -> None:
    assert part(module) in (*ORDER, "", "__main__"), f"give {module} a place in ORDER"
    assert ast.get_docstring(ast.parse(MODULES[module])), f"{module} does not say what it is"
    assert not import_violations(module, MODULES[module])
    assert not style_violations(module, MODULES[module])


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {target for name, _ in imports(source) if (target := own(name))} - {module}
        for module, source in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_torch_is_not_loaded(name: str) -> None:
    """By nothing that the module imports in its turn either."""
    code = f"import sys, darts_lite.{name}; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- The rules themselves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, source",
    [
        ("architecture.space", "from darts_lite.training.loop import run"),
        ("architecture.space", "from darts_lite import nas"),
        ("architecture.space", "import darts_lite.data.images as i"),
        ("architecture.space", "def f():\n    from darts_lite.nas import select"),
        ("architecture.space", "from darts_lite import *"),
        ("architecture.space", "from darts_lite.errors import *"),
        ("architecture.space", "from . import errors"),
        ("architecture.space", "from .operations import Cost"),
        ("architecture.space", "import torch"),
        ("training.budget", "from torch import nn"),
        ("errors", "if TYPE_CHECKING:\n    import torch.nn"),
        ("errors", "from darts_lite.training.budget import Budget"),
        ("hypergradient.problem", "from darts_lite.errors import UserError"),
        ("hypergradient.problem", "from darts_lite.architecture.network import Network"),
        ("augment.fused", "from darts_lite.data import load"),
        ("augment.fused", "from darts_lite.architecture.presets import cells"),
        ("data.images", "from darts_lite.architecture.network import Network"),
        ("data", "from darts_lite.augment import Draws"),
        ("augment.fused", "import higher"),
        ("hypergradient.check", "from higher import innerloop_ctx"),
        ("nas.task", "from torch.utils.tensorboard import SummaryWriter"),
        ("nas.task", "import tensorboard.compat"),
        ("training.metrics", "from matplotlib.figure import Figure"),
        ("reporting.augmentation", "import matplotlib"),
        ("training.task", "import click"),
        ("training.task", "from darts_lite.nas.select import knapsack"),
        ("commands.cli", "import experiments"),
        ("commands.cli", "from experiments.digits import main"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(import_violations(f"darts_lite.{module}", source)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("architecture.space", "import json\nfrom darts_lite.errors import UserError"),
        ("architecture.space", "from darts_lite import __version__, errors"),
        ("architecture.network", "import torch\nfrom darts_lite.architecture.space import Cell"),
        ("augment.fused", "from darts_lite.augment import operations as ops"),
        ("augment", "from darts_lite.augment.policies.policy import Draws"),
        ("hypergradient.torch_optimizers", "import higher"),
        ("hypergradient.check", "from darts_lite.hypergradient.problem import Bilevel"),
        ("data.batches", "from darts_lite.data.images import Images"),
        ("reporting.recorder", "from torch.utils.tensorboard import SummaryWriter"),
        ("reporting.pictures.canvas", "from matplotlib.figure import Figure"),
        ("commands.cli", "import click\nfrom darts_lite.nas import task"),
    ],
)
def test_an_allowed_import_is_let_pass(module: str, source: str) -> None:
    assert not import_violations(f"darts_lite.{module}", source)


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "x.cuda()",
        "net.cells[0].cuda(1)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=trusted)",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_what_is_never_written_is_found(source: str) -> None:
    assert len(style_violations("darts_lite.x", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "net.eval()",
        "torch.cuda.is_available()",
        "torch.load(p, weights_only=True)",
        "try:\n    pass\nexcept OSError:\n    pass",
    ],
)
def test_what_may_be_written_is_let_pass(source: str) -> None:
    assert not style_violations("darts_lite.x", source)
