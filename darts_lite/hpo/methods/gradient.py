"""Our own method as one method of `tune`: rounds of a gradient search and a full training.

A round searches, discretizes within the parameter limit and trains the result in full, on the
bench and the clock of all methods. The next round starts from the best earlier round: its logits,
its hyperparameters and the weights of its supernet.

The optimizer, the batch size and the kind of augmentation have no gradient. Each round changes one
of them in the settings of the best earlier round, in the order of `CHANGES`. After the last entry,
rounds change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.recipe import Recipe
from darts_lite.data import changed
from darts_lite.hpo.evaluator import Bench
from darts_lite.hpo.records import Job, Record
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask, space_of
from darts_lite.nas.warm_start import COLD, SHAPING, Warm, prior, same_split, starts
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget

SHARE = 0.02  # fraction of the budget for one search
BEGIN: dict[str, Any] = {"optimizer": "sgd", "augment": "none"}
CHANGES: tuple[dict[str, Any], ...] = (
    {"batch_size": 32},
    {"augment": "standard"},
    {"optimizer": "adamw"},
    {"augment": "learned"},
)
STEPS = 100  # steps of one search if the study has no time budget
SPARE = 0.9  # usable fraction of the time left, so that the last training can finish


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Search by hypergradients, in rounds.

    Arguments:
        budget: Budget of the study in seconds; None means no time budget.
        parts: Networks per search. The first network obeys the parameter limit, each further
            network half the limit of the network before.
        sampler: Unused, because nothing is sampled.
        prunes: Whether Hyperband may end a trial; always False.
    """

    budget: float | None = None
    parts: int = 1
    sampler: str = "random"  # nothing is sampled
    prunes: bool = False

    def first(self, records: Sequence[Record]) -> Job | None:
        return None

    def follow(self, records: Sequence[Record]) -> list[Job]:
        keys = {r.job.key for r in records if r.counts}
        rounds = [r for r in records if r.job.notes.get("part") == 0]
        jobs = [
            self._job({**r.job.notes, "part": part}, r.trial)
            for r in rounds
            if r.state == "complete"
            for part in range(1, self.parts)
        ]
        new = [job for job in jobs if job.key not in keys]
        if new or any(r.state == "waiting" for r in records):
            return new
        number = 1 + max((r.job.notes["round"] for r in rounds), default=-1)
        length = self._length(records)
        return [self._job({"round": number, "part": 0, "length": length}, None)] if length else []

    def _length(self, records: Sequence[Record]) -> int:
        """Return the length of the next search (seconds or steps); 0 if no training would fit."""
        if self.budget is None:
            return STEPS
        usual = max(1, round(SHARE * self.budget))
        left = self.budget - max((r.elapsed or 0.0 for r in records), default=0.0)
        known = [r for r in records if r.state == "complete" and r.job.notes["part"] == 0]
        if known:
            trained = max(r.seconds - r.job.notes["length"] for r in known)
            left = SPARE * left - self.parts * trained
        return round(min(usual, left)) if left > usual / 4 else 0

    def _job(self, notes: dict[str, int], start: int | None) -> Job:
        key = f"round {notes['round']}, part {notes['part']}"
        return Job(fidelities=(1.0,), key=key, start=start, notes=notes)


def search_round(
    bench: Bench,
    config: SearchOptions,
    job: Job,
    place: Path,
    earlier: Sequence[tuple[Genotype, Path | None]],
    clock: bool,
) -> Genotype | None:
    """Run the search of one round, and return its genotype.

    The search continues from the checkpoint in `place`, else from the checkpoint of the trial
    `job.start`, if there is one.

    Arguments:
        bench: Bench of the study.
        config: Search settings of the first round.
        job: Job of the round.
        place: Folder of the trial.
        earlier: Genotypes to start from, the best first, with their search folders.
        clock: Whether the length of the search is in seconds; False means steps.

    Returns:
        The genotype; None if the deadline came first.
    """
    number, part, length = (job.notes[n] for n in ("round", "part", "length"))
    began = None if job.start is None else bench.place(job.start)
    if began is not None and part == 0 and (began / "genotype.json").exists():
        return Genotype.load(began / "genotype.json")
    folder = place / "search"
    path = folder / "checkpoint.pt"
    if not path.exists() and began is not None:
        path = began / "search" / "checkpoint.pt"
    content = checkpoint.load(path, "search") if path.exists() else None
    tried = content["config"]["tried"] if content else _tried(number, earlier, config)
    config = replace(config, seed=config.seed + number, max_params=config.limit >> part, **tried)
    begin = _warm(earlier, config, bench)
    task = SearchTask(config, bench.dataset, bench.splits, bench.device, begin)
    seconds, steps = (float(length), None) if clock else (None, length)
    budget = Budget(seconds, steps, deadline=bench.deadline)
    folder.mkdir(parents=True, exist_ok=True)
    start = loop.restore(task, content, path, budget)
    store = loop.Store(
        folder / "checkpoint.pt",
        "search",
        {"length": length, "tried": tried},
        bench.checkpoint_seconds,
    )
    with Recorder(folder, start.step if content else None) as recorder:
        step = loop.run(task, budget, recorder, store, start=start, closes=False)
    if budget.fraction(step) < 1:
        return None
    found = task.genotype()
    return replace(
        found, source=bench.source, search={**found.search, **bench.record}, seed=bench.seed
    )  # the seed of the data splits, which `derive` needs


def _tried(
    number: int, earlier: Sequence[tuple[Genotype, Path | None]], config: SearchOptions
) -> dict[str, Any]:
    """Return the settings without a gradient of one round."""
    usual = {"batch_size": config.batch_size, **BEGIN}
    best = _trained_by(earlier[0][0].recipe) if earlier else {}
    change = CHANGES[number - 1] if 1 <= number <= len(CHANGES) else {}
    return {**usual, **{name: best[name] for name in usual if name in best}, **change}


def _trained_by(recipe: Recipe) -> dict[str, Any]:
    """Return the settings without a gradient of a recipe."""
    own = {"optimizer": recipe.optimizer.name, "augment": recipe.augment}
    return {**own, "batch_size": recipe.batch_size}


def _warm(
    earlier: Sequence[tuple[Genotype, Path | None]], config: SearchOptions, bench: Bench
) -> Warm:
    """Return the warm start of a search from the best earlier search.

    The weights are included if three conditions hold: they are of the same supernet, they were
    trained on the same training images only, and the learning rate is known. With trained weights,
    no search can find the learning rate that new weights need.
    """
    if not earlier:
        return COLD
    genotype, folder = earlier[0]
    same = (
        all(genotype.search.get(name) == getattr(config, name) for name in SHAPING)
        and same_split(genotype, replace(config, seed=bench.seed, subset=bench.source.subset))
        and changed(genotype.dataset, bench.dataset.fingerprint) is None
    )
    begin = starts([genotype], config.optimizer)
    params = None
    if folder is not None and same and "lr" in begin and (folder / "checkpoint.pt").exists():
        params = checkpoint.load(folder / "checkpoint.pt", "search")["state"]["task"]["params"]
    return Warm(prior(space_of(config), [genotype]), begin, params)
