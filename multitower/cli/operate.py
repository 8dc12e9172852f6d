"""`multitower reload`, `restart`, `load`, `unload`: orders to a running daemon, over its operator's endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from multitower.cli.status import asks
from multitower.exits import Exit

if TYPE_CHECKING:
    from multitower import Client

ORDER_TIMEOUT_S = 3600.0
"""Seconds to wait for an order to be carried out: as long as models may take to load, slot by slot."""


@click.command()
@asks
def reload(client: Client) -> int:
    """Read the configuration again and apply it, slot by slot, without losing a request.

    It is checked whole first, and refused whole when it is wrong. The command waits for the end: exit code 0 when
    all slots have taken it.
    """
    from multitower import wire

    changed = _order(client, wire.RELOAD, {})
    told = [f"{what} {_listed(changed[what])}" for what in ("renewed", "added", "removed") if changed[what]]
    click.echo(f"reloaded; slots {'; '.join(told)}" if told else "reloaded; no slot had to change")
    return Exit.OK


@click.command()
@click.argument("slot", type=click.IntRange(0))
@asks
def restart(client: Client, slot: int) -> int:
    """Give SLOT a new worker, also where it was given up as failed; `multitower status` shows the slots.

    Where the device can hold two workers, the new one takes over when it has loaded. The command waits for that.
    """
    from multitower import wire

    done = _order(client, wire.RESTART, {"slot": slot})
    click.echo(f"slot {slot} is ready; its worker is process {done['pid']}")
    return Exit.OK


@click.command()
@click.argument("model")
@asks
def load(client: Client, model: str) -> int:
    """Load MODEL as the configuration file has it now: one that was unloaded, is new there, or has changed.

    Of the file that model's section alone is applied. Its slots get new workers one after the other, and lose no
    request; slots without it are left alone. The command waits for the end. Exit code 0: all its slots serve it.
    """
    from multitower import wire

    slots = _order(client, wire.LOAD, {"model_name": model})["slots"]
    click.echo(f"{model} is loaded; slots renewed {_listed(slots)}" if slots else f"{model} was loaded already")
    return Exit.OK


@click.command()
@click.argument("model")
@asks
def unload(client: Client, model: str) -> int:
    """Unload MODEL: what was accepted is answered, new requests are refused, and its memory is given back.

    Its slots get new workers without it one after the other, and lose no request of others. `multitower load` brings it
    back, and so does a reload. The command waits for the end.
    """
    from multitower import wire

    slots = _order(client, wire.UNLOAD, {"model_name": model})["slots"]
    click.echo(f"{model} is unloaded; slots renewed {_listed(slots)}" if slots else f"{model} was unloaded already")
    return Exit.OK


def _listed(slots: list[int]) -> str:
    return ", ".join(map(str, sorted(slots)))


def _order(client: Client, kind: bytes, header: dict[str, Any]) -> dict[str, Any]:
    """Sends an order to the daemon's operator's endpoint, which it tells in its status.

    Raises:
        Unavailable: `not_listening`: the endpoint is not to be reached: another machine's, or another user's.
        MultitowerError: the order is refused, or has failed.
    """
    from multitower.client.requests import Requests

    control = client.status()["daemon"]["control"]
    requests = Requests(control, ORDER_TIMEOUT_S, connect_timeout=3.0)
    try:
        done: dict[str, Any] = requests.start_query(kind, header).result()
        return done
    finally:
        requests.connection.stop()
        requests.connection.join()
