"""The command line: maps flags to options, and errors to one line. It has no other logic.

A command imports its function, and with it torch, when it runs. `--help` and the error of a
mistyped flag are therefore fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import darts_lite
from darts_lite.commands.flags import options_of
from darts_lite.compression.options import CompressOptions
from darts_lite.errors import Interrupted, UserError
from darts_lite.export.options import ExportOptions
from darts_lite.files import quiet_threads
from darts_lite.hpo.options import CorrelateOptions, TuneOptions
from darts_lite.nas.options import FitOptions, SearchOptions
from darts_lite.training.budget import PROCESS_START
from darts_lite.training.memory import keep_freed_memory
from darts_lite.training.options import (
    AugmentOptions,
    CheckOptions,
    DeriveOptions,
    PredictOptions,
    RefreshOptions,
    SelfTrainOptions,
)

_resume = click.option(
    "--resume", is_flag=True, default=False, help="Continue the run with its own settings."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(darts_lite.__version__)
def main() -> None:
    """Learn an architecture and its hyperparameters in one training run."""
    keep_freed_memory()


@main.command()
@options_of(FitOptions)
@_resume
@click.pass_context
def fit(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Search a network, train and test it, and write a report, within one budget."""
    with _clear_errors():
        from darts_lite.commands.fit import fit

        given = _given(context) if resume else None
        fit(FitOptions(**flags), resume=given, started=PROCESS_START, say=click.echo)


@main.command()
@options_of(SearchOptions)
@_resume
@click.pass_context
def search(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Learn architecture, learning rate, weight decay and augmentation; write OUT/g.json."""
    with _clear_errors():
        from darts_lite.commands.search import search

        given = _given(context) if resume else None
        search(SearchOptions(**flags), resume=given, started=PROCESS_START, say=click.echo)


@main.command()
@options_of(DeriveOptions)
@_resume
@click.pass_context
def derive(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Train the network of a genotype and test it once."""
    with _clear_errors():
        from darts_lite.commands.api import derive_command

        options = DeriveOptions(**flags)
        run = derive_command(options)
        given = _given(context) if resume else None
        run(options, resume=given, started=PROCESS_START, say=click.echo)


@main.command()
@options_of(SelfTrainOptions, required=("unlabelled",))
@_resume
@click.pass_context
def selftrain(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Let a teacher label images, and its students become teachers (Noisy Student)."""
    with _clear_errors():
        from darts_lite.commands.selftrain import selftrain

        given = _given(context) if resume else None
        selftrain(SelfTrainOptions(**flags), resume=given, started=PROCESS_START, say=click.echo)


@main.command()
@options_of(TuneOptions, required=("method",))
@_resume
@click.pass_context
def tune(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Run a study of our method or another method within a budget; write OUT/g.json."""
    with _clear_errors():
        from darts_lite.hpo.launcher import tune

        given = _given(context) if resume else None
        tune(TuneOptions(**flags), resume=given, started=PROCESS_START, say=click.echo)


@main.command()
@options_of(CorrelateOptions)
@_resume
@click.pass_context
def correlate(context: click.Context, /, resume: bool, **flags: Any) -> None:
    """Measure how well cheap trainings rank configurations, by Kendall's tau."""
    with _clear_errors():
        from darts_lite.hpo.correlation import correlate

        given = _given(context) if resume else None
        correlate(CorrelateOptions(**flags), resume=given, say=click.echo)


@main.command()
@click.argument("run", metavar="RUN")
@click.argument("paths", metavar="PATHS...", nargs=-1, required=True)
@options_of(PredictOptions)
def predict(run: str, paths: tuple[str, ...], **flags: Any) -> None:
    """Print the classes of images (files, folders, a CSV) by the network of a derive run."""
    with _clear_errors():
        from darts_lite.commands.predict import predict

        files = [Path(path) for path in paths]
        warn = partial(click.echo, err=True)
        predict(Path(run), files, PredictOptions(**flags), say=click.echo, warn=warn)


@main.command()
@click.argument("run", metavar="RUN")
@options_of(ExportOptions)
def export(run: str, **flags: Any) -> None:
    """Write the network of a derive run, with all that its use needs, as one file."""
    with _clear_errors():
        from darts_lite.export.write import export

        export(Path(run), ExportOptions(**flags), say=click.echo)


@main.command()
@click.argument("run", metavar="RUN")
@options_of(CompressOptions)
@_resume
@click.pass_context
def compress(context: click.Context, /, run: str, resume: bool, **flags: Any) -> None:
    """Make the network of a derive run smaller, and fine-tune it; or compare ways to do so."""
    with _clear_errors():
        from darts_lite.commands.api import compress_command

        options = CompressOptions(**flags)
        given = _given(context) - {"run"} if resume else None
        compress_command(options, resume)(Path(run), options, resume=given, say=click.echo)


@main.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--out", default="report", show_default=True, help="Folder of the report.")
def report(folders: tuple[str, ...], out: str) -> None:
    """Compare studies and runs: pictures, a table, TensorBoard, and one HTML page."""
    with _clear_errors():
        from darts_lite.reporting.comparison import write_report

        write_report([Path(folder) for folder in folders], Path(out), say=click.echo)


@main.command()
@click.argument("run", metavar="RUN")
@options_of(RefreshOptions)
def refresh(run: str, **flags: Any) -> None:
    """Look at new data with the model of RUN; keep it (status 0) or replace it (status 10)."""
    with _clear_errors():
        from darts_lite.commands.refresh import refresh

        account = refresh(Path(run), RefreshOptions(**flags), started=PROCESS_START, say=_aside)
    click.echo(json.dumps(account))
    sys.exit(account["status"])


@main.command()
@options_of(CheckOptions)
def check(**flags: Any) -> None:
    """Say what a search would see of the data: classes, counts, shapes, problems."""
    with _clear_errors():
        from darts_lite.commands.check import check

        check(CheckOptions(**flags), say=click.echo)


@main.command()
@options_of(AugmentOptions)
def augment(**flags: Any) -> None:
    """Draw an augmentation: its operations over their ranges, and random draws."""
    with _clear_errors():
        from darts_lite.commands.augment import augment

        augment(AugmentOptions(**flags), say=click.echo)


def _aside(text: str) -> None:
    """Print a line beside the result, which a script reads."""
    click.echo(text, err=True)


def _given(context: click.Context) -> set[str]:
    """Return the names of the options on the command line."""
    typed = ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is typed}


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print errors of the user or the disk as one line, and exit: 2, or 128 + signal."""
    try:
        with quiet_threads():
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
