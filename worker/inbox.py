"""A worker's end of its channel: the batches to run, in the order in which they came, and the way of the answers.

Where batches are brief the thread that runs them also receives them and puts them together, one after the other: to
hand a batch to another thread costs more than that. Where it does not, a second thread does it *ahead*: while one batch
computes, in TensorFlow or wherever else Python's lock is not held, the next one is received and put together. The
models are always called in the thread that loaded them, since what a handler holds may belong to that thread.

At any time one thread receives: the second one from `go_ahead(True)` until it has left its mark, `_PARKED`, behind the
last batch that it took. Both may use the socket only then, and under a lock. The second thread does not wait inside
libzmq, but for the socket's descriptor, which tells only once that something has come, and which sending an answer may
silence: so whoever sends looks, and wakes it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

import zmq

from multitower import frames

Job = TypeVar("Job")

REST_MS: Final = 2500

_PARKED: Final = object()
"""Behind the last batch that the second thread took: the other one receives again."""


class Inbox(Generic[Job]):
    """What the supervisor sends; use it as a context manager. All but the second thread's own is for one thread.

    Args:
        socket: the worker's end of its channel.
        open: makes a job of a message, None of the one that says to stop. It runs in either thread, never in both.
        rest: is called every `REST_MS` while nothing comes, where `open` would be.

    Attributes:
        ahead: the second thread receives.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], open: Callable[[list[Any]], Job | None], rest: Callable[[], None]
    ) -> None:
        self.ahead = False
        self._rest = rest
        socket.set(zmq.RCVTIMEO, REST_MS)
        self._socket = socket
        self._open = open
        self._using = threading.Lock()
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._go = threading.Semaphore(0)
        self._leave = self._ending = False
        self._descriptor = socket.fileno()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._second: threading.Thread | None = None

    def next(self) -> Job | None:
        """Waits for the next job; None when there is none to come.

        Raises:
            Exception: what `open` has raised.
        """
        while self.ahead:
            job: Job | BaseException | None = self._jobs.get()
            if isinstance(job, BaseException):
                raise job
            if job is not _PARKED:
                return job
            self.ahead = False
        while (message := frames.receive(self._socket, wait=True)) is None:
            self._rest()
        return self._open(message)

    def go_ahead(self, wanted: bool) -> None:
        """Lets the second thread receive, or not any more once what it has taken is done."""
        if wanted and not self.ahead:
            self.ahead, self._leave = True, False
            if self._second is None:
                self._second = threading.Thread(target=self._run, name="ahead", daemon=True)
                self._second.start()
            self._go.release()
        elif not wanted and self.ahead and not self._leave:
            self._leave = True
            os.eventfd_write(self._wake, 1)

    def send(self, message: list[Any]) -> None:
        """Sends an answer or a report."""
        if not self.ahead:
            frames.send(self._socket, message, wait=True)
            return
        with self._using:
            frames.send(self._socket, message, wait=True)
            unread = frames.readable(self._socket)
        if unread:
            os.eventfd_write(self._wake, 1)

    def __enter__(self) -> Inbox[Job]:
        return self

    def __exit__(self, *_: object) -> None:
        # The socket is about to be closed: nobody may be using it.
        if self._second is not None:
            self._ending = self._leave = True
            os.eventfd_write(self._wake, 1)
            self._go.release()
            self._second.join()
        os.close(self._wake)

    def _run(self) -> None:
        """The second thread."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            self._go.acquire()
            if self._ending:
                return
            try:
                while not self._leave:
                    if not self._take_one(poll):
                        return
            except BaseException as error:  # noqa: BLE001  the other thread raises it
                self._jobs.put(error)
                return
            self._jobs.put(_PARKED)

    def _take_one(self, poll: select.poll) -> bool:
        """Hands over what has come, or waits; False when nothing is to come. Keeps nothing of what it hands over."""
        with self._using:
            message = frames.receive(self._socket)
        if message is None:
            ready = dict(poll.poll(REST_MS))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            elif not ready:
                self._rest()
            return True
        job = self._open(message)
        self._jobs.put(job)
        return job is not None
