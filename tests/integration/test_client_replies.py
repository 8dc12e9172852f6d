"""What `Client` makes of errors, of replies that are malformed, and of messages that are no replies."""

from __future__ import annotations

import json
import threading
from typing import Any

import fake_daemon
import pytest
from fake_daemon import FakeDaemon, Received

from multitower import (
    Cancelled,
    Client,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    InvalidRequest,
    ModelError,
    MultitowerError,
    NotFound,
    Overloaded,
    Poisoned,
    Unauthenticated,
    Unavailable,
    wire,
)
from multitower.errors import Reason

WAIT_S = 60.0


CLASSES: dict[Reason, type[MultitowerError]] = {
    Reason.MALFORMED: InvalidRequest,
    Reason.TOO_LARGE: InvalidRequest,
    Reason.KIND_UNKNOWN: InvalidRequest,
    Reason.MODEL_UNKNOWN: NotFound,
    Reason.VERSION_UNKNOWN: NotFound,
    Reason.SIGNATURE_UNKNOWN: NotFound,
    Reason.INPUT_UNKNOWN: InvalidRequest,
    Reason.INPUT_MISSING: InvalidRequest,
    Reason.OUTPUT_UNKNOWN: InvalidRequest,
    Reason.DATATYPE_MISMATCH: InvalidRequest,
    Reason.SHAPE_INVALID: InvalidRequest,
    Reason.SIZE_MISMATCH: InvalidRequest,
    Reason.QUEUE_FULL: Overloaded,
    Reason.DEADLINE: DeadlineExceeded,
    Reason.CANCELLED: Cancelled,
    Reason.DRAINING: Unavailable,
    Reason.NO_WORKER: Unavailable,
    Reason.WORKER_DIED: Unavailable,
    Reason.POISONED: Poisoned,
    Reason.MODEL_ERROR: ModelError,
    Reason.OUTPUT_INVALID: ModelError,
    Reason.REPLY_DROPPED: Overloaded,
    Reason.INTERNAL_ERROR: InternalError,
    Reason.UNAUTHENTICATED: Unauthenticated,
    Reason.FORBIDDEN: Forbidden,
    Reason.RELOAD_IN_PROGRESS: Unavailable,
    Reason.TOO_MANY_ORDERS: Overloaded,
    Reason.CONFIG_REFUSED: InvalidRequest,
    Reason.SLOT_UNKNOWN: NotFound,
    Reason.SLOT_EMPTY: InvalidRequest,
    Reason.ORDER_FAILED: ModelError,
}


def test_every_reason_that_is_sent_has_its_class() -> None:
    assert set(Reason) - set(CLASSES) == {Reason.NOT_LISTENING, Reason.CONNECTION_LOST, Reason.CLOSED}


@pytest.mark.parametrize("reason", CLASSES)
def test_errors_have_their_classes(reason: Reason, client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    daemon.reply(request, fake_daemon.error(request.id, reason, "why it failed", field="x"))
    error = future.exception(WAIT_S)
    assert type(error) is CLASSES[reason]
    assert isinstance(error, MultitowerError)
    assert (error.reason, error.message, error.details) == (reason, "why it failed", {"field": "x"})


def test_an_unknown_error_keeps_its_code_and_reason(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    body = {"error": {"code": "DATA_LOSS", "reason": "eaten_by_mice", "message": "the disk is gone"}}
    daemon.reply(request, [wire.ERROR, request.id, json.dumps(body).encode()])
    error = future.exception(WAIT_S)
    assert isinstance(error, MultitowerError)
    assert (error.code, error.reason, error.message) == ("DATA_LOSS", "eaten_by_mice", "the disk is gone")


GOOD = {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}
DEEP = b"[" * 100_000 + b"]" * 100_000


def _output(**changes: Any) -> bytes:
    return json.dumps({**GOOD, "outputs": [{**GOOD["outputs"][0], **changes}]}).encode()  # type: ignore[dict-item]


BAD_REPLIES: dict[str, list[bytes]] = {
    # the frames behind the id
    "no JSON": [b"\xff{", b"12345678"],
    "no object": [b"[1]", b"12345678"],
    "deep JSON": [DEEP, b"12345678"],
    "a large header": [b" " * (1 << 18), b"12345678"],
    "no outputs": [b"{}", b"12345678"],
    "outputs are no list": [b'{"outputs": 7}', b"12345678"],
    "an output is no object": [b'{"outputs": [7]}', b"12345678"],
    "a name that is none": [_output(name=[]), b"12345678"],
    "too few bytes": [_output(), b"1234567"],
    "too many bytes": [_output(), b"123456789"],
    "a frame missing": [_output()],
    "a frame too many": [_output(), b"12345678", b""],
    "an unknown datatype": [_output(datatype="FP13"), b"12345678"],
    "a datatype that is none": [_output(datatype={}), b"12345678"],
    "negative dimensions": [_output(shape=[-1, -2]), b"12345678"],
    "a fractional dimension": [_output(shape=[2.0]), b"12345678"],
    "a huge dimension": [_output(shape=[2**70, 0]), b""],
    "a shape that is none": [_output(shape="2"), b"12345678"],
    "more text than there is memory for": [_output(datatype="BYTES", shape=[10**15]), b"12345678"],
    "text that ends early": [_output(datatype="BYTES", shape=[2]), b"\1\0\0\0a\5\0\0\0"],
}


@pytest.mark.parametrize("case", BAD_REPLIES)
def test_malformed_replies_fail_as_output_invalid(case: str, client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    daemon.reply(request, [wire.OK, request.id, *BAD_REPLIES[case]])
    with pytest.raises(ModelError) as error:
        future.result(WAIT_S)
    assert error.value.reason == "output_invalid"
    _works(client, daemon)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", DEEP, b'{"error": 7}', b'{"error": {"details": []}}', b""])
@pytest.mark.parametrize("kind", [wire.ERROR, b"MT1:what", b"k" * 100_000], ids=["error", "unknown", "huge"])
def test_malformed_errors_fail_as_model_errors(kind: bytes, body: bytes, client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    daemon.reply(request, [kind, request.id, body])
    with pytest.raises(ModelError):
        future.result(WAIT_S)
    _works(client, daemon)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", DEEP, b""])
def test_malformed_answers_to_queries_fail_as_output_invalid(body: bytes, client: Client, daemon: FakeDaemon) -> None:
    errors: list[MultitowerError] = []

    def ask() -> None:
        try:
            client.status()
        except MultitowerError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    request = daemon.next(wire.STATUS)
    daemon.reply(request, [wire.OK, request.id, body])
    asking.join(WAIT_S)
    assert [error.reason for error in errors] == ["output_invalid"]


GARBAGE: dict[str, list[bytes]] = {
    "nothing": [b""],
    "no delimiter": [wire.OK, b"1", b"{}"],
    "only a kind": [b"", wire.OK],
    "no header": [b"", wire.OK, b"1"],
    "an unknown id": [b"", wire.OK, b"nobody", b"{}"],
    "an empty id": [b"", wire.ERROR, b"", b"{}"],
    "large frames": [b"x" * 100_000] * 4,
    "a large id": [b"", wire.OK, b"x" * 100_000, b"{}"],
    "a second greeting that cannot be read": [b"", wire.OK, b"greeting", DEEP],
}


@pytest.mark.parametrize("case", GARBAGE)
def test_messages_that_are_not_replies_are_ignored(case: str, client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    daemon.send(request, GARBAGE[case])
    daemon.reply(request, fake_daemon.echo(request))
    assert future.result(WAIT_S)["x"].tolist() == 1.0


def test_a_second_reply_is_ignored(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    for _ in range(2):
        daemon.reply(request, fake_daemon.echo(request))
    assert future.result(WAIT_S)["x"].tolist() == 1.0
    _works(client, daemon)


def _works(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 2.0})
    request: Received = daemon.next()
    daemon.reply(request, fake_daemon.echo(request))
    assert future.result(WAIT_S)["x"].tolist() == 2.0
