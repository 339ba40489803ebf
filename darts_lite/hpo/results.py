"""Results of a study on disk: every trial for `report`, the best configuration for `derive`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.augment import to_json
from darts_lite.files import json_line, write_json, write_lines
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.methods.population import lineage
from darts_lite.hpo.pareto import front, ranked
from darts_lite.hpo.records import Record
from darts_lite.schedules import Schedule
from darts_lite.training.problem import augmentation_for

Records = Sequence[Record]


def best(records: Records, max_params: int) -> Record | None:
    """Return the best record: the highest fidelity, then the highest accuracy.

    Arguments:
        records: Records of the study.
        max_params: Parameter limit; larger networks are ignored.

    Returns:
        The best record; None if nothing was measured.
    """
    known = _measured(records, max_params)
    furthest = max((r.fidelity for r in known), default=0.0)
    return next(iter(ranked(r for r in known if r.fidelity == furthest)), None)


def pareto(records: Records, max_params: int) -> list[Record]:
    """Return the Pareto front of the fully trained records with at most `max_params` parameters."""
    return front([r for r in _measured(records, max_params) if r.fidelity == 1])


def _measured(records: Records, max_params: int) -> list[Record]:
    sized = (r for r in records if r.measurements and r.parameters is not None)
    return [r for r in sized if r.parameters is not None and r.parameters <= max_params]


def write_trials(path: Path, records: Records) -> None:
    """Write one JSON line per trial, atomically."""
    lines = []
    for r in records:
        line: dict[str, Any] = {
            "trial": r.trial,
            "state": "failed" if r.state in ("lost", "diverged") else r.state,
            "accuracy": r.accuracy,
            "parameters": r.parameters,
            "macs": r.macs,
            "fidelity": r.fidelity,
            "elapsed": r.elapsed,
            "seconds": round(r.seconds, 2),
            "measurements": [list(m) for m in r.measurements],
            "configuration": r.values or r.learned,
            "notes": r.job.notes,
        }
        if r.state != "waiting":
            lines.append(json_line(line))
    write_lines(path, lines)


def write_best(bench: Bench, records: Records, chosen: Record, genotype: Genotype) -> Genotype:
    """Write `g.json` and `augment.json` of a record, with the schedules of its training.

    Arguments:
        bench: Bench of the study; the files go into its folder.
        records: Records of the study.
        chosen: Record to write.
        genotype: Genotype of this record.

    Returns:
        The genotype with its schedules.
    """
    schedules = scheduled(chosen, records, genotype)
    genotype = replace(genotype, recipe=replace(genotype.recipe, schedules=schedules))
    genotype.save(bench.folder / "g.json")
    augment = augmentation_for(bench.dataset, genotype.recipe.augment).replayed(schedules)
    write_json(bench.folder / "augment.json", to_json(augment))
    return genotype


def scheduled(chosen: Record, records: Records, genotype: Genotype) -> dict[str, Schedule]:
    """Return the schedules of a record: of its lineage in a population, else of its genotype."""
    if "member" not in chosen.job.notes:
        return genotype.recipe.schedules
    return lineage(chosen, {r.trial: r for r in records})
