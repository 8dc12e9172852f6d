"""When the client uses a place in shared memory again, and when never; when it goes back to frames."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import METADATA, FakeDaemon, Received

from multitower import Client, Code, MultitowerError, Reason, wire
from multitower.errors import CODE_OF

TAKES = {**METADATA, "max_message_size": 1 << 24, "extensions": ["statistics", "shared_memory"]}
X = np.arange(1 << 16, dtype=np.float32)
SMALL = np.arange(3)


@pytest.fixture
def daemon(tmp_socket: str) -> Iterator[FakeDaemon]:
    with FakeDaemon(endpoint=tmp_socket, metadata=TAKES) as made:
        yield made


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, retries=0) as made:
        learn(made, daemon)
        yield made


def greet(client: Client, daemon: FakeDaemon) -> None:
    """Waits until the client knows what the daemon takes."""
    asked = client._requests.ask(wire.SERVER_LIVE, {})
    daemon.reply(request := daemon.next(wire.SERVER_LIVE), fake_daemon.ok(request.id, {"live": True}))
    asked.result(10.0)


def learn(client: Client, daemon: FakeDaemon) -> None:
    """Lets the client see that the output `y` is large."""
    greet(client, daemon)
    future = client.submit("m", {"n": SMALL})
    daemon.reply(request := daemon.next(), fake_daemon.outputs(request.id, y=X))
    future.result(10.0)


def place(request: Received) -> wire.Area | None:
    """Where the request wants `y`."""
    return wire.parse_infer_header(request.header).areas.get("y")


def ask(client: Client, daemon: FakeDaemon, **arguments: Any) -> tuple[Any, Received, wire.Area]:
    """A request that has a place for its output."""
    future = client.submit("m", {"n": SMALL}, **arguments)
    request = daemon.next()
    area = place(request)
    assert area is not None
    return future, request, area


def next_place(client: Client, daemon: FakeDaemon) -> wire.Area | None:
    gc.collect()
    future = client.submit("m", {"n": SMALL})
    request = daemon.next()
    daemon.reply(request, fake_daemon.error(request.id, Reason.MODEL_ERROR))
    assert future.exception(10.0) is not None
    return place(request)


SAFE = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Reason.MODEL_ERROR, Reason.OUTPUT_INVALID}


@pytest.mark.parametrize("reason", [reason for reason in Reason if CODE_OF[reason] != Code.UNIMPLEMENTED])
def test_a_place_is_used_again_only_if_nobody_writes_to_it(reason: Reason, client: Client, daemon: FakeDaemon) -> None:
    future, request, area = ask(client, daemon)
    daemon.reply(request, fake_daemon.error(request.id, reason))
    assert isinstance(future.exception(10.0), MultitowerError)
    again = {reason, CODE_OF[reason]} & SAFE
    assert (next_place(client, daemon) == area) == bool(again)


def test_not_after_a_cancelled_request(client: Client, daemon: FakeDaemon) -> None:
    future, request, area = ask(client, daemon)
    assert future.cancel()
    assert daemon.next(wire.CANCEL).id == request.id
    assert next_place(client, daemon) != area


def test_not_after_a_request_that_ran_out_of_time(client: Client, daemon: FakeDaemon) -> None:
    future, request, area = ask(client, daemon, timeout=0.05)
    assert future.exception(10.0).reason == Reason.DEADLINE
    assert daemon.next(wire.CANCEL).id == request.id
    assert next_place(client, daemon) != area


def test_not_after_a_lost_connection(client: Client, daemon: FakeDaemon) -> None:
    future, _, area = ask(client, daemon)
    daemon.close()
    assert future.exception(10.0).reason == Reason.CONNECTION_LOST
    with FakeDaemon(endpoint=daemon.endpoint, metadata=TAKES) as other:
        greet(client, other)
        assert next_place(client, other) not in (area, None)


def test_a_request_that_waits_to_be_sent_again_keeps_its_place(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, retries=1) as client:
        learn(client, daemon)
        future, request, area = ask(client, daemon)
        daemon.reply(request, fake_daemon.error(request.id, Reason.QUEUE_FULL, retry_after_ms=1))
        request = daemon.next()
        assert place(request) == area
        daemon.reply(request, fake_daemon.error(request.id, Reason.MODEL_ERROR))
        assert future.exception(10.0).reason == Reason.MODEL_ERROR


@pytest.mark.parametrize("field", ["inputs[0].parameters.shared_memory_region", "y.parameters.shared_memory_region"])
def test_what_the_daemon_cannot_reach_is_sent_again_in_frames(field: str, client: Client, daemon: FakeDaemon) -> None:
    arena = client.empty(X.shape)
    arena[:] = X + 1
    futures = [client.submit("m", {"x": array, "n": SMALL}) for array in (X, arena)]
    requests = [daemon.next() for _ in futures]
    assert [len(request.frames) for request in requests] == [1, 1]
    for request in requests:
        daemon.reply(request, fake_daemon.error(request.id, Reason.MALFORMED, field=field))
    for future, sent in zip(futures, (X, arena), strict=True):
        request = daemon.next()
        assert "shared_memory" not in request.header.decode()
        assert (request.inputs["x"] == sent).all()
        assert request.inputs["n"].tolist() == SMALL.tolist()
        daemon.reply(request, fake_daemon.echo(request))
        assert (future.result(10.0)["x"] == sent).all()
    # It is not even tried any more, until the connection is another one.
    future = client.submit("m", {"x": arena})
    daemon.reply(request := daemon.next(), fake_daemon.echo(request))
    assert "shared_memory" not in request.header.decode()
    future.result(10.0)
    daemon.close()
    with FakeDaemon(endpoint=daemon.endpoint, metadata=TAKES) as other:
        greet(client, other)
        client.submit("m", {"x": arena})
        assert other.next().frames == []


def test_other_mistakes_are_the_callers(client: Client, daemon: FakeDaemon) -> None:
    future, request, _ = ask(client, daemon)
    daemon.reply(request, fake_daemon.error(request.id, Reason.MALFORMED, field="inputs[0].parameters"))
    assert future.exception(10.0).reason == Reason.MALFORMED
    assert place(_sent(client, daemon)) is not None


def _sent(client: Client, daemon: FakeDaemon) -> Received:
    client.submit("m", {"n": SMALL})
    return daemon.next()


@pytest.mark.parametrize(
    "metadata", [{}, METADATA, {**TAKES, "extensions": None}, {**TAKES, "extensions": "shared_memory"}]
)
def test_a_daemon_that_does_not_tell_gets_frames(metadata: dict[str, Any], tmp_socket: str) -> None:
    with FakeDaemon(endpoint=tmp_socket, metadata=metadata) as daemon, Client(daemon.endpoint) as client:
        for _ in range(2):
            future = client.submit("m", {"x": X})
            daemon.reply(request := daemon.next(), fake_daemon.echo(request))
            assert (request.inputs["x"] == X).all()
            future.result(10.0)
