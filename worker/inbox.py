"""A worker's end of its connection to the supervisor: batches come in, and are run in this order; answers go out.

Where batches are short, the thread that runs them also receives and prepares them, one after the other: handing a batch
to another thread costs more than that. Where they are long, a second thread *prefetches*: while one batch computes, in
TensorFlow or wherever else Python's lock is released, it receives and prepares the next one. Models are always called
in the thread that loaded them, since what a handler holds may belong to that thread.

One thread receives at any time: the second one from `set_prefetching(True)` until it has put `_PARKED` behind the last
batch that it took. The first one sends at any time.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeVar

Job = TypeVar("Job")

IDLE_S: Final = 2.5

_PARKED: Final = object()
"""Behind the last batch that the second thread took: the first one receives again."""


class Channel(Protocol):
    """Where messages come from and go to: the worker's socket, or for a tower the thread that reads it."""

    def set_wait(self, seconds: float) -> None:
        """Limits how long `receive` waits; 0 for no limit."""

    def fileno(self) -> int:
        """A descriptor that is readable when `receive` should be called."""

    def receive(self, *, wait: bool = False) -> list[Any] | None:
        """The next message; None when none has arrived, or none within the limit."""

    def send(self, message: Sequence[Any]) -> None:
        """Sends a message."""


class Inbox(Generic[Job]):
    """Receives messages and prepares them; a context manager. Its methods are for the thread that runs the batches.

    Args:
        channel: where messages come from and answers go to.
        open_message: makes a job of a message, or None of STOP. It runs in either thread, never in both at once.
        on_idle: is called every `IDLE_S` while nothing arrives, by the thread that receives.

    Attributes:
        prefetching: whether the second thread receives.
    """

    def __init__(
        self,
        channel: Channel,
        open_message: Callable[[list[Any]], Job | None],
        on_idle: Callable[[], None],
    ) -> None:
        self.prefetching = False
        self._on_idle = on_idle
        channel.set_wait(IDLE_S)
        self._channel = channel
        self._open_message = open_message
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._start = threading.Semaphore(0)
        self._parking = self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._second: threading.Thread | None = None

    def next_job(self) -> Job | None:
        """Waits for the next job; None after STOP.

        Raises:
            Exception: what `open_message` has raised, in either thread.
        """
        while self.prefetching:
            job: Job | BaseException | None = self._jobs.get()
            if isinstance(job, BaseException):
                raise job
            if job is not _PARKED:
                return job
            self.prefetching = False
        while (message := self._channel.receive(wait=True)) is None:
            self._on_idle()
        return self._open_message(message)

    def set_prefetching(self, wanted: bool) -> None:
        """Lets the second thread receive; or ends that, once the batches that it has taken are done."""
        if wanted and not self.prefetching:
            self.prefetching, self._parking = True, False
            if self._second is None:
                self._second = threading.Thread(target=self._run, name="prefetch", daemon=True)
                self._second.start()
            self._start.release()
        elif not wanted and self.prefetching and not self._parking:
            self._parking = True
            os.eventfd_write(self._wake, 1)

    def send(self, message: list[Any]) -> None:
        """Sends an answer or a report."""
        self._channel.send(message)

    def __enter__(self) -> Inbox[Job]:
        return self

    def __exit__(self, *_: object) -> None:
        # The caller closes the channel next, so the second thread must have ended.
        if self._second is not None:
            self._closing = self._parking = True
            os.eventfd_write(self._wake, 1)
            self._start.release()
            self._second.join()
        os.close(self._wake)

    def _run(self) -> None:
        """The second thread."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            self._start.acquire()
            if self._closing:
                return
            try:
                while not self._parking:
                    if not self._take_one(poll):
                        return
            except BaseException as error:  # noqa: BLE001  `next_job` raises it in the first thread
                self._jobs.put(error)
                return
            self._jobs.put(_PARKED)

    def _take_one(self, poll: select.poll) -> bool:
        """Queues the next job, or waits for one; False after STOP. Keeps no reference to the job."""
        message = self._channel.receive()
        if message is None:
            ready = dict(poll.poll(int(IDLE_S * 1000)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            elif not ready:
                self._on_idle()
            return True
        job = self._open_message(message)
        self._jobs.put(job)
        return job is not None
