"""A folder of photographs that needs no download: patches of pictures, one class per picture.

The pictures are those that scikit-learn and scikit-image bring along (`pip install scikit-image`).
A patch has 64 or 96 pixels per side. Training patches come from the upper two thirds of a picture,
test patches from the lower third: no pixel is in both.

    python experiments/photographs.py --out photographs
    python run.py fit --dataset folder:photographs --budget-hours 0.15
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_sample_images

SIDES = (64, 96)  # pixels per side of a patch
OWN = ("china", "flower")  # pictures of scikit-learn
NAMES = (
    "astronaut", "coffee", "cat", "rocket", "hubble_deep_field", "immunohistochemistry", "retina",
    "brick", "grass", "gravel", "camera", "moon",
)  # fmt: skip

Pixels = npt.NDArray[np.uint8]


def picture_by_name() -> dict[str, Pixels]:
    """Return the pictures, uint8 [H, W, 3]."""
    from skimage import data

    found = dict(zip(OWN, load_sample_images().images))
    found |= {name: getattr(data, name)() for name in NAMES}
    return {
        name: np.asarray(Image.fromarray(pixels).convert("RGB")) for name, pixels in found.items()
    }


def patches(picture: Pixels, count: int, rng: np.random.Generator) -> list[Pixels]:
    """Cut random patches out of a picture."""
    found = []
    for i in range(count):
        side = SIDES[i % len(SIDES)]
        y, x = (int(rng.integers(size - side + 1)) for size in picture.shape[:2])
        found.append(picture[y : y + side, x : x + side])
    return found


@click.command()
@click.option("--out", default="photographs", show_default=True, help="Folder to write.")
@click.option("--count", default=120, show_default=True, help="Training patches of a class.")
def main(out: str, count: int) -> None:
    """Write the folder; see the docstring of the module."""
    rng = np.random.default_rng(0)
    for name, picture in picture_by_name().items():
        edge = picture.shape[0] - max(SIDES[-1], picture.shape[0] // 3)
        parts = {"train": (picture[:edge], count), "test": (picture[edge:], count // 3)}
        for part, (region, number) in parts.items():
            folder = Path(out) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i, patch in enumerate(patches(region, number, rng)):
                Image.fromarray(patch).save(folder / f"{i:04}.png")
    click.echo(f"{out}: {len(OWN + NAMES)} classes, {count} training images each")


if __name__ == "__main__":
    main()
