"""The command line: flags to options, errors to one line. No logic of its own.

`runs`, and with it torch, is imported when a command runs, so that `--help` and a mistyped flag are
answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import darts_lite
from darts_lite.architecture.space import PRESETS
from darts_lite.errors import Interrupted, UserError
from darts_lite.training.budget import PROCESS_START
from darts_lite.training.memory import keep_freed_memory

POSITIVE = click.IntRange(min=1)
HOURS = click.FloatRange(min=0, min_open=True)
Command = Callable[..., Any]


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_machine = _options(
    click.option("--download", is_flag=True, help="Fetch the data set if it is not there."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
    click.option("--resume", is_flag=True, help="Continue the run; its settings are remembered."),
    click.option(
        "--checkpoint-seconds",
        type=click.FloatRange(min=0),
        default=50.0,
        show_default=True,
        help="Longest time between two checkpoints.",
    ),
)


_data = _options(
    click.option(
        "--dataset",
        help="digits, fashion-mnist, mnist, cifar10, cifar100, svhn or folder:PATH.  "
        "[default: the first of cifar10, fashion-mnist, digits that is on this machine]",
    ),
    click.option("--data-dir", default="data", show_default=True, help="Where data sets lie."),
    click.option("--subset", type=POSITIVE, help="Images for training and validation together."),
    click.option("--image-size", type=POSITIVE, help="Resize images to so many pixels a side."),
)
AUGMENT = (
    "none, standard (flips and shifts), learned, randaugment, trivialaugment, autoaugment or a "
    ".json file; settings as in randaugment:n=2,m=15; +cutmix or +mixup."
)
_estimator = click.option(
    "--estimator",
    default="one_step,optimizer=annealed",
    show_default=True,
    help="Of the hypergradient: one_step, unrolled, forward, neumann, conjugate_gradient, online; "
    "one for all kinds, or KIND=NAME for architecture, loss, optimizer. annealed: find the lr by "
    "annealed look-aheads as the training begins, leave the decay.",
)


_architecture = _options(
    click.option(
        "--max-params",
        type=POSITIVE,
        help="Parameters: target of the search and cap of its result.  "
        "[default: 60000 below 16 pixels, else 150000]",
    ),
    click.option(
        "--space",
        type=click.Choice(list(PRESETS)),
        default="cells",
        show_default=True,
        help="Preset.",
    ),
    click.option("--cells", type=POSITIVE, default=7, show_default=True, help="Cells or blocks."),
    click.option(
        "--channels", type=POSITIVE, help="First width. [default: what fits --max-params]"
    ),
    click.option(
        "--stem-stride",
        type=click.IntRange(1, 2),
        default=1,
        show_default=True,
        help="2 is faster.",
    ),
)
_study = _options(
    _data,
    _architecture,
    click.option("--epochs", type=POSITIVE, default=20, show_default=True, help="Of a full one."),
    click.option(
        "--fidelity",
        type=click.Choice(["epochs", "subset", "resolution"]),
        default="epochs",
        show_default=True,
        help="What a cheap training saves: it stops early, sees fewer images, or smaller ones.",
    ),
    click.option(
        "--lowest",
        type=click.FloatRange(0, 1, min_open=True),
        default=1 / 9,
        show_default="1/9",
        help="Fidelity, as a part of the full training's cost.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(darts_lite.__version__)
def main() -> None:
    """Learn an architecture and its hyperparameters in one training run."""
    keep_freed_memory()


@main.command()
@click.option("--out", default="out", show_default=True, help="Folder of the run.")
@_data
@click.option(
    "--budget-hours",
    type=HOURS,
    help="Wall clock, from process start to g.json.  [default: 0.025 below 16 pixels, else 1]",
)
@click.option("--steps", type=POSITIVE, help="Steps instead of hours: exactly reproducible.")
@_architecture
@click.option("--search-channels", type=POSITIVE, help="First width of the supernet.")
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adamw"]),
    default="sgd",
    show_default=True,
    help="Of the weights, in the search and in what derives from it.",
)
@click.option("--augment", default="learned", show_default=True, help=AUGMENT)
@_estimator
@click.option(
    "--protect/--no-protect",
    default=True,
    show_default=True,
    help="Regularise against the collapse to skip connections.",
)
@click.option(
    "--warm-start",
    multiple=True,
    metavar="PATH",
    help="Start from what an earlier search found: a g.json, or the folder that holds it; may be "
    "given several times.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=64, show_default=True, help="Images."
)
@_machine
@click.pass_context
def search(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Learn architecture, learning rate, weight decay and augmentation; write OUT/g.json."""
    with _clear_errors():
        from darts_lite.commands import options, runs

        given = _given(context) if resume else None
        runs.search(
            options.SearchOptions(**flags), resume=given, started=PROCESS_START, say=click.echo
        )


@main.command()
@click.option("--genotype", default="out/g.json", show_default=True, help="What a search wrote.")
@click.option("--out", help="Folder of the run.  [default: derive, beside the genotype]")
@click.option(
    "--budget-hours",
    type=HOURS,
    help="Wall clock, from process start to the result.  [default: 0.035 below 16 pixels, else 1]",
)
@click.option("--data-dir", help="Where data sets lie.  [default: where the search found them]")
@click.option("--epochs", type=POSITIVE, help="Epochs instead of hours: exactly reproducible.")
@click.option("--max-params", type=POSITIVE, help="Hard cap on the network's parameters.")
@click.option(
    "--hyperparameters",
    type=click.Choice(["learned", "default", "online"]),
    default="learned",
    show_default=True,
    help="Those that the search learned, the usual recipe, or learn on from the former while "
    "training, on the validation images.",
)
@click.option("--augment", help=f"{AUGMENT}  [default: what the search learned]")
@_estimator
@click.option(
    "--select",
    type=click.Choice(["last", "best", "held_out"]),
    default="last",
    show_default=True,
    help="last: train on training and validation images to the end; held_out: on the former alone; "
    "best: on those, and keep the best on validation.",
)
@click.option(
    "--random",
    type=POSITIVE,
    help="Train so many random networks of its size instead, by the same recipe, and compare.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    help="Images.  [default: that of the search]",
)
@_machine
@click.pass_context
def derive(context: click.Context, /, resume: bool, random: int | None, **flags: Any) -> None:
    """Train the network of a genotype and test it once."""
    with _clear_errors():
        from darts_lite.commands import options, runs
        from darts_lite.commands import random_baseline as baseline

        said = options.DeriveOptions(**flags)
        given = _given(context) if resume else None
        if random is None:
            runs.derive(said, resume=given, started=PROCESS_START, say=click.echo)
        else:
            baseline.derive_random(
                said, random, resume=given, started=PROCESS_START, say=click.echo
            )


@main.command()
@click.option(
    "--method",
    type=click.Choice(["random", "tpe", "asha", "bohb", "pbt", "pba", "gradient"]),
    required=True,
    help="random search, TPE, ASHA, TPE with Hyperband, population based training, that of "
    "augmentation, or our own search in rounds.",
)
@click.option("--out", default="out", show_default=True, help="Folder of the study.")
@_study
@click.option(
    "--budget-hours",
    type=HOURS,
    help="Wall clock of the study, earlier sessions included.  [default: 0.1 below 16 pixels, "
    "else 1]",
)
@click.option("--trials", type=POSITIVE, help="Trials instead of, or beside, hours.")
@click.option("--pareto", is_flag=True, help="Seek the front of parameters and accuracy.")
@click.option(
    "--population", type=click.IntRange(min=2), default=8, show_default=True, help="Of pbt and pba."
)
@click.option("--genotype", help="Small model of pba.  [default: a random one under the cap]")
@click.option(
    "--warm-start",
    multiple=True,
    metavar="PATH",
    help="Start from an earlier study or search: its folder, or a g.json; may be given several "
    "times.",
)
@click.option(
    "--workers", type=POSITIVE, default=1, show_default=True, help="Processes on this machine."
)
@click.option(
    "--storage",
    help="Journal file or URL of a data base (postgresql+psycopg://...) that machines share.  "
    "[default: OUT/study.journal]",
)
@_machine
@click.pass_context
def tune(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Try configurations by another method, or ours, under the same budget; write OUT/g.json."""
    with _clear_errors():
        from darts_lite.commands import options
        from darts_lite.hpo import launcher as launch

        given = _given(context) if resume else None
        launch.tune(
            options.TuneOptions(**flags), resume=given, started=PROCESS_START, say=click.echo
        )


@main.command()
@click.option(
    "--configurations",
    "trials",
    type=click.IntRange(min=3),
    default=20,
    show_default=True,
    help="Random ones, each trained at every fidelity.",
)
@click.option("--out", default="correlation", show_default=True, help="Folder of the results.")
@_study
@_machine
@click.pass_context
def correlate(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Tell how well a cheap fidelity ranks configurations, by Kendall's tau."""
    with _clear_errors():
        from darts_lite.commands import options
        from darts_lite.hpo import correlation

        given = _given(context) if resume else None
        said = options.TuneOptions(method="random", **flags)
        correlation.correlate(said, resume=given, say=click.echo)


@main.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--out", default="report", show_default=True, help="Folder of the report.")
def report(folders: tuple[str, ...], out: str) -> None:
    """Compare studies and runs: pictures, a table, TensorBoard, and one HTML page."""
    with _clear_errors():
        from darts_lite.reporting.comparison import write_report

        write_report([Path(folder) for folder in folders], Path(out), say=click.echo)


@main.command()
@click.option("--augment", default="learned", show_default=True, help=AUGMENT)
@click.option("--out", default="augment.png", show_default=True, help="The picture.")
@click.option("--save", help="Write the augmentation itself, as JSON for --augment.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Of the training, for an augmentation that changes with it.",
)
@_data
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of images.")
def augment(**flags: Any) -> None:
    """Draw what an augmentation does: its operations over their ranges, and random draws."""
    with _clear_errors():
        from darts_lite.commands import options, runs

        runs.augment(options.AugmentOptions(**flags), say=click.echo)


def _given(context: click.Context) -> set[str]:
    """Names of the flags that the user typed."""
    typed = ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is typed}


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        click.echo(f"error: cannot read or write{where}: {error.strerror or error}", err=True)
        sys.exit(2)
    except Interrupted as stop:
        click.echo(f"{stop}; continue it with --resume", err=True)
        sys.exit(128 + stop.signum)
