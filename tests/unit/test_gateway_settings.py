"""What a gateway process is told about security and TLS at its start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multitower.supervisor.config.gateway import GatewayConfig
from multitower.supervisor.gateway.process_settings import process_settings

FILES = {"certificate": Path("/c.pem"), "private_key": Path("/k.pem")}


@pytest.mark.parametrize(
    ("security", "tls", "expected"),
    [
        (False, None, {}),
        (True, None, {"security": True}),
        (False, {**FILES, "client_ca": None}, {"tls": {"certificate": "/c.pem", "private_key": "/k.pem"}}),
        (
            True,
            {**FILES, "client_ca": Path("/ca.pem")},
            {"security": True, "tls": {"certificate": "/c.pem", "private_key": "/k.pem", "client_ca": "/ca.pem"}},
        ),
    ],
)
def test_security_and_tls_are_told_where_there_are_some(security: bool, tls: Any, expected: dict[str, Any]) -> None:
    gateway = GatewayConfig.model_construct(tls=SimpleNamespace(**tls) if tls is not None else None)
    config = SimpleNamespace(gateway=gateway, security=object() if security else None, drain_timeout=5.0)
    settings: Any = SimpleNamespace(config=config, timeouts={})
    listeners: Any = SimpleNamespace(to_json=list)
    runtime: Any = SimpleNamespace(gateway_socket=Path("/run/g"), control_socket=Path("/run/c"))
    told = process_settings("1", settings, listeners, runtime)
    assert {key: told[key] for key in ("security", "tls") if key in told} == expected
