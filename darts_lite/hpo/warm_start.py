"""Warm start of a study from earlier studies and searches.

- The best earlier configurations are trained first.
- TPE also learns from the earlier results, if data and training are the same.
- A gradient study starts from the genotypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.data import Dataset, changed
from darts_lite.errors import UserError
from darts_lite.files import read_json
from darts_lite.hpo.methods.gradient import Gradient
from darts_lite.hpo.options import TuneOptions
from darts_lite.hpo.records import Job, Method, Record
from darts_lite.hpo.space import ConfigurationSpace, Known, Space, Values, values_of
from darts_lite.hpo.storage import Study
from darts_lite.nas.warm_start import genotype_path
from darts_lite.reporting import comparison as report
from darts_lite.training.run import Say

TAKEN = 5  # configurations to train first, per earlier study
SAME = (  # options that must agree; otherwise results are not comparable
    "epochs",
    "seed",
    "subset",
    "image_size",
    "max_params",
    "stem_stride",
)


@dataclass(frozen=True)
class Earlier:
    """An earlier study, or the genotype of an earlier search.

    Attributes:
        path: Folder of the study, or file of the genotype.
        fingerprint: Fingerprint of its data.
        settings: Options of the study; empty for a genotype.
        measured: Fully trained configurations with their results, the best first.
    """

    path: Path
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    measured: tuple[tuple[Values, report.Trial | None], ...]


def read(paths: Iterable[str]) -> list[Earlier]:
    """Read earlier studies and genotypes.

    Raises:
        UserError: A path holds neither a study nor a genotype.
    """
    return [_study(Path(p)) if (Path(p) / "study.json").exists() else _genotype(p) for p in paths]


def _study(path: Path) -> Earlier:
    found = report.read_study(path)
    assert found.settings is not None
    full = [t for t in found.trials if t.state == "complete" and t.fidelity == 1 and t.accuracy]
    full.sort(key=lambda t: -(t.accuracy or 0.0))
    settings = read_json(path / "study.json")
    measured = tuple((dict(t.configuration), t) for t in full)
    if settings["method"] == "gradient":  # its trials have genotypes, not chosen values
        measured = tuple(
            (values_of(Genotype.load(path / "trials" / str(t.trial) / "genotype.json")), t)
            for t in full
        )
    return Earlier(path, settings["dataset"], settings, measured)


def _genotype(text: str) -> Earlier:
    path = genotype_path(text)
    genotype = Genotype.load(path)
    return Earlier(path, dict(genotype.dataset), {}, ((values_of(genotype), None),))


def start(
    study: Study,
    method: Method,
    space: Space,
    earlier: Sequence[Earlier],
    options: TuneOptions,
    dataset: Dataset,
    say: Say,
) -> None:
    """Put the best earlier configurations into the queue, and import earlier results.

    Arguments:
        study: New study.
        method: Its search method.
        space: Its space.
        earlier: Earlier studies and genotypes.
        options: Options of the new study.
        dataset: Data set of the new study.
        say: Function that prints one line.
    """
    known: list[tuple[float, Values]] = []
    for each in earlier:
        difference = changed(each.fingerprint, dataset.fingerprint)
        fitting, why = _fitting(space, each)
        taken = fitting[:TAKEN]
        known += [((trial and trial.accuracy) or 1.0, values) for values, trial, _ in taken]
        parts = [difference or "data unchanged", f"{len(taken)} configurations to train first"]
        if len(fitting) < len(each.measured):
            parts.append(f"{len(each.measured) - len(fitting)} not of this space ({why})")
        same = all(each.settings.get(n) == getattr(options, n) for n in SAME)
        if difference is None and same and method.sampler == "tpe":
            for values, trial, exact in fitting:
                if trial is not None and exact:
                    study.import_record(_record(values, trial), space, options.pareto)
            parts.append(f"{sum(exact for *_, exact in fitting)} results to learn from")
        say(f"warm start from {each.path}: {'; '.join(parts)}")
    if isinstance(method, Gradient):
        return  # the first round starts from the genotypes
    known.sort(key=lambda pair: -pair[0])  # a genotype of a search has no accuracy: count it as 1
    candidates = [v for i, (_, v) in enumerate(known) if v not in [u for _, u in known[:i]]]
    first = method.first([])
    slots = [first] * len(candidates) if first else method.follow([])
    study.enqueue(
        replace(slot, values=values, key=slot.key or f"warm {i}")
        for i, (slot, values) in enumerate(zip(slots, candidates))
    )


def _fitting(
    space: Space, each: Earlier
) -> tuple[list[tuple[Values, report.Trial | None, bool]], str]:
    """Return the configurations in this space (with whether exactly), and why one is not."""
    found, why = [], ""
    for known, trial in each.measured:
        values = dict(known)
        if isinstance(space, ConfigurationSpace):  # the nearest batch size is good enough
            size = values.get("batch_size", 0)
            values["batch_size"] = min(space.batch_sizes, key=lambda s: abs(s - int(size)))
        try:
            configured = space.configure(Known(values)).values
            found.append((configured, trial, values == known))
        except UserError as error:
            why = why or str(error)
    return found, why


def _record(values: Values, trial: report.Trial) -> Record:
    return Record(
        trial=trial.trial,
        state="complete",
        job=Job(fidelities=(1.0,)),
        values=values,
        parameters=trial.parameters,
        accuracy=trial.accuracy,
    )


def genotypes(paths: Iterable[str]) -> tuple[tuple[Genotype, Path | None], ...]:
    """Return the genotypes for the start of a gradient study, with their search folders."""
    found = []
    for path in map(genotype_path, paths):
        found.append((Genotype.load(path), _search_folder(path)))
    return tuple(found)


def _search_folder(path: Path) -> Path | None:
    folder = path.parent / "search"
    return folder if (folder / "checkpoint.pt").exists() else None


def saved(paths: Iterable[str], folder: Path) -> list[str]:
    """Return one line per earlier study: the time saved until its best accuracy.

    Earlier studies that do not exist any more give no line.

    Arguments:
        paths: Earlier studies and genotypes.
        folder: Folder of the new study.
    """
    lines = []
    now = report.read_study(folder)
    for path in paths:
        try:
            (each,) = read([path])
        except UserError:
            continue
        if not each.settings:
            continue
        then = report.read_study(each.path)
        curve = report.best_so_far(then)
        if not curve:
            continue
        accuracy = curve[-1][1]
        before, after = report.time_to(then, accuracy), report.time_to(now, accuracy)
        assert before is not None
        if after is None:
            best = report.best_so_far(now)
            reached = f"{best[-1][1]:.2%}" if best else "nothing"
            lines.append(f"{each.path}: its {accuracy:.2%} was not reached, best is {reached}")
        else:
            gain = before - after
            lines.append(
                f"{each.path}: its {accuracy:.2%} was reached after {after:.0f} s; the earlier "
                f"study took {before:.0f} s: {abs(gain):.0f} s {'saved' if gain >= 0 else 'more'}"
            )
    return lines
