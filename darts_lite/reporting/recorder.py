"""Recorder of a run: TensorBoard events, metrics.jsonl, pictures.

The only module that imports torch.utils.tensorboard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from darts_lite.errors import UserError
from darts_lite.files import json_line, whole_lines, write_lines, writing
from darts_lite.reporting import pictures

FLUSH_SECONDS = 30


class Recorder(AbstractContextManager["Recorder"]):
    """Writer of the TensorBoard events, metrics.jsonl and pictures of one run.

    Arguments:
        folder: of the run; created if it does not exist.
        resume_step: step of the checkpoint from which the run continues; later records in the
            folder are dropped. Without it all earlier records are dropped.
    Raises: `UserError` from every method, if the disk is full or not writable. TensorBoard writes
        in a thread of its own, so the error may come with a later call.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self.folder = folder
        self._step = -1 if resume_step is None else resume_step
        path = folder / "metrics.jsonl"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _truncate(path, self._step)
            self._lines = path.open("a", encoding="utf-8", buffering=1)
            self._writer = SummaryWriter(
                str(folder), purge_step=self._step + 1, flush_secs=FLUSH_SECONDS
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step.

        The line in metrics.jsonl is {"step": ..., name: value}; a value that is not finite becomes
        null.

        Arguments:
            step: of the run.
            values: by name.
        """
        self._step = step
        if not values:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        with writing(self.folder):
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)
            self._lines.write(json_line({"step": step, **finite}))

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Record a picture; the latest one of each name is also a PNG file in `pictures`.

        Arguments:
            step: of the run.
            name: may contain slashes, which group pictures in TensorBoard.
            image: [H, W, 3].
        """
        path = self.folder / "pictures" / f"{name.replace('/', '_')}.png"
        with writing(self.folder):
            self._writer.add_image(name, image, step, dataformats="HWC")
            path.parent.mkdir(exist_ok=True)
        pictures.save(path, image)

    def hparams(self, settings: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Record the row of this run in TensorBoard's table of hyperparameters.

        `SummaryWriter.add_hparams` would create an extra run for the row. TensorBoard takes the
        columns of all runs from the first run that it finds: settings in alphabetical order, then
        metrics in the given order. So all runs must give the same names, and settings should be
        few. TensorBoard keeps the first settings of a run: a second call updates only the metrics.

        Arguments:
            settings: of the run, by name.
            metrics: final results, by name.
        """
        plain = {name: _plain(value) for name, value in settings.items()}
        numbers = {name: float(value) for name, value in metrics.items()}
        with writing(self.folder):
            for summary in hparams(plain, numbers):  # columns, start and end of the run
                self._writer._get_file_writer().add_summary(summary)
        if metrics:
            self.scalars(max(self._step, 0), metrics)

    def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Group scalars in charts of TensorBoard's tab "Custom Scalars".

        Arguments:
            layout: group -> chart -> regular expressions of the names of its scalars.
        """
        groups = {
            group: {name: ["Multiline", list(tags)] for name, tags in charts.items()}
            for group, charts in layout.items()
        }
        self._writer.add_custom_scalars(groups)

    def text(self, step: int, name: str, text: str) -> None:
        """Record a text in Markdown; names of files that are no UTF-8 are escaped."""
        text = text.encode("utf-8", "backslashreplace").decode()
        with writing(self.folder):
            self._writer.add_text(name, text, step)

    def flush(self) -> None:
        """Write all buffered records to disk."""
        with writing(self.folder):
            self._lines.flush()
            self._writer.flush()

    def close(self) -> None:
        """Write all buffered records to disk and close the files."""
        with writing(self.folder):
            try:
                self._lines.close()
            finally:
                self._writer.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with nullcontext() if error is None else suppress(UserError):  # the first error says more
            self.close()


def _truncate(path: Path, step: int) -> None:
    """Keep the records up to `step`; drop a last line without a line break, cut off by a crash."""
    lines = whole_lines(path)
    try:
        kept = [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"each line of {path} must be JSON with a step, got a damaged line; move the file away "
            "and resume again"
        ) from None
    write_lines(path, kept)


def _plain(value: object) -> str | int | float | None:
    """Return a setting for the table: a number, None or text (True as text, else it becomes 1)."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None if value is None else str(value)
    return value
