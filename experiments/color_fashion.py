"""Color images in the format of CIFAR-10, made of Fashion-MNIST and two photographs.

Each image shows a garment in a random color, as bright as the original, on a random part of one of
scikit-learn's photographs (after MNIST-M, Ganin et al. 2016). There are 50 000 training and 10 000
test images, 32 x 32 x 3, in ten classes. The reader of CIFAR-10 can read the files.

    python experiments/color_fashion.py --out out-small/colour
"""

from __future__ import annotations

import pickle
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_sample_images

from darts_lite.data import load

SIDE = 32


def color(
    images: npt.NDArray[np.uint8], photos: list[npt.NDArray[np.uint8]], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Color images [N, 28, 28]; return rows of 3072 bytes, channel by channel."""
    n = len(images)
    gray = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.float32)[:, None] / 255
    shade = rng.uniform(0.2, 1.0, (n, 3, 1, 1)).astype(np.float32)
    ground = np.empty((n, 3, SIDE, SIDE), np.float32)
    for i in range(n):
        photo = photos[rng.integers(len(photos))]
        y, x = (rng.integers(size - SIDE) for size in photo.shape[:2])
        ground[i] = photo[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1) / 255
    cover = np.minimum(1, 4 * gray)  # a garment hides what is behind it
    mixed = cover * gray * shade + (1 - cover) * ground
    return (mixed * 255).round().astype(np.uint8).reshape(n, -1)


@click.command()
@click.option("--out", default="out-small/colour", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Where Fashion-MNIST lies.")
def main(out: str, data_dir: str) -> None:
    """Run the experiment; see the docstring of the module."""
    dataset = load("fashion-mnist", Path(data_dir), download=False, image_size=None)
    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    folder = Path(out) / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    train = color(dataset.train.pixels[:50_000, 0].numpy(), photos, rng)
    test = color(dataset.test.pixels[:10_000, 0].numpy(), photos, rng)
    parts = [(f"data_batch_{i + 1}", train[i * 10_000 : (i + 1) * 10_000]) for i in range(5)]
    labels = dataset.train.labels[:50_000].tolist()
    for i, (name, rows) in enumerate([*parts, ("test_batch", test)]):
        own = (
            dataset.test.labels.tolist() if name == "test_batch" else labels[i * 10_000 :][:10_000]
        )
        with (folder / name).open("wb") as file:
            pickle.dump({"data": rows, "labels": own}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": list(dataset.classes)}, file)
    click.echo(f"{folder}: {len(train)} + {len(test)} images")


if __name__ == "__main__":
    main()
