"""Hosts of endpoints: addresses and names."""

from __future__ import annotations

import ipaddress


def literal_version(endpoint: str) -> int | None:
    """4 or 6 if the host of an endpoint is an IP address, with or without brackets; None if it is a name."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError:
        return None
