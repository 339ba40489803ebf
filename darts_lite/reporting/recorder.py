"""What a run leaves for people: TensorBoard events, metrics.jsonl, pictures.

The only module that imports torch.utils.tensorboard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from darts_lite.errors import UserError
from darts_lite.files import json_line, whole_lines, write_lines
from darts_lite.reporting import pictures

FLUSH_SECONDS = 30


class Recorder(AbstractContextManager["Recorder"]):
    """TensorBoard events and metrics.jsonl of one run; on resume drops what lies after `step`.

    Arguments: `resume_step`, the step of the checkpoint that the run goes on from. Without it the
    run starts afresh, and what an earlier run recorded in the folder is dropped.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self.folder = folder
        self._step = -1 if resume_step is None else resume_step
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _truncate(path, self._step)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._writer = SummaryWriter(
            str(folder), purge_step=self._step + 1, flush_secs=FLUSH_SECONDS
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step: a line {"step": ..., name: value}, null for what is not finite."""
        self._step = step
        if not values:
            return
        numbers = {name: float(value) for name, value in values.items()}
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._lines.write(json_line({"step": step, **finite}))

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """A picture [H, W, 3]; the latest of its name is also a file in `pictures`."""
        self._writer.add_image(name, image, step, dataformats="HWC")
        path = self.folder / "pictures" / f"{name.replace('/', '_')}.png"
        path.parent.mkdir(exist_ok=True)
        pictures.save(path, image)

    def hparams(self, settings: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """The row of this run in the table that compares the runs of a log folder.

        `SummaryWriter.add_hparams` would make a run of its own for the row, and an experiment
        summary, of which TensorBoard shows the first it finds as the columns of all runs. We write
        the settings alone, so the columns are what any run has: settings and every scalar. As
        TensorBoard keeps the first settings of a run, a second call updates the metrics only.
        """
        plain = {name: _plain(value) for name, value in settings.items()}
        _, start, end = hparams(plain, {name: float(value) for name, value in metrics.items()})
        writer = self._writer._get_file_writer()
        writer.add_summary(start)
        writer.add_summary(end)
        if metrics:
            self.scalars(max(self._step, 0), metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Markdown."""
        self._writer.add_text(name, text, step)

    def flush(self) -> None:
        self._lines.flush()
        self._writer.flush()

    def close(self) -> None:
        self._lines.close()
        self._writer.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _truncate(path: Path, step: int) -> None:
    """Keeps the records up to `step`; a line without its end was torn by a crash and goes too."""
    lines = whole_lines(path)
    try:
        kept = [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has a damaged line; move it away and resume again") from None
    write_lines(path, kept)


def _plain(value: object) -> str | int | float | None:
    """A setting as the table takes it: a number, nothing, or text (True too, lest it become 1)."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None if value is None else str(value)
    return value
