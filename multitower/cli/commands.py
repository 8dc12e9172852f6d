"""The table of commands: what the help lists, and where each command is imported from when it is used."""

from __future__ import annotations

import difflib
import importlib
from typing import Final, NamedTuple

import click

from multitower.compiled import compiled, describe


class Entry(NamedTuple):
    """A command: where it is, as module:function, and the first sentence of its help."""

    target: str
    help: str


SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "To begin": {
        "demo": Entry("multitower.cli.demo:demo", "Train a model, serve it on two CPU workers, kill one under load."),
        "devices": Entry("multitower.cli.devices:devices", "List this machine's GPUs, MIG slices and CPU cores."),
        "check": Entry(
            "multitower.cli.configuration:check", "Check the configuration file CONFIG, without starting anything."
        ),
        "doctor": Entry("multitower.cli.doctor:doctor", "Examine CONFIG on this machine, without starting a daemon."),
        "schema": Entry("multitower.cli.configuration:schema", "Print the configuration's JSON Schema, for editors."),
        "convert-config": Entry(
            "multitower.cli.convert:convert_config", "Print the YAML for TensorFlow Serving's MODELS_CONFIG."
        ),
        "compare": Entry(
            "multitower.cli.compare:compare",
            "Serve MODEL by one process per device, then by towers in one process, and show both side by side.",
        ),
    },
    "The daemon": {
        "serve": Entry(
            "multitower.cli.serve:serve", "Serve the models of CONFIG on its devices until SIGTERM or Ctrl-C."
        ),
    },
    "Of a running daemon": {
        "status": Entry("multitower.cli.status:status", "Show the daemon, its slots and its models."),
        "models": Entry("multitower.cli.status:models", "List the models, their versions, inputs and outputs."),
        "reload": Entry(
            "multitower.cli.operate:reload",
            "Read the configuration again and apply it, slot by slot, without losing a request.",
        ),
        "restart": Entry(
            "multitower.cli.operate:restart",
            "Give SLOT a new worker, also where it was given up as failed; `multitower status` shows the slots.",
        ),
        "load": Entry(
            "multitower.cli.operate:load",
            "Load MODEL as the configuration file has it now: one that was unloaded, is new there, or has changed.",
        ),
        "unload": Entry(
            "multitower.cli.operate:unload",
            "Unload MODEL: what was accepted is answered, new requests are refused, and its memory is given back.",
        ),
        "infer": Entry("multitower.cli.status:infer", "Ask MODEL once, and print its outputs as JSON."),
        "bench": Entry("multitower.cli.bench:bench", "Measure how much MODEL answers, how fast, and what limits it."),
    },
}
"""In the order of the help. The sentences stand here again, so that the help imports no command; a test compares."""

COMMANDS: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """Finds commands by the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """With a suggestion for a misspelt command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, section by section."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in section.items()])


@click.group(
    cls=Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="multitower", message=f"%(prog)s %(version)s ({describe(compiled())})")
@click.pass_context
def multitower(ctx: click.Context) -> None:
    """One TensorFlow model on every GPU of a machine, behind one endpoint.

    `multitower COMMAND --help` tells more of each.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
