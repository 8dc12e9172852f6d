"""Waits for descriptors, ZeroMQ sockets and the clock at once, at a cost that does not grow with their number.

One epoll holds everything: a ZeroMQ socket takes part through its `FD`, which tells only that something has happened to
the socket, not that a message is there, and which any call on the socket, a send among them, may swallow. So a socket's
reader reads until nothing is left, and a socket that was sent to is read once more before the reactor sleeps.
(`zmq.Poller` asks every socket each time that it waits.)
"""

from __future__ import annotations

import functools
import math
import select
import time
from collections.abc import Callable
from typing import Any

import zmq

from multitower import frames

FINE_S = 0.002
"""The last part of a wait, which is kept to the microsecond: a worker's next batch is sent when the one before ends."""

FD_SETSIZE = 1024

Reader = Callable[[], object]
"""Reads what has come, all of it or, having stirred its socket, a part."""


def unwatched() -> None:
    """Stands in the place of what `Reactor.add_socket` returns, for a socket that no reactor looks at."""


class Reactor:
    """The one place where the daemon waits."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fine_s = FINE_S if self._epoll.fileno() < FD_SETSIZE else 0.0
        self._readers: dict[int, Reader] = {}
        self._sockets: dict[int, zmq.Socket[Any]] = {}
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._stirred: dict[int, None] = {}
        self._interrupted = False

    def add(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever the descriptor is readable."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._callbacks[descriptor] = callback

    def remove(self, descriptor: int) -> None:
        """Looks at it no more; before it is closed."""
        self._epoll.unregister(descriptor)
        del self._callbacks[descriptor]

    def add_socket(self, socket: zmq.Socket[Any], reader: Reader) -> Callable[[], None]:
        """Calls `reader` when messages may have come.

        Returns:
            What must be called after each send on the socket, and by a reader that leaves messages behind.
        """
        descriptor = _descriptor(socket)
        self._epoll.register(descriptor, select.EPOLLIN)
        self._readers[descriptor] = reader
        self._sockets[descriptor] = socket
        self._stirred[descriptor] = None
        return functools.partial(self._stirred.__setitem__, descriptor, None)

    def remove_socket(self, socket: zmq.Socket[Any]) -> None:
        """Looks at it no more; before it is closed."""
        descriptor = _descriptor(socket)
        self._epoll.unregister(descriptor)
        del self._readers[descriptor], self._sockets[descriptor]
        self._stirred.pop(descriptor, None)

    def run(self, until: float, flush: Callable[[float], None], next_wake: Callable[[], float | None]) -> float:
        """Handles events until the time `until`, or until `interrupt` has been called.

        Args:
            until: monotonic seconds.
            flush: called after each burst of events, except the last one, with the time in monotonic seconds.
            next_wake: returns when `flush` must be called at the latest, in monotonic seconds; None for no such time.

        Returns:
            The time after the last burst, in monotonic seconds.
        """
        while True:
            due = until
            wake = next_wake()
            if wake is not None and wake < due:
                due = wake
            self.wait(due - time.monotonic())
            now = time.monotonic()
            if self._interrupted or now >= until:
                self._interrupted = False
                return now
            flush(now)

    def interrupt(self) -> None:
        """Makes `run` return after the present burst of events, or else after the next one."""
        self._interrupted = True

    def wait(self, timeout_s: float | None) -> None:
        """Waits until something has come or the time is over, and calls those whom it concerns.

        Args:
            timeout_s: seconds; None for as long as it takes. It may return up to a millisecond early, though not
                again and again.
        """
        found = False
        if self._stirred:
            # Those that stir their sockets meanwhile have their next turn when the others have had theirs.
            descriptors = tuple(self._stirred)
            self._stirred.clear()
            for descriptor in descriptors:
                if frames.readable(self._sockets[descriptor]):
                    self._readers[descriptor]()
                    found = True
        if found or self._stirred:
            timeout_s = 0
        elif timeout_s is not None:
            if 0 < timeout_s < self._fine_s:
                # An epoll counts in milliseconds, but can be waited for like any descriptor.
                select.select((self._epoll,), (), (), timeout_s)
                timeout_s = 0
            else:
                to_ms = math.floor if self._fine_s else math.ceil
                timeout_s = max(0, to_ms(timeout_s * 1000)) / 1000
        for descriptor, _ in self._epoll.poll(timeout_s):
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
                continue
            callback = self._callbacks.get(descriptor)
            if callback is not None:  # else it was removed in the same breath
                callback()

    def close(self) -> None:
        """Gives the epoll back; what it looked at is its owners' to close."""
        self._epoll.close()


def _descriptor(socket: zmq.Socket[Any]) -> int:
    descriptor = socket.get(zmq.FD)
    assert isinstance(descriptor, int)  # of all options, some are bytes
    return descriptor
