"""`multitower status`: the state of a running daemon, its slots and its models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import asks_daemon
from multitower.cli.events_view import event_lines
from multitower.cli.seconds import Seconds
from multitower.cli.status_view import status_lines
from multitower.cli.tables import print_lines, terminal_width
from multitower.cli.watch import watch
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client

WATCH_S: Final = 2.0
"""Seconds between two looks of `--watch` by default."""

MIN_WATCH_S: Final = 0.1
MAX_WATCH_S: Final = 86_400.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@click.option("--wide", is_flag=True, help="Print each slot and model on one line, however narrow the terminal is.")
@click.option(
    "--watch",
    "interval",
    is_flag=False,
    flag_value=WATCH_S,
    type=Seconds(MIN_WATCH_S, MAX_WATCH_S),
    metavar="[SECONDS]",
    help=f"Print it again every SECONDS seconds ({WATCH_S:g} by default), until Ctrl-C; on a terminal in place.",
)
@click.option(
    "--events",
    is_flag=True,
    help="List all events that the daemon keeps instead, the newest last: deaths, restarts, reloads, versions, "
    "quarantine, models that could not be loaded.",
)
@asks_daemon
def status(client: Client, as_json: bool, wide: bool, interval: float | None, events: bool) -> int:
    """Show the daemon, its slots and its models.

    On a narrow terminal some columns stand below each row. Where the output is no terminal, each row is one line.

    Exit codes: 0 when every slot that has a model is ready, and after --watch and --events; 1 when every model is
    served, but a slot is not ready; 69 when a model has no ready worker and is not unloaded, when the daemon is
    stopping, or when no daemon answers.
    """
    if interval is not None:
        return watch(client, interval, as_json=as_json, wide=wide, events=events)
    state = client.status(events=events)
    if as_json:
        click.echo(json.dumps(state["daemon"]["events"] if events else state, indent=2))
    elif events:
        print_lines(event_lines(state["daemon"]["events"], None if wide else terminal_width()))
    else:
        print_lines(status_lines(state, None if wide else terminal_width()))
    return Exit.OK if events else _exit_code(state["daemon"])


def _exit_code(daemon: Mapping[str, Any]) -> int:
    if not daemon["ready"]:
        return Exit.UNAVAILABLE
    return Exit.OK if daemon["slots_ready"] == daemon["slots_total"] else Exit.DEGRADED
