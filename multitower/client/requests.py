"""What both clients share: how each kind of request is made, sent, and given its outcome."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from multitower import wire
from multitower.client.codec import Codec, Encoded, read_header
from multitower.client.connection import Call, Connection
from multitower.client.shared_memory import Arena
from multitower.errors import Code, MultitowerError, Reason, Unavailable, make

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    Outputs = dict[str, NDArray[Any]]

CONNECT_TIMEOUT_S = 5.0
MAX_OUTSTANDING = 1000
ASK_AGAIN_S = 0.05


class RequestFuture(Future[Any]):
    """The future of a request; `cancel` also tells the daemon, which then does not run it if it can help it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._call: Call | None = None

    def cancel(self) -> bool:
        """Cancels the request, unless its outcome is there."""
        if not super().cancel():
            return False
        if self._call is not None:
            self._connection.cancel(self._call)
        return True

    def lead(self) -> None:
        """Waits for the outcome, where the caller can do so by itself; for who alone knows of this future."""
        if self._call is not None:
            try:
                self._connection.lead(self._call)
            except BaseException:
                self.cancel()  # Ctrl-C, say
                raise


class Requests:
    """What both clients share: how each kind of request is made, sent, and given its outcome.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; None takes `MULTITOWER_ENDPOINT`, else the default one.
        timeout: seconds for a request that gives none of its own.
        connect_timeout: seconds that a request waits for a daemon to listen.
        retries: how often a request is sent again that the daemon refused without running it.
        shared_memory: large tensors travel through shared memory where the daemon takes it.
    """

    def __init__(
        self,
        endpoint: str | None,
        timeout: float,
        connect_timeout: float,
        retries: int = 0,
        *,
        shared_memory: bool = False,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not seconds > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {seconds}")
        if retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}")
        self.endpoint = endpoint or os.environ.get(wire.ENDPOINT_VARIABLE) or wire.DEFAULT_ENDPOINT
        self.timeout = timeout
        self._connect_timeout = connect_timeout
        self._codec = Codec()
        # Only Linux has memfds.
        possible = shared_memory and self.endpoint.startswith("ipc:") and hasattr(os, "memfd_create")
        self._arena = Arena() if possible else None
        self.connection = Connection(self.endpoint, retries)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        version: str,
        seconds: float,
        deadline: float,
        priority: int,
        *,
        copy: bool,
        signature: str = "",
        version_label: str = "",
    ) -> RequestFuture:
        """Starts an `MT1:infer` request; see `Client.submit`.

        `seconds` is what the daemon is told: always the whole of it, so that headers repeat. `deadline` (monotonic
        seconds) is when the request fails here.
        """
        self.connection.check()
        arena = self._arena if self.connection.shared_memory else None
        sent = self._codec.encode(
            model,
            inputs,
            outputs,
            version,
            seconds,
            priority,
            copy=copy,
            arena=arena,
            signature=signature,
            version_label=version_label,
        )

        def read(header: bytes, frames: Sequence[Any]) -> Outputs:
            return self._codec.decode(header, frames, sent)

        return self._start(wire.INFER, sent.header, sent.frames, deadline, read, sent)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """See `Client.empty`."""
        self.connection.check()
        array = None if self._arena is None else self._arena.empty(shape, dtype)
        return np.empty(shape, dtype) if array is None else array

    def ask(self, kind: bytes, header: Mapping[str, Any], timeout: float | None = None) -> RequestFuture:
        """Starts a request of another kind; its result is the reply's header."""
        self.connection.check()
        deadline = time.monotonic() + self.seconds(timeout)
        return self._start(kind, wire.dump_json(header), (), deadline, lambda body, _: read_header(body))

    def seconds(self, timeout: float | None) -> float:
        """The request's time."""
        seconds = self.timeout if timeout is None else timeout
        if not seconds > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {seconds}")
        return min(seconds, threading.TIMEOUT_MAX / 2)

    def _start(
        self,
        kind: bytes,
        header: bytes,
        frames: Sequence[Any],
        deadline: float,
        read: Any,
        sent: Encoded | None = None,
    ) -> RequestFuture:
        future = RequestFuture(self.connection)

        def done(outcome: list[Any] | MultitowerError) -> None:
            if sent is not None and sent.writes and isinstance(outcome, MultitowerError):
                _condemn(sent, outcome)
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(outcome, MultitowerError):
                future.set_exception(outcome)
                return
            try:
                result = read(outcome[0], [_read_only(frame) for frame in outcome[1:]])
            except MultitowerError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001  no memory for it: this request's outcome, not the connection's end
                future.set_exception(make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error!r}"))
            else:
                future.set_result(result)

        connect_by = min(deadline, time.monotonic() + self._connect_timeout)
        call = Call(kind, header, frames, deadline, connect_by, done, None if sent is None else sent.again)
        future._call = call
        self.connection.start(call)
        return future


_ENDED = frozenset(
    (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Reason.MODEL_ERROR, Reason.OUTPUT_INVALID)
)
"""Errors of requests that no worker has had, or that one has answered: none writes their outputs any more."""


def _condemn(sent: Encoded, error: MultitowerError) -> None:
    if sent.lease is not None and error.code not in _ENDED and error.reason not in _ENDED:
        sent.lease.condemn()


def _read_only(frame: Any) -> bytes | memoryview:
    """A frame as arrays are made of: small ones are `bytes`, large ones stay where libzmq received them."""
    return frame if type(frame) is bytes else frame.buffer.toreadonly()


def no_room(size: int) -> MultitowerError:
    """Why a request was not sent for which there was no room."""
    message = f"{size} requests were outstanding, and none got its outcome within this one's time (max_outstanding)"
    return make(Reason.DEADLINE, message)


def not_ready(state: dict[str, Any] | Exception) -> str:
    """Why a daemon is not ready, from its `server_ready` or the error of asking for it.

    Raises:
        Unavailable: `closed`: asking again cannot help.
    """
    if isinstance(state, Unavailable) and state.reason == Reason.CLOSED:
        raise state
    if isinstance(state, Exception):
        return str(state)
    ready, total = state["slots_ready"], state["slots_total"]
    missing = ", but some model is on none of them" if ready == total else ""
    return f"{ready} of {total} slots are ready{missing}; `multitower status` tells why"


def model_header(model: str, version: str, version_label: str = "") -> dict[str, Any]:
    """The header of the kinds of request that name a model."""
    header: dict[str, Any] = {"model_name": model}
    if version:
        header["model_version"] = version
    if version_label:
        header["parameters"] = {wire.VERSION_LABEL: version_label}
    return header
