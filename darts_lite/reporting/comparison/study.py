"""Studies as frozen data, read from their folders.

There are two kinds of study:

- a folder that `tune` wrote: study.json, trials.jsonl, and derive/metrics.json once the best
  configuration is trained;
- a folder that `search` and `derive` wrote: g.json, derive/metrics.json. It has no trials, only a
  result on the test images;
- a folder that `derive` or `compress` wrote: genotype.json, metrics.json. It has only a result too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import UserError
from darts_lite.files import first_fault, whole_lines

FILE = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
State = Literal[
    "waiting",
    "running",
    "complete",
    "pruned",
    "paused",
    "stopped",
    "infeasible",
    "diverged",
    "failed",
    "lost",
]


class Measurement(NamedTuple):
    """Validation accuracy, the time on the study's clock, and the fraction of the training done."""

    elapsed: Seconds
    fidelity: Fraction
    accuracy: Fraction


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Line of trials.jsonl: a configuration and its result.

    `fidelity` is the fraction of the full training that the trial had. `elapsed` is the end of the
    trial in seconds on the study's clock. `seconds` is the duration of the trial.
    """

    __pydantic_config__ = FILE
    trial: int
    state: State
    accuracy: Fraction | None
    parameters: Count | None
    macs: Count | None
    fidelity: Fraction
    elapsed: Seconds | None
    seconds: Seconds
    measurements: tuple[Measurement, ...]
    configuration: dict[str, Any]

    @property
    def point(self) -> tuple[int, float] | None:
        """Parameters and accuracy; None if one is unknown or the network is infeasible."""
        if self.state == "infeasible" or self.parameters is None or self.accuracy is None:
            return None
        return self.parameters, self.accuracy

    @property
    def results(self) -> tuple[Measurement, ...]:
        """Measurements during the training; if there are none, the one at its end."""
        if self.measurements or self.accuracy is None or self.elapsed is None:
            return self.measurements
        return (Measurement(self.elapsed, self.fidelity, self.accuracy),)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Content of study.json; for a search only method, seed and data are known."""

    __pydantic_config__ = FILE
    method: str
    seed: int
    dataset: dict[str, Any]
    objective: str | None = None
    max_params: Count | None = None
    epochs: int | None = None
    fidelity: str | None = None
    budget_hours: float | None = None
    workers: int | None = None
    select_by: str = "accuracy"  # the validation metric that `Trial.accuracy` is


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of one class on test images."""

    __pydantic_config__ = FILE
    name: Annotated[str, Field(alias="class")]
    precision: Fraction
    recall: Fraction
    f1: Fraction
    support: int


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Test images of one class that were taken for another, and their share of the class."""

    __pydantic_config__ = FILE
    true: str
    predicted: str
    count: Count
    share: Fraction


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call with a batch of images."""

    __pydantic_config__ = FILE
    batch: Count
    median_ms: Seconds
    p95_ms: Seconds


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of a network, and the machine that took it."""

    __pydantic_config__ = FILE
    device: str
    processor: str
    threads: Count
    batches: tuple[Timing, ...]


@dataclass(frozen=True, kw_only=True)
class Final:
    """Content of derive/metrics.json: the network after the final training, tested once.

    A metric is None if the file is older than the metric, or the metric is not defined.
    """

    __pydantic_config__ = FILE
    parameters: Count
    macs: Count
    test_accuracy: Fraction
    test_balanced_accuracy: Fraction | None = None
    test_macro_precision: Fraction | None = None
    test_macro_recall: Fraction | None = None
    test_macro_f1: Fraction | None = None
    test_roc_auc: Fraction | None = None
    test_top5: Fraction | None = None
    test_ece: Fraction | None = None
    test_log_loss: Annotated[float, Field(ge=0)] | None = None
    test_classes: tuple[ClassScores, ...] = ()
    test_confused: tuple[Confused, ...] = ()
    latency: Latency | None = None
    model_bytes: Count | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics by name, without those that are None."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith("test_")}
        return {n.removeprefix("test_"): v for n, v in own.items() if isinstance(v, float)}


@dataclass(frozen=True, kw_only=True)
class _Compression:
    __pydantic_config__ = FILE
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The part of metrics.json that says how a network was made."""

    __pydantic_config__ = FILE
    compression: _Compression | None = None

    @property
    def method(self) -> str:
        made = self.compression
        return "derive" if made is None else f"compress {','.join(made.methods)}"


@dataclass(frozen=True)
class Study:
    """Run of one method with one seed."""

    folder: Path
    settings: Settings
    trials: tuple[Trial, ...] = ()
    final: Final | None = None

    @property
    def pictures(self) -> list[Path]:
        """Pictures of the final training on test images, as far as there are any."""
        names = ("confusion", "errors", "calibration")
        derived = self.folder / "derive"
        folder = derived if derived.exists() else self.folder
        files = [folder / "pictures" / f"{name}.png" for name in names]
        return [file for file in files if self.final is not None and file.exists()]

    @property
    def seconds(self) -> float:
        """Duration up to the last result, on the study's own clock."""
        ends = [trial.elapsed or 0 for trial in self.trials]
        measured = [result.elapsed for trial in self.trials for result in trial.results]
        return max([*ends, *measured], default=0)


def read_study(folder: Path) -> Study:
    """Read the study in a folder.

    Raises: `UserError`, if a file is missing or damaged.
    """
    configured, lines = folder / "study.json", folder / "trials.jsonl"
    searched, derived = folder / "g.json", folder / "derive" / "metrics.json"
    final = parse(Final, derived.read_bytes(), str(derived)) if derived.exists() else None
    if configured.exists():
        settings = parse(Settings, configured.read_bytes(), str(configured))
        if not lines.exists():
            raise UserError(
                f"{folder} must contain trials.jsonl, got none: no trial has ended yet; "
                "report later"
            )
        return Study(folder, settings, _trials(lines), final)
    trained, metrics = folder / "genotype.json", folder / "metrics.json"
    if not searched.exists() and trained.exists() and metrics.exists():
        content = metrics.read_bytes()
        return Study(
            folder,
            _settings(trained, parse(_Made, content, str(metrics)).method),
            final=parse(Final, content, str(metrics)),
        )
    if not searched.exists():
        raise UserError(
            f"{folder} must contain study.json (from `tune`) or g.json (from `search`), "
            "got neither; give the --out folder of a run"
        )
    if final is None:
        raise UserError(
            f"{folder} must contain derive/metrics.json, got only g.json: the network is not "
            f"trained yet; run `derive --genotype {searched}` first"
        )
    return Study(folder, _settings(searched, "search"), final=final)


def _settings(path: Path, method: str) -> Settings:
    """Return the settings of a study that is one network."""
    genotype = Genotype.load(path)
    return Settings(method=method, seed=genotype.seed, dataset=dict(genotype.dataset))


def _trials(path: Path) -> tuple[Trial, ...]:
    """Return the latest line of each trial; a last line without a line break is incomplete."""
    lines = enumerate(whole_lines(path), 1)
    trials = [parse(Trial, line, f"{path} line {number}") for number, line in lines]
    return tuple({trial.trial: trial for trial in trials}.values())


def parse(kind: type[T], content: str | bytes, where: str) -> T:
    """Return JSON as data of a type.

    Arguments:
        kind: the type.
        content: JSON text.
        where: origin of the text, for errors.
    Raises: `UserError` if the text does not fit the type; it names the first fault.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        what = first_fault(error, "the JSON").replace(" at line 1 column", " at column")
        raise UserError(
            f"{where}: {what}; repair the file, or leave its folder out of the report"
        ) from None
