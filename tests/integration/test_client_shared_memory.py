"""`Client` against a daemon that accepts or refuses shared memory: the request and the next ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import METADATA, FakeDaemon, Received

from multitower import Client, InvalidRequest, ModelError, tensors, wire
from multitower.client import codec
from multitower.errors import Reason

WAIT_S = 60.0
LARGE = np.ones(codec.SHARED_BYTES, np.uint8)
WHERE = f"inputs[0].parameters.{wire.SHARED_MEMORY_REGION}"


def answer(request: Received) -> Sequence[bytes] | None:
    """Leaves `MT1:infer` to the test."""
    return None if request.kind == wire.INFER else fake_daemon.echo(request)


@pytest.fixture
def daemon(tmp_socket: str) -> Iterator[FakeDaemon]:
    with FakeDaemon(answer, tmp_socket, {**METADATA, "extensions": [wire.SHARED_MEMORY_EXTENSION]}) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, timeout=WAIT_S) as client:
        client.statistics()  # the client has read the greeting, which offers shared memory
        yield client


def refuse(daemon: FakeDaemon, **details: Any) -> None:
    """Refuses the shared memory of the next request."""
    request = daemon.next()
    assert is_shared(request)
    daemon.reply(request, fake_daemon.error(request.id, Reason.MALFORMED, "no shared memory", field=WHERE, **details))


def is_shared(request: Received) -> bool:
    return not request.frames


def reply(daemon: FakeDaemon) -> Received:
    """Answers the next request with one byte."""
    request = daemon.next()
    daemon.reply(request, fake_daemon.outputs(request.id, y=np.ones(1, np.uint8)))
    return request


def no_memory(*_: object) -> None:
    raise MemoryError("none left")


def test_refused_requests_and_the_next_ones_are_sent_in_frames(client: Client, daemon: FakeDaemon) -> None:
    for number in range(2):
        future = client.submit("m", {"x": LARGE})
        if number == 0:
            refuse(daemon)
        assert reply(daemon).frames == [LARGE.tobytes()]
        assert future.result(WAIT_S)["y"].tolist() == [1]


def test_shared_memory_is_used_again_after_a_temporary_refusal(client: Client, daemon: FakeDaemon) -> None:
    for after_ms in (3000, 0):
        future = client.submit("m", {"x": LARGE})
        refuse(daemon, retry_after_ms=after_ms)
        assert not is_shared(reply(daemon))
        assert future.result(WAIT_S)["y"].tolist() == [1]
        future = client.submit("m", {"x": LARGE})
        assert is_shared(reply(daemon)) == (after_ms == 0)
        future.result(WAIT_S)
        limit = time.monotonic() + WAIT_S
        while not client._requests.connection.accepts_shared_memory:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_a_temporary_refusal_does_not_undo_a_permanent_one(client: Client, daemon: FakeDaemon) -> None:
    futures = [client.submit("m", {"x": LARGE}) for _ in range(2)]
    refuse(daemon)
    refuse(daemon, retry_after_ms=0)
    for future in futures:
        assert not is_shared(reply(daemon))
        future.result(WAIT_S)
    client.submit("m", {"x": LARGE})
    assert not is_shared(reply(daemon))


def test_no_memory_for_frames_fails_that_request_only(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (client.submit("m", {"x": LARGE}) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_own", no_memory)
        refuse(daemon)
        with pytest.raises(InvalidRequest, match=r"no shared memory; and it cannot .*none left") as error:
            first.result(WAIT_S)
    assert error.value.details == {"field": WHERE}
    refuse(daemon)
    assert not is_shared(reply(daemon))
    assert second.result(WAIT_S)["y"].tolist() == [1]


def test_no_memory_for_a_reply_fails_that_request_only(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (client.submit("m", {"x": 1.0}) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "decode", no_memory)
        reply(daemon)
        with pytest.raises(ModelError, match="none left") as error:
            first.result(WAIT_S)
    assert error.value.reason == "output_invalid"
    reply(daemon)
    assert second.result(WAIT_S)["y"].tolist() == [1]
