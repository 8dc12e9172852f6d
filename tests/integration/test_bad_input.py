"""Invalid requests: each gets one typed error that names the field, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from running import Running

from multitower import wire
from multitower.supervisor.routing.front_socket import MAX_HOP_BYTES, MAX_HOPS
from multitower.tensors import BULKY_BYTES

CONFIG = """
listen: [{endpoint}, "tcp://127.0.0.1:*"]
devices: {cpu: 1}
spares: 0
max_message_size: 1MiB
models:
  - name: declared
    handler: handlers:Declared
    batching: {max_batch_size: 8}
  - name: echo
    handler: handlers:Echo
"""

X = np.ones((2, 3), "<f4").tobytes()
N = np.ones((2,), "<i8").tobytes()
INPUTS = [
    {"name": "x", "datatype": "FP32", "shape": [2, 3]},
    {"name": "n", "datatype": "INT64", "shape": [2]},
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("bad-input"), CONFIG) as running:
        yield running.wait_ready()


@pytest.fixture
def socket(daemon: Running) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.connect(daemon.endpoint)
        yield socket


def header(**changes: Any) -> bytes:
    whole = {"model_name": "declared", "inputs": INPUTS, **changes}
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def inputs(index: int, **changes: Any) -> bytes:
    changed = [dict(entry) for entry in INPUTS]
    changed[index].update(changes)
    return header(inputs=changed)


def good(socket: zmq.Socket[bytes]) -> None:
    socket.send_multipart([b"", wire.INFER, b"good", header(), X, N])
    empty, kind, id, reply, y, m = socket.recv_multipart()
    assert (empty, kind, id) == (b"", wire.OK, b"good")
    assert [output["name"] for output in json.loads(reply)["outputs"]] == ["y", "m"]
    assert np.frombuffer(y, "<f4").tolist() == [2.0] * 6
    assert np.frombuffer(m, "<i8").tolist() == [1, 1]


DEEP = b'{"model_name": "declared", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG = b'{"model_name": "declared", "inputs": [{"name": "x", "datatype": "FP32", "shape": [' + b"9" * 5000 + b"]}]}"

CASES: dict[str, tuple[list[bytes], str, str]] = {
    # frames behind kind and id, reason, words in the message
    "unknown model": ([header(model_name="nobody"), X, N], "model_unknown", "nobody"),
    "unknown version": ([header(model_version="7"), X, N], "version_unknown", "7"),
    "missing input": ([header(inputs=INPUTS[:1]), X], "input_missing", "'n'"),
    "half a surrogate pair as a name": ([inputs(0, name="\ud800"), X, N], "malformed", "inputs[0].name"),
    "half a surrogate pair as a model": ([header(model_name="\ud800"), X, N], "model_unknown", "no model"),
    "half a surrogate pair as an output": (
        [header(outputs=[{"name": "\ud800"}]), X, N],
        "malformed",
        "outputs[0].name",
    ),
    "a name too long": ([inputs(0, name="x" * 1025), X, N], "malformed", "inputs[0].name"),
    "extra input": (
        [header(inputs=[*INPUTS, {"name": "z", "datatype": "FP32", "shape": [2]}]), X, N, b"12345678"],
        "input_unknown",
        "'z'",
    ),
    "input given twice": ([header(inputs=[*INPUTS, INPUTS[0]]), X, N, X], "malformed", "x"),
    "unknown output": ([header(outputs=[{"name": "w"}]), X, N], "output_unknown", "'w'"),
    "wrong datatype": ([inputs(0, datatype="FP64"), X * 2, N], "datatype_mismatch", "'x'"),
    "no datatype": ([inputs(0, datatype="float"), X, N], "datatype_mismatch", "inputs[0].datatype"),
    "wrong rank": ([inputs(0, shape=[2, 3, 1]), X, N], "shape_invalid", "'x'"),
    "wrong dimension": ([inputs(0, shape=[2, 4]), X, N], "shape_invalid", "'x'"),
    "unequal rows": ([inputs(1, shape=[3]), X, N + N[:8]], "shape_invalid", "'n'"),
    "too few bytes": ([header(), X[:-1], N], "size_mismatch", "'x'"),
    "too many bytes": ([header(), X, N + b"\0"], "size_mismatch", "'n'"),
    "negative dimension": ([inputs(0, shape=[-1, 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "huge dimension": ([inputs(0, shape=[2**70, 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "huge product": ([inputs(0, shape=[2**62, 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "fractional dimension": ([inputs(0, shape=[2.5, 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "dimension in quotes": ([inputs(0, shape=["2", 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "true as a dimension": ([inputs(0, shape=[True, 3]), X, N], "shape_invalid", "inputs[0].shape"),
    "not UTF-8": ([b'{"model_name": "\xff\xfe"}', X, N], "malformed", "UTF-8"),
    "not JSON": ([b'{"model_name"', X, N], "malformed", "JSON"),
    "a list": ([b"[1, 2]", X, N], "malformed", "object"),
    "NaN": ([b'{"model_name": "declared", "parameters": {"timeout": NaN}}', X, N], "malformed", "NaN"),
    "1e999": ([b'{"model_name": "declared", "parameters": {"timeout": 1e999}}', X, N], "malformed", "1e999"),
    "a key twice": ([b'{"model_name": "declared", "model_name": "echo"}', X, N], "malformed", "twice"),
    "deep JSON": ([DEEP, X, N], "malformed", "deep"),
    "five thousand digits": ([LONG, X], "malformed", "digits"),
    "no model name": ([header(model_name=None), X, N], "malformed", "model_name"),
    "a number as model name": ([header(model_name=5), X, N], "malformed", "model_name"),
    "inputs is no list": ([header(inputs={"x": 1}), X, N], "malformed", "inputs"),
    "an input is no object": ([header(inputs=[1, 2]), X, N], "malformed", "inputs"),
    "data in the header": ([inputs(0, data=[1, 2, 3]), X, N], "malformed", "data"),
    "negative timeout": ([header(parameters={"timeout": -5}), X, N], "malformed", "timeout"),
    "fractional timeout": ([header(parameters={"timeout": 0.5}), X, N], "malformed", "timeout"),
    "a frame missing": ([header(), X], "malformed", "2 inputs"),
    "a frame too many": ([header(), X, N, b""], "malformed", "2 inputs"),
    "thousands of frames": ([header(), X, N, *[b""] * 5000], "malformed", "2 inputs"),
    "no header": ([], "malformed", "header"),
    "an oversize message": ([header(), X, b"\0" * (1 << 20)], "too_large", "max_message_size"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_invalid_request_gets_one_typed_error(case: str, daemon: Running, socket: zmq.Socket[bytes]) -> None:
    frames, reason, words = CASES[case]
    socket.send_multipart([b"", wire.INFER, b"bad", *frames])
    empty, kind, id, body = socket.recv_multipart()
    error = json.loads(body)["error"]
    assert (empty, kind, id) == (b"", wire.ERROR, b"bad")
    assert error["reason"] == reason, error
    assert words in error["message"], error
    good(socket)


ENVELOPES: dict[str, tuple[list[bytes], bytes, str, str]] = {
    # all frames, the id of the reply, reason, words in the message
    "no delimiter": ([wire.INFER, b"1", header(), X, N], b"", "malformed", "delimiter"),
    "only a delimiter": ([b""], b"", "malformed", "kind"),
    "only a kind": ([b"", wire.INFER], b"", "malformed", "kind"),
    "empty id": ([b"", wire.INFER, b"", header(), X, N], b"", "malformed", "id"),
    "long id": ([b"", wire.INFER, b"i" * 65, header(), X, N], b"", "malformed", "65"),
    "unknown kind": ([b"", b"MT1:dance", b"1", b"{}"], b"1", "kind_unknown", "MT1:dance"),
    "another protocol version": ([b"", b"MT9:infer", b"1", header(), X, N], b"1", "kind_unknown", "MT1"),
    "random bytes as kind": ([b"", b"\xff\x00" * 500, b"1", b"{}"], b"1", "kind_unknown", "MT1"),
    "status with frames": ([b"", wire.STATUS, b"1", b"{}", b"x"], b"1", "malformed", "frames"),
    "metadata without a name": ([b"", wire.MODEL_METADATA, b"1", b"{}"], b"1", "malformed", "model_name"),
    "metadata of an unknown model": (
        [b"", wire.MODEL_METADATA, b"1", b'{"model_name": "nobody"}'], b"1", "model_unknown", "nobody",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENVELOPES)
def test_an_invalid_envelope_gets_one_typed_error(case: str, socket: zmq.Socket[bytes]) -> None:
    frames, id, reason, words = ENVELOPES[case]
    socket.send_multipart(frames)
    empty, kind, came, body = socket.recv_multipart()
    error = json.loads(body)["error"]
    assert (empty, kind, came) == (b"", wire.ERROR, id)
    assert error["reason"] == reason, error
    assert words in error["message"], error
    good(socket)


SIZES = [1, MAX_HOP_BYTES]
"""Of address frames."""


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
@pytest.mark.parametrize("hops", [1, 2, MAX_HOPS - 1])
def test_a_request_gets_one_answer_whatever_address_is_before_its_delimiter(
    hops: int, kind: str, daemon: Running
) -> None:
    endpoint = daemon.endpoint if kind == "ipc" else str(daemon.wait_line("daemon started")["listen"]).split(",")[1]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.connect(endpoint.strip())
        for size in SIZES:
            address = [bytes([number + 1]) * size for number in range(hops)]
            for _ in range(2):
                socket.send_multipart([*address, b"", wire.INFER, b"1", header(), X, N])
            socket.send_multipart([*address, b"", wire.SERVER_LIVE, b"2"])
            expected = [(b"1", wire.OK), (b"1", wire.OK), (b"2", wire.OK)]
            replies = [socket.recv_multipart() for _ in expected]
            assert all(reply[: hops + 1] == [*address, b""] for reply in replies)
            assert sorted((reply[hops + 2], reply[hops + 1]) for reply in replies) == expected, size
        good(socket)
        assert not socket.poll(0)


@pytest.mark.parametrize("kind", [wire.INFER, wire.STATUS, wire.RELOAD])
@pytest.mark.parametrize("size", [MAX_HOP_BYTES + 1, BULKY_BYTES, 2 << 20])
def test_an_address_that_no_proxy_has_gets_an_error(kind: bytes, size: int, socket: zmq.Socket[bytes]) -> None:
    for address in ([bytes([1]) * size], [b"proxy", bytes([1]) * size]):
        socket.send_multipart([*address, b"", kind, b"1", header(), X, N])
        delimiter, outcome, id, body = socket.recv_multipart()
        assert (delimiter, outcome, id) == (b"", wire.ERROR, b"")
        error = json.loads(body)["error"]
        assert (error["reason"], error["details"]["field"]) == ("malformed", "envelope")
    good(socket)


@pytest.mark.parametrize("where", ["clients", "control"])
@pytest.mark.parametrize(
    ("large", "reason"), [("kind", "kind_unknown"), ("header", "too_large"), ("frames", "malformed")]
)
def test_what_no_request_has_is_refused_whatever_its_kind(
    where: str, large: str, reason: str, daemon: Running, socket: zmq.Socket[bytes]
) -> None:
    if where == "control":
        socket.disconnect(daemon.endpoint)
        socket.connect(f"ipc://{daemon.runtime_dir}/control.sock")
    kind = bytes(BULKY_BYTES) if large == "kind" else wire.SERVER_LIVE
    body = b"{" + b" " * wire.MAX_HEADER_BYTES if large == "header" else b"{}"
    # Far more frames than are kept.
    socket.send_multipart([b"", kind, b"1", body, *[b"x"] * (50_000 if large == "frames" else 0)])
    delimiter, outcome, id, reply = socket.recv_multipart()
    assert (delimiter, outcome, id) == (b"", wire.ERROR, b"1")
    assert json.loads(reply)["error"]["reason"] == reason
    socket.send_multipart([b"", wire.SERVER_LIVE, b"2"])
    assert socket.recv_multipart()[1:3] == [wire.OK, b"2"]


def test_a_frame_over_twice_the_limit_closes_only_its_own_connection(
    daemon: Running, socket: zmq.Socket[bytes]
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sender:
        sender.setsockopt(zmq.LINGER, 0)
        monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        sender.connect(daemon.endpoint)
        sender.send_multipart([b"", wire.INFER, b"1", header(), b"\0" * (3 << 20), N])
        assert monitor.poll(60_000), "the connection is still open"
        sender.disable_monitor()
        monitor.close()
        good(socket)


def test_invalid_requests_restart_no_worker(daemon: Running) -> None:
    slot = daemon.slot()
    assert (slot["state"], slot["restarts"], slot["incarnation"]) == ("ready", 0, 1)


def test_undeclared_outputs_have_the_datatype_and_shape_of_their_arrays(socket: zmq.Socket[bytes]) -> None:
    head = json.dumps({"model_name": "echo", "inputs": [{"name": "a", "datatype": "INT8", "shape": []}]}).encode()
    socket.send_multipart([b"", wire.INFER, b"e", head, b"\x07"])
    empty, kind, _, reply, a = socket.recv_multipart()
    assert (empty, kind, a) == (b"", wire.OK, b"\x07")
    assert json.loads(reply)["outputs"] == [{"name": "a", "datatype": "INT8", "shape": []}]
