"""Labels in a CSV file: the columns file and label, and perhaps split."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from darts_lite.data.checks import reading, shown
from darts_lite.data.layout import ENDINGS, SPLITS, Labeled, Layout, hidden, listed, split_of
from darts_lite.errors import UserError

COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "filepath", "image", "image_id", "img", "id"),
    "label": ("label", "class", "target", "category", "species", "breed", "y"),
    "split": ("split", "set", "subset", "partition"),
}
"""Usual names of the columns, in any case."""


def csv_beside(folder: Path) -> Path | None:
    """Return the only CSV file with files and labels in a folder whose images lie in no classes."""
    names = [p for p in folder.iterdir() if not hidden(p.name)]
    tables = [p for p in names if p.suffix.lower() == ".csv" and p.is_file()]
    known = [p for p in tables if set(_columns(_header(p))) >= {"file", "label"}]
    if len(known) != 1:
        return None
    inner = [p for p in names if p.is_dir()]
    loose = any(p.suffix.lower() in ENDINGS for p in names)
    return known[0] if loose or len(inner) <= 1 else None


def read_csv(table: Path, folder: Path | None = None) -> Layout:
    """Read files and labels from a CSV file.

    Paths are relative to the file, and may lack their ending, or lie in a sub-folder of the
    folder. Splits have the names that folders of splits may have; an empty one is training.

    Arguments:
        table: the CSV file, in UTF-8, with a line of names.
        folder: folder of the images; None for that of the file.
    Raises: `UserError` if a column or a file is missing, or there are no two classes.
    """
    root = table.parent if folder is None else folder
    with reading(table), table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, dialect=_dialect(table), restval=""))
    columns = _columns(list(rows[0]) if rows else _header(table))
    if missing := [name for name in ("file", "label") if name not in columns]:
        raise UserError(
            f"{shown(table)} must have the columns file and label, got no column {missing[0]} "
            f"(known names: {', '.join(COLUMNS[missing[0]])}); rename a column"
        )
    problems: list[str] = []
    labels = [row[columns["label"]].strip() for row in rows]
    empty = sum(not label for label in labels)
    if empty:
        problems.append(f"{empty} rows of {shown(table)} have no label; they are not used")
    classes = tuple(sorted(set(labels) - {""}))
    if len(classes) < 2:
        raise UserError(
            f"{shown(table)} must have at least two labels, got {len(classes)}; add images of "
            "another class"
        )
    index = {name: i for i, name in enumerate(classes)}
    files = _Files(root)
    splits: dict[str, list[Labeled]] = {"train": []}
    lost: list[str] = []
    for row, label in zip(rows, labels):
        name = row[columns["file"]].strip()
        path = files.find(name)
        if path is None:
            lost.append(name or "(no name)")
        elif label:
            part = _part(row.get(columns.get("split", ""), ""), table)
            splits.setdefault(part, []).append(Labeled(path, index[label]))
    if lost:
        raise UserError(
            f"{len(lost)} of {len(rows)} files of {shown(table)} are missing below {shown(root)}: "
            f"{listed(lost)}; correct the paths, or remove the rows"
        )
    if absent := set(range(len(classes))) - {each.label for each in splits["train"]}:
        raise UserError(
            f"every class must have training images, got none of {classes[min(absent)]!r} in "
            f"{shown(table)}; add some, or change the column split"
        )
    ordered = {part: splits[part] for part in SPLITS if part in splits}
    return Layout(root, classes, ordered, Counter(), problems)


class _Files:
    """Images of a folder by path, by path without ending, and by name."""

    def __init__(self, root: Path):
        self._root = root
        self._by_name: Mapping[str, Path | None] | None = None

    def find(self, name: str) -> Path | None:
        if not name:
            return None
        path = self._root / name
        if path.is_file():
            return path
        if self._by_name is None:
            self._by_name = self._indexed()
        return self._by_name.get(Path(name).name)

    def _indexed(self) -> dict[str, Path | None]:
        """Return the images by their names with and without ending; None for two of one name."""
        found: dict[str, Path | None] = {}
        for path in sorted(self._root.rglob("*")):
            if path.suffix.lower() in ENDINGS and not hidden(path.name):
                for key in (path.name, path.stem):
                    found[key] = path if found.get(key, path) == path else None
        return found


def _header(table: Path) -> list[str]:
    with reading(table), table.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, dialect=_dialect(table)), [])


def _dialect(table: Path) -> type[csv.Dialect]:
    """Return the dialect of a file: commas, semicolons or tabs, as in its first line."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()

    class Found(csv.excel):
        delimiter = max(",;\t", key=line.count)

    return Found


def _columns(names: Sequence[str]) -> dict[str, str]:
    """Return the columns of a file by what they hold."""
    lower = {name.strip().lower(): name for name in reversed(names) if name}
    found = {}
    for what, known in COLUMNS.items():
        chosen = next((lower[name] for name in known if name in lower), None)
        if chosen is not None:
            found[what] = chosen
    return found


def _part(text: str, table: Path) -> str:
    if not text.strip():
        return "train"
    part = split_of(text)
    if part is None:
        names = ", ".join(SPLITS)
        raise UserError(
            f"the column split of {shown(table)} must say {names}, got {text!r}; rename it"
        )
    return part
