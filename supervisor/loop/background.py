"""Jobs that would block the event loop: each runs in a thread, and its outcome is handed over in the loop's thread.

A thread that has run its job waits for the next one, if no other thread waits: starting a thread costs more than most
jobs. A job that does not end keeps its thread, and the next job gets another one.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import queue
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
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = False  # whether a thread waits for the next job

    def run(self, job: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Runs a job in a thread: the one that waits for a job, or a new one.

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

        with self._lock:
            if self._idle:
                self._idle = False
                self._jobs.put(run_job)
                return
        try:
            threading.Thread(target=self._run_jobs, args=(run_job,), name="background job", daemon=True).start()
        except RuntimeError as error:
            self._finish(functools.partial(then, error))

    def _run_jobs(self, job: Callable[[], None]) -> None:
        """Runs a job, and then waits for the next one, unless another thread waits already."""
        while True:
            job()
            with self._lock:
                if self._idle or self._closed:
                    return
                self._idle = True
            following = self._jobs.get()
            if following is None:
                return
            job = following

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
                self._jobs.put(None)  # the end of the thread that waits
                os.close(self.descriptor)
