"""Studies as plain frozen data, and how they are read from their folders.

A study is a folder of `tune` (study.json, trials.jsonl, and derive/metrics.json once its best
configuration is trained), or one of `search` and `derive` (g.json, derive/metrics.json), which has
no trials, only a result on the test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from darts_lite.architecture.genotype import Genotype
from darts_lite.errors import UserError

_FILE = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
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
    """A validation accuracy: when on the study's clock, and how far into the training."""

    elapsed: Seconds
    fidelity: Fraction
    accuracy: Fraction


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A line of trials.jsonl: a configuration and what became of it.

    `fidelity` is the part of its training that it had, `elapsed` its end on the study's clock.
    """

    __pydantic_config__ = _FILE
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
        """Parameters and accuracy, of a feasible network that has both."""
        if self.state == "infeasible" or self.parameters is None or self.accuracy is None:
            return None
        return self.parameters, self.accuracy

    @property
    def results(self) -> tuple[Measurement, ...]:
        """What was measured on the way or, where nothing was, in the end."""
        if self.measurements or self.accuracy is None or self.elapsed is None:
            return self.measurements
        return (Measurement(self.elapsed, self.fidelity, self.accuracy),)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What study.json says; of a search only method, seed and data are known."""

    __pydantic_config__ = _FILE
    method: str
    seed: int
    dataset: dict[str, Any]
    objective: str | None = None
    max_params: Count | None = None
    epochs: int | None = None
    fidelity: str | None = None
    budget_hours: float | None = None
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Final:
    """The final training, tested once: derive/metrics.json."""

    __pydantic_config__ = _FILE
    parameters: Count
    macs: Count
    test_accuracy: Fraction


@dataclass(frozen=True)
class Study:
    """One run of one method with one seed."""

    folder: Path
    settings: Settings
    trials: tuple[Trial, ...] = ()
    final: Final | None = None

    @property
    def seconds(self) -> float:
        """How long it has run, on its own clock."""
        ends = [trial.elapsed or 0 for trial in self.trials]
        measured = [result.elapsed for trial in self.trials for result in trial.results]
        return max([*ends, *measured], default=0)


def read(folder: Path) -> Study:
    """The study in a folder; raises `UserError`."""
    asked, lines = folder / "study.json", folder / "trials.jsonl"
    searched, derived = folder / "g.json", folder / "derive" / "metrics.json"
    final = _parse(Final, derived.read_bytes(), str(derived)) if derived.exists() else None
    if asked.exists():
        settings = _parse(Settings, asked.read_bytes(), str(asked))
        if not lines.exists():
            raise UserError(f"{folder} has no trials.jsonl: no trial has ended yet; report later")
        return Study(folder, settings, _trials(lines), final)
    if not searched.exists():
        raise UserError(
            f"{folder} holds no study: neither study.json (of `tune`) nor g.json (of `search`); "
            "give the --out folder of one"
        )
    if final is None:
        raise UserError(
            f"{folder} has g.json but no derive/metrics.json: its network is not trained; run "
            f"`derive --genotype {searched}` first"
        )
    genotype = Genotype.load(searched)
    settings = Settings(method="search", seed=genotype.seed, dataset=dict(genotype.dataset))
    return Study(folder, settings, final=final)


def _trials(path: Path) -> tuple[Trial, ...]:
    """The latest line of each trial; a line without its end was torn and does not count."""
    *lines, _ = path.read_bytes().split(b"\n")
    trials = [_parse(Trial, line, f"{path} line {n}") for n, line in enumerate(lines, 1)]
    return tuple({trial.trial: trial for trial in trials}.values())


def _parse(kind: type[T], content: bytes, where: str) -> T:
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the JSON"
        what = first["msg"].replace(" at line 1 column", " at column")
        raise UserError(
            f"{where}: {place}: {what}; repair it, or leave its folder out of the report"
        ) from None
