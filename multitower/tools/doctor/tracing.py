"""Whether requests could be traced: the packages, and the collector."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from multitower.supervisor.config.config import Config
from multitower.supervisor.observability.otlp_exporter import INSTALL, missing_packages
from multitower.tools.doctor.findings import Finding, Level, join_names

SECTION: Final = "tracing"
CONNECT_S: Final = 2.0
"""Seconds in which the collector accepts a connection."""

_PORTS: Final = {"http": 80, "https": 443}


def findings(config: Config) -> Iterator[Finding]:
    """Findings about traces; none where none are configured."""
    if config.tracing is None:
        return
    endpoint = config.tracing.endpoint
    missing = missing_packages(endpoint)
    if missing:
        text = f"not installed: {join_names(missing)}"
        yield Finding(SECTION, Level.PROBLEM, text, f"{INSTALL}; or remove `tracing` from the configuration")
    yield _collector_finding(endpoint)


def _collector_finding(endpoint: str) -> Finding:
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or _PORTS[url.scheme]), CONNECT_S).close()
    except OSError as error:
        text = f"{endpoint}: the collector accepts no connection: {error.strerror or error}"
        advice = "start it, or correct `tracing.endpoint`; requests are served without it, and their spans are dropped"
        return Finding(SECTION, Level.WARNING, text, advice)
    return Finding(SECTION, Level.OK, f"{endpoint}: something accepts connections there")
