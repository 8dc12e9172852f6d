"""Whether the gateway could be started: its program, and the addresses of HTTP and gRPC."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from multitower.client.threads import Client
from multitower.errors import Forbidden, MultitowerError, Unauthenticated
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.gateway import endpoint_of
from multitower.supervisor.gateway.program import ProgramError, check_program, own_version
from multitower.tools.doctor.endpoints import ASK_S, listening_finding
from multitower.tools.doctor.findings import Finding, Level
from multitower.wire import KEY_VARIABLE, SERVER_KEY_VARIABLE

SECTION: Final = "gateway"


def findings(config: Config) -> Iterator[Finding]:
    """Findings about the gateway; none where none is configured."""
    if config.gateway is None:
        return
    try:
        program = check_program(config.gateway.program)
    except ProgramError as error:
        yield Finding(SECTION, Level.PROBLEM, str(error), f"{error.advice}; or remove `gateway` from the configuration")
    else:
        yield Finding(SECTION, Level.OK, f"{program} has the version of multitower, {own_version()}")
    taken = functools.partial(_taken_finding, config.listen)
    for address in config.gateway.addresses:
        yield replace(listening_finding(endpoint_of(address), address, taken), section=SECTION)


def _taken_finding(listen: Sequence[str], address: str) -> Finding:
    served = [_served_by_gateway(endpoint) for endpoint in listen]
    if any(address in found for found in served if found is not None):
        advice = "a second daemon needs other addresses"
        return Finding(SECTION, Level.WARNING, f"{address}: the gateway of a running daemon serves there", advice)
    if None in served:
        text = f"{address} is in use, perhaps by the gateway of the running daemon, which answers nobody without a key"
        advice = f"set {KEY_VARIABLE} and {SERVER_KEY_VARIABLE} to keys with the role observe, and run doctor again"
        return Finding(SECTION, Level.WARNING, text, advice)
    advice = "end that process (ss -ltnpx lists it), or configure another address"
    return Finding(SECTION, Level.PROBLEM, f"{address} is used by another process", advice)


def _served_by_gateway(endpoint: str) -> list[str] | None:
    """The addresses of the gateway of the daemon at an endpoint; none if no daemon with a gateway answers.

    Returns:
        None if a daemon answers that does not say.
    """
    try:
        with Client(endpoint, timeout=ASK_S, connect_timeout=ASK_S) as client:
            gateway = client.status()["daemon"].get("gateway") or {}
    except (Forbidden, Unauthenticated):
        return None
    except (MultitowerError, ValueError):  # ValueError: an endpoint with the port *, which names none
        return []
    return [*gateway.get("http", ()), *gateway.get("grpc", ())]
