"""int8 files: small, close to the network, described alike, and used by a predictor."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invoking import call

import darts_lite as dl
from darts_lite.architecture.cost import genotype_with_cost
from darts_lite.architecture.presets import blocks
from darts_lite.architecture.recipe import Recipe
from darts_lite.architecture.space import Operation
from darts_lite.compression import int8
from darts_lite.compression.int8 import OnnxNetwork, compare, described, load_int8, quantize, slow
from darts_lite.data import Splits, load, split
from darts_lite.errors import UserError
from darts_lite.training.predictor import Predictor

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split(load("digits", Path("data")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a network of dense convolutions that knows digits."""
    out = tmp_path_factory.mktemp("int8")
    conv = Operation("conv", {"kernel": (3,)})
    space = blocks(12, 4)
    cells = (replace(c, edges=(replace(c.edges[0], operations=(conv,)),)) for c in space.cells)
    dataset = load("digits", Path("data"))
    genotype = genotype_with_cost(
        replace(space, cells=tuple(cells)),
        dataset.image,
        dataset.classes,
        recipe=Recipe(
            batch_size=32,
            augment="standard",
            schedules={"lr": ((0.0, 0.1),), "weight_decay": ((0, 5e-4),)},
        ),
        dataset=dict(dataset.fingerprint),  # type: ignore[arg-type]
    )
    genotype.save(out / "g.json")
    dl.derive(genotype=str(out / "g.json"), epochs=4, say=str)
    return out / "derive"


@pytest.fixture(scope="module", params=["uint8", "float"])
def files(
    request: pytest.FixtureRequest,
    run: Path,
    splits: Splits,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp(request.param)
    source = out / "model.onnx"
    result = call("export", run, "--input", request.param, "--out", source)
    assert result.exit_code == 0, result.output
    quantize(source, splits.validation.pixels[:256], out / "int8.onnx")
    assert sorted(p.name for p in out.iterdir()) == ["int8.onnx", "model.onnx"]
    return source, out / "int8.onnx"


def test_it_is_small_and_right(
    files: tuple[Path, Path], splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(*files, splits.test)
    print(found.lines())
    assert found.before.accuracy > 0.9
    assert abs(found.before.accuracy - found.after.accuracy) <= 0.02
    assert found.agreement >= 0.97
    assert found.after.bytes == files[1].stat().st_size < 0.5 * found.before.bytes
    lines = found.lines().splitlines()
    assert len(lines) == 3 + bool(found.warning)
    assert lines[0].startswith(f"float32: {found.before.bytes} bytes, accuracy ")
    assert "batch 1 " in lines[1] and "batch 32 " in lines[1]
    assert "points" in lines[2] and "points" in capsys.readouterr().out


def test_the_convolutions_are_int8_per_channel(files: tuple[Path, Path]) -> None:
    import onnx

    graph = onnx.load(files[1]).graph
    weights = {i.name: i for i in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    convs = [n for n in graph.node if n.op_type == "Conv"]
    assert convs
    for node in convs:
        values, scales, _ = (weights[name] for name in made[node.input[1]].input)
        assert values.data_type == onnx.TensorProto.INT8
        assert list(scales.dims) == [values.dims[0]]
    onnx.checker.check_model(onnx.load(files[1]), full_check=True)


def test_the_description_stays_and_a_predictor_uses_the_file(
    files: tuple[Path, Path], run: Path, splits: Splits
) -> None:
    assert described(files[1]) == described(files[0])
    network, original = OnnxNetwork(files[1]), dl.load(run)
    assert network.classes == original.classes and network.image == original.genotype.image
    predictor = Predictor(network, original.genotype)
    assert predictor.device == torch.device("cpu") and network.state_dict()["place"].numel() == 0
    pixels = splits.test.pixels[:100]
    found, expected = predictor.predict(pixels), original.predict(pixels)
    assert (found.probabilities - expected.probabilities).abs().mean() < 0.02
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(100))
    assert sum(a == b for a, b in zip(found.classes, expected.classes)) >= 95
    whole = Predictor(OnnxNetwork(files[0]), original.genotype).predict(pixels)
    torch.testing.assert_close(whole.probabilities, expected.probabilities, atol=1e-5, rtol=0)


def test_a_run_folder_is_a_predictor(
    files: tuple[Path, Path], run: Path, splits: Splits, tmp_path: Path
) -> None:
    shutil.copy(files[1], tmp_path / int8.NAME)
    shutil.copy(run / "genotype.json", tmp_path)
    pixels = splits.test.pixels[:40]
    found = load_int8(tmp_path).predict(pixels)
    assert found.classes == dl.load(run).predict(pixels).classes
    genotype = dl.Genotype.load(run / "genotype.json")
    replace(genotype, classes=tuple("abcdefghij")).save(tmp_path / "genotype.json")
    with pytest.raises(UserError, match=r"must have the classes and images of .*; compress the"):
        load_int8(tmp_path)


def test_weights_are_narrow_where_sums_saturate(
    files: tuple[Path, Path], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(int8, "CPU", tmp_path / "cpuinfo")
    largest = []
    for flags in ("avx2 avx512_vnni", "avx2"):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
        quantize(files[0], splits.validation.pixels[:64], tmp_path / "out.onnx")
        weights = [
            onnx.numpy_helper.to_array(i)
            for i in onnx.load(tmp_path / "out.onnx").graph.initializer
            if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4
        ]
        largest.append(max(int(abs(w.astype(int)).max()) for w in weights))
    assert largest[0] == 127 and largest[1] <= 64


@pytest.mark.parametrize("ranges", int8.RANGES)
def test_the_same_images_give_the_same_file(
    ranges: int8.Ranges, files: tuple[Path, Path], splits: Splits, tmp_path: Path
) -> None:
    for name in "ab":
        quantize(files[0], splits.validation.pixels[:64], tmp_path / name, ranges)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert compare(files[0], tmp_path / "a", splits.test).agreement > 0.9


def test_bad_input_is_one_line(
    files: tuple[Path, Path], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    pixels, out = splits.validation.pixels[:64], tmp_path / "out.onnx"
    bare, text = tmp_path / "bare.onnx", tmp_path / "text.onnx"
    model = onnx.load(files[0])
    del model.metadata_props[:]
    onnx.save(model, bare)
    text.write_text("no ONNX file")
    for source in (bare, text):
        with pytest.raises(UserError, match=r"must be an ONNX file of `export`.*; export the"):
            quantize(source, pixels, out)
    with pytest.raises(UserError, match=r"cannot read .*gone\.onnx: No such file"):
        OnnxNetwork(tmp_path / "gone.onnx")
    with pytest.raises(UserError, match="at least 32 validation images, got 5; use a larger"):
        quantize(files[0], pixels[:5], out)
    with pytest.raises(UserError, match="one of minmax, entropy, percentile, got 'mse'"):
        quantize(files[0], pixels, out, "mse")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime, not installed; run pip install onnxru"):
        quantize(files[0], pixels, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "flags, fast",
    [
        ("flags\t\t: fpu sse avx2 avx512_vnni", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu sse avx2 avx512f", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
    ],
)
def test_a_processor_without_dot_products_is_named(
    flags: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "cpuinfo"
    about.write_text(f"model name\t: Old One\n{flags}\n")
    monkeypatch.setattr(int8, "CPU", about)
    line = slow()
    assert ("has no int8 dot products" in line) is not fast
    assert "\n" not in line
