"""The client for asyncio: `AsyncClient`, the same as `Client` with coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from multitower import wire
from multitower.client.requests import (
    ASK_AGAIN_S,
    CONNECT_TIMEOUT_S,
    MAX_OUTSTANDING,
    RequestFuture,
    Requests,
    model_header,
    no_room,
    not_ready,
)
from multitower.client.retries import RETRIES
from multitower.errors import Reason, Unavailable, make

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from multitower.client.requests import Outputs


class _Outcomes:
    """Brings outcomes from the client's thread to an event loop, all that have come meanwhile at once.

    Args:
        loop: the one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._came: deque[tuple[RequestFuture, asyncio.Future[Any]]] = deque()
        self._told = False  # the loop will look

    async def of(self, request: RequestFuture) -> Any:
        """Waits for an outcome. To cancel the waiting task cancels the request."""
        outcome: asyncio.Future[Any] = self.loop.create_future()

        def came(_: object) -> None:
            self._came.append((request, outcome))
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self.loop.call_soon_threadsafe(self._hand_out)

        request.add_done_callback(came)
        try:
            return await outcome
        except BaseException:
            request.cancel()  # without effect where that is the outcome
            raise

    def _hand_out(self) -> None:
        self._told = False  # first: what comes from now on is told of again
        while self._came:
            request, outcome = self._came.popleft()
            if outcome.done() or request.cancelled():
                continue  # its task has been cancelled, or its coroutine closed
            error = request.exception()
            if error is None:
                outcome.set_result(request.result())
            else:
                outcome.set_exception(error)


class AsyncClient:
    """A connection to a daemon, for the coroutines of one event loop.

    Use it as an async context manager, or `await close()`. Cancelling a task that waits for a request cancels the
    request. All arguments and errors are those of `Client`.

    Args:
        endpoint: see `Client`.
        timeout: see `Client`.
        connect_timeout: see `Client`.
        max_outstanding: see `Client`.
        retries: see `Client`.
        shared_memory: see `Client`.

    Raises:
        Unavailable: `not_listening`: the endpoint is malformed.
        ValueError: a time or a number that is too small.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = wire.DEFAULT_TIMEOUT_S,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        max_outstanding: int = MAX_OUTSTANDING,
        retries: int = RETRIES,
        shared_memory: bool = True,
    ) -> None:
        if max_outstanding < 1:
            raise ValueError(f"max_outstanding must be 1 or more, not {max_outstanding}")
        self._requests = Requests(endpoint, timeout, connect_timeout, retries, shared_memory=shared_memory)
        self._room = asyncio.Semaphore(max_outstanding)
        self._max_outstanding = max_outstanding
        self._outcomes: _Outcomes | None = None
        self._finalizer = weakref.finalize(self, self._requests.connection.stop)
        self._finalizer.atexit = False  # the connection module sees to the interpreter's end

    @property
    def endpoint(self) -> str:
        """Where the daemon is asked."""
        return self._requests.endpoint

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        priority: int = 0,
        signature: str = "",
        version_label: str = "",
    ) -> Outputs:
        """Runs a model and waits for its outputs; see `Client.infer`."""
        requests = self._requests
        requests.connection.check()
        seconds = requests.seconds(timeout)
        deadline = time.monotonic() + seconds
        if self._room.locked():
            try:
                async with asyncio.timeout(seconds):
                    await self._room.acquire()
            except TimeoutError:
                raise no_room(self._max_outstanding) from None
        else:
            await self._room.acquire()  # at once
        try:
            # Copied: other tasks run while this one waits, and may change the arrays.
            future = requests.infer(
                model,
                inputs,
                outputs,
                version,
                seconds,
                deadline,
                priority,
                copy=True,
                signature=signature,
                version_label=version_label,
            )
            return await self._outcome(future)  # type: ignore[no-any-return]
        finally:
            self._room.release()

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """See `Client.empty`."""
        return self._requests.empty((shape,) if isinstance(shape, int) else shape, dtype)

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        priority: int = 0,
        signature: str = "",
        version_label: str = "",
    ) -> asyncio.Task[Outputs]:
        """Starts what `infer` does as a task of the running loop. The arrays must not change before it has begun."""
        request = self.infer(
            model,
            inputs,
            outputs=outputs,
            version=version,
            timeout=timeout,
            priority=priority,
            signature=signature,
            version_label=version_label,
        )
        return asyncio.get_running_loop().create_task(request)

    async def _outcome(self, request: RequestFuture) -> Any:
        loop = asyncio.get_running_loop()
        if self._outcomes is None or self._outcomes.loop is not loop:
            self._outcomes = _Outcomes(loop)
        return await self._outcomes.of(request)

    async def _ask(self, kind: bytes, header: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        return await self._outcome(self._requests.ask(kind, header or {}, timeout))

    async def live(self) -> bool:
        """The daemon answers."""
        return bool((await self._ask(wire.SERVER_LIVE))["live"])

    async def ready(self) -> bool:
        """Each model has a ready worker."""
        return bool((await self.server_ready())["ready"])

    async def server_ready(self) -> dict[str, Any]:
        """See `Client.server_ready`."""
        answer: dict[str, Any] = await self._ask(wire.SERVER_READY)
        return answer

    async def server_metadata(self) -> dict[str, Any]:
        """See `Client.server_metadata`."""
        answer: dict[str, Any] = await self._ask(wire.SERVER_METADATA)
        return answer

    async def status(self) -> dict[str, Any]:
        """See `Client.status`."""
        answer: dict[str, Any] = await self._ask(wire.STATUS)
        return answer

    async def model_ready(self, model: str, version: str = "", *, version_label: str = "") -> bool:
        """See `Client.model_ready`."""
        return bool((await self._ask(wire.MODEL_READY, model_header(model, version, version_label)))["ready"])

    async def metadata(self, model: str, version: str = "", *, version_label: str = "") -> dict[str, Any]:
        """See `Client.metadata`."""
        answer: dict[str, Any] = await self._ask(wire.MODEL_METADATA, model_header(model, version, version_label))
        return answer

    async def model_config(self, model: str, version: str = "", *, version_label: str = "") -> dict[str, Any]:
        """See `Client.model_config`."""
        answer: dict[str, Any] = await self._ask(wire.MODEL_CONFIG, model_header(model, version, version_label))
        return answer

    async def statistics(
        self, model: str | None = None, version: str = "", *, version_label: str = ""
    ) -> dict[str, Any]:
        """See `Client.statistics`."""
        header = {} if model is None else model_header(model, version, version_label)
        answer: dict[str, Any] = await self._ask(wire.STATISTICS, header)
        return answer

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """See `Client.wait_until_ready`."""
        until = time.monotonic() + timeout
        while True:
            try:
                state = await self._ask(wire.SERVER_READY, timeout=max(until - time.monotonic(), 0.001))
                if state["ready"]:
                    return
                why = not_ready(state)
            except (Unavailable, TimeoutError) as error:
                why = not_ready(error)
            if time.monotonic() + ASK_AGAIN_S >= until:
                raise make(Reason.NO_WORKER, f"not ready after {timeout:g} s: {why}")
            await asyncio.sleep(ASK_AGAIN_S)

    async def close(self) -> None:
        """Closes the connection; requests without an outcome fail as `closed`. May be called again."""
        connection = self._requests.connection
        connection.stop()
        await asyncio.get_running_loop().run_in_executor(None, connection.join)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.endpoint!r})"
