"""The settings that a gateway process reads from stdin at its start: one JSON object."""

from __future__ import annotations

import os
from typing import Any, Final

from ..config.config import Config
from ..config.gateway import GatewayConfig
from ..loop.runtime_dir import RuntimeDir
from ..settings import Settings
from .listeners import GatewayListeners

MAX_HEADER_BYTES: Final = 64 << 10
HEADER_TIMEOUT_S: Final = 10.0
MAX_OUTSTANDING: Final = 4096

REQUEST_SLACK_S: Final = 1.0
"""Seconds that a request may take beyond the longest `queue.timeout`, within which the daemon answers."""

DRAIN_SLACK_S: Final = 2.0
"""Seconds that the gateway gets beyond `drain_timeout`, to pass on what the daemon answers at its end."""


def process_settings(
    version: str, settings: Settings, listeners: GatewayListeners, runtime: RuntimeDir
) -> dict[str, Any]:
    """Returns the settings of a process that is started now.

    Args:
        version: of the daemon, which the gateway compares with its own.
        settings: those in force; their configuration has a section `gateway`.
        listeners: the sockets that the process inherits.
        runtime: has the socket on which the daemon serves the gateway.
    """
    config = settings.config.gateway
    assert config is not None  # a reload that adds or removes it is refused
    return {
        "version": version,
        "daemon_pid": os.getpid(),
        "daemon": str(runtime.gateway_socket),
        "control": str(runtime.control_socket),
        "operate": config.operate,
        "threads": config.threads,
        "listeners": listeners.to_json(),
        **_security(settings.config),
        "limits": _limits(config, settings.config.drain_timeout, max(settings.timeouts.values(), default=0.0)),
    }


def _security(config: Config) -> dict[str, Any]:
    """Whether clients need credentials, and the files of TLS, which the process reads again when they change."""
    found: dict[str, Any] = {}
    if config.security is not None:
        found["security"] = True
    tls = config.gateway.tls if config.gateway is not None else None
    if tls is not None:
        files = {"certificate": tls.certificate, "private_key": tls.private_key, "client_ca": tls.client_ca}
        found["tls"] = {name: str(path) for name, path in files.items() if path is not None}
    return found


def _limits(config: GatewayConfig, drain_timeout_s: float, request_timeout_s: float) -> dict[str, Any]:
    return {
        "max_body_bytes": config.max_body_size,
        "max_buffered_bytes": config.max_buffered_bytes,
        "max_header_bytes": MAX_HEADER_BYTES,
        "header_timeout_s": HEADER_TIMEOUT_S,
        "body_timeout_s": config.body_timeout,
        "idle_timeout_s": config.idle_timeout,
        "max_connections": config.max_connections,
        "max_outstanding": MAX_OUTSTANDING,
        "request_timeout_s": request_timeout_s + REQUEST_SLACK_S,
        "drain_timeout_s": drain_timeout_s + DRAIN_SLACK_S / 2,
    }
