"""`multitower reload`, `restart`, `load` and `unload`: orders to a running daemon.

With a key they are given at the endpoint that the other commands ask, also from another machine; otherwise at the
control endpoint, by the daemon's own user or root.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from multitower.cli.connection import CONNECT_S, orders_daemon
from multitower.durations import exact_duration
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client, Unavailable
    from multitower.client.requests import Requests

GATEWAY: Final = "gateway"

_CHANGES: Final = {"renewed": "replaced", "added": "added", "removed": "removed"}
"""The keys of slots in the reply to a reload, and the words for them."""


@click.command()
@orders_daemon
def reload(client: Client) -> int:
    """Read the configuration again and apply it, slot by slot, without losing a request.

    The whole file is checked first; if anything is wrong, nothing is applied. The command waits until the reload is
    complete. Exit code 0: all slots have the new configuration.
    """
    from multitower import wire

    reply = _order(client, wire.RELOAD, {})
    changes = [f"{word} {_join(reply[key])}" for key, word in _CHANGES.items() if reply[key]]
    click.echo(f"reloaded; slots {'; '.join(changes)}" if changes else "reloaded; no slot had to change")
    if isinstance(reply.get("principals"), dict):
        click.echo(_principals(reply["principals"]))
    for key in reply.get("at_next_start", ()):
        click.echo(f"{key} applies to workers that start from now on; `multitower restart SLOT` starts one")
    return Exit.OK


def _principals(changes: dict[str, Any]) -> str:
    """Returns what a reload has changed about the principals: who has just been let in, or locked out."""
    named = [f"{key}: {', '.join(changes[key])}" for key in ("added", "removed", "changed") if changes.get(key)]
    text = f"principals: {changes.get('number', 0)} ({'; '.join(named) if named else 'none changed'})"
    return text if changes.get("number") else f"{text}: nobody is let in over tcp, HTTP and gRPC"


def _restartable(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    """Returns the number of a slot, or the word `gateway`."""
    if value == GATEWAY:
        return GATEWAY
    if not value.isascii() or not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither the number of a slot nor '{GATEWAY}'")
    return int(value)


@click.command()
@click.argument("slot", metavar="SLOT|gateway", callback=_restartable)
@orders_daemon
def restart(client: Client, slot: int | str) -> int:
    """Replace the worker of SLOT, or the process of the gateway, also where it has failed.

    `multitower status` lists the slots. If the device has memory for two workers, the old one serves until the new one
    is ready; the old process of the gateway answers what it has accepted. The command waits until the new process is
    ready.
    """
    from multitower import wire

    if slot == GATEWAY:
        reply = _order(client, wire.RESTART, {"gateway": True})
        click.echo(f"the gateway is ready; it is process {reply['pid']}")
        return Exit.OK
    reply = _order(client, wire.RESTART, {"slot": slot})
    click.echo(f"slot {slot} is ready; its worker is process {reply['pid']}")
    return Exit.OK


@click.command()
@click.argument("model")
@orders_daemon
def load(client: Client, model: str) -> int:
    """Load MODEL from the configuration file: one that was unloaded, is new there, or has changed.

    Only that model's section of the file is read and applied. The workers of its slots are replaced one after the
    other, and no request is lost; other slots do not change. The command waits until all its slots serve it.
    """
    from multitower import wire

    slots = _order(client, wire.LOAD, {"model_name": model})["slots"]
    click.echo(
        f"{model} is loaded; workers replaced in slots {_join(slots)}" if slots else f"{model} was already loaded"
    )
    return Exit.OK


@click.command()
@click.argument("model")
@orders_daemon
def unload(client: Client, model: str) -> int:
    """Unload MODEL: answer accepted requests, refuse new ones, and free its memory.

    The workers of its slots are replaced by workers without it, one after the other; no request to another model is
    lost. `multitower load` or a reload loads it again. The command waits until all workers are replaced.
    """
    from multitower import wire

    slots = _order(client, wire.UNLOAD, {"model_name": model})["slots"]
    click.echo(
        f"{model} is unloaded; workers replaced in slots {_join(slots)}" if slots else f"{model} was already unloaded"
    )
    return Exit.OK


def _join(slots: list[int]) -> str:
    return ", ".join(map(str, sorted(slots)))


def _order(client: Client, kind: bytes, header: dict[str, Any]) -> dict[str, Any]:
    """Sends an order to the daemon, and returns the reply. The command's `--timeout` covers all of it.

    Raises:
        Unavailable: `not_listening`: the control endpoint belongs to another machine or another user.
        Forbidden: the principal of the key may not give this order.
        DeadlineExceeded: the order is not carried out in time, and the daemon goes on with it; or none was given.
        MultitowerError: the order was refused, or failed.
    """
    from multitower import DeadlineExceeded, Reason
    from multitower.errors import make

    context = click.get_current_context()
    timeout_s: float = context.params["timeout"]
    ends = time.monotonic() + timeout_s
    endpoint = find_order_endpoint(client)
    left_s = ends - time.monotonic()
    if left_s <= 0:
        message = (
            f"asking for the control endpoint took all of {exact_duration(timeout_s)} (--timeout); no order was given"
        )
        raise make(Reason.DEADLINE, message, limit="timeout", limit_value=timeout_s)
    given = context.get_parameter_source("timeout") is not ParameterSource.DEFAULT
    if given and math.isfinite(timeout_s * 1000):
        # What reads files in the daemon ends before this command does. Without it, the daemon's own limit holds.
        header = {**header, "timeout_ms": round(timeout_s * 1000, 3)}
    with connected_for_orders(client, endpoint, left_s) as requests:
        try:
            reply: dict[str, Any] = requests.start_query(kind, header).result()
        except DeadlineExceeded:
            message = (
                f"the order was not carried out within {exact_duration(timeout_s)} (--timeout); the daemon goes on "
                "with it, and `multitower status` shows how far it is"
            )
            raise make(Reason.DEADLINE, message, limit="timeout", limit_value=timeout_s) from None
        return reply


def find_order_endpoint(client: Client) -> str:
    """Returns the endpoint at which a command gives its order: the client's own if the command has a key.

    Args:
        client: of the daemon; without a key it is asked for the address of the control endpoint.
    """
    from multitower.client.credentials import find_credentials

    given = click.get_current_context().params
    if find_credentials(client.endpoint, given["key"], given["server_key"]) is not None:
        return client.endpoint
    control: str = client.status()["daemon"]["control"]
    return control


@contextlib.contextmanager
def connected_for_orders(client: Client, endpoint: str, timeout_s: float) -> Iterator[Requests]:
    """A connection on which orders are given, with the command's key over tcp.

    Args:
        client: of the daemon.
        endpoint: from `find_order_endpoint`.
        timeout_s: seconds that an order may take.

    Raises:
        Unavailable: an order could not be given; the message has what it takes to give one.
    """
    from multitower import Unavailable
    from multitower.client.requests import Requests

    given = click.get_current_context().params
    connect_s = min(timeout_s, CONNECT_S)
    with contextlib.closing(
        Requests(endpoint, timeout_s, connect_timeout=connect_s, key=given["key"], server_key=given["server_key"])
    ) as requests:
        try:
            yield requests
        except Unavailable as error:
            raise _explain_control(error, client.endpoint) if endpoint.startswith("ipc:") else error from None


def _explain_control(error: Unavailable, endpoint: str) -> Unavailable:
    """The error of an order that could not be given, with what it takes to give one."""
    from multitower.errors import CONNECT_ERROR, ConnectError, Reason, Unavailable

    kind = error.details.get(CONNECT_ERROR)
    if kind == ConnectError.PERMISSION_DENIED:
        advice = (
            "orders are given by the daemon's own user or root (run this as that user, with sudo -u), or over tcp with "
            "--key, by a principal with the role operate"
        )
    elif kind == ConnectError.NO_SUCH_FILE:
        advice = (
            f"without --key orders are given on the machine, and in the container, where the daemon at {endpoint} runs"
        )
    else:
        return error
    cause = error.message.partition(";")[0]
    return Unavailable(Reason.NOT_LISTENING, f"{cause}; {advice}", error.details)
