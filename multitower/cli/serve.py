"""`multitower serve`: runs the daemon in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(readable=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of CONFIG. Repeatable.")
@click.option("--log-format", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option("--strict", is_flag=True, help="End at once if a model, a device or an address is missing.")
def serve(config: Path, overrides: tuple[str, ...], log_format: str, log_level: str, strict: bool) -> None:
    """Serve the models of CONFIG on its devices until SIGTERM or Ctrl-C.

    What CONFIG names but is not there yet, such as a model's folder, a GPU or an address, is waited for, and the rest
    is served meanwhile; `multitower status` shows it. With --strict the daemon ends instead, with exit code 78.

    The first signal drains the daemon: accepted requests are answered, then all workers end. A second signal, more than
    a second later, ends everything at once.

    Exit codes: 0 after a drain, 69 when every slot failed and exit_when_failed is set, 75 when another daemon uses an
    endpoint, or CONFIG or the runtime folder cannot be used now (permissions, a full disk), 78 when the configuration
    is wrong, 130 after a second signal.
    """
    from multitower.process_title import set_title
    from multitower.supervisor.loop.signals import ignore_reopening

    ignore_reopening()
    set_title(f"supervisor {config}")

    from multitower.exit_codes import Exit
    from multitower.supervisor.config.config import Config
    from multitower.supervisor.config.loading import load, load_model
    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.daemon import Daemon, StartError
    from multitower.supervisor.loop.log import LogWriter

    def read(model: str | None = None) -> Config:
        if model is not None:
            return load_model(config, model, overrides=overrides, strict=strict)
        return load(config, overrides=overrides, strict=strict)

    try:
        settings = read()
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.TEMPORARY if error.may_pass and not strict else Exit.CONFIG)
    writer = LogWriter(log_format, log_level.upper())
    try:
        code = Daemon(settings, read, strict=strict).run()
    except StartError as error:
        click.echo(f"multitower: {error}", err=True)
        code = error.code
    finally:
        writer.close()
    sys.exit(code)
