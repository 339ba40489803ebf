"""The command `search`: search an architecture and write its files.

out/g.json        the genotype
out/augment.json  the learned augmentation, for --augment
out/search/       checkpoint.pt, config.json, events, metrics.jsonl, pictures/
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from darts_lite.architecture.genotype import Genotype
from darts_lite.augment import to_json
from darts_lite.data import Dataset
from darts_lite.files import write_json
from darts_lite.nas import warm_start
from darts_lite.nas.defaults import resolved
from darts_lite.nas.options import SearchOptions
from darts_lite.nas.task import SearchTask, space_of
from darts_lite.reporting import augmentation_report, pictures
from darts_lite.reporting.recorder import Recorder
from darts_lite.training.joint_task import CHARTS
from darts_lite.training.progress import Progress, warn
from darts_lite.training.run import Run, Say, budget_of, make_folder


def search(
    options: SearchOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> Genotype:
    """Run a search, write `g.json`, and return the genotype.

    Arguments:
        options: options of the search.
        resume: names of the options that the user gave beside --resume; all other options come
            from the checkpoint. None starts a new run.
        started: start of the budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
        dataset: data set of the options; None to read it.
        progress: progress bar of a command of several runs; None for one of its own.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    out = Path(options.out)
    result = out / "g.json"
    with Run.open("search", out / "search", options, resume, say, (result,), progress) as run:
        if run.saved and result.exists() and (done := Genotype.load(result)).finished:
            run.say(f"{result} is finished")
            return done
        run.load(run.options, run.options.seed, dataset)
        return _searched(run, out, started)


def _searched(run: Run[SearchOptions], out: Path, started: float | None) -> Genotype:
    """Search on the data of a run, write the results, and return the genotype."""
    say, result = run.say, out / "g.json"
    run.progress.doing("building the supernet")
    run.options = options = resolved(run.options, run.dataset, run.device)
    budget = budget_of(options.budget_hours, options.steps, started)
    begin = warm_start.COLD
    if not run.saved:  # the checkpoint of a resumed search has its starting values
        space = space_of(options)
        begin = warm_start.read(options.warm_start, options, space, run.dataset, say)
    task = SearchTask(options, run.dataset, run.splits, run.device, begin)
    make_folder(out)
    run.prepare(task, budget)
    say(
        f"searching {options.space} on {run.dataset.name}: {run.splits.train.count} training and "
        f"{run.splits.validation.count} validation images, at most {options.max_params} "
        f"parameters, {options.channels} channels ({options.search_channels} while searching), on "
        f"{run.device}"
    )
    for text in task.hyper.caveats():
        warn(text)
    with run.recorder() as recorder:
        recorder.charts(CHARTS)
        step = run.train(task, recorder)
        run.progress.doing("selecting the network and drawing pictures")
        found = task.evaluate(step, recorder, last=True)
        recorder.scalars(step, {**found, "seconds": budget.elapsed})
        genotype = task.genotype()
        _record_learned(genotype, step, recorder)
        _record_comparison(run, step, recorder)
    genotype.save(result)
    augment = task.augment.replayed(genotype.recipe.schedules)
    write_json(out / "augment.json", to_json(augment))
    strengths = augment.policy.strengths(run.dataset.image_size, fraction=1.0)
    if strengths:
        say(augmentation_report.strength_table(strengths))
    say(
        f"{result}: {genotype.parameters} parameters, {genotype.macs} MACs, {step} steps, "
        f"{budget.elapsed:.0f} s"
    )
    return genotype


def _record_learned(genotype: Genotype, step: int, recorder: Recorder) -> None:
    learned = genotype.recipe.schedules
    recorder.picture(step, "learned", pictures.parameter_plot(learned, "learned schedules"))
    for what in ("magnitude", "probability"):
        picture = augmentation_report.draw_schedules(learned, what)
        if picture is not None:
            recorder.picture(step, f"learned/{what}", picture)


def _record_comparison(run: Run[SearchOptions], step: int, recorder: Recorder) -> None:
    """Print and record the time that the warm start saved."""
    for path in run.options.warm_start[:1]:
        found = warm_start.compare(path, run.folder, run.options, run.dataset)
        if found is not None:
            run.say(str(found))
            recorder.scalars(step, found.scalars)
