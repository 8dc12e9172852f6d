"""What both clients share: starting requests, and turning replies into the outcomes of futures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multitower import liveness, wire
from multitower.addresses import check_endpoint
from multitower.client.arguments import Seconds, Version, to_seconds, to_version
from multitower.client.codec import Codec, EncodedRequest, InferRequest, read_header
from multitower.client.connection import Connection
from multitower.client.credentials import Key, ServerKey, find_credentials
from multitower.client.shared_memory import Arena
from multitower.client.transport import Call, Outcome
from multitower.durations import exact_duration
from multitower.errors import Code, InvalidEndpoint, MultitowerError, Reason, Unavailable, from_wire, make

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Outputs: TypeAlias = dict[str, NDArray[Any]]
"""The outputs of a model by name."""

CONNECT_TIMEOUT_S = 5.0
MAX_OUTSTANDING = 1000
READINESS_INTERVAL_S = 0.05
"""How long `wait_until_ready` waits before it asks again."""

ANSWER_S = 1.0
"""Seconds in which a daemon that is not overloaded answers whether it is ready."""


class RequestFuture(Future[Any]):
    """The future of a request. Cancelling it also tells the daemon, which then does not run it if it has not begun."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._call: Call | None = None

    def cancel(self) -> bool:
        """Cancels the request; False if it has its outcome."""
        if not super().cancel():
            return False
        if self._call is not None:
            self._connection.cancel(self._call)
        return True


class Requests:
    """Starts requests over one connection.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; None for `MULTITOWER_ENDPOINT`, else the default one.
        timeout: seconds for a request that specifies none.
        connect_timeout: seconds that a request waits for a daemon to listen.
        retries: how often a request that the daemon refused without running it is sent again.
        shared_memory: whether large tensors travel through shared memory, where the daemon supports it.
        peer_timeout: seconds without a sign of the daemon after which a TCP connection counts as lost; 0 for never.
        key: see `Client`.
        server_key: see `Client`.

    Attributes:
        endpoint: the endpoint in use.
        timeout: as passed, in seconds.
        connection: the connection to the daemon.

    Raises:
        InvalidEndpoint: the endpoint is malformed.
        Unavailable: `not_listening`: this process can open no socket (`no_socket` in the details).
        InvalidKey: a key cannot be used.
        ValueError: a time or a number that is too small.
        TypeError: a time that is neither a number nor a timedelta.
    """

    def __init__(
        self,
        endpoint: str | None,
        timeout: Seconds,
        connect_timeout: Seconds,
        retries: int = 0,
        *,
        shared_memory: bool = False,
        peer_timeout: Seconds = liveness.PEER_TIMEOUT_S,
        key: Key | None = None,
        server_key: ServerKey | None = None,
    ) -> None:
        timeout_s, connect_s = to_seconds("timeout", timeout), to_seconds("connect_timeout", connect_timeout)
        peer_s = to_seconds("peer_timeout", peer_timeout)
        for name, seconds in (("timeout", timeout_s), ("connect_timeout", connect_s)):
            if not seconds > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {seconds}")
        liveness.check_peer_timeout(peer_s)
        if retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}")
        if endpoint is None or endpoint == "":
            endpoint = os.environ.get(wire.ENDPOINT_VARIABLE) or wire.DEFAULT_ENDPOINT
        try:
            self.endpoint = check_endpoint(endpoint)
        except ValueError as error:
            raise InvalidEndpoint(str(error)) from None
        self.timeout = timeout_s
        self._connect_timeout = connect_s
        self._codec = Codec()
        # Only Linux has memfds.
        possible = shared_memory and self.endpoint.startswith("ipc:") and hasattr(os, "memfd_create")
        self._arena = Arena() if possible else None
        self.connection = Connection(self.endpoint, retries, peer_s, find_credentials(self.endpoint, key, server_key))

    def start_infer(
        self, request: InferRequest, seconds: float, deadline: float, *, wait: bool = False
    ) -> RequestFuture:
        """Starts an `MT1:infer` request.

        Args:
            request: what is asked for.
            seconds: the time-out that the daemon is told: always the request's whole time, so that headers repeat.
            deadline: when the request fails here, monotonic seconds.
            wait: whether the caller waits for the outcome before arrays change: here, if its thread can read the reply
                itself, or else by the future.

        Raises:
            InvalidRequest: an input cannot be sent.
            Unavailable: `closed`.
        """
        self.connection.check_usable()
        arena = self._arena if self.connection.accepts_shared_memory else None
        sent = self._codec.encode(request, seconds, copy=not wait, arena=arena)
        if request.trace is not None:
            sent.add_trace(request.trace)

        def read(header: bytes, frames: Sequence[Any]) -> Outputs:
            return self._codec.decode(header, frames, sent)

        return self._start(wire.INFER, sent.header, sent.frames, deadline, read, sent, wait=wait)

    def close(self) -> None:
        """Closes the connection and waits for its thread. Outstanding requests fail as `closed`."""
        self.connection.stop()
        self.connection.join()

    def start_query(self, kind: bytes, header: Mapping[str, Any], timeout: float | None = None) -> RequestFuture:
        """Starts a request of another kind; its result is the reply's header, a dict.

        Args:
            kind: kind of request.
            header: its header.
            timeout: seconds; None for the default.

        Raises:
            Unavailable: `closed`.
        """
        return self._start_other(kind, header, timeout, lambda body, _: read_header(body))

    def start_metrics(self, format: str) -> RequestFuture:
        """Starts a request for the daemon's metrics; its result is their text.

        Args:
            format: `"prometheus"` or `"openmetrics"`.

        Raises:
            Unavailable: `closed`.
        """
        return self._start_other(wire.METRICS, {wire.FORMAT: format}, None, _read_text)

    def _start_other(
        self,
        kind: bytes,
        header: Mapping[str, Any],
        timeout: float | None,
        read: Callable[[bytes, Sequence[Any]], Any],
    ) -> RequestFuture:
        self.connection.check_usable()
        deadline = time.monotonic() + self.resolve_timeout(timeout)
        return self._start(kind, wire.dump_json(header), (), deadline, read)

    def start_framed_query(self, kind: bytes, header: Mapping[str, Any], timeout: float) -> RequestFuture:
        """As `start_query`, for a kind whose reply has frames; the result is the reply's header and its frames."""
        return self._start_other(kind, header, timeout, lambda body, frames: (read_header(body), frames))

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """See `Client.empty`."""
        self.connection.check_usable()
        shape = (int(shape),) if isinstance(shape, int | np.integer) else shape
        array = None if self._arena is None else self._arena.empty(shape, dtype)
        return np.empty(shape, dtype) if array is None else array

    def resolve_timeout(self, timeout: Seconds | None) -> float:
        """The seconds of a request with this `timeout` argument.

        Raises:
            ValueError: it is 0 or less.
            TypeError: it is neither a number nor a timedelta.
        """
        if timeout is None:
            seconds = self.timeout
        else:
            seconds = timeout if type(timeout) is float else to_seconds("timeout", timeout)
        if not seconds > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {seconds}")
        return min(seconds, threading.TIMEOUT_MAX / 2)

    def _start(
        self,
        kind: bytes,
        header: bytes,
        frames: Sequence[Any],
        deadline: float,
        read: Callable[[bytes, Sequence[Any]], Any],
        sent: EncodedRequest | None = None,
        *,
        wait: bool = False,
    ) -> RequestFuture:
        future = RequestFuture(self.connection)

        def done(outcome: Outcome) -> None:
            if sent is not None and sent.has_output_areas and isinstance(outcome, MultitowerError):
                _retire_if_written_later(sent, outcome)
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(outcome, MultitowerError):
                future.set_exception(outcome)
                return
            try:
                result = read(outcome[0], [_read_only(frame) for frame in outcome[1:]])
            except MultitowerError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001  no memory for it concerns this request only
                future.set_exception(make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error!r}"))
            else:
                future.set_result(result)

        now = time.monotonic()
        connect_by = min(deadline, now + self._connect_timeout)
        without_shared_memory = None if sent is None else sent.without_shared_memory
        future._call = call = Call(kind, header, frames, deadline, connect_by, now, done, without_shared_memory)
        try:
            self.connection.start(call, wait=wait)
        except BaseException:  # Ctrl-C, for example
            self.connection.cancel(call)  # even if it has its outcome: it may lead
            future.cancel()
            raise
        return future


_NEVER_WRITTEN_LATER = frozenset(
    (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Reason.MODEL_ERROR, Reason.OUTPUT_INVALID)
)
"""Errors after which no worker writes outputs: none has received the request, or one has answered it."""


def _retire_if_written_later(sent: EncodedRequest, error: MultitowerError) -> None:
    """Excludes a request's area from further use if a worker may still write outputs to it."""
    final = error.code in _NEVER_WRITTEN_LATER or error.reason in _NEVER_WRITTEN_LATER
    if sent.allocation is not None and not final:
        sent.allocation.retire()


def _read_text(_header: bytes, frames: Sequence[Any]) -> str:
    """The one frame of a reply, which is text."""
    (frame,) = frames
    return bytes(frame).decode()


def _read_only(frame: Any) -> bytes | memoryview:
    """A frame as the memory of arrays: `bytes` if it is small, else a view of where it was received."""
    return frame if type(frame) is bytes else memoryview(frame).toreadonly()


def too_many_outstanding(limit: int) -> MultitowerError:
    """The error of a request that waited for others to finish for its whole time."""
    message = f"{limit} requests were outstanding, and none got its outcome within this one's time (max_outstanding)"
    return make(Reason.DEADLINE, message)


class ReadinessWait:
    """What asking whether a daemon is ready has shown so far.

    Args:
        seconds: for how long it is asked.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._cause = ""
        self._error: Exception | None = None

    @property
    def left_s(self) -> float:
        """Seconds that the next question has."""
        return max(self._until - time.monotonic(), 0.001)

    def note_state(self, state: Mapping[str, Any]) -> None:
        """Records an answer: the daemon is not ready."""
        ready, total = state["slots_ready"], state["slots_total"]
        missing = ", but some model is on none of them" if ready == total else ""
        self._cause = f"{ready} of {total} slots are ready{missing}; `multitower status` tells why"
        self._error = None

    def note_error(self, error: Exception, given_s: float) -> None:
        """Records that a question got no answer.

        Args:
            error: why.
            given_s: seconds that it had: a time-out within `ANSWER_S` tells less than the attempt before.

        Raises:
            Unavailable: `closed`: asking again cannot help.
        """
        if isinstance(error, Unavailable) and error.reason == Reason.CLOSED:
            raise error
        if not (self._cause and isinstance(error, TimeoutError) and given_s < ANSWER_S):
            self._cause, self._error = str(error), error

    def check(self) -> None:
        """Raises if the time does not suffice for another question.

        Raises:
            Unavailable: `no_worker` if the daemon was reached, else with the reason and details of the last attempt.
        """
        if time.monotonic() + READINESS_INTERVAL_S < self._until:
            return
        message = f"not ready after {exact_duration(self._seconds)}: {self._cause}"
        error = self._error
        if isinstance(error, Unavailable):
            error_as_sent = error.to_wire()["error"]
            raise from_wire({"error": {**error_as_sent, "message": message}}) from error
        raise make(Reason.NO_WORKER, message) from error


def model_header(model: str, version: Version, version_label: str = "") -> dict[str, Any]:
    """The header of a request that names a model."""
    header: dict[str, Any] = {"model_name": model}
    if number := to_version(version):
        header["model_version"] = number
    if version_label:
        header["parameters"] = {wire.VERSION_LABEL: version_label}
    return header
