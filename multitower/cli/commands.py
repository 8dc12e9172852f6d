"""The commands: their sections in the help, and the modules that they are imported from when used."""

from __future__ import annotations

import difflib
import importlib
from typing import Final, NamedTuple

import click

from multitower.compiled import compiled, describe


class Entry(NamedTuple):
    """A command: its function as `module:function`, and the first sentence of its help."""

    target: str
    help: str


SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Before serving": {
        "demo": Entry("multitower.cli.demo:demo", "Train a model, serve it on two CPU workers, kill one under load."),
        "devices": Entry("multitower.cli.devices:devices", "List this machine's GPUs, MIG slices and CPU cores."),
        "check": Entry(
            "multitower.cli.configuration:check", "Check the configuration file CONFIG, without starting anything."
        ),
        "doctor": Entry("multitower.cli.doctor:doctor", "Examine CONFIG on this machine, without starting a daemon."),
        "selftest": Entry(
            "multitower.cli.selftest:selftest", "Check on this machine that workers are pinned, freed and restarted."
        ),
        "schema": Entry("multitower.cli.configuration:schema", "Print the configuration's JSON Schema, for editors."),
        "convert-config": Entry(
            "multitower.cli.convert:convert_config", "Print the YAML for TensorFlow Serving's MODELS_CONFIG."
        ),
        "keys": Entry("multitower.cli.keys:keys", "Make, show and admit the keys and tokens of clients and daemons."),
        "compare": Entry(
            "multitower.cli.compare:compare",
            "Serve MODEL by one process per device, then by towers in one process, and show both side by side.",
        ),
    },
    "Serving": {
        "serve": Entry(
            "multitower.cli.serve:serve", "Serve the models of CONFIG on its devices until SIGTERM or Ctrl-C."
        ),
        "model-server": Entry(
            "multitower.cli.model_server:model_server",
            "Serve as tensorflow_model_server does, with its flags, on all GPUs.",
        ),
    },
    "A running daemon": {
        "status": Entry("multitower.cli.status:status", "Show the daemon, its slots and its models."),
        "top": Entry("multitower.cli.top:top", "Show slots, models and events live, with keys to sort and to choose."),
        "models": Entry("multitower.cli.models:models", "List the models, their versions, inputs and outputs."),
        "metrics": Entry(
            "multitower.cli.metrics:metrics", "Print the daemon's metrics, for Prometheus or another monitoring system."
        ),
        "reload": Entry(
            "multitower.cli.operate:reload",
            "Read the configuration again and apply it, slot by slot, without losing a request.",
        ),
        "restart": Entry(
            "multitower.cli.operate:restart",
            "Replace the worker of SLOT, or the process of the gateway, also where it has failed.",
        ),
        "load": Entry(
            "multitower.cli.operate:load",
            "Load MODEL from the configuration file: one that was unloaded, is new there, or has changed.",
        ),
        "unload": Entry(
            "multitower.cli.operate:unload",
            "Unload MODEL: answer accepted requests, refuse new ones, and free its memory.",
        ),
        "record": Entry(
            "multitower.cli.record:record",
            "Write the next requests of MODEL as a warm-up file of TensorFlow Serving.",
        ),
        "infer": Entry("multitower.cli.infer:infer", "Send MODEL one request, and print its outputs as JSON."),
        "bench": Entry("multitower.cli.bench:bench", "Measure how much MODEL answers, how fast, and what limits it."),
    },
}
"""In the order of the help. The first sentences are copied here, so that the help imports no command."""

COMMANDS: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests a similar command for one that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands section by section."""
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

    `multitower COMMAND --help` describes a command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
