"""Find classes and splits in a folder of images, by the names of its sub-folders only."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from darts_lite.data.checks import shown
from darts_lite.errors import UserError

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "develop", "eval"),
    "test": ("test", "testing", "tst"),
}
"""Usual names of the folder of a split, in any case."""


def _endings(text: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in text.split())


ENDINGS = _endings(
    "png apng jpg jpeg jpe jfif bmp dib gif webp avif tif tiff ppm pgm pbm pnm jp2 j2k tga pcx ico "
    "qoi sgi rgb bw ras xbm xpm dds mpo"
)
"""Endings of image files; Pillow registers more, of films, of archives and of code."""
CAMERA = _endings("heic heif cr2 cr3 nef arw dng orf rw2 raf psd svg pdf eps")
"""Endings of images that cannot be read here."""
SILENT = frozenset(("thumbs.db", "desktop.ini", "__macosx", "$recycle.bin"))
"""Names that an operating system writes by itself; nobody needs to hear of them."""


class Labeled(NamedTuple):
    """An image file and its class, an index of `Layout.classes`."""

    path: Path
    label: int


@dataclass(frozen=True)
class Layout:
    """What a folder or a CSV file holds, before any image is read.

    Attributes:
        root: folder or file that was given.
        classes: names of the classes.
        splits: image files of "train", and of "validation" and "test" if there are such folders.
        passed_over: number of entries that are not used, by reason.
        problems: sentences about what may be wrong.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[Labeled]]
    passed_over: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """The image files of all splits, in the order of `splits`."""
        return [each.path for files in self.splits.values() for each in files]


def read_layout(root: Path) -> Layout:
    """Find classes and splits below a folder.

    The classes are the sub-folders of the folder, or of its folder of training images. Names of
    splits are known in any case (`SPLITS`), also as words of a longer name ("seg_train"). A single
    sub-folder that holds all the others is entered (a ZIP file unpacks to one).

    Arguments:
        root: the folder.
    Raises: `UserError` without two classes of images, or if a class of a split is not in training.
    """
    passed_over: Counter[str] = Counter()
    problems: list[str] = []
    top = _entered(root)
    folders = {path.name: path for path in _subfolders(top)}
    parts = _parts(top, folders)
    trained = parts.pop("train", top)
    names = [n for n in folders if folders[n] not in parts.values()]
    if trained == top:
        names = _without_flat_splits(names, folders, passed_over, problems)
    else:
        used = {path.parts[len(top.parts)] for path in (trained, *parts.values())}
        problems += [
            f"the folder {shown(folders[n])} is not used: it lies beside the training images"
            for n in sorted(set(folders) - used)
        ]
        names = [path.name for path in _subfolders(trained)]
    found = {name: list(image_files(trained / name, passed_over, problems)) for name in names}
    for name in sorted(n for n in found if not found[n]):
        problems.append(f"the folder {shown(trained / name)} has no images, so it is no class")
    present = sorted(name for name in found if found[name])
    _flat(trained, passed_over, problems)
    _require_classes(present, trained)
    splits = {"train": [Labeled(f, i) for i, name in enumerate(present) for f in found[name]]}
    for part, folder in parts.items():
        splits[part] = []
        for path in _subfolders(folder):
            files = list(image_files(path, passed_over, problems))
            if files and path.name not in present:
                raise UserError(
                    f"every class in {shown(folder)} must be in {shown(trained)} too, got "
                    f"{display(path.name)!r}; add images of it there or remove its folder"
                )
            splits[part] += [Labeled(file, present.index(path.name)) for file in files]
        _flat(folder, passed_over, problems)
        if not splits[part]:
            del splits[part]
            problems.append(f"the folder {shown(folder)} has no images in folders of classes")
    return Layout(root, unique([display(n) for n in present]), splits, passed_over, problems)


def display(name: str) -> str:
    """Return the name of a file as text that can be written as UTF-8.

    >>> display("caf\\udce9")
    'caf\\\\xe9'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, with numbers where two are equal."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder stands for; None if it stands for none.

    >>> split_of("Valid"), split_of("seg_train"), split_of("trainer"), split_of("train_test")
    ('validation', 'train', None, None)
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    found = {split for split, names in SPLITS.items() if words & set(names)}
    return found.pop() if len(found) == 1 else None


def image_files(
    folder: Path, passed_over: Counter[str] | None = None, problems: list[str] | None = None
) -> Iterator[Path]:
    """Yield the images below a folder, sorted; links are followed, every folder is read once.

    Arguments:
        folder: the folder.
        passed_over: counts the other files by reason.
        problems: collects sentences about links that lead nowhere.
    """
    passed_over = Counter() if passed_over is None else passed_over
    seen = {folder.resolve()}
    for top, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(n for n in inner if not hidden(n))
        for name in list(inner):
            real = (Path(top) / name).resolve()
            if real in seen:
                inner.remove(name)
                passed_over["a folder that was read already"] += 1
            seen.add(real)
        for name in sorted(n for n in files if not hidden(n)):
            path = Path(top, name)
            if path.suffix.lower() not in ENDINGS:
                passed_over[reason(path)] += 1
            elif path.is_file():
                yield path
            else:
                passed_over["a link that leads nowhere"] += 1
                if problems is not None:
                    problems.append(f"{shown(path)} is a link that leads nowhere")


def hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that an operating system leaves behind."""
    return name.startswith(".") or name.lower() in SILENT


def reason(path: Path) -> str:
    """Return why a file is passed over.

    >>> reason(Path("a.HEIC")), reason(Path("b"))
    ('.heic, which cannot be read here: convert it to JPEG or PNG', 'no ending of an image')
    """
    ending = path.suffix.lower()
    if ending in CAMERA:
        return f"{ending}, which cannot be read here: convert it to JPEG or PNG"
    return f"{display(ending)} is no ending of an image" if ending else "no ending of an image"


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not hidden(p.name))


def _has_images(path: Path) -> bool:
    return any(p.suffix.lower() in ENDINGS for p in path.iterdir() if not hidden(p.name))


def _entered(folder: Path) -> Path:
    """Return the folder, or the single folder inside it that holds all the others."""
    seen = {folder.resolve()}
    while True:
        inner = _subfolders(folder)
        if len(inner) != 1 or _has_images(folder) or _has_images(inner[0]):
            return folder
        if not _subfolders(inner[0]) or inner[0].resolve() in seen:
            return folder
        folder = inner[0]
        seen.add(folder.resolve())


def _parts(top: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """Return the folders of splits by the name of the split: they hold folders of classes."""
    found: dict[str, list[Path]] = {}
    for name, path in folders.items():
        part = split_of(name)
        if part and (_subfolders(path) or not _has_images(path)) and any(path.iterdir()):
            found.setdefault(part, []).append(path)
    if len(found) == 1 and not any(map(_is_exact, *found.values())):
        return {}  # a class such as "training shoes"
    if found and "train" not in found and sum(map(len, found.values())) == len(folders):
        raise UserError(
            f"{shown(top)} must have training images, got only {', '.join(sorted(folders))}; name "
            "their folder train"
        )
    for part, paths in found.items():
        found[part] = [path for path in paths if _is_exact(path)] or paths
        if len(found[part]) > 1:
            names = ", ".join(display(path.name) for path in found[part])
            raise UserError(
                f"{shown(top)} must have one folder of {part} images, got {names}; merge them or "
                "rename one"
            )
    return {part: _entered(paths[0]) for part, paths in found.items()}


def _is_exact(path: Path) -> bool:
    """Tell whether the whole name of a folder stands for a split, not only a word of it."""
    return any(path.name.lower() in names for names in SPLITS.values())


def _without_flat_splits(
    names: Sequence[str],
    folders: dict[str, Path],
    passed_over: Counter[str],
    problems: list[str],
) -> list[str]:
    """Return the names of classes without folders such as "test" that lie beside the classes."""
    held_out = (*SPLITS["validation"], *SPLITS["test"])
    flat = [name for name in names if name.lower() in held_out]
    for name in flat:
        count = len(list(image_files(folders[name], passed_over, problems)))
        passed_over["an image outside of the folders of classes"] += count
        problems.append(
            f"the {count} images of {shown(folders[name])} have no class; they are not used"
        )
    return [name for name in names if name not in flat]


def _flat(folder: Path, passed_over: Counter[str], problems: list[str]) -> None:
    """Note the images of a folder of classes that lie in no class."""
    loose = [p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not hidden(p.name)]
    if loose:
        passed_over["an image outside of the folders of classes"] += len(loose)
        problems.append(
            f"{len(loose)} images lie in {shown(folder)} itself and have no class, such as "
            f"{display(sorted(p.name for p in loose)[0])}; they are not used"
        )


def _require_classes(classes: Sequence[str], folder: Path) -> None:
    if not classes:
        raise UserError(
            f"{shown(folder)} must have one sub-folder of images per class, got none; add "
            "sub-folders, or a CSV file with the columns file and label"
        )
    if len(classes) == 1:
        raise UserError(
            f"{shown(folder)} must have at least two classes, got only {display(classes[0])!r}; "
            "give the folder that holds the folders of the classes, or add images of another class"
        )


def listed(paths: Iterable[str], most: int = 10) -> str:
    """Return the first texts and the number of the others.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    every = list(paths)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest
