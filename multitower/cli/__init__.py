"""The command line: `multitower COMMAND`. Each command lives in a module that is imported when it is used.

This module stays light: a spawned worker imports the main module of its parent again. It must also work where only
the client is installed, to say what is missing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from multitower.exits import Exit

if TYPE_CHECKING:
    import click

COMMANDS: Final = {
    "serve": "multitower.cli.serve:serve",
    "check": "multitower.cli.configuration:check",
    "schema": "multitower.cli.configuration:schema",
    "devices": "multitower.cli.devices:devices",
    "status": "multitower.cli.query:status",
    "models": "multitower.cli.query:models",
    "infer": "multitower.cli.query:infer",
    "demo": "multitower.cli.demo:demo",
}
"""Where each command is, in the order of the help."""

_SERVER_PACKAGES: Final = frozenset(("click", "psutil", "pydantic", "pynvml", "rich", "ruamel", "yaml"))


def main() -> None:
    """The console script. Ends the process with an exit code of `multitower.exits`."""
    try:
        _group()(prog_name="multitower")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _SERVER_PACKAGES:
            raise
        print(
            f"multitower: the package {error.name!r} is not installed; the client works without it, the command line "
            "does not: pip install 'multitower[server]'",
            file=sys.stderr,
        )
        sys.exit(Exit.UNAVAILABLE)


def _group() -> click.Group:
    import click

    class Lazy(click.Group):
        """Finds commands by the table above."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            """In the order of the table."""
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            """Imports the command's module."""
            if cmd_name not in COMMANDS:
                return None
            module, _, name = COMMANDS[cmd_name].partition(":")
            command: Any = getattr(importlib.import_module(module), name)
            assert isinstance(command, click.Command)
            return command

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            """With a suggestion for a misspelt command."""
            import difflib

            if args and args[0] not in COMMANDS and not args[0].startswith("-"):
                near = difflib.get_close_matches(args[0], COMMANDS, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                ctx.fail(f"No such command {args[0]!r}.{hint}")
            return super().resolve_command(ctx, args)

    @click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="multitower", message="%(prog)s %(version)s")
    def multitower() -> None:
        """One TensorFlow model on every GPU of a machine, behind one endpoint."""

    return multitower
