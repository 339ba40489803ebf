"""Write the file of a trained network, unless it computes something else than the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_lite.data.images import floats
from darts_lite.errors import UserError
from darts_lite.export import onnx_file, torch_file
from darts_lite.export.deployed import description, program_of
from darts_lite.export.options import ExportOptions
from darts_lite.files import replacing
from darts_lite.training.latency import latency_of, of_network
from darts_lite.training.predictor import load

LARGEST = 1e-5  # allowed difference of a probability
TRIED = (1, 2, 33)  # images per call in the comparison
FORMATS = {"onnx": (onnx_file, "model.onnx"), "torch": (torch_file, "model.pt2")}


def export(
    run: Path, options: ExportOptions, *, say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Write the network of a finished training as one file; return what was measured.

    Arguments:
        run: folder of the training.
        options: options of the command.
        say: prints a line for the user.
    Returns: the largest `difference` of a probability, the `bytes` of the file, and the `latency`
        of the file and of the network in torch.
    Raises: `UserError` if a package is missing, the folder holds no training, or the file would
        differ from the network.
    """
    if options.format == "onnx":
        onnx_file.require_packages()
    kind, name = FORMATS[options.format]
    out = Path(options.out) if options.out else run / name
    predictor, uint8 = load(run), options.input == "uint8"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = kind.to_bytes(program_of(predictor, uint8), description(predictor.genotype, uint8))
    call = kind.runner(content)
    network = of_network(predictor.network, torch.device("cpu"))

    def of_pixels(pixels: Tensor) -> Tensor:
        return call(pixels if uint8 else floats(pixels).contiguous())

    image = predictor.genotype.image
    difference = largest_difference(of_pixels, network, image)
    if not difference <= LARGEST:
        raise UserError(
            f"probabilities of {out} must differ from those of the network by at most {LARGEST:g}, "
            f"got {difference:.1e}; try the other --format"
        )
    with replacing(out, "wb") as file:
        file.write(content)
    latency = {"file": latency_of(of_pixels, image), "torch": latency_of(network, image)}
    say(
        f"{out}: {len(content)} bytes, largest difference of a probability {difference:.1e} "
        f"(at most {LARGEST:g} allowed)\n{_table(latency, options.format)}"
    )
    return {"difference": difference, "bytes": len(content), "latency": latency}


def largest_difference(
    one: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    image: tuple[int, int, int],
) -> float:
    """Return the largest difference of a probability, over noise, smooth images and constants.

    Arguments:
        one: from images uint8 `[B, C, H, W]` to probabilities `[B, K]`.
        other: the same, another way.
        image: channels, height and width.
    """
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(())
    for count in TRIED:
        noise = torch.rand(count, *image, generator=generator)
        coarse = torch.rand(count, image[0], 3, 3, generator=generator)
        smooth = F.interpolate(coarse, image[1:], mode="bicubic", align_corners=False).clamp(0, 1)
        flat = torch.rand(count, image[0], 1, 1, generator=generator).expand_as(noise)
        for images in (noise, smooth, flat):
            pixels = (255 * images).round().to(torch.uint8).contiguous()
            found = torch.maximum(found, (one(pixels) - other(pixels)).abs().max())
    return float(found)


def _table(latency: dict[str, dict[str, Any]], name: str) -> str:
    """Return the latencies as lines."""
    about = latency["file"]
    lines = [f"latency on {about['processor']}, {about['threads']} threads, median (95 %):"]
    for key, label in (("file", f"this file ({name})"), ("torch", "network in torch")):
        parts = [
            f"batch {b['batch']} {b['median_ms']:.2f} ms ({b['p95_ms']:.2f} ms)"
            for b in latency[key]["batches"]
        ]
        lines.append(f"  {label}: {', '.join(parts)}")
    return "\n".join(lines)
