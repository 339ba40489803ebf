"""Commands within this process, with any click."""

import inspect

from click import Command
from click.testing import CliRunner, Result


def invoke(command: Command, *arguments: object) -> Result:
    """Run a command; `stdout` and `stderr` of what it gives are apart.

    click 8.2 always keeps them apart, click 8.1 must be told.
    """
    apart = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(**({"mix_stderr": False} if apart else {}))
    return runner.invoke(command, [str(a) for a in arguments])
