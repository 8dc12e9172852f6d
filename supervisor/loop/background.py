"""Jobs that would block the event loop: each runs in a thread, and its outcome is handed over in the loop's thread."""

from __future__ import annotations

import collections
import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("multitower.background")

T = TypeVar("T")


class BackgroundJobs:
    """Runs jobs in threads and calls back in the event loop's thread.

    Attributes:
        descriptor: readable while outcomes wait for `run_callbacks`.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks: collections.deque[Callable[[], None]] = collections.deque()
        self._lock = threading.Lock()  # no thread may write to the descriptor once it is closed
        self._closed = False

    def run(self, job: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Runs a job in a new thread.

        Args:
            job: called without arguments in the thread.
            then: called by `run_callbacks` with what the job returned, or with the exception that it raised. If no
                thread can be started, with that error.
        """

        def run_job() -> None:
            outcome: T | Exception
            try:
                outcome = job()
            except Exception as error:  # noqa: BLE001  the caller decides what it means
                outcome = error
            self._finish(functools.partial(then, outcome))

        try:
            threading.Thread(target=run_job, name="background job", daemon=True).start()
        except RuntimeError as error:
            self._finish(functools.partial(then, error))

    def _finish(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.descriptor, 1)

    def run_callbacks(self) -> None:
        """Calls back for all jobs that have ended; call it when `descriptor` is readable.

        An exception that a callback raises is logged with its traceback. The other callbacks still run.
        """
        os.eventfd_read(self.descriptor)
        while self._callbacks:
            callback = self._callbacks.popleft()
            try:
                callback()
            except Exception:
                log.exception("handling the outcome of a background job failed")

    def close(self) -> None:
        """Closes the descriptor; outcomes of jobs that are still running are dropped."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
