"""Rank correlation of cheap fidelities with the full training, on the user's data."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from darts_lite.errors import Diverged, UserError
from darts_lite.files import append_line, json_line, read_json, whole_lines, write_json, write_lines
from darts_lite.hpo.methods.sampled import rungs
from darts_lite.hpo.options import CorrelateOptions
from darts_lite.hpo.setup import Setup, assemble, completed
from darts_lite.hpo.space import Random
from darts_lite.reporting import pictures
from darts_lite.training.lock import Lock
from darts_lite.training.options import MAY_MOVE
from darts_lite.training.run import (
    Say,
    goes_on,
    make_folder,
    read_data,
    require_same_data,
    resumed,
)

BOOTSTRAP = 1000  # resamples of the bootstrap interval
DRAWS = 200  # configurations to draw until one has few enough parameters


@dataclass(frozen=True)
class Correlation:
    """Agreement of one fidelity with the full training.

    Attributes:
        fidelity: The fidelity, as a fraction of the full training.
        tau: Kendall's rank correlation, variant b (Kendall 1945).
        low: Lower bound of the 90 % bootstrap interval of `tau`.
        high: Upper bound of the 90 % bootstrap interval of `tau`.
        cost: Mean fraction of the time of the full training.
        regret: Accuracy lost by the choice of the best configuration at this fidelity, after full
            training (0 to 1).
    """

    fidelity: float
    tau: float
    low: float
    high: float
    cost: float
    regret: float


def correlate(
    options: CorrelateOptions, *, resume: Collection[str] | None = None, say: Say = print
) -> list[Correlation]:
    """Train random configurations at every fidelity and compare the rankings.

    Writes one line per configuration to OUT/correlation.jsonl during the run, and the table and its
    picture at the end.

    Arguments:
        options: Options of the command.
        resume: Names of the options that the user gave with --resume; None starts a new run.
        say: Function that prints one line.

    Returns:
        One correlation per fidelity below 1.

    Raises:
        UserError: An option or the data are wrong.
        Interrupted: A signal stopped the run.
    """
    with Lock(Path(options.out)) as lock:
        return _correlated(options, resume, say, lock)


def _correlated(
    options: CorrelateOptions, resume: Collection[str] | None, say: Say, lock: Lock
) -> list[Correlation]:
    out = Path(options.out)
    path, settings = out / "correlation.jsonl", out / "correlation.json"
    before: dict[str, Any] = {}
    if goes_on(settings, resume, "correlate", say, [path]):
        before = read_json(settings)
        free = MAY_MOVE | {"configurations"}
        options = resumed(options, before, resume or (), settings, free)
    dataset, splits = read_data(options, options.seed, say)
    options = replace(options, dataset=dataset.name)
    study = completed(options.study, dataset)
    said = {
        "options": asdict(options),
        "data": dict(dataset.fingerprint),
        "threads": torch.get_num_threads(),
    }
    if before:
        require_same_data(before["data"], dataset, settings)
    make_folder(out)
    lock.take()
    write_json(settings, said)
    setup = assemble(study, dataset, splits)
    assert study.max_params is not None
    fidelities = rungs(options.lowest)
    rows = _known(path)[: options.configurations]
    for number in range(len(rows), options.configurations):
        rows.append(_measured(setup, number, study.max_params, options.seed, fidelities))
        append_line(path, json_line(rows[-1]))
        shown = ", ".join(f"{a:.1%}" for a in rows[-1]["accuracies"])
        say(f"{number + 1} of {options.configurations}: {shown}")
    found = compare(fidelities, rows)
    say(table(options.fidelity, found, len(rows)))
    columns = list(zip(*(row["accuracies"] for row in rows)))
    picture = pictures.correlation_plot(
        [(f"{c.fidelity:.0%}, τ {c.tau:.2f}", column) for c, column in zip(found, columns)],
        columns[-1],
        f"{dataset.name}: {options.fidelity} against the full training",
    )
    pictures.save(out / "correlation.png", picture)
    write_json(settings, {**said, "found": [asdict(c) for c in found]})
    return found


def _measured(
    setup: Setup, number: int, limit: int, seed: int, fidelities: Sequence[float]
) -> dict[str, Any]:
    """Measure accuracies and seconds of one random configuration at all fidelities."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    for _ in range(DRAWS):
        configuration = setup.space.configure(Random(generator))
        genotype = setup.bench.genotype(configuration)
        if genotype.parameters <= limit:
            break
    else:
        raise UserError(
            f"a configuration must have at most {limit} parameters, got more in {DRAWS} draws; "
            "raise --max-params or lower --channels"
        )
    accuracies, seconds = [], []
    place = setup.bench.place(number)
    shutil.rmtree(place, ignore_errors=True)  # a partly measured configuration starts again
    spent = 0.0
    for fidelity in fidelities:
        began = time.monotonic()
        try:
            accuracy = setup.bench.measure(genotype, fidelity, place)
        except Diverged:
            accuracy = 0.0
        assert accuracy is not None
        spent = time.monotonic() - began + (spent if setup.bench.fidelity == "epochs" else 0.0)
        accuracies.append(accuracy)
        seconds.append(spent)
    return {
        "accuracies": accuracies,
        "seconds": seconds,
        "parameters": genotype.parameters,
        "configuration": configuration.values,
    }


def _known(path: Path) -> list[dict[str, Any]]:
    """Return what was measured, and drop a line torn by a crash from the file."""
    lines = whole_lines(path)
    if path.exists():
        write_lines(path, lines)
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise UserError(
            f"{path} must have one JSON object per line, got a damaged line; choose another --out"
        ) from None


def compare(fidelities: Sequence[float], rows: Sequence[dict[str, Any]]) -> list[Correlation]:
    """Compare every fidelity with the last one, which is the full training.

    Arguments:
        fidelities: Fidelities, ascending; the last is 1.
        rows: One row per configuration, with its "accuracies" and "seconds" at every fidelity.

    Returns:
        One correlation per fidelity below 1.

    Raises:
        UserError: There are fewer than three configurations.
    """
    if len(rows) < 3:
        raise UserError(
            f"a ranking must have at least 3 configurations, got {len(rows)}; measure more"
        )
    accuracies = np.array([row["accuracies"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    full = accuracies[:, -1]
    rng = np.random.default_rng(0)
    resampled = rng.integers(len(rows), size=(BOOTSTRAP, len(rows)))
    found = []
    for i, fidelity in enumerate(fidelities[:-1]):
        cheap = accuracies[:, i]
        taus = [_tau(cheap[index], full[index]) for index in resampled]
        ranking = [tau for tau in taus if tau is not None] or [0.0]
        low, high = np.quantile(ranking, (0.05, 0.95))
        found.append(
            Correlation(
                fidelity=fidelity,
                tau=_tau(cheap, full) or 0.0,
                low=float(low),
                high=float(high),
                cost=float((seconds[:, i] / seconds[:, -1]).mean()),
                regret=float(full.max() - full[cheap.argmax()]),
            )
        )
    return found


def _tau(a: Any, b: Any) -> float | None:
    """Return Kendall's tau; None if all values of a list are equal, because there is no ranking."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(kendalltau(a, b).statistic)


def table(kind: str, found: Sequence[Correlation], count: int) -> str:
    """Return the correlations as a Markdown table, with one sentence of conclusion.

    Arguments:
        kind: Kind of fidelity: "epochs", "subset" or "resolution".
        found: Correlations to print.
        count: Number of configurations.
    """
    lines = [
        f"| {kind} | Kendall τ (90 % interval) | cost | accuracy lost by its choice |",
        "|---|---|---|---|",
    ]
    for c in found:
        lines.append(
            f"| {c.fidelity:.2f} | {c.tau:.2f} ({c.low:.2f} to {c.high:.2f}) | {c.cost:.2f} "
            f"| {100 * c.regret:.2f} points |"
        )
    sound = [c for c in found if c.low > 0.5]
    verdict = (
        f"{count} configurations: fidelity {sound[0].fidelity:.2f} ({kind}) ranks them almost like "
        "the full training"
        if sound
        else f"{count} configurations: no fidelity reliably ranks them like the full training (τ "
        "above 0.5); measure more configurations, or use a higher --lowest"
    )
    return "\n".join([*lines, verdict])
