"""Folders as people really have them: names, splits, broken files, links, modes, shapes, CSV."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from invoking import call
from PIL import Image

import darts_lite as dl
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.reading import Reading
from darts_lite.augment import to_json
from darts_lite.commands.check import facts
from darts_lite.commands.predict import files_of
from darts_lite.data import Dataset, changed, load, pixel_cache, split
from darts_lite.data.decoding import Look
from darts_lite.data.folder import read_images
from darts_lite.data.layout import reason, split_of
from darts_lite.data.shapes import chosen_fit, chosen_size
from darts_lite.data.surveys import description, flips_keep_labels
from darts_lite.errors import UserError
from darts_lite.export.deployed import description as description_of
from darts_lite.reporting import pictures
from darts_lite.reporting.pictures.canvas import legible
from darts_lite.training.problem import augmentation_for


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Path:
    """Write an image of noise; equal arguments give equal images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng((seed, *os.fsencode(path)[-40:]))
    pixels = noise.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def fill(root: Path, classes: str = "cat dog", count: int = 4, seed: int = 0) -> Path:
    """Write a folder of images for every class."""
    for name in classes.split():
        for i in range(count):
            draw(root / name / f"{i}.png", seed)
    return root


def read(root: Path, cache: Path | None = None, **how: object) -> Dataset:
    size = how.pop("image_size", None)
    reading = Reading(**how)  # type: ignore[arg-type]
    return load(f"folder:{root}", cache or root.parent / "data", image_size=size, how=reading)  # type: ignore[arg-type]


def text(dataset: Dataset) -> str:
    return "\n".join(description(dataset, split(dataset)))


# --- splits and classes by their names ---------------------------------------------------------


@pytest.mark.parametrize(
    "train, validation, test",
    [
        ("Train", None, "Test"),
        ("training", "validation", None),
        ("TRAIN", "Valid", "TEST"),
        ("train", "dev", "testing"),
        ("seg_train", None, "seg_test"),
        ("train_images", "val-images", "test images"),
    ],
)
def test_splits_in_any_spelling(
    tmp_path: Path, train: str, validation: str | None, test: str | None
) -> None:
    root = tmp_path / "d"
    for count, name in ((5, train), (3, validation), (2, test)):
        if name:
            fill(root / name, count=count, seed=count)
    dataset = read(root)
    assert dataset.classes == ("cat", "dog")
    found = {part: images.count for part, images in dataset.parts.items()}
    wanted = {"train": 10, "validation": 6 if validation else None, "test": 4 if test else None}
    assert found == {part: count for part, count in wanted.items() if count}
    assert "2 classes (cat " in text(dataset)


@pytest.mark.parametrize(
    "name, part",
    [("trains", None), ("latest", None), ("valley", None), ("X_Test", "test"), ("cat", None)],
)
def test_words_that_are_no_split(name: str, part: str | None) -> None:
    assert split_of(name) == part


@pytest.mark.parametrize("inner", ["", "archive", "a/b"])
def test_a_single_top_folder_is_entered(tmp_path: Path, inner: str) -> None:
    fill(tmp_path / "d" / inner / "train" / "train", count=3)
    fill(tmp_path / "d" / inner / "test", count=2)
    dataset = read(tmp_path / "d")
    assert dataset.classes == ("cat", "dog") and dataset.parts.keys() == {"train", "test"}


def test_classes_named_like_splits_stay_classes(tmp_path: Path) -> None:
    dataset = read(fill(tmp_path / "d", "car train bus"))
    assert dataset.classes == ("bus", "car", "train") and dataset.train.count == 12
    shoes = fill(tmp_path / "shoes", "boot sandal")
    fill(shoes / "training shoes", "left right")
    assert read(shoes).classes == ("boot", "sandal", "training shoes")


def test_a_flat_test_folder_beside_the_classes_is_not_a_class(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", count=6)
    draw(root / "test" / "0001.jpg")
    dataset = read(root)
    assert dataset.classes == ("cat", "dog") and dataset.test is None
    assert "the 1 images of" in text(dataset) and "have no class; they are not used" in text(
        dataset
    )
    fill(tmp_path / "e" / "train")
    draw(tmp_path / "e" / "test" / "0001.jpg")
    assert "test is not used: it lies beside the training images" in text(read(tmp_path / "e"))


def test_validation_folder_is_the_validation_split(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("valid", 3), ("test", 2)):
        fill(tmp_path / "d" / part, count=count, seed=count)
    fill(tmp_path / "d" / "unused", count=1)
    dataset = read(tmp_path / "d")
    splits = split(dataset)
    assert [part.count for part in splits] == [12, 6, 4]
    assert dataset.validation is not None
    assert torch.equal(splits.validation.pixels, dataset.validation.pixels)
    assert "unused is not used" in text(dataset)
    some = split(dataset, subset=9, seed=1)
    assert [part.count for part in some] == [6, 3, 4]


def test_validation_is_never_the_test_set(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / "d" / part, count=5, seed=len(part))
    dataset = read(tmp_path / "d")
    splits = split(dataset)
    assert [part.count for part in splits] == [8, 10, 2] and dataset.test is None
    assert splits.validation.labels.tolist() == [0] * 5 + [1] * 5


def test_one_class_is_refused_at_once(tmp_path: Path) -> None:
    fill(tmp_path / "d", "cat")
    with pytest.raises(UserError, match=r"at least two classes, got only 'cat'; give the folder"):
        read(tmp_path / "d")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train")
    for name in ("val", "validation"):
        fill(tmp_path / "d" / name)
    with pytest.raises(UserError, match=r"one folder of validation images, got val, validation"):
        read(tmp_path / "d")


def test_only_a_test_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "test")
    fill(tmp_path / "d" / "val")
    with pytest.raises(UserError, match=r"must have training images, got only test, val; name"):
        read(tmp_path / "d")


def test_leftovers_of_systems_rare_and_empty_classes(tmp_path: Path) -> None:
    root = tmp_path / "d"
    fill(root / "train", "ant bee cat")
    fill(root / "test", "ant cat", seed=1)
    fill(root / "__MACOSX" / "train", "ant bee cat")
    (root / "train" / "emu").mkdir()
    draw(root / "test" / "0001.jpg")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "train" / "bee" / name).write_bytes(b"x")
    dataset = read(root)
    assert dataset.classes == ("ant", "bee", "cat") and dataset.train.count == 12
    assert dataset.test is not None and set(dataset.test.labels.tolist()) == {0, 2}
    said = text(dataset)
    assert "emu has no images, so it is no class" in said
    assert "1 images lie in" in said and "0001.jpg" in said
    assert not {"MACOSX", "DS_Store", "Thumbs"} & set(said.replace("/", " ").split())
    assert dataset.found.passed_over == {"an image outside of the folders of classes": 1}


def test_class_of_a_split_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train")
    fill(tmp_path / "d" / "test", "cat emu")
    with pytest.raises(UserError, match=r"must be in .*train too, got 'emu'; add images"):
        read(tmp_path / "d")


# --- files that cannot be read -----------------------------------------------------------------


def broken_files(root: Path) -> Path:
    fill(root, count=12)
    for i in range(5):
        path = draw(root / "cat" / f"cut{i}.jpg", size=(64, 64))
        path.write_bytes(path.read_bytes()[:-200])
    (root / "dog" / "page.jpg").write_text("<html>not found</html>")
    (root / "dog" / "empty.png").write_bytes(b"")
    for name in ("clip.mpg", "weights.h5"):
        (root / "dog" / name).write_bytes(b"\x00\x00\x01\xba" * 9)
    return root


def test_all_broken_files_in_one_message(tmp_path: Path) -> None:
    root = broken_files(tmp_path / "d")
    with pytest.raises(
        UserError, match=r"7 of 31 images cannot be read: .*--skip-broken"
    ) as caught:
        read(root)
    said = str(caught.value)
    assert said.count("cut") >= 5 and "page.jpg" in said and "empty.png" in said
    assert "\n" not in said


def test_at_most_ten_broken_files_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    for i in range(13):
        (root / "cat" / f"bad{i:02}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"13 of 21 .*bad09.png.* and 3 more; replace"):
        read(root)


def test_skip_broken_goes_on_and_counts(tmp_path: Path) -> None:
    root = broken_files(tmp_path / "d")
    dataset = read(root, skip_broken=True)
    assert dataset.train.count == 24 and dataset.train.labels.tolist() == [0] * 12 + [1] * 12
    assert dataset.found.passed_over == {
        ".mpg is no ending of an image": 1,
        ".h5 is no ending of an image": 1,
        "a file that cannot be read": 7,
    }


def test_all_files_broken_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(b"x")
    for skip in (False, True):
        with pytest.raises(UserError, match="2 of 2 images cannot be read"):
            read(root, skip_broken=skip)


def test_a_class_whose_files_are_all_broken_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", count=6)
    (root / "emu").mkdir()
    (root / "emu" / "0.png").write_bytes(b"x")
    dataset = read(root, skip_broken=True)
    with pytest.raises(UserError, match="got 0 of 'emu'"):
        split(dataset)


def test_passed_over_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", count=20)
    for i in range(20):
        (root / "cat" / f"{i}.HEIC").write_bytes(b"x")
    said = text(read(root))
    assert "passed over: 20 x .heic, which cannot be read here: convert it to JPEG or PNG" in said


# --- links -------------------------------------------------------------------------------------


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    fill(tmp_path / "elsewhere", "more", count=3, seed=5)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "more" / "loop").symlink_to(root / "cat")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = read(root)
    assert dataset.train.labels.tolist() == [0] * 7 + [1] * 4
    assert dataset.found.passed_over == {
        "a folder that was read already": 1,
        "a link that leads nowhere": 1,
    }
    assert "gone.png is a link that leads nowhere" in text(dataset)


# --- modes -------------------------------------------------------------------------------------


def icon(mode: str) -> Image.Image:
    """Return an image whose left half is opaque and black, and whose rest is transparent."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, :8] = 255
    clear = Image.fromarray(np.zeros((16, 16, 3), np.uint8)).convert("RGBA")
    clear.putalpha(Image.fromarray(alpha))
    if mode == "P":
        flat = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
        flat.putpalette([0, 0, 0, 0, 0, 0])
        flat.info["transparency"] = 1
        return flat
    return clear.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background, level", [("white", 255), ("#808080", 128)])
def test_transparent_pixels_show_the_background(
    tmp_path: Path, mode: str, background: str, level: int
) -> None:
    options = {"transparency": 1} if mode == "P" else {}
    icon(mode).save(tmp_path / "a.png", **options)
    channels = 1 if mode == "LA" else 3
    how = Reading(background=background)
    pixels = read_images([tmp_path / "a.png"], (channels, 16, 16), how)[0]
    assert pixels[:, :, :8].eq(0).all() and pixels[:, :, 8:].eq(level).all()


def test_background_must_be_a_color(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--background must be a color .*got 'whitish'"):
        read(fill(tmp_path / "d"), background="whitish")


DEEP: dict[str, tuple[type, float, float]] = {
    "12 bits": (np.uint16, 0, 4095),
    "thermal": (np.uint16, 7000, 8500),
    "int32": (np.int32, 0, 100_000),
    "float": (np.float32, 0.0, 1.0),
    "negative": (np.float32, -5.0, 5.0),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_files_use_the_whole_range(tmp_path: Path, kind: str) -> None:
    dtype, low, high = DEEP[kind]
    ramp = np.linspace(low, high, 256).reshape(16, 16).astype(dtype)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(ramp).save(tmp_path / "d" / name / f"{i}.tif")
    dataset = read(tmp_path / "d")
    wanted = np.rint((ramp.astype(np.float64) - low) / (high - low) * 255)
    assert dataset.image == (1, 16, 16)
    assert np.abs(dataset.train.pixels[0, 0].numpy() - wanted).max() <= 1
    assert (dataset.reading.low, dataset.reading.high) == (low, high)
    assert "more than 8 bits" in text(dataset)
    again = read_images([tmp_path / "d" / "a" / "0.tif"], dataset.image, dataset.reading)
    assert torch.equal(again[0], dataset.train.pixels[0])


def test_values_that_are_no_numbers_are_broken_files(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    bad = np.full((12, 12), np.nan, np.float32)
    Image.fromarray(bad).save(root / "cat" / "nan.tif")
    with pytest.raises(UserError, match=r"1 of 9 images .*nan.tif .*not finite"):
        read(root)


def test_narrow_range_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(4):
            path = draw(tmp_path / "d" / name / f"{i}.png", mode="L")
            Image.fromarray(np.asarray(Image.open(path)) // 16).save(path)
    assert "little of their range: nearly all values lie in" in text(read(tmp_path / "d"))
    assert "their range" not in text(read(fill(tmp_path / "wide")))


# --- copies, imbalance -------------------------------------------------------------------------


def test_copies_in_classes_and_splits_are_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        fill(tmp_path / "d" / part, seed=len(part))
    shutil.copy(tmp_path / "d/train/cat/0.png", tmp_path / "d/train/dog/copy.png")
    shutil.copy(tmp_path / "d/train/cat/1.png", tmp_path / "d/test/cat/copy.png")
    said = text(read(tmp_path / "d"))
    assert "1 images are in several classes, the first in cat, dog" in said
    assert "1 images are in several splits, the first in train and test" in said
    assert "several" not in text(read(fill(tmp_path / "clean")))


def test_imbalance_is_named_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path / "d", "cat", count=20)
    fill(tmp_path / "d", "dog", count=4)
    assert "imbalanced: 20 images of 'cat', 4 of 'dog'; consider --class-weights" in text(
        read(tmp_path / "d")
    )


# --- flips -------------------------------------------------------------------------------------


def arrows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gray images of arrows to the left and to the right at random places."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (count, 1, 20, 20), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    shape = torch.zeros(9, 9, dtype=torch.uint8)
    for i in range(9):
        reach = 4 - abs(4 - i)
        shape[i, 4 - reach : 5] = 200
        shape[4, 4:] = 200
    places = torch.randint(0, 3, (count, 2), generator=generator) + 4
    for image, label, (y, x) in zip(pixels, labels.tolist(), places.tolist()):
        image[0, y : y + 9, x : x + 9] = shape if label == 0 else shape.flip(1)
    return pixels, labels


@pytest.mark.parametrize("seed", range(5))
def test_flips_are_measured(seed: int) -> None:
    from darts_lite.data import Images

    pixels, labels = arrows(300, seed)
    keeps, said = flips_keep_labels(Images(pixels, labels))
    assert not keeps and "cost" in said and "--flips" in said
    upside = pixels.clone()
    upside[labels == 1] = pixels[labels == 0].transpose(2, 3)[: int((labels == 1).sum())]
    symmetric = torch.where((labels == 1).view(-1, 1, 1, 1), upside, upside.transpose(2, 3))
    mixed = torch.cat((symmetric, symmetric.flip(3)))
    keeps, said = flips_keep_labels(Images(mixed, torch.cat((labels, labels))))
    assert keeps and "--no-flips" in said


def test_user_decides_on_flips(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    assert not read(root, flips=False).flips and read(root, flips=True).flips
    assert (
        not load("digits", tmp_path).flips
        and load("digits", tmp_path, how=Reading(flips=True)).flips
    )


# --- shapes ------------------------------------------------------------------------------------


def looks(*sizes: tuple[int, int]) -> list[Look]:
    return [Look(width, height, gray=False, range=None) for width, height in sizes]


@pytest.mark.parametrize(
    "sizes, fit",
    [
        ([(640, 480), (480, 640)], "crop"),
        ([(160, 24)] * 9, "stretch"),
        ([(160, 24), (24, 160), (100, 20)], "pad"),
    ],
)
def test_fit_follows_the_shapes(sizes: list[tuple[int, int]], fit: str) -> None:
    assert chosen_fit(looks(*sizes))[0] == fit


def test_what_the_files_are_is_said(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    draw(root / "cat" / "gray.png", size=(20, 30), mode="L")
    assert "9 files of 12x12 to 20x30 pixels (width x height), 1 of them gray" in text(read(root))


def test_strips_are_seen_whole(tmp_path: Path) -> None:
    for name, left in (("bright", 255), ("dark", 0)):
        for i in range(4):
            strip = np.full((24, 160, 3), 100 + i, np.uint8)
            strip[:, :24] = left
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(strip).save(tmp_path / "d" / name / f"{i}.png")
    dataset = read(tmp_path / "d")
    assert "--fit stretch" in text(dataset)
    ends = dataset.train.pixels[:, 0, :, 0].float().mean(1)
    assert ends[:4].min() > 200 and ends[4:].max() < 60
    padded = read(tmp_path / "d", fit="pad", image_size=32).train.pixels
    assert padded[0, :, 0].eq(255).all() and padded[4, 0, 16, 1] < 60


@pytest.mark.parametrize(
    "side, count, hours, size",
    [(28, 60_000, 0.1, 28), (500, 500, 1.0, 128), (70, 500, 1.0, 64), (500, 50_000, 1.0, 48),
     (500, 10**6, 0.1, 32), (9, 10, 1.0, 8)],
)  # fmt: skip
def test_size_follows_files_and_budget(side: int, count: int, hours: float, size: int) -> None:
    assert chosen_size(looks((side, side + 9)), count, 3600 * hours)[0] == size


# --- names -------------------------------------------------------------------------------------


def test_names_that_are_no_text(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    odd = os.fsdecode(os.fsencode(root) + b"/caf\xe9")
    os.rename(root / "dog", odd)
    Path(odd, "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"caf\\xe9/bad.png") as caught:
        read(root)
    str(caught.value).encode()
    dataset = read(root, skip_broken=True)
    assert dataset.classes == ("caf\\xe9", "cat")
    json.dumps(facts(dataset, split(dataset)), ensure_ascii=False).encode()


def test_moved_images_are_the_same_data(tmp_path: Path) -> None:
    first = read(fill(tmp_path / "d"))
    shutil.move(tmp_path / "d", tmp_path / "moved")
    again = load(f"folder:{tmp_path / 'moved'}", tmp_path / "data")
    assert changed(first.fingerprint, again.fingerprint) is None
    draw(tmp_path / "moved" / "cat" / "0.png", seed=9)
    other = load(f"folder:{tmp_path / 'moved'}", tmp_path / "data")
    assert changed(first.fingerprint, other.fingerprint)


# --- CSV ---------------------------------------------------------------------------------------


def table(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def labelled(root: Path, count: int = 8) -> list[dict[str, str]]:
    for i in range(count):
        draw(root / f"{i}.png")
    return [{"file": f"{i}.png", "label": "ab"[i % 2]} for i in range(count)]


def test_csv_of_labels(tmp_path: Path) -> None:
    rows = labelled(tmp_path / "d" / "images")
    path = table(tmp_path / "d" / "labels.csv", rows, ";")
    dataset = load(f"csv:{path}", tmp_path)
    assert dataset.classes == ("a", "b") and dataset.train.labels.tolist() == [0, 1] * 4
    again = load(f"folder:{tmp_path / 'd'}", tmp_path)
    assert torch.equal(again.train.pixels, dataset.train.pixels)
    assert torch.equal(again.train.labels, dataset.train.labels)


def test_csv_with_splits_and_names_without_ending(tmp_path: Path) -> None:
    rows = labelled(tmp_path / "d", 12)
    parts = ["train"] * 6 + ["val"] * 3 + ["Test"] * 3
    rows = [
        {"Id": r["file"][:-4], "Class": r["label"], "Split": part} for r, part in zip(rows, parts)
    ]
    dataset = load(f"csv:{table(tmp_path / 'd' / 't.csv', rows)}", tmp_path)
    assert {part: images.count for part, images in dataset.parts.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [{"x": "1", "y": "2"}], "columns file and label, got no column file"),
        (lambda rows: [*rows, {"file": "gone.png", "label": "a"}], "1 of 9 files .*gone.png"),
        (lambda rows: rows[::2], "at least two labels, got 1"),
        (lambda rows: [{**r, "split": "half"} for r in rows], "column split .*got 'half'"),
        (lambda rows: [{**r, "split": "train" if r["label"] == "a" else "test"} for r in rows],
         "training images, got none of 'b'"),
    ],
)  # fmt: skip
def test_csv_errors(
    tmp_path: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], message: str
) -> None:
    path = table(tmp_path / "d" / "t.csv", change(labelled(tmp_path / "d")))
    with pytest.raises(UserError, match=message):
        load(f"csv:{path}", tmp_path)


# --- the cache ---------------------------------------------------------------------------------


def test_decoding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "d", count=10)
    monkeypatch.setattr(pixel_cache, "CHUNK", 4)
    decode, seen = pixel_cache.decode, []

    def stops(path: Path, **how: object) -> np.ndarray:
        seen.append(path)
        if len(seen) > 9:
            raise KeyboardInterrupt
        return decode(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(pixel_cache, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        read(root)
    again: list[Path] = []
    monkeypatch.setattr(
        pixel_cache, "decode", lambda path, **how: again.append(path) or decode(path, **how)
    )
    dataset = read(root)
    assert 0 < len(again) <= 16
    monkeypatch.setattr(pixel_cache, "decode", decode)
    fresh = read(root, tmp_path / "other")
    assert torch.equal(dataset.train.pixels, fresh.train.pixels)


# --- the command -------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = call(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_check_prints_facts_and_a_sheet(tmp_path: Path) -> None:
    root, cache = fill(tmp_path / "d", count=10), str(tmp_path / "data")
    sheet = tmp_path / "sheet.png"
    code, output = run(
        "check", "--dataset", f"folder:{root}", "--data-dir", cache, "--json", "--out", str(sheet)
    )
    found = json.loads(output)
    assert code == 0 and found["classes"] == ["cat", "dog"] and found["image"] == [3, 12, 12]
    assert found["splits"]["test"] == {"cat": 2, "dog": 2} and found["problems"] == []
    with Image.open(sheet) as picture:
        assert picture.size[0] > 100


def test_check_refuses_what_a_search_refuses(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", "cat")
    code, output = run("check", "--dataset", f"folder:{root}", "--json")
    first = output.splitlines()[0]
    assert code == 2 and "at least two classes" in json.loads(first)["problems"][0]


# --- folders made at random --------------------------------------------------------------------


def scatter(root: Path, seed: int) -> None:
    """Write a folder of odd names, modes, sizes, nestings and broken bytes."""
    rng = random.Random(seed)
    names = [
        "cat",
        "ÄÖ ü",
        "고양이",
        "🐈",
        "$x$",
        "a" * 120,
        "-v",
        "Train",
        "test",
        "VAL",
        "x.y",
        "0",
    ]
    parts = rng.choice(
        [[""], [""], ["train", "val"], ["Training", "Testing"], ["train", "dev", "test"]]
    )
    top = root / rng.choice(["", "inner", "in/ner"])
    for part in parts:
        for name in (
            rng.sample(names, rng.randint(1, 5))
            if rng.random() < 0.3
            else names[: rng.randint(2, 6)]
        ):
            folder = top / part / name / rng.choice(["", "", "deep", "de/ep"])
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(rng.randint(0, 9)):
                mode = rng.choice(["RGB", "RGB", "L", "RGBA", "P", "LA", "1", "CMYK", "I;16", "F"])
                size = (rng.choice([6, 8, 20, 33]), rng.choice([8, 20, 90]))
                ending = {"CMYK": "jpg", "I;16": "tif", "F": "tif"}.get(mode, "png")
                path = (
                    folder
                    / f"{i}{rng.choice(['', ' x', 'é'])}.{rng.choice([ending, ending.upper()])}"
                )
                noise = np.random.default_rng(rng.random().__hash__() % 2**32).random(
                    (size[1], size[0])
                )
                if mode in ("I;16", "F"):
                    deep = (
                        noise.astype(np.float32)
                        if mode == "F"
                        else (4095 * noise).astype(np.uint16)
                    )
                    Image.fromarray(deep).save(path)
                else:
                    Image.fromarray((255 * noise).astype(np.uint8)).convert(mode).save(path)
                if rng.random() < 0.05:
                    path.write_bytes(path.read_bytes()[: rng.randint(0, 60)])
            if rng.random() < 0.3:
                (
                    folder / rng.choice(["a.heic", "x.txt", "no_ending", ".hidden", "x.mpg"])
                ).write_bytes(b"?")


@pytest.mark.parametrize("seed", range(50))
def test_random_folders_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "d"
    root.mkdir()
    scatter(root, seed)
    on_disk = sum(path.is_file() and not path.name.startswith(".") for path in root.rglob("*"))
    try:
        dataset = read(root, skip_broken=True)
        lines = text(dataset)
    except UserError as error:
        assert ("\n" not in str(error) and ";" in str(error)) or "cannot be read" in str(error)
        str(error).encode()
        return
    lines.encode()
    used = sum(images.count for images in dataset.parts.values())
    passed = sum(dataset.found.passed_over.values())
    beside = sum("is not used" in problem for problem in dataset.found.problems)
    assert used + passed == on_disk or beside  # nothing in silence


# --- a search and a final training -------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `pets` and a finished search in `out`, started from that folder."""
    place = tmp_path_factory.mktemp("place")
    fill(place / "pets" / "train", count=12)
    fill(place / "pets" / "valid", count=6, seed=1)
    fill(place / "pets" / "test", count=3, seed=2)
    before = Path.cwd()
    os.chdir(place)
    try:
        dl.search(
            dataset="folder:pets", steps=2, cells=3, channels=4, batch_size=4, out="out",
            max_params=20_000, augment="standard", say=lambda text: None,
        )  # fmt: skip
    finally:
        os.chdir(before)
    return place


def trained(place: Path, out: Path, **options: object) -> dict[str, object]:
    return dl.derive(
        genotype=str(place / "out" / "g.json"), epochs=1, out=str(out), device="cpu",
        data_dir=str(out / "data"), say=lambda text: None, **options,
    )  # fmt: skip


def test_derive_finds_a_relative_folder_from_elsewhere(searched: Path, tmp_path: Path) -> None:
    assert trained(searched, tmp_path / "derive")["passed_over"] == {}
    predicted = dl.load(tmp_path / "derive").predict(sorted((searched / "pets/test/cat").iterdir()))
    assert predicted.probabilities.shape == (3, 2)


def test_derive_of_moved_images_says_how_and_does(searched: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(searched, place)
    genotype = Genotype.load(place / "out" / "g.json")
    gone = replace(genotype.source, dataset=f"folder:{tmp_path / 'gone'}")
    replace(genotype, source=gone).save(place / "out" / "g.json")
    with pytest.raises(UserError, match=r"folder:PATH must name a folder, got folder:.*gone"):
        trained(place, tmp_path / "derive")
    trained(place, tmp_path / "derive", dataset=f"folder:{place / 'pets'}")
    draw(place / "pets" / "test" / "cat" / "0.png", seed=7)
    with pytest.raises(UserError, match=r"other pixels .*--dataset or --data-dir"):
        trained(place, tmp_path / "other", dataset=f"folder:{place / 'pets'}")


def test_validation_folder_is_what_a_search_learns_from(searched: Path) -> None:
    genotype = Genotype.load(searched / "out" / "g.json")
    assert genotype.dataset["counts"] == [21, 21] and genotype.source.reading.fit == "crop"
    said: list[str] = []
    dl.search(
        dataset=f"folder:{searched / 'pets'}", steps=2, cells=3, channels=4, batch_size=4,
        out=str(searched / "again"), max_params=20_000, augment="standard", say=said.append,
    )  # fmt: skip
    assert "24 training and 12 validation images" in "\n".join(said)
    assert "train 24, validation 12, test 6" in "\n".join(said)


def test_vertical_flips_reach_the_augmentation(tmp_path: Path) -> None:
    dataset = read(fill(tmp_path / "d"), vertical_flips=True, flips=False)
    augment = augmentation_for(dataset, "standard")
    assert augment.policy.vertical_flips and not augment.policy.flips
    assert to_json(augment)["settings"]["vertical_flips"]
    still = replace(augment.policy, crop=0)
    images = torch.rand(64, 3, 9, 9)
    seen = still(images, torch.Generator().manual_seed(0))
    turned = [torch.equal(a, b.flip(1)) for a, b in zip(seen, images)]
    kept = [torch.equal(a, b) for a, b in zip(seen, images)]
    assert all(a or b for a, b in zip(turned, kept)) and 16 < sum(turned) < 48


def test_pictures_of_odd_names_are_readable() -> None:
    names = ["고양이", "🐈 tom", "$x$", "x" * 300, *(f"class {i}" for i in range(146))]
    counts = np.eye(len(names), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = pictures.confusion_matrix(counts, names, "test")
        small = pictures.confusion_matrix(counts[:4, :4], names[:4], "test")
    assert picture.shape[1] < 2400 and small.shape[1] < 1200
    assert legible(names[:4]) == ["0", "1: tom", "$x$", "x" * 14 + "…" + "x" * 13]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_trained_network_reads_files_as_in_training(
    searched: Path, tmp_path: Path, fit: str
) -> None:
    genotype = Genotype.load(searched / "out" / "g.json")
    how = replace(genotype.source.reading, fit=fit, background="#0000ff")
    strip = draw(tmp_path / "strip.png", size=(40, 12))
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (12, 12), (9, 9, 9, 0)).save(clear)
    trained(searched, tmp_path / "derive")
    with_how = replace(genotype, source=replace(genotype.source, reading=how))
    with_how.save(tmp_path / "derive" / "genotype.json")
    network = dl.load(tmp_path / "derive")
    found = network.predict([strip, clear]).probabilities
    wanted = network.predict(read_images([strip, clear], genotype.image, how)).probabilities
    assert torch.equal(found, wanted)
    about = description_of(with_how, uint8=True)
    assert about["fit"] == fit and "over #0000ff if it is transparent" in about["preprocessing"]


def test_predict_names_what_it_passes_over(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    (root / "cat" / "a.HEIC").write_bytes(b"x")
    said: list[str] = []
    assert len(list(files_of([root], said.append))) == 8
    assert said == [f"passed over in {root}: 1 x {reason(Path('a.heic'))}"]


def test_a_search_of_a_path_that_is_no_text_can_be_read_again(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    fill(odd, count=12)
    genotype = dl.search(
        dataset=f"folder:{odd}", steps=1, cells=3, channels=4, batch_size=4, max_params=20_000,
        augment="standard", out=str(tmp_path / "out"), data_dir=str(tmp_path / "data"),
        say=lambda text: None,
    )  # fmt: skip
    assert Genotype.load(tmp_path / "out" / "g.json") == genotype
    trained(tmp_path, tmp_path / "derive", dataset=f"folder:{odd}")
