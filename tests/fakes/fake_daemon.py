"""A scripted daemon for the client's tests: a ROUTER socket in a thread that replies as the test says.

It answers `MT1:server_metadata`, which a client sends before anything else. Other requests are passed to `answer`, if
there is one; else they are put in `requests`, and the test answers them through `reply`.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zmq
from zmq.utils import z85

from multitower import errors, tensors, wire

WAIT_S = 60.0
METADATA = {"name": "fake", "version": "0", "max_message_size": 1 << 20}


@dataclass
class Received:
    """A received request."""

    address: bytes
    kind: bytes
    id: bytes
    header: bytes
    frames: list[bytes]

    @property
    def json(self) -> dict[str, Any]:
        """The header."""
        value: dict[str, Any] = json.loads(self.header)
        return value

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The tensors."""
        return {
            entry["name"]: tensors.decode(entry["datatype"], entry["shape"], frame)
            for entry, frame in zip(self.json["inputs"], self.frames, strict=True)
        }


Answer = Callable[[Received], Sequence[bytes] | None]
"""Returns the frames of the reply from its kind on; None leaves the request to the test."""


def ok(id: bytes, header: Any, *frames: bytes) -> list[bytes]:
    """The frames of an `MT1:ok` reply."""
    return [wire.OK, id, json.dumps(header).encode(), *frames]


def outputs(id: bytes, **arrays: np.ndarray) -> list[bytes]:
    """The frames of the reply to `MT1:infer` with these outputs."""
    described = [wire.Tensor(name, tensors.datatype_of(array), array.shape) for name, array in arrays.items()]
    header = wire.reply_header("model", "1", described)
    return [wire.OK, id, header, *(bytes(tensors.encode(array)) for array in arrays.values())]


def error(id: bytes, reason: errors.Reason, message: str = "as the test wants", **details: Any) -> list[bytes]:
    """The frames of an `MT1:error` reply."""
    return [wire.ERROR, id, wire.dump_json(errors.make(reason, message, **details).to_wire())]


def echo(request: Received) -> list[bytes]:
    """Answers `MT1:infer` with the inputs as outputs, and any other kind with its header."""
    if request.kind != wire.INFER:
        return ok(request.id, request.json)
    header = {"model_name": request.json["model_name"], "model_version": "1", "outputs": request.json["inputs"]}
    return ok(request.id, header, *request.frames)


class FakeDaemon:
    """Listens from its construction until `close`. A context manager.

    Args:
        answer: see `Answer`; None leaves all requests to the test.
        endpoint: where it listens.
        metadata: its answer to `MT1:server_metadata`; None for no answer.
        secret_key: its CURVE key, in Z85; None for a daemon without CURVE.
        admits: the public keys that it admits, in Z85; it may be changed.

    Attributes:
        endpoint: with the real port.
        requests: those that `answer` did not answer, in order of arrival.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        endpoint: str = "tcp://127.0.0.1:*",
        metadata: dict[str, Any] | None = METADATA,
        secret_key: str | None = None,
        admits: Collection[str] = (),
    ) -> None:
        self.requests: queue.Queue[Received] = queue.Queue()
        self._answer = answer
        self._metadata = metadata
        self._to_send: queue.Queue[list[bytes]] = queue.Queue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IPV6, int("[" in endpoint))
        self._admits = admits
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        if secret_key is not None:
            self._socket.set(zmq.CURVE_SERVER, 1)
            self._socket.set(zmq.CURVE_SECRETKEY, secret_key.encode())
        self._socket.bind(endpoint)
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._inner = self._context.socket(zmq.PULL)
        self._inner.bind("inproc://wake")
        self._outer = self._context.socket(zmq.PUSH)
        self._outer.connect("inproc://wake")
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._inner, zmq.POLLIN)
        self._poller.register(self._zap, zmq.POLLIN)
        self._lock = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake-daemon", daemon=True)
        self._thread.start()

    # For tests.

    def next(self, kind: bytes = wire.INFER) -> Received:
        """The next request in `requests`, which must be of this kind."""
        request = self.requests.get(timeout=WAIT_S)
        assert request.kind == kind, request
        return request

    def reply(self, request: Received, frames: Sequence[bytes]) -> None:
        """Sends the frames of a reply, from its kind on."""
        self.send(request, [wire.DELIMITER, *frames])

    def send(self, request: Received, frames: Sequence[bytes]) -> None:
        """Sends any frames at all to the client of a request."""
        self._to_send.put([request.address, *frames])
        self._wake(b"send")

    def close(self, linger: int = 0) -> None:
        """Stops listening and ends the connections. Replies that are not sent yet get `linger` milliseconds."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._outer.send(b"end")
        self._thread.join(WAIT_S)
        self._context.destroy(linger)
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In its thread.

    def _wake(self, what: bytes) -> None:
        with self._lock:
            self._outer.send(what)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as failure:  # noqa: BLE001 - raised again in `close`
            self._failure = failure

    def _turn(self) -> bool:
        ready = dict(self._poller.poll())
        if self._inner in ready and self._inner.recv() == b"end":
            return False
        while not self._to_send.empty():
            self._socket.send_multipart(self._to_send.get())
        if self._zap in ready:
            version, request_id, *_, key = self._zap.recv_multipart()
            status = b"200" if z85.encode(key).decode() in self._admits else b"400"
            self._zap.send_multipart([version, request_id, status, b"", b"", b""])
        if self._socket in ready:
            address, empty, kind, id, header, *frames = self._socket.recv_multipart()
            assert empty == wire.DELIMITER
            self._take(Received(address, kind, id, header, frames))
        return True

    def _take(self, request: Received) -> None:
        answer: Sequence[bytes] | None = None
        if request.kind == wire.SERVER_METADATA:
            if self._metadata is not None:
                answer = ok(request.id, self._metadata)
        elif self._answer is not None:
            answer = self._answer(request)
        if answer is not None:
            self._socket.send_multipart([request.address, wire.DELIMITER, *answer])
        elif request.kind != wire.SERVER_METADATA:
            self.requests.put(request)
