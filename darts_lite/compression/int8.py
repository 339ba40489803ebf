"""int8 networks: static quantization of an exported ONNX file (extra: export).

Weights are int8, per output channel and symmetric; activations are uint8, with ranges from images
(Jacob et al. 2018, section 2; Krishnamoorthi 2018, section 3). The arithmetic is that of ONNX
Runtime, which reads the pairs QuantizeLinear, DequantizeLinear of the file. Not for every
processor: see `slow`.
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from darts_lite.architecture.genotype import Genotype
from darts_lite.data.images import Images, floats
from darts_lite.errors import UserError
from darts_lite.export import onnx_file
from darts_lite.files import replacing
from darts_lite.training.latency import latency_of, processor
from darts_lite.training.predictor import Predictor

Ranges = Literal["minmax", "entropy", "percentile"]
RANGES = ("minmax", "entropy", "percentile")
NAME = "int8.onnx"  # the file in a run folder
FEWEST = 32  # images whose activations give ranges
BATCH = 32  # images per forward pass of the ranges
EVALUATED = 256  # images per forward pass of the accuracy
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}  # flags of Linux
CPU = Path("/proc/cpuinfo")


class Measured(NamedTuple):
    """An ONNX file as measured.

    Attributes:
        bytes: Size of the file.
        accuracy: Share of the images that it classifies right.
        latency: Latency at batch 1 and 32, as `latency.latency_of` returns it.
    """

    bytes: int
    accuracy: float
    latency: dict[str, Any]


class Quantized(NamedTuple):
    """What quantization changed.

    Attributes:
        before: The file in float32.
        after: The file in int8.
        agreement: Share of the images with the same class before and after.
        warning: One line if the processor will be slow; empty otherwise.
    """

    before: Measured
    after: Measured
    agreement: float
    warning: str

    def lines(self) -> str:
        """Return a table as text."""
        rows = []
        for name, each in (("float32", self.before), ("int8", self.after)):
            times = ", ".join(
                f"batch {b['batch']} {b['median_ms']:.2f} ms" for b in each.latency["batches"]
            )
            rows.append(f"{name}: {each.bytes} bytes, accuracy {each.accuracy:.2%}, {times}")
        lost = 100 * (self.before.accuracy - self.after.accuracy)
        rows.append(
            f"int8 is {self.after.bytes / self.before.bytes:.2f} of the size and loses {lost:.2f} "
            f"points; {self.agreement:.2%} of the images have the same class"
        )
        return "\n".join([*rows, self.warning] if self.warning else rows)


def quantize(
    source: Path,
    images: Tensor,
    out: Path,
    ranges: Ranges = "minmax",
    narrow: bool | None = None,
) -> None:
    """Write an ONNX file of `export` with int8 arithmetic; the description stays the same.

    Arguments:
        source: The ONNX file.
        images: Images uint8 [N, C, H, W] that give the ranges of activations, of validation.
        out: File to write.
        ranges: minmax: all values; entropy: least divergence of the histogram (as TensorRT);
            percentile: 99.999 % of the values.
        narrow: Whether weights have 7 bits: sums of 8 bits saturate on x86 processors without
            VNNI. None: if this processor has no int8 dot products.
    Raises: `UserError` if a package is missing, `ranges` is unknown, there are too few images, or
        the file is no file of `export`.
    """
    onnx_file.require_packages()
    if ranges not in RANGES:
        raise UserError(f"ranges must be one of {', '.join(RANGES)}, got {ranges!r}")
    if len(images) < FEWEST:
        raise UserError(
            f"the ranges of int8 need at least {FEWEST} validation images, got {len(images)}; "
            "use a larger data set, or keep float32"
        )
    described(source)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        few = bool(slow()) if narrow is None else narrow
        content = onnx_file.quantized(source, _fed(source, images), Path(folder), ranges, few)
    with replacing(out, "wb") as file:
        file.write(content)


def measure(path: Path, images: Images) -> tuple[Measured, Tensor]:
    """Return size, accuracy and latency of an ONNX file, and the class of every image.

    Arguments:
        path: File of `export`, or of `quantize`.
        images: Test images.
    """
    network = OnnxNetwork(path)
    classes = torch.cat([network.of_pixels(p).argmax(1) for p in images.pixels.split(EVALUATED)])
    right = float((classes == images.labels.cpu()).double().mean())
    latency = latency_of(network.of_pixels, network.image)
    return Measured(path.stat().st_size, right, latency), classes


def compare(source: Path, out: Path, images: Images) -> Quantized:
    """Return an ONNX file in float32 and in int8, measured on the same images.

    Arguments:
        source: The file in float32.
        out: The file in int8.
        images: Test images.
    """
    (before, one), (after, other) = measure(source, images), measure(out, images)
    return Quantized(before, after, float((one == other).double().mean()), slow())


def load_int8(run: Path) -> Predictor:
    """Return the network of a run folder that holds `int8.onnx` beside `genotype.json`.

    Loading runs no code from the files: they hold JSON and a graph.

    Arguments:
        run: The folder.
    Raises: `UserError` if a file is missing, or the two are not of the same network.
    """
    genotype, network = Genotype.load(run / "genotype.json"), OnnxNetwork(run / NAME)
    if (network.classes, network.image) != (genotype.classes, genotype.image):
        raise UserError(
            f"{run / NAME} must have the classes and images of {run / 'genotype.json'}, got "
            f"{len(network.classes)} classes and images {list(network.image)}; compress the "
            "training again"
        )
    return Predictor(network.eval(), genotype)


class OnnxNetwork(nn.Module):
    """The network of an ONNX file of `export`, for use as the network of a `Predictor`.

    Arguments:
        path: The file.
    Raises: `UserError` if a package is missing or the file is no file of `export`.
    """

    def __init__(self, path: Path):
        super().__init__()
        onnx_file.require_packages()
        about = described(path)
        channels, height, width = json.loads(about["image"])
        self.image: tuple[int, int, int] = (channels, height, width)
        self.classes: tuple[str, ...] = tuple(json.loads(about["classes"]))
        self.uint8 = "uint8" in about["preprocessing"]
        self.run: Callable[[Tensor], Tensor] = onnx_file.runner(path.read_bytes())
        # a predictor asks its network for the device
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-probabilities [B, K] of images [B, C, H, W] in [0, 1], on the CPU."""
        images = images.float().cpu().contiguous()
        return self.run((255 * images).round().to(torch.uint8) if self.uint8 else images).log()

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Return the probabilities [B, K] of images uint8 [B, C, H, W]."""
        return self.run(pixels.cpu().contiguous() if self.uint8 else floats(pixels).contiguous())


def described(path: Path) -> dict[str, str]:
    """Return the description in an ONNX file of `export`.

    Raises: `UserError` if the file cannot be read, or has no such description.
    """
    try:
        about = onnx_file.description_of(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not {"image", "classes", "preprocessing"} <= set(about):
        raise UserError(
            f"{path} must be an ONNX file of `export`, got one without class names and image size; "
            "export the training again"
        )
    return about


def slow() -> str:
    """Return one line if the processor has no int8 dot products; empty if it has."""
    if DOT_PRODUCTS & _flags():
        return ""
    return (
        f"{processor()} has no int8 dot products (VNNI, AMX or SDOT): int8 makes the file smaller, "
        "but not faster, here"
    )


def _flags() -> set[str]:
    """Return the flags of the processor, as the system spells them."""
    if CPU.exists():
        rows = [line.partition(":") for line in CPU.read_text(errors="replace").splitlines()]
        named = [value for name, _, value in rows if name.strip() in ("flags", "Features")]
        return {flag for value in named for flag in value.split()}
    if platform.machine() == "arm64":  # every Apple processor has SDOT
        return {"asimddp"}
    asked = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return {"avx512_vnni"} if asked() else set()


def _fed(source: Path, images: Tensor) -> Iterator[dict[str, Any]]:
    """Yield the inputs of the file, batch by batch."""
    uint8 = "uint8" in described(source)["preprocessing"]
    for part in images.cpu().split(BATCH):
        yield {"images": (part if uint8 else floats(part)).contiguous().numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what ONNX Runtime prints and logs while it quantizes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
