"""The command `predict`: classes of image files, with the network of a finished training."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from darts_lite.data.checks import shown
from darts_lite.data.layout import image_files
from darts_lite.errors import UserError
from darts_lite.files import replacing
from darts_lite.training.device import device_named
from darts_lite.training.options import PredictOptions
from darts_lite.training.predictor import load

Say = Callable[[str], object]
COLUMN = "file"  # of a CSV of paths


def predict(
    run: Path,
    paths: Sequence[Path],
    options: PredictOptions,
    *,
    say: Say = print,
    warn: Say = print,
) -> None:
    """Print or write the most probable classes of images; name the files that cannot be read.

    Arguments:
        run: folder of a finished training.
        paths: image files; folders, which are searched at every depth; CSV files with a column
            `file`, whose paths are relative to the CSV file.
        options: options of the command.
        say: prints a line for the user.
        warn: prints a line about what is passed over.
    Raises: `UserError` if the folder holds no training, or no image could be read.
    """
    predictor = load(run, device_named(options.device))
    read = unreadable = 0
    with replacing(Path(options.csv)) if options.csv else nullcontext() as file:
        table = csv.writer(file, lineterminator="\n") if file else None
        if table:
            table.writerow([COLUMN, "class", "probability"])
        for part in predictor.stream(files_of(paths, warn)):
            for line in part.unreadable:
                warn(shown(line))
            read, unreadable = read + len(part.files), unreadable + len(part.unreadable)
            for path, best in zip(part.files, _best(part.probabilities, options.top)):
                name, found = shown(path), [(predictor.classes[k], p) for k, p in best]
                if table:
                    table.writerows([name, what, f"{p:.6f}"] for what, p in found)
                else:
                    say(f"{name}: " + ", ".join(f"{what} {p:.2%}" for what, p in found))
        if not read:
            raise UserError(
                f"at least one image must be readable, got {unreadable} that are not; give other "
                "paths"
            )
    where = f"{options.csv}: " if options.csv else ""
    say(f"{where}{read} images predicted, {unreadable} could not be read")


def files_of(paths: Sequence[Path], warn: Say) -> Iterator[Path]:
    """Yield the image files that paths stand for; see `predict`.

    Raises: `UserError` if a CSV file has no column `file` or cannot be read.
    """
    for path in paths:
        if path.is_dir():
            passed_over: Counter[str] = Counter()
            found = list(image_files(path, passed_over))
            if not found:
                warn(f"{shown(path)} holds no images")
            for reason, count in passed_over.items():
                warn(f"passed over in {shown(path)}: {count} x {reason}")
            yield from found
        elif path.suffix.lower() == ".csv":
            yield from _listed(path)
        else:
            yield path


def _listed(path: Path) -> Iterator[Path]:
    """Yield the files in a CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if COLUMN not in (rows.fieldnames or ()):
                raise UserError(
                    f"{path} must have a column {COLUMN!r}, got {rows.fieldnames or 'no columns'}; "
                    "name the column of the paths so in its first line"
                )
            for row in rows:
                yield path.parent / (row[COLUMN] or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} must be a CSV in UTF-8, got {error}; save it as one") from None


def _best(probabilities: Tensor, top: int) -> Iterator[list[tuple[int, float]]]:
    """Yield index and probability of the `top` most probable classes of each row."""
    values, index = probabilities.topk(min(top, probabilities.shape[1]), 1)
    for row in zip(index.tolist(), values.tolist()):
        yield list(zip(*row))
