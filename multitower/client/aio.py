"""`AsyncClient`, the client for asyncio: the same as `Client`, with coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
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


class _OutcomeDelivery:
    """Delivers outcomes from the client's thread to an event loop, several of them per wake-up of the loop.

    Args:
        loop: the event loop.

    Attributes:
        loop: the same.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[tuple[RequestFuture, asyncio.Future[Any]]] = deque()
        self._scheduled = False  # the loop will call `_deliver`

    async def wait_for(self, request: RequestFuture) -> Any:
        """Waits for a request's outcome. Cancelling the waiting task cancels the request."""
        outcome: asyncio.Future[Any] = self.loop.create_future()

        def done(_: object) -> None:
            self._done.append((request, outcome))
            if not self._scheduled:
                self._scheduled = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits
                    self.loop.call_soon_threadsafe(self._deliver)

        request.add_done_callback(done)
        try:
            return await outcome
        except BaseException:
            request.cancel()  # no-op if the request is done
            raise

    def _deliver(self) -> None:
        self._scheduled = False  # first: an outcome that arrives from here on schedules another call
        while self._done:
            request, outcome = self._done.popleft()
            if outcome.done() or request.cancelled():
                continue  # its task was cancelled, or its coroutine closed
            error = request.exception()
            if error is None:
                outcome.set_result(request.result())
            else:
                outcome.set_exception(error)


class AsyncClient:
    """A connection to a daemon, for the coroutines of one event loop.

    Use it as an async context manager, or `await close()`. Cancelling a task that waits for a request cancels the
    request. Arguments and errors are those of `Client`.

    Args:
        endpoint: see `Client`.
        timeout: see `Client`.
        connect_timeout: see `Client`.
        max_outstanding: see `Client`.
        retries: see `Client`.
        shared_memory: see `Client`.
        peer_timeout: see `Client`.
        key: see `Client`.
        server_key: see `Client`.

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
        self._outstanding = asyncio.Semaphore(max_outstanding)
        self._max_outstanding = max_outstanding
        self._delivery: _OutcomeDelivery | None = None
        # Without `close`, the connection ends once nothing refers to the client.
        self._finalizer = weakref.finalize(self, self._requests.connection.stop)
        self._finalizer.atexit = False  # at the interpreter's end, connection.py closes all connections

    @property
    def endpoint(self) -> str:
        """The daemon's endpoint."""
        return self._requests.endpoint

    async def infer(
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
        """Runs a model and waits for its outputs; see `Client.infer`."""
        request = InferRequest(
            model, inputs, outputs, version, priority, signature, version_label, sampled_trace(trace)
        )
        return await self._infer(request, timeout)

    async def _infer(self, request: InferRequest, timeout: Seconds | None) -> Outputs:
        requests = self._requests
        requests.connection.check_usable()
        seconds = requests.resolve_timeout(timeout)
        deadline = time.monotonic() + seconds
        if self._outstanding.locked():
            try:
                async with asyncio.timeout(seconds):
                    await self._outstanding.acquire()
            except TimeoutError:
                raise too_many_outstanding(self._max_outstanding) from None
        else:
            await self._outstanding.acquire()  # without waiting
        try:
            # Copied: other tasks run while this one waits, and may change the arrays.
            future = requests.start_infer(request, seconds, deadline)
            return await self._wait(future)  # type: ignore[no-any-return]
        finally:
            self._outstanding.release()

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """See `Client.empty`."""
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
    ) -> asyncio.Task[Outputs]:
        """Starts what `infer` does as a task of the running loop. Arrays must not change before the task has begun."""
        request = InferRequest(
            model, inputs, outputs, version, priority, signature, version_label, sampled_trace(trace)
        )
        return asyncio.get_running_loop().create_task(self._infer(request, timeout))

    async def _wait(self, request: RequestFuture) -> Any:
        loop = asyncio.get_running_loop()
        if self._delivery is None or self._delivery.loop is not loop:
            self._delivery = _OutcomeDelivery(loop)
        return await self._delivery.wait_for(request)

    async def _query(self, kind: bytes, header: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        return await self._wait(self._requests.start_query(kind, header or {}, timeout))

    async def live(self) -> bool:
        """Whether the daemon answers."""
        return bool((await self._query(wire.SERVER_LIVE))["live"])

    async def ready(self) -> bool:
        """Whether each model has a ready worker."""
        return bool((await self.server_ready())["ready"])

    async def server_ready(self) -> dict[str, Any]:
        """See `Client.server_ready`."""
        answer: dict[str, Any] = await self._query(wire.SERVER_READY)
        return answer

    async def server_metadata(self) -> dict[str, Any]:
        """See `Client.server_metadata`."""
        answer: dict[str, Any] = await self._query(wire.SERVER_METADATA)
        return answer

    async def status(self, *, events: bool | int = False) -> dict[str, Any]:
        """See `Client.status`."""
        header = {} if events is False else {"events": events}
        answer: dict[str, Any] = await self._query(wire.STATUS, header)
        return answer

    async def metrics(self, format: str = wire.PROMETHEUS) -> str:
        """See `Client.metrics`."""
        text: str = await self._wait(self._requests.start_metrics(format))
        return text

    async def model_ready(self, model: str, version: Version = "", *, version_label: str = "") -> bool:
        """See `Client.model_ready`."""
        return bool((await self._query(wire.MODEL_READY, model_header(model, version, version_label)))["ready"])

    async def metadata(self, model: str, version: Version = "", *, version_label: str = "") -> dict[str, Any]:
        """See `Client.metadata`."""
        answer: dict[str, Any] = await self._query(wire.MODEL_METADATA, model_header(model, version, version_label))
        return answer

    async def model_config(self, model: str, version: Version = "", *, version_label: str = "") -> dict[str, Any]:
        """See `Client.model_config`."""
        answer: dict[str, Any] = await self._query(wire.MODEL_CONFIG, model_header(model, version, version_label))
        return answer

    async def statistics(
        self, model: str | None = None, version: Version = "", *, version_label: str = ""
    ) -> dict[str, Any]:
        """See `Client.statistics`."""
        header = {} if model is None else model_header(model, version, version_label)
        answer: dict[str, Any] = await self._query(wire.STATISTICS, header)
        return answer

    async def wait_until_ready(self, timeout: Seconds = 60.0) -> None:
        """See `Client.wait_until_ready`."""
        wait = ReadinessWait(to_seconds("timeout", timeout))
        while True:
            left_s = wait.left_s
            try:
                state = await self._query(wire.SERVER_READY, timeout=left_s)
                if state["ready"]:
                    return
                wait.note_state(state)
            except (Unavailable, TimeoutError) as error:
                wait.note_error(error, left_s)
            wait.check()
            await asyncio.sleep(READINESS_INTERVAL_S)

    async def close(self) -> None:
        """Closes the connection. Outstanding requests fail as `closed`. No-op if called again."""
        connection = self._requests.connection
        connection.stop()
        await asyncio.get_running_loop().run_in_executor(None, connection.join)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling(self, self.endpoint)

    def __repr__(self) -> str:
        return f"AsyncClient({self.endpoint!r})"
