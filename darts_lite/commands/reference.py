"""The reference of all commands as Markdown, made from the options.

python -m darts_lite.commands.reference > docs/commands.md
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from darts_lite.commands.flags import default_text
from darts_lite.hpo.options import CorrelateOptions, TuneOptions
from darts_lite.nas.options import SearchOptions
from darts_lite.training.options import AugmentOptions, DeriveOptions

COMMANDS: dict[str, tuple[type[Any], str]] = {
    "search": (SearchOptions, "Learn architecture and hyperparameters; write `OUT/g.json`."),
    "derive": (DeriveOptions, "Train the network of a genotype and test it once."),
    "tune": (TuneOptions, "Try configurations by another method, or ours; write `OUT/g.json`."),
    "correlate": (CorrelateOptions, "Tell how well a cheap fidelity ranks configurations."),
    "augment": (AugmentOptions, "Draw what an augmentation does."),
}
RESUMED = ("search", "derive", "tune", "correlate")


def reference() -> str:
    """Return the content of docs/commands.md."""
    parts = [
        "# Commands\n",
        "Made by `python -m darts_lite.commands.reference > docs/commands.md`; do not edit.\n",
        "`python run.py COMMAND --help` says the same. `python run.py report DIR... --out report` "
        "compares studies and runs.\n",
    ]
    for name, (options, what) in COMMANDS.items():
        parts += [f"## {name}\n", f"{what}\n", "| flag | default | meaning |", "|---|---|---|"]
        for each in fields(options):
            flag = each.metadata["flag"] or "--" + each.name.replace("_", "-")
            default = default_text(each) or ""
            help = each.metadata["help"].replace("|", "\\|")
            parts.append(f"| `{flag}` | {default} | {help} |")
        if name in RESUMED:
            parts.append("| `--resume` | | Continue the run with its own settings. |")
        parts[-1] += "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
