"""Commands within this process, with any click."""

import inspect

from click import Command
from click.testing import CliRunner, Result

from darts_lite.commands.cli import main


def invoke(command: Command, *arguments: object) -> Result:
    """Run a command; `stdout` and `stderr` of what it gives are apart.

    click 8.2 always keeps them apart, click 8.1 must be told.
    """
    apart = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(**({"mix_stderr": False} if apart else {}))
    return runner.invoke(command, [str(a) for a in arguments])


def call(*arguments: object) -> Result:
    """Run a command line of darts_lite."""
    return invoke(main, *arguments)


def refuse(*arguments: object) -> str:
    """Run a command that must fail for bad input; return its one line."""
    return refusal(call(*arguments))


def refusal(result: Result) -> str:
    """Return the one line of a command that failed for bad input."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error:", "Error:"))]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]
