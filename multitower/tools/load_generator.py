"""Load on a daemon from one client: a fixed number of requests outstanding, or requests that are sent when due.

Bench measures with it; compare and demo kill a worker under it; the tests' client processes run it too.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from multitower.errors import MultitowerError

PAUSE_S: Final = 0.01
"""Seconds between an error and the next request of a closed loop: refusals are quick and would fill the loop."""

_NS: Final = 1_000_000_000


class Outcome(NamedTuple):
    """The end of one request.

    Attributes:
        number: the request's number, from 0.
        due_ns: when it was due, on the clock of `time.monotonic_ns`; in a closed loop, when it was sent.
        ended_ns: when its answer or error came.
        error: None for an answer.
        future: the request's future; None where `submit` raised the error.
    """

    number: int
    due_ns: int
    ended_ns: int
    error: BaseException | None
    future: Future[Any] | None

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs of an answered request."""
        assert self.future is not None
        outputs: dict[str, Any] = self.future.result()
        return outputs


class LoadGenerator:
    """Sends numbered requests and records the outcome of each. A context manager that sends nothing more when left.

    A closed loop sends the next request from the callback of an answer, in the client's own thread: no other way of
    sending costs the client less.

    Args:
        submit: sends the request of a number and returns its future. A `MultitowerError` that it raises is the
            request's outcome.
        record: takes each outcome; no two calls run at the same time.
        pause_s: seconds between an error and the next request of a closed loop.
    """

    def __init__(
        self, submit: Callable[[int], Future[Any]], record: Callable[[Outcome], None], *, pause_s: float = PAUSE_S
    ) -> None:
        self._submit = submit
        self._record = record
        self._pause_ns = int(pause_s * _NS)
        # A future that is done already runs its callback in the thread that adds it, beside the client's thread.
        self._lock = threading.Lock()
        self._sent = self._ended = 0
        self._closed_loop = self._stopped = False
        self._all_ended = threading.Event()
        self._resume_at: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # after errors; None ends the thread

    @property
    def sent(self) -> int:
        """Requests sent so far."""
        return self._sent

    def send(self, due_ns: int) -> None:
        """Sends one request, unless `stop` was called. The client may block until it has room."""
        with self._lock:
            if self._stopped:
                return
            number = self._sent
            self._sent += 1
        self._start(number, due_ns)

    def keep_outstanding(self, count: int) -> None:
        """Starts a closed loop of `count` requests, which runs until `stop`."""
        self._closed_loop = True
        threading.Thread(target=self._resume_after_errors, name="load", daemon=True).start()
        for _ in range(count):
            self.send(time.monotonic_ns())

    def stop(self, timeout_s: float) -> int:
        """Sends nothing more and waits until every request has its outcome.

        Returns:
            Requests that had none after `timeout_s` seconds.
        """
        with self._lock:
            self._stopped = True
            if self._ended == self._sent:
                self._all_ended.set()
        self._resume_at.put(None)
        self._all_ended.wait(timeout_s)
        with self._lock:
            return self._sent - self._ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(0.0)

    def _start(self, number: int, due_ns: int) -> None:
        try:
            future = self._submit(number)
        except MultitowerError as error:
            self._finish(number, due_ns, error, None)
        else:
            future.add_done_callback(functools.partial(self._answered, number, due_ns))

    def _answered(self, number: int, due_ns: int, future: Future[Any]) -> None:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        self._finish(number, due_ns, error, future)

    def _finish(self, number: int, due_ns: int, error: BaseException | None, future: Future[Any] | None) -> None:
        now_ns = time.monotonic_ns()
        following = None
        with self._lock:
            self._record(Outcome(number, due_ns, now_ns, error, future))
            self._ended += 1
            if self._stopped:
                if self._ended == self._sent:
                    self._all_ended.set()
            elif self._closed_loop and error is None:
                following = self._sent
                self._sent += 1
        if following is not None:
            self._start(following, now_ns)
        elif error is not None and self._closed_loop:
            self._resume_at.put(now_ns + self._pause_ns)

    def _resume_after_errors(self) -> None:
        while (at_ns := self._resume_at.get()) is not None:
            sleep_until(at_ns)
            self.send(time.monotonic_ns())


def sleep_until(at_ns: int) -> None:
    """Sleeps until a time of the clock of `time.monotonic_ns`."""
    while (left_ns := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / _NS)
