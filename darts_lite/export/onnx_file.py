"""A program as an ONNX file (extra: export). Only this module imports ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_lite.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise `UserError` if a package of the extra `export` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, not installed; run pip install "
            f"{' '.join(missing)}, or use --format torch"
        )


def to_bytes(program: torch.export.ExportedProgram, description: Mapping[str, str]) -> bytes:
    """Return the content of an ONNX file.

    Arguments:
        program: from `images` to probabilities.
        description: written into `metadata_props`.
    """
    from torch.onnx import export  # it imports onnxscript

    made = export(
        program, dynamo=True, verbose=False, external_data=False, output_names=["probabilities"]
    )
    assert made is not None
    model = made.model_proto
    graph = model.graph
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for part in (*graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # names and lines of source files
    del graph.value_info[:]
    del model.metadata_props[:]
    for key, value in description.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the function from images to probabilities that ONNX Runtime makes of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def description_of(content: bytes) -> dict[str, str]:
    """Return the description in an ONNX file; empty if the content is no ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return {}
    return {each.key: each.value for each in model.metadata_props}


def quantized(
    source: Path,
    inputs: Iterator[dict[str, Any]],
    folder: Path,
    ranges: str = "minmax",
    narrow: bool = False,
) -> bytes:
    """Return the content of an ONNX file with int8 arithmetic and the same description.

    Arguments:
        source: File in float32.
        inputs: Inputs of the file that give the ranges of activations.
        folder: Folder for temporary files.
        ranges: minmax, entropy or percentile.
        narrow: Whether weights have 7 bits.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(inputs, None)

    prepared, out = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        per_channel=True,
        reduce_range=narrow,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[ranges],
    )
    model = onnx.load(out)
    del model.metadata_props[:]
    for key, value in description_of(source.read_bytes()).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()
