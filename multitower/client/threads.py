"""`Client`, the client for threads. `AsyncClient` in `aio.py` is the same for asyncio."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from multitower import liveness, wire
from multitower.client.arguments import Names, Seconds, Version, refuse_pickling, to_seconds
from multitower.client.codec import InferRequest
from multitower.client.credentials import Key, ServerKey
from multitower.client.requests import (
    CONNECT_TIMEOUT_S,
    MAX_OUTSTANDING,
    READINESS_INTERVAL_S,
    ReadinessWait,
    RequestFuture,
    Requests,
    model_header,
    too_many_outstanding,
)
from multitower.client.retries import RETRIES
from multitower.client.tracing import sampled_trace
from multitower.errors import Unavailable

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from multitower.client.requests import Outputs


class _OutstandingLimit:
    """Bounds the requests that are outstanding."""

    def __init__(self, limit: int) -> None:
        self._free = threading.Semaphore(limit)
        self._limit = limit

    def acquire(self, seconds: float, *, wait: bool) -> None:
        if self._free.acquire(blocking=False):
            return
        if not wait or not self._free.acquire(timeout=seconds):
            raise too_many_outstanding(self._limit)

    def release(self, _: object = None) -> None:
        self._free.release()


class Client:
    """A connection to a daemon, for any number of threads.

    Requests are pipelined over one connection, which opens by itself, and again after it was lost. Use the client as a
    context manager, or `close` it. It does not work in a forked child: make a new one there.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; None for the environment variable `MULTITOWER_ENDPOINT`, else
            `tcp://127.0.0.1:5555`.
        timeout: seconds, or a timedelta, until a request fails with `DeadlineExceeded`, unless it specifies its own. So
            are the other times.
        connect_timeout: seconds that a request waits for a daemon to listen before it fails with `Unavailable`.
        max_outstanding: how many requests may be outstanding at one time; further ones wait for one of them to finish.
        retries: how often a request that the daemon refused without running it, because the queue was full or the
            model was loading, is sent again within its time; 0 for never.
        shared_memory: whether large tensors travel through shared memory: over ipc, where the daemon can reach it.
        peer_timeout: seconds without a sign of the daemon, not even the answer to a heartbeat, after which a TCP
            connection counts as lost: outstanding requests fail as `connection_lost`, and it opens again. 0 for never.
        key: for a daemon with `security`, over tcp: the path of this client's secret key file, its secret key in Z85,
            or the pair `(public, secret)`; None for what the environment variable `MULTITOWER_KEY` has.
        server_key: the daemon's public key in Z85, or the path of a file that holds it; None for what
            `MULTITOWER_SERVER_KEY` has.

    Raises:
        InvalidEndpoint: the endpoint is malformed.
        Unavailable: `not_listening`: this process can open no socket (`no_socket` in the details).
        InvalidKey: a key cannot be used, or only one of the two is given.
        ValueError: a time or a number that is too small.
        TypeError: a time that is neither a number nor a timedelta.
        RuntimeError: gevent or eventlet have patched threads or `select`.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: Seconds = wire.DEFAULT_TIMEOUT_S,
        connect_timeout: Seconds = CONNECT_TIMEOUT_S,
        max_outstanding: int = MAX_OUTSTANDING,
        retries: int = RETRIES,
        shared_memory: bool = True,
        peer_timeout: Seconds = liveness.PEER_TIMEOUT_S,
        key: Key | None = None,
        server_key: ServerKey | None = None,
    ) -> None:
        if max_outstanding < 1:
            raise ValueError(f"max_outstanding must be 1 or more, not {max_outstanding}")
        self._requests = Requests(
            endpoint,
            timeout,
            connect_timeout,
            retries,
            shared_memory=shared_memory,
            peer_timeout=peer_timeout,
            key=key,
            server_key=server_key,
        )
        self._outstanding = _OutstandingLimit(max_outstanding)
        # Without `close`, the connection ends once nothing refers to the client.
        self._finalizer = weakref.finalize(self, self._requests.connection.stop)
        self._finalizer.atexit = False  # at the interpreter's end, connection.py closes all connections

    @property
    def endpoint(self) -> str:
        """The daemon's endpoint."""
        return self._requests.endpoint

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Names | None = None,
        version: Version = "",
        timeout: Seconds | None = None,
        priority: int = 0,
        signature: str = "",
        version_label: str = "",
        trace: Mapping[str, str] | None = None,
    ) -> Outputs:
        """Runs a model and waits for its outputs.

        Args:
            model: the model's name.
            inputs: for each input an array, or anything that numpy converts to one, with the datatype and shape that
                the model declares. If the model is batched, dimension 0 is the rows. Elements of BYTES inputs are `str`
                (sent as UTF-8) or `bytes`.
            outputs: a list of the names of the outputs wanted; None for all.
            version: the model's version number, as an `int` or a `str`; "" for the highest that is served.
            timeout: seconds, or a timedelta; None for the client's.
            priority: 1 or more, lower numbers being more urgent; 0 counts as 2.
            signature: the model's signature, one of those that `metadata` lists; "" for its default one.
            version_label: one of the model's `version_labels`, instead of `version`.
            trace: the trace that the request belongs to, as headers of W3C Trace Context: `traceparent` and perhaps
                `tracestate`. None for OpenTelemetry's current span, if the application uses OpenTelemetry.

        Returns:
            The outputs by name, as read-only arrays. BYTES outputs are object arrays of `bytes`.

        Raises:
            InvalidRequest: the request is wrong; the message names the field.
            NotFound: there is no such model, version or signature.
            Overloaded: the model's queue was full at each attempt, or the next one would come after the deadline.
            DeadlineExceeded: no answer in time.
            Unavailable: no daemon listens, the connection was lost, or no worker serves the model.
            Poisoned: workers died while they executed the request.
            ModelError: the model raised an exception.
        """
        request = InferRequest(
            model, inputs, outputs, version, priority, signature, version_label, sampled_trace(trace)
        )
        return self._wait(self._submit(request, timeout, wait=True))  # type: ignore[no-any-return]

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array to fill and pass as an input. In shared memory, if there is any, it is sent without a copy.

        So are contiguous parts of it, such as rows. The array must not change while a request that it was passed to is
        outstanding, also with `submit`. It may be used for any number of requests.

        Args:
            shape: its shape.
            dtype: its dtype.

        Returns:
            An uninitialised array: an ordinary one if the endpoint is not ipc or there is no room.

        Raises:
            Unavailable: `closed`: the client was closed, or belongs to the parent of a forked process.
        """
        return self._requests.empty(shape, dtype)

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Names | None = None,
        version: Version = "",
        timeout: Seconds | None = None,
        priority: int = 0,
        signature: str = "",
        version_label: str = "",
        trace: Mapping[str, str] | None = None,
    ) -> Future[Outputs]:
        """Starts what `infer` does and returns a future of its outcome at once.

        The arrays may change as soon as this returns. Cancelling the future cancels the request. Its callbacks run in
        the client's thread: they must be short, may call `submit`, and must not wait for another request.

        Raises:
            InvalidRequest: an input cannot be sent.
            DeadlineExceeded: `max_outstanding` requests were outstanding for the request's whole time.
            Unavailable: `closed`: the client was closed, or belongs to the parent of a forked process.
        """
        request = InferRequest(
            model, inputs, outputs, version, priority, signature, version_label, sampled_trace(trace)
        )
        return self._submit(request, timeout)

    def _submit(self, request: InferRequest, timeout: Seconds | None, *, wait: bool = False) -> RequestFuture:
        requests = self._requests
        requests.connection.check_usable()
        seconds = requests.resolve_timeout(timeout)
        deadline = time.monotonic() + seconds
        self._outstanding.acquire(seconds, wait=not requests.connection.in_own_thread)
        try:
            future = requests.start_infer(request, seconds, deadline, wait=wait)
        except BaseException:
            self._outstanding.release()
            raise
        future.add_done_callback(self._outstanding.release)
        return future

    def _wait(self, future: RequestFuture) -> Any:
        if self._requests.connection.in_own_thread:
            future.cancel()
            raise RuntimeError("a callback must not wait for another request: this thread would read its answer")
        try:
            return future.result()
        except BaseException:  # an error, or Ctrl-C
            future.cancel()  # no-op if the error is the outcome
            raise

    def _query(self, kind: bytes, header: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        return self._wait(self._requests.start_query(kind, header or {}, timeout))

    def live(self) -> bool:
        """Whether the daemon answers."""
        return bool(self._query(wire.SERVER_LIVE)["live"])

    def ready(self) -> bool:
        """Whether each model has a ready worker."""
        return bool(self.server_ready()["ready"])

    def server_ready(self) -> dict[str, Any]:
        """`{"ready": bool, "slots_ready": int, "slots_total": int}`."""
        answer: dict[str, Any] = self._query(wire.SERVER_READY)
        return answer

    def server_metadata(self) -> dict[str, Any]:
        """Name, version, extensions and `max_message_size` (bytes) of the daemon."""
        answer: dict[str, Any] = self._query(wire.SERVER_METADATA)
        return answer

    def status(self, *, events: bool | int = False) -> dict[str, Any]:
        """The daemon's state: `daemon`, `slots` and `models`; docs/protocol.md lists the fields.

        Args:
            events: True for all events that the daemon keeps, or how many of them, the latest; False for a few of each
                kind.
        """
        header = {} if events is False else {"events": events}
        answer: dict[str, Any] = self._query(wire.STATUS, header)
        return answer

    def metrics(self, format: str = wire.PROMETHEUS) -> str:
        """The daemon's metrics as text, for a monitoring system; docs/metrics.md lists them.

        Args:
            format: `"prometheus"` or `"openmetrics"`.

        Raises:
            InvalidRequest: the format is another one.
        """
        text: str = self._wait(self._requests.start_metrics(format))
        return text

    def model_ready(self, model: str, version: Version = "", *, version_label: str = "") -> bool:
        """Whether a worker serves the model.

        Raises:
            NotFound: there is no such model or version.
        """
        return bool(self._query(wire.MODEL_READY, model_header(model, version, version_label))["ready"])

    def metadata(self, model: str, version: Version = "", *, version_label: str = "") -> dict[str, Any]:
        """The model's versions, inputs and outputs; each has `name`, `datatype` and `shape` (-1 for any size).

        Raises:
            NotFound: there is no such model or version.
            Unavailable: no worker has loaded it.
        """
        answer: dict[str, Any] = self._query(wire.MODEL_METADATA, model_header(model, version, version_label))
        return answer

    def model_config(self, model: str, version: Version = "", *, version_label: str = "") -> dict[str, Any]:
        """The model's configuration with Triton's names, such as `max_batch_size`.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: no worker has loaded it.
        """
        answer: dict[str, Any] = self._query(wire.MODEL_CONFIG, model_header(model, version, version_label))
        return answer

    def statistics(self, model: str | None = None, version: Version = "", *, version_label: str = "") -> dict[str, Any]:
        """Counts and nanoseconds of success, failure, queue and compute, for one model or for all.

        Raises:
            NotFound: there is no such model or version.
        """
        header = {} if model is None else model_header(model, version, version_label)
        answer: dict[str, Any] = self._query(wire.STATISTICS, header)
        return answer

    def wait_until_ready(self, timeout: Seconds = 60.0) -> None:
        """Waits until the daemon listens and each model has a ready worker.

        Args:
            timeout: seconds, or a timedelta.

        Raises:
            Unavailable: not ready in time; the message says what is missing. The reason is `no_worker` if the daemon
                was reached, else that of the last attempt, such as `not_listening`, with its details.
        """
        wait = ReadinessWait(to_seconds("timeout", timeout))
        while True:
            left_s = wait.left_s
            try:
                state = self._query(wire.SERVER_READY, timeout=left_s)
                if state["ready"]:
                    return
                wait.note_state(state)
            except (Unavailable, TimeoutError) as error:
                wait.note_error(error, left_s)
            wait.check()
            time.sleep(READINESS_INTERVAL_S)

    def close(self) -> None:
        """Closes the connection. Outstanding requests fail as `closed`. No-op if called again."""
        self._requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling(self, self.endpoint)

    def __repr__(self) -> str:
        return f"Client({self.endpoint!r})"
