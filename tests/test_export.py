"""Exported files: equal to the network, complete, safe, and used as the documents say."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invoking import call, refuse
from PIL import Image
from torch import Tensor, nn

import darts_lite as dl
from darts_lite.architecture.layers import BatchNorm
from darts_lite.architecture.operations import CANDIDATES
from darts_lite.architecture.plain import folded
from darts_lite.architecture.space import Operation
from darts_lite.data.images import floats
from darts_lite.export import onnx_file, torch_file, write

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11
DOCS = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and a map far from those of the start."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            for tensor, low in (
                (norm.weight, -1.0),
                (norm.bias, -1.0),
                (norm.running_mean, -1.0),
                (norm.running_var, 0.1),
            ):
                drawn = torch.rand(len(tensor), generator=generator)  # type: ignore[arg-type]
                tensor.data.copy_(low + (2 - low) * drawn)  # type: ignore[union-attr]
    return module.eval()


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 2), (6, 12, 2)], ids=str)
@pytest.mark.parametrize("name", CANDIDATES)
@torch.no_grad()
def test_every_operation_folds(name: str, shape: tuple[int, int, int]) -> None:
    record = CANDIDATES[name]
    operation = Operation(name, {n: sizes[-1:] for n, sizes in record.sizes.items()})
    module = shaken(record.build(operation, *shape))
    before = {n: v.clone() for n, v in module.state_dict().items()}
    x = torch.randn(3, shape[0], 9, 9, generator=torch.Generator().manual_seed(1))
    plain = module.plain()
    torch.testing.assert_close(plain(x), module(x, None, None))
    without = folded(plain)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in without.modules())
    torch.testing.assert_close(without(x), module(x, None, None))
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())


@pytest.fixture(scope="module", params=["onnx uint8", "onnx float", "torch uint8"])
def exported(
    request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    form, kind = request.param.split()
    out = tmp_path_factory.mktemp("export") / "new" / f"model.{form}"
    result = call("export", trained, "--format", form, "--input", kind, "--out", out)
    assert result.exit_code == 0, result.output
    (found,) = re.findall(r"largest difference of a probability (\S+) ", result.output)
    assert 0 <= float(found) <= 1e-5
    assert "network in torch: batch 1 " in result.output
    assert list(out.parent.iterdir()) == [out]
    return form, kind, out


def opened(form: str, path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str], set[str]]:
    """Return function, description and operations of a file, without darts_lite."""
    if form == "onnx":
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        about = session.get_modelmeta().custom_metadata_map
        graph = onnx.load(path).graph
        assert {node.domain for node in graph.node} == {""}
        names = {node.op_type for node in graph.node}
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), about, names
    extra = {"darts_lite.json": ""}
    program = torch.export.load(path, extra_files=extra)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return program.module(), json.loads(extra["darts_lite.json"]), names


@torch.no_grad()
def test_a_file_equals_the_network(exported: tuple[str, str, Path], trained: Path) -> None:
    """On all test images, in batches of several sizes; the accuracy is that of the training."""
    form, kind, path = exported
    run, about, names = opened(form, path)
    files = sorted((trained.parent / "data" / "test").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f)))[None] for f in files])
    images = pixels if kind == "uint8" else floats(pixels).contiguous()
    expected = dl.load(trained).predict(files).probabilities
    found = torch.cat([run(part) for part in images.split([1, 7, len(images) - 8])])
    assert (found - expected).abs().max() <= 1e-5
    classes = json.loads(about["classes"])
    right = [classes[k] == f.parent.name for k, f in zip(found.argmax(1).tolist(), files)]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert sum(right) / len(right) == metrics["test_accuracy"]
    assert json.loads(about["image"]) == [1, 8, 8]
    genotype = dl.Genotype.load(trained / "genotype.json")
    assert json.loads(about["data"]) == genotype.dataset
    assert ("uint8" in about["preprocessing"]) == (kind == "uint8")
    assert names and not [n for n in names if "norm" in n.lower()]


def test_loading_runs_no_code(exported: tuple[str, str, Path]) -> None:
    """ONNX is a protocol buffer; the other holds JSON, numbers, and tensors that load safely."""
    form, _, path = exported
    if form == "onnx":
        import onnx

        onnx.checker.check_model(onnx.load(path), full_check=True)
        assert not zipfile.is_zipfile(path)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".json"):
                json.loads(content)
            elif name.endswith(".pt"):
                torch.load(io.BytesIO(content), weights_only=True)
            elif "/weights/" in name or "/constants/" in name:
                assert not content.startswith((b"PK", b"\x80")), name  # numbers, no pickle
            else:
                assert len(content) < 100, name


def test_the_example_of_the_documents_runs_without_torch(trained: Path, tmp_path: Path) -> None:
    assert call("export", trained, "--out", tmp_path / "model.onnx").exit_code == 0
    picture = next((trained.parent / "data" / "test").rglob("*.png"))
    shutil.copy(picture, tmp_path / "photo.png")
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    assert len([line for line in code.splitlines() if line]) <= 15
    allowed = {"json", "numpy", "onnxruntime", "PIL"}
    assert {line.split()[1] for line in code.splitlines() if "import" in line} == allowed
    barred = "import sys; sys.modules |= dict.fromkeys(['torch', 'darts_lite', 'onnx'])\n"
    command = [sys.executable, "-c", barred + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = dl.load(trained).predict(picture)
    best = float(found.probabilities.max())
    name, share = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert name == found.classes[0]
    assert float(share.rstrip("%")) / 100 == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("change", [2e-5, float("nan")])
def test_a_file_that_differs_is_not_left(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    original = torch_file.runner

    def wrong(content: bytes) -> Callable[[Tensor], Tensor]:
        run = original(content)
        return lambda images: run(images) + change

    monkeypatch.setattr(torch_file, "runner", wrong)
    line = refuse("export", trained, "--format", "torch", "--out", tmp_path / "m.pt2")
    (got,) = re.findall(r"at most 1e-05, got (\S+);", line)
    assert float(got) == pytest.approx(change, abs=2e-6, nan_ok=True)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refuse("export", trained)
    assert "needs onnxscript, not installed; run pip install onnxscript" in line
    assert not (trained / "model.onnx").exists()
    monkeypatch.undo()
    onnx_file.require_packages()


def test_the_networks_of_all_folds_are_one_file(trained: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for file in ("model.pt", "genotype.json"):
            shutil.copy(trained / file, tmp_path / name)
    weights = torch.load(tmp_path / "b" / "model.pt", weights_only=True)
    weights["classifier.bias"] += torch.arange(10.0)
    torch.save(weights, tmp_path / "b" / "model.pt")
    (tmp_path / "folds.json").write_text(json.dumps({"folders": ["a", "b"]}))
    said: list[str] = []
    options = write.ExportOptions(format="torch")
    found: dict[str, Any] = write.export(tmp_path, options, say=said.append)
    assert found["difference"] <= 1e-5 and found["bytes"] == (tmp_path / "model.pt2").stat().st_size
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    run, _, _ = opened("torch", tmp_path / "model.pt2")
    torch.testing.assert_close(run(pixels), dl.load(tmp_path).predict(pixels).probabilities)
    assert not torch.equal(run(pixels), dl.load(trained).predict(pixels).probabilities)
