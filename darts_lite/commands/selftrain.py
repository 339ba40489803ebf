"""The command `selftrain`: a teacher labels images, its student becomes the teacher.

Noisy Student (Xie et al. 2020).

out/selftrain/  round0/ (labelled images alone), round1/, ..., last/: each with the files of derive
                selftrain.json: accuracy of each round, and how many of its labels were right
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from darts_lite.architecture.cost import network_cost
from darts_lite.architecture.genotype import Genotype
from darts_lite.commands.several import Several, train_each
from darts_lite.errors import UserError
from darts_lite.nas.loading import load_genotype
from darts_lite.training.options import DeriveOptions, SelfTrainOptions
from darts_lite.training.run import Say, make_folder

SHOWN = ("parameters", "validation_accuracy", "test_accuracy", "epochs", "seconds")


def selftrain(
    options: SelfTrainOptions,
    *,
    resume: Collection[str] | None = None,
    started: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train teacher and students one after the other; return the content of `selftrain.json`.

    Round 0 trains the genotype on the labelled images. Student r is `growth**r` times as wide and
    learns from the labels of the round before. The last student has the width of the genotype: it
    learns from the labels and, by distillation, from the outputs of the last teacher.

    Arguments:
        options: options of the command.
        resume: names of the options that the user gave beside --resume; all other options come
            from `selftrain.json`. None starts a new run.
        started: start of the budget, on the clock of `time.monotonic` (default: now).
        say: prints a line for the user.
    Raises: `UserError` for bad input; `darts_lite.errors.Interrupted` after a signal.
    """
    out = Path(options.out) if options.out else Path(options.genotype).parent / "selftrain"
    with Several.open("selftrain", out / "selftrain.json", options, resume, say) as run:
        return _rounds(run, started, say)


def _rounds(run: Several[SelfTrainOptions], started: float | None, say: Say) -> dict[str, Any]:
    options, out = run.options, run.result.parent
    if not options.unlabelled:
        raise UserError("--unlabelled must name a folder of images, or rest:N, got nothing")
    genotype = load_genotype(Path(options.genotype), None, options.data_dir, say)
    _wider(genotype, options.growth)  # refuses a network of fixed width before anything is written
    run.take()
    run.write(genotype.dataset)
    trainings = _trainings(options, genotype, out)
    trained = train_each(trainings, resume=run.resume, started=started, say=say)
    account = run.write(genotype.dataset, rounds=[_row(folder, m) for folder, m in trained.items()])
    say(_table(account["rounds"]))
    return account


def _trainings(
    options: SelfTrainOptions, genotype: Genotype, out: Path
) -> dict[Path, DeriveOptions]:
    """Return the options of every training by its folder, and write the wider genotypes."""
    names = [f"round{i}" for i in range(options.rounds + 1)] + ["last"]
    hours = None
    if options.epochs is None:
        hours = (1.0 if options.budget_hours is None else options.budget_hours) / len(names)
    found: dict[Path, DeriveOptions] = {}
    for number, name in enumerate(names):
        folder = out / name
        factor = 1.0 if name == "last" else options.growth**number
        path = folder / "student.json"
        make_folder(folder)
        _wider(genotype, factor).save(path)
        own = DeriveOptions(
            genotype=str(path),
            out=str(folder),
            epochs=options.epochs,
            budget_hours=hours,
            hyperparameters=options.hyperparameters,
            **options.carried,
        )
        if number:
            own = replace(
                own,
                teacher=str(out / names[number - 1]),
                unlabelled=options.unlabelled,
                confidence=options.confidence,
                balance=options.balance,
                pseudo=options.pseudo,
                augment=options.augment,
                teacher_weight=0.5 if name == "last" else None,
            )
        found[folder] = own
    return found


def _wider(genotype: Genotype, factor: float) -> Genotype:
    """Return the genotype with more channels; raise `UserError` if its width is fixed."""
    if genotype.structure is not None:
        if factor != 1:
            raise UserError(
                "--growth must be 1 for a network that is not of a space, as its width is fixed, "
                f"got {factor:g} times the width; give --growth 1"
            )
        return genotype
    space = genotype.space.with_channels(round(factor * genotype.space.channels))
    cost = network_cost(space, genotype.image, len(genotype.classes))
    return replace(genotype, space=space, **cost._asdict())


def _row(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    labels = metrics["pseudo_labels"] or {}
    return {
        "folder": str(folder),
        **{name: metrics[name] for name in SHOWN},
        "pseudo_labels": labels.get("count", 0),
        "right": labels.get("right"),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the rounds as a Markdown table."""
    lines = [
        "| round | parameters | pseudo-labels | of them right | test accuracy |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        right = "" if row["right"] is None else f"{row['right']:.2%}"
        name, accuracy = Path(row["folder"]).name, f"{row['test_accuracy']:.2%}"
        cells = (name, row["parameters"], row["pseudo_labels"], right, accuracy)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
