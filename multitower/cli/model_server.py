"""`multitower model-server`: serves what the flags of tensorflow_model_server ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import click

from multitower.compiled import compiled, describe
from multitower.exit_codes import Exit
from multitower.tools.model_server.flags import SECTIONS, Flag, Kind, Values, all_flags

_Command = Callable[..., None]

_SWITCH: Final = {"true": True, "1": True, "false": False, "0": False}
_SETTINGS: Final[dict[Kind, dict[str, Any]]] = {
    Kind.TEXT: {"type": str, "metavar": "TEXT"},
    Kind.INTEGER: {"type": int, "metavar": "INTEGER"},
    Kind.FRACTION: {"type": float, "metavar": "NUMBER"},
    # `--flag` means `--flag=true`, as for TensorFlow's own parser.
    Kind.SWITCH: {
        "type": click.Choice(list(_SWITCH), case_sensitive=False),
        "is_flag": False,
        "flag_value": "true",
        "metavar": "[true|false]",
    },
}


class _ModelServer(click.Command):
    """A command that takes `--noNAME` for each switch, and lists its options by the sections of the flags."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Makes the parser of the command line."""
        parser = super().make_parser(ctx)
        switches = {flag.name for flag in all_flags() if flag.kind is Kind.SWITCH}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and param.name in switches:
                parser.add_option(param, [f"--no{param.name}"], param.name, action="store_const", const="false")
        return parser

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, section by section."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        sections = {title: [records.pop(flag.name) for flag in section] for title, section in SECTIONS.items()}
        for title, rows in {**sections, "Multitower's own": list(records.values())}.items():
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row is not None])


def _takes_flags(command: _Command) -> _Command:
    """Adds an option for each flag of tensorflow_model_server."""
    for flag in reversed(list(all_flags())):
        command = _option(flag)(command)
    return command


def _option(flag: Flag) -> Callable[[_Command], _Command]:
    return click.option(f"--{flag.name}", flag.name, help=flag.help, **_SETTINGS[flag.kind])


@click.command(cls=_ModelServer)
@_takes_flags
@click.option("--host", default="127.0.0.1", show_default=True, help="The address for both ports.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow a --host that other machines can reach. Nothing is encrypted, and anybody may send requests.",
)
@click.version_option(package_name="multitower", message=f"%(prog)s %(version)s ({describe(compiled())})")
def model_server(host: str, insecure: bool, **given: Any) -> None:
    """Serve as tensorflow_model_server does, with its flags, on all GPUs.

    HTTP/REST and gRPC are those of TensorFlow Serving, so clients need no change; Triton's are served at the same
    ports. Without a GPU, one worker on the CPU serves. The server listens on 127.0.0.1; --host changes it. The flags
    become a configuration by the rules of `multitower convert-config`; variables such as MULTITOWER_DEVICES set
    further keys. `multitower status` shows the workers. Flags are written --flag=value or --flag value; switches also
    --flag and --noflag.

    The log says which flags have no counterpart here. Exit codes are those of `multitower serve`.
    """
    from multitower.process_title import set_title

    set_title("supervisor model-server")

    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.daemon import StartError
    from multitower.supervisor.loop.log import LogWriter
    from multitower.tools.model_server.run import run
    from multitower.tools.model_server.settings import FlagError

    values: Values = {
        flag.name: _SWITCH.get(given[flag.name]) if flag.kind is Kind.SWITCH else given[flag.name]
        for flag in all_flags()
    }
    writer = LogWriter()
    try:
        code = run(values, host, insecure=insecure)
    except FlagError as error:
        click.echo(f"multitower model-server: {error}", err=True)
        code = Exit.CONFIG
    except ConfigError as error:
        click.echo(str(error), err=True)
        code = Exit.TEMPORARY if error.may_pass else Exit.CONFIG
    except StartError as error:
        click.echo(f"multitower model-server: {error}", err=True)
        code = error.code
    finally:
        writer.close()
    sys.exit(code)
