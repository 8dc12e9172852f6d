"""Endpoints that are malformed raise an error from the constructors of both clients; others are accepted."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from multitower import AsyncClient, Client, ConnectError, InvalidEndpoint, Unavailable

MALFORMED = [
    "garbage",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:99999",
    "tcp://127.0.0.1:http",
    "tcp://:5555",
    "tcp://*:5555",
    "tcp://[::1:5555",
    "tcp://a host:5555",
    "tcp://127.0.0.1:5555/path",
    "TCP://127.0.0.1:5555",
    "http://127.0.0.1:5555",
    "inproc://x",
    "ipc://",
    "ipc:///a\0b",
    "ipc:///\udc80",
    f"ipc:///{'x' * 200}",
    5555,
    b"tcp://127.0.0.1:5555",
    Path("/run/multitower/front.sock"),
]


@pytest.mark.parametrize("endpoint", MALFORMED, ids=ascii)
def test_a_malformed_endpoint_raises_the_same_error_in_both_clients(endpoint: str) -> None:
    messages = set()
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidEndpoint, match="an endpoint is ipc://PATH or tcp://HOST:PORT") as error:
            kind(endpoint)
        assert isinstance(error.value, ValueError)
        assert isinstance(error.value, Unavailable)
        assert error.value.reason == "not_listening"
        assert error.value.details["connect_error"] == ConnectError.ENDPOINT_MALFORMED
        copied = copy.copy(error.value)  # as pickle does it
        assert (type(copied), str(copied), copied.details) == (InvalidEndpoint, str(error.value), error.value.details)
        messages.add(error.value.message)
    assert len(messages) == 1


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://localhost:1", "tcp://[::1]:1", "tcp://::1:1", "tcp://a-b_c.example.:65535", "ipc://front.sock", "ipc://@x"],
)
def test_well_formed_endpoints_are_accepted(endpoint: str) -> None:
    with Client(endpoint) as client:
        assert client.endpoint == endpoint
