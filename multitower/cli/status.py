"""`multitower status`: the state of a running daemon, its slots and its models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import asks_daemon
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


def _check_interval(context: click.Context, parameter: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise click.BadParameter(f"{seconds} is not a number of seconds", context, parameter)
    return seconds


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@click.option("--wide", is_flag=True, help="Print each slot and model on one line, however narrow the terminal is.")
@click.option(
    "--watch",
    "interval",
    is_flag=False,
    flag_value=WATCH_S,
    type=click.FloatRange(MIN_WATCH_S, MAX_WATCH_S),
    callback=_check_interval,
    metavar="[SECONDS]",
    help=f"Print it again every SECONDS seconds ({WATCH_S:g} by default), until Ctrl-C; on a terminal in place.",
)
@asks_daemon
def status(client: Client, as_json: bool, wide: bool, interval: float | None) -> int:
    """Show the daemon, its slots and its models.

    On a narrow terminal some columns stand below each row. Where the output is no terminal, each row is one line.

    Exit codes: 0 when every slot that has a model is ready, and after --watch; 1 when every model is served, but a slot
    is not ready; 69 when a model has no ready worker and is not unloaded, when the daemon is stopping, or when no
    daemon answers.
    """
    if interval is not None:
        return watch(client, interval, as_json=as_json, wide=wide)
    state = client.status()
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        print_lines(status_lines(state, None if wide else terminal_width()))
    return _exit_code(state["daemon"])


def _exit_code(daemon: Mapping[str, Any]) -> int:
    if not daemon["ready"]:
        return Exit.UNAVAILABLE
    return Exit.OK if daemon["slots_ready"] == daemon["slots_total"] else Exit.DEGRADED
