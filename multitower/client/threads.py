"""The client for threads: `Client`. `AsyncClient` in `aio` is the same for asyncio."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
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


class _Room:
    """How many requests may be outstanding."""

    def __init__(self, size: int) -> None:
        self._free = threading.Semaphore(size)
        self._size = size

    def enter(self, seconds: float, *, wait: bool) -> None:
        if self._free.acquire(blocking=False):
            return
        if not wait or not self._free.acquire(timeout=seconds):
            raise no_room(self._size)

    def leave(self, _: object = None) -> None:
        self._free.release()


class Client:
    """A connection to a daemon, for any number of threads.

    Requests are pipelined over one connection. It opens by itself, and again after it was lost. Use it as a context
    manager, or `close` it. It does not work in a forked child: make a new one there.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; None takes the environment's `MULTITOWER_ENDPOINT`, else
            `tcp://127.0.0.1:5555`.
        timeout: seconds until a request fails with `DeadlineExceeded`, unless it gives its own.
        connect_timeout: seconds that a request waits for a daemon to listen before it fails with `Unavailable`.
        max_outstanding: requests that may wait for their answers at one time; `submit` waits for room.
        retries: how often a request is sent again, within its time, that the daemon refused without running it: its
            queue was full, or its model is loading. 0 for never.
        shared_memory: large tensors of ipc endpoints travel through shared memory, where the daemon can reach it.

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
        self._room = _Room(max_outstanding)
        # Without `close`, the thread ends once nothing refers to the client any more.
        self._finalizer = weakref.finalize(self, self._requests.connection.stop)
        self._finalizer.atexit = False  # the connection module sees to the interpreter's end

    @property
    def endpoint(self) -> str:
        """Where the daemon is asked."""
        return self._requests.endpoint

    def infer(
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
        """Runs a model and waits for its outputs.

        Args:
            model: its name.
            inputs: for each input an array, or what numpy makes one of, of the datatype and shape that the model
                declares; where the model is batched, dimension 0 is the rows. Elements of BYTES inputs are `str`
                (sent as UTF-8) or `bytes`.
            outputs: the outputs wanted; None for all.
            version: the number of the model's version; "" for the highest that is served.
            timeout: seconds; None for the client's.
            priority: 1 or more, less being more urgent; 0 for 2.
            signature: of the model's signatures, which `metadata` lists; "" for the one that it has by default.
            version_label: of the model's `version_labels`, in place of `version`.

        Returns:
            The outputs by name; read-only arrays. BYTES outputs are object arrays of `bytes`.

        Raises:
            InvalidRequest: the request is wrong; the message names the field.
            NotFound: there is no such model, version or signature.
            Overloaded: the model's queue is full, and was so at each retry, or the next one would come too late.
            DeadlineExceeded: no answer in time.
            Unavailable: no daemon listens, the connection was lost, or no worker serves the model.
            Poisoned: workers died while they executed the request.
            ModelError: the model raised an exception.
        """
        # Not copied: the arrays are the caller's until this returns.
        future = self._submit(model, inputs, outputs, version, timeout, priority, signature, version_label, copy=False)
        if not self._requests.connection.in_its_thread:
            future.lead()
        return self._wait(future)  # type: ignore[no-any-return]

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array to fill and pass as an input, in shared memory where there is some: it is sent without a copy.

        Its contiguous parts (rows, say) are sent so as well. It must not change while a request that it was passed
        to has no outcome, not even with `submit`. It may be used for any number of requests.

        Args:
            shape: its shape.
            dtype: its dtype.

        Returns:
            An array of any values; a common one where the endpoint is not ipc, and where there is no room.

        Raises:
            Unavailable: `closed`: the client was closed, or belongs to the parent of a forked process.
        """
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
    ) -> Future[Outputs]:
        """Starts what `infer` does, and returns at once with a future of its outcome.

        The arrays may be changed as soon as this returns. `cancel` of the future cancels the request. Callbacks run
        in the client's thread: they must be short, and may submit, but not wait for another request.

        Raises:
            InvalidRequest: an input cannot be sent.
            DeadlineExceeded: `max_outstanding` requests were outstanding for the request's whole time.
            Unavailable: `closed`: the client was closed, or belongs to the parent of a forked process.
        """
        return self._submit(model, inputs, outputs, version, timeout, priority, signature, version_label, copy=True)

    def _submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        version: str,
        timeout: float | None,
        priority: int,
        signature: str,
        version_label: str,
        *,
        copy: bool,
    ) -> RequestFuture:
        requests = self._requests
        requests.connection.check()
        seconds = requests.seconds(timeout)
        deadline = time.monotonic() + seconds
        self._room.enter(seconds, wait=not requests.connection.in_its_thread)
        try:
            future = requests.infer(
                model,
                inputs,
                outputs,
                version,
                seconds,
                deadline,
                priority,
                copy=copy,
                signature=signature,
                version_label=version_label,
            )
        except BaseException:
            self._room.leave()
            raise
        future.add_done_callback(self._room.leave)
        return future

    def _wait(self, future: RequestFuture) -> Any:
        if self._requests.connection.in_its_thread:
            future.cancel()
            raise RuntimeError("a callback must not wait for another request: the answer would come to this thread")
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C, say; without effect when the outcome is an error
            raise

    def _ask(self, kind: bytes, header: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        return self._wait(self._requests.ask(kind, header or {}, timeout))

    def live(self) -> bool:
        """The daemon answers."""
        return bool(self._ask(wire.SERVER_LIVE)["live"])

    def ready(self) -> bool:
        """Each model has a ready worker."""
        return bool(self.server_ready()["ready"])

    def server_ready(self) -> dict[str, Any]:
        """`{"ready": bool, "slots_ready": int, "slots_total": int}`."""
        answer: dict[str, Any] = self._ask(wire.SERVER_READY)
        return answer

    def server_metadata(self) -> dict[str, Any]:
        """Name, version, extensions and `max_message_size` (bytes) of the daemon."""
        answer: dict[str, Any] = self._ask(wire.SERVER_METADATA)
        return answer

    def status(self) -> dict[str, Any]:
        """The daemon's whole state: `daemon`, `slots` and `models`; docs/protocol.md lists the fields."""
        answer: dict[str, Any] = self._ask(wire.STATUS)
        return answer

    def model_ready(self, model: str, version: str = "", *, version_label: str = "") -> bool:
        """A worker serves the model.

        Raises:
            NotFound: there is no such model or version.
        """
        return bool(self._ask(wire.MODEL_READY, model_header(model, version, version_label))["ready"])

    def metadata(self, model: str, version: str = "", *, version_label: str = "") -> dict[str, Any]:
        """The model's versions, and its inputs and outputs: `name`, `datatype`, `shape` (-1 for any size).

        Raises:
            NotFound: there is no such model or version.
            Unavailable: no worker has loaded it.
        """
        answer: dict[str, Any] = self._ask(wire.MODEL_METADATA, model_header(model, version, version_label))
        return answer

    def model_config(self, model: str, version: str = "", *, version_label: str = "") -> dict[str, Any]:
        """The model's configuration in Triton's words, `max_batch_size` among it.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: no worker has loaded it.
        """
        answer: dict[str, Any] = self._ask(wire.MODEL_CONFIG, model_header(model, version, version_label))
        return answer

    def statistics(self, model: str | None = None, version: str = "", *, version_label: str = "") -> dict[str, Any]:
        """Counts and nanoseconds of success, failure, queue and compute, of one model or of all.

        Raises:
            NotFound: there is no such model or version.
        """
        header = {} if model is None else model_header(model, version, version_label)
        answer: dict[str, Any] = self._ask(wire.STATISTICS, header)
        return answer

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until the daemon listens and each model has a ready worker.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: it was not ready in time; the message says what was not.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                state = self._ask(wire.SERVER_READY, timeout=max(until - time.monotonic(), 0.001))
                if state["ready"]:
                    return
                why = not_ready(state)
            except (Unavailable, TimeoutError) as error:
                why = not_ready(error)
            if time.monotonic() + ASK_AGAIN_S >= until:
                raise make(Reason.NO_WORKER, f"not ready after {timeout:g} s: {why}")
            time.sleep(ASK_AGAIN_S)

    def close(self) -> None:
        """Closes the connection; requests without an outcome fail as `closed`. May be called again."""
        connection = self._requests.connection
        connection.stop()
        connection.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.endpoint!r})"
