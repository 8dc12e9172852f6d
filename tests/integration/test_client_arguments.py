"""Arguments of both clients that have more than one form, and what cannot be done with a client."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_args, get_origin

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received

import multitower
from multitower import AsyncClient, Client, InvalidRequest, wire

SECOND = timedelta(seconds=20)


class Daemon:
    """A scripted daemon that keeps the headers of requests.

    Attributes:
        endpoint: its endpoint.
        headers: of the requests, in order.
    """

    def __init__(self) -> None:
        self.headers: list[dict[str, Any]] = []
        self._daemon = FakeDaemon(self._answer)
        self.endpoint = self._daemon.endpoint
        self.close = self._daemon.close

    def _answer(self, request: Received) -> list[bytes]:
        self.headers.append(request.json)
        if request.kind == wire.SERVER_READY:
            return fake_daemon.ok(request.id, {"ready": True})
        return fake_daemon.echo(request)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


@pytest.mark.parametrize("version", [1, np.int64(1), "1"], ids=repr)
def test_a_version_may_be_a_number_or_a_string(version: Any, daemon: Daemon) -> None:
    async def ask() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            await client.infer("m", {"x": 1.0}, version=version)
            await client.metadata("m", version)

    with Client(daemon.endpoint) as client:
        client.infer("m", {"x": 1.0}, version=version)
        client.submit("m", {"x": 1.0}, version=version).result(60)
        client.metadata("m", version)
        client.statistics("m", version)
    asyncio.run(ask())
    assert [header["model_version"] for header in daemon.headers] == ["1"] * 6


@pytest.mark.parametrize("version", [1.5, True, None, b"1"], ids=repr)
def test_a_version_of_another_type_is_refused(version: Any, daemon: Daemon) -> None:
    with Client(daemon.endpoint) as client:
        for ask in (
            lambda: client.infer("m", {"x": 1.0}, version=version),
            lambda: client.metadata("m", version),
        ):
            with pytest.raises(InvalidRequest, match="version must be the number of a version") as error:
                ask()
            assert error.value.details == {"field": "model_version"}


def test_times_may_be_timedeltas(daemon: Daemon) -> None:
    async def ask() -> None:
        async with AsyncClient(daemon.endpoint, timeout=SECOND, connect_timeout=SECOND, peer_timeout=SECOND) as client:
            await client.wait_until_ready(SECOND)
            await client.infer("m", {"x": 1.0})

    with Client(daemon.endpoint, timeout=SECOND, connect_timeout=SECOND, peer_timeout=SECOND) as client:
        client.wait_until_ready(SECOND)
        client.infer("m", {"x": 1.0})
        client.infer("m", {"x": 1.0}, timeout=timedelta(milliseconds=9500))
    asyncio.run(ask())
    timeouts = [header["parameters"]["timeout"] for header in daemon.headers if "inputs" in header]
    assert timeouts == [20_000_000, 9_500_000, 20_000_000]


@pytest.mark.parametrize("value", ["5", None, True, 5j], ids=repr)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "peer_timeout"])
def test_a_time_of_another_type_says_what_it_must_be(kind: type, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number of seconds or a timedelta, not "):
        kind("tcp://127.0.0.1:5555", **{name: value})


def test_the_time_of_a_request_says_what_it_must_be(daemon: Daemon) -> None:
    with Client(daemon.endpoint) as client:
        with pytest.raises(TypeError, match="timeout must be a number of seconds or a timedelta, not '5'"):
            client.infer("m", {"x": 1.0}, timeout="5")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
            client.infer("m", {"x": 1.0}, timeout=-SECOND)
        with pytest.raises(TypeError, match="timeout must be a number of seconds"):
            client.wait_until_ready("5")  # type: ignore[arg-type]


def test_a_lone_string_is_no_list_of_outputs(daemon: Daemon) -> None:
    with Client(daemon.endpoint) as client:
        with pytest.raises(InvalidRequest, match=r"outputs is a list of names, as in \['scores'\]"):
            client.infer("m", {"x": 1.0}, outputs="scores")  # type: ignore[arg-type]
        for outputs in (["x"], ("x",)):
            client.infer("m", {"x": 1.0}, outputs=outputs)
    assert [header["outputs"] for header in daemon.headers] == [[{"name": "x"}]] * 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_says_why_it_cannot_be_copied_or_pickled(kind: type, daemon: Daemon) -> None:
    client = kind(daemon.endpoint)
    words = rf"a {kind.__name__} cannot be copied or pickled: .* make a new one in each process, {kind.__name__}\('tcp:"
    for attempt in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=words):
            attempt(client)
    with pytest.raises(TypeError, match=words):
        multiprocessing.get_context("spawn").Process(target=print, args=(client,)).start()


def test_the_type_of_outputs_is_public() -> None:
    assert get_origin(multitower.Outputs) is dict
    assert get_args(multitower.Outputs)[0] is str
