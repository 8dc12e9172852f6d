"""`multitower metrics`: the metrics of a running daemon, as text for monitoring systems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from multitower import wire
from multitower.cli.connection import asks_daemon
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client


@click.command()
@click.option(
    "--format",
    "text_format",
    type=click.Choice(wire.METRICS_FORMATS),
    default=wire.PROMETHEUS,
    show_default=True,
    help="The format of the text.",
)
@asks_daemon
def metrics(client: Client, text_format: str) -> int:
    """Print the daemon's metrics, for Prometheus or another monitoring system.

    The documentation describes each of them. The gateway serves the same text over HTTP, at /metrics.
    """
    click.echo(client.metrics(text_format), nl=False)
    return Exit.OK
