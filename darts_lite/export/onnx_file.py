"""A program as an ONNX file (extra: export). Only this module imports ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

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
