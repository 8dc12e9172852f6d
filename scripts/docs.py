"""Writes again what in docs/ is made from the code: `make docs`. A test fails while it differs from the code."""

from __future__ import annotations

import json
from pathlib import Path

import click

from multitower.cli.commands import COMMANDS, multitower
from multitower.supervisor.config.config import schema

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100


def made() -> dict[Path, str]:
    """The contents of each made file."""
    return {
        DOCS / "configuration.schema.json": json.dumps(schema(), indent=2) + "\n",
        DOCS / "cli.md": _command_line(),
    }


def _command_line() -> str:
    parts = [
        "# The command line\n",
        "<!-- Made by `make docs` from the commands' own help. -->\n",
        "Exit codes are listed in [configuration.md](configuration.md).\n",
    ]
    settings = multitower.context_settings
    root = click.Context(multitower, info_name="multitower", terminal_width=WIDTH, max_content_width=WIDTH, **settings)
    for name in COMMANDS:
        command = multitower.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root, terminal_width=WIDTH, max_content_width=WIDTH)
        parts.append(f"## multitower {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)
