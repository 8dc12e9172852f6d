"""Resolves the names of hosts in endpoints, without a wait for a DNS that does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Container, Sequence
from typing import Final

from multitower.addresses import literal_version

from .binding import IPC

RESOLVE_S: Final = 1.0
"""Seconds that the start waits for the names in endpoints; those that take longer are resolved while it serves."""


def find_unresolved(endpoints: Sequence[str]) -> set[str]:
    """Returns the endpoints whose names the system needs more than `RESOLVE_S` to look up, all at the same time.

    A name that does not exist is not among them: its lookup has ended.
    """
    threads: dict[str, threading.Thread] = {}
    interfaces = _interfaces()
    for endpoint in endpoints:
        if has_name(endpoint, interfaces):
            thread = threading.Thread(target=_look_up, args=(endpoint,), name="resolving a name", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: the name is resolved when it is bound
                thread.start()
                threads[endpoint] = thread
    until = time.monotonic() + RESOLVE_S
    for thread in threads.values():
        thread.join(max(0.0, until - time.monotonic()))
    return {endpoint for endpoint, thread in threads.items() if thread.is_alive()}


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _host(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def has_name(endpoint: str, interfaces: Container[str] | None = None) -> bool:
    """Whether the host of an endpoint has to be resolved: it is neither an address nor a network interface.

    Args:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`.
        interfaces: the names of the machine's network interfaces, for a caller that has them.
    """
    if interfaces is None:
        interfaces = _interfaces()
    host = _host(endpoint)
    return not (endpoint.startswith(IPC) or host == "*" or host in interfaces or literal_version(endpoint) is not None)


def _look_up(endpoint: str) -> None:
    """Looks up the name in an endpoint; what comes of it is seen when the endpoint is bound."""
    with contextlib.suppress(OSError, UnicodeError):
        socket.getaddrinfo(_host(endpoint), None, type=socket.SOCK_STREAM)


def find_addresses(endpoints: Sequence[str]) -> dict[str, str | OSError]:
    """Resolves the names in endpoints, which may block.

    Returns:
        By endpoint, an endpoint with an address, or why the name cannot be resolved. Endpoints without a name, and
        those with the name of a network interface, stay as they are.
    """
    found: dict[str, str | OSError] = {}
    interfaces = _interfaces()
    for endpoint in endpoints:
        host, port = _host(endpoint), endpoint.rpartition(":")[2]
        if not has_name(endpoint, interfaces):
            found[endpoint] = endpoint
            continue
        try:
            addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of the DNS can be so, as with an empty label
            cause = error.strerror if isinstance(error, OSError) else error
            found[endpoint] = OSError(f"the name {host} cannot be resolved: {cause}")
            continue
        # IPv4 first, as where the name can be resolved at once.
        family, _, _, _, address = min(addresses, key=lambda entry: entry[0] == socket.AF_INET6)
        literal = f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
        found[endpoint] = f"tcp://{literal}:{port}"
    return found
