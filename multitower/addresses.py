"""Endpoints as clients use them: their form, and the hosts in them."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

ENDPOINT_FORMS: Final = "ipc://PATH or tcp://HOST:PORT"

MAX_PATH_BYTES: Final = 107
"""Bytes of the path of a Unix socket."""

_PORT: Final = re.compile(r"[0-9]{1,5}")
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


def literal_version(endpoint: str) -> int | None:
    """4 or 6 if the host of an endpoint is an IP address, with or without brackets; None if it is a name."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError:
        return None


def split_tcp(endpoint: str) -> tuple[str, int]:
    """The host, without brackets, and the port of a tcp endpoint that `check_endpoint` accepts."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_endpoint(endpoint: object) -> str:
    """Checks the form of an endpoint to connect to. Whether anything listens there is not checked.

    Args:
        endpoint: what an application or a user gave.

    Returns:
        The endpoint.

    Raises:
        ValueError: it is not an endpoint; the message names it, what is wrong, and the forms.
    """
    problem = _problem(endpoint) if isinstance(endpoint, str) else f"it is {type(endpoint).__name__}, not str"
    if problem is not None:
        shown = repr(endpoint)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
        raise ValueError(f"{shown} is not an endpoint: {problem}; an endpoint is {ENDPOINT_FORMS}")
    assert isinstance(endpoint, str)
    return endpoint


def _problem(endpoint: str) -> str | None:
    scheme, separator, rest = endpoint.partition("://")
    if not separator:
        return "it does not begin with ipc:// or tcp://"
    if scheme == "ipc":
        return _path_problem(rest)
    if scheme == "tcp":
        return _tcp_problem(rest)
    return f"it begins with {scheme}://, not with ipc:// or tcp://"


def _path_problem(path: str) -> str | None:
    if path in ("", "@", "*"):
        return "there is no path"
    if "\0" in path:
        return "the path holds a zero byte"
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return "the path is not UTF-8"
    if length > MAX_PATH_BYTES:
        return f"the path has {length} bytes, and a socket's may have {MAX_PATH_BYTES}"
    return None


def _tcp_problem(address: str) -> str | None:
    host, colon, port = address.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        return "there is no port"
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        return f"the port is {port!r}, not a number from 1 to 65535"
    if not host:
        return "there is no host"
    if host == "*":
        return "* is an address to listen on; name a host"
    if literal_version(f"tcp://{address}") is None and not _NAME.fullmatch(host):
        return f"{host!r} is neither the name of a host nor an IP address"
    return None
