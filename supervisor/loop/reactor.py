"""The event loop's wait: for descriptors, ZeroMQ sockets and the clock at once, at a cost independent of their number.

One epoll watches everything. A ZeroMQ socket takes part through its `FD` option. That descriptor reports that something
happened to the socket, not that a message is there, and any call on the socket, such as a send, may clear the report.
So a socket's callback reads until nothing is left, and a socket that was sent to is checked once more before the
reactor waits. (`zmq.Poller` checks every socket at each wait.)
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
"""Waits shorter than this are exact to the microsecond: a worker's next batch is sent just before the last one ends."""

FD_SETSIZE = 1024
"""select(2) takes descriptors below this number."""

Callback = Callable[[], object]
ErrorHandler = Callable[[Exception], object]


def unwatched() -> None:
    """Stands in for what `Reactor.add_socket` returns, for a socket that no reactor watches."""


class _Watch:
    """What to call for a descriptor: its callback, and the handler of the exceptions that this raises."""

    __slots__ = ("callback", "on_error")

    def __init__(self, callback: Callback, on_error: ErrorHandler | None) -> None:
        self.callback = callback
        self.on_error = on_error


class Reactor:
    """Calls back when descriptors and sockets are readable.

    Each callback may come with an `on_error`: an exception that the callback raises, or the check whether its socket is
    readable, is passed to it, and the reactor goes on with the next event. Without one the exception leaves `run` or
    `wait`. No event is lost then: calling `run` again delivers the rest.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fine_s = FINE_S if self._epoll.fileno() < FD_SETSIZE else 0.0
        self._watches: dict[int, _Watch] = {}
        self._sockets: dict[int, zmq.Socket[Any]] = {}
        self._rechecks: dict[int, None] = {}  # sockets to check before the next wait
        self._interrupted = False

    def add(self, descriptor: int, callback: Callback, on_error: ErrorHandler | None = None) -> None:
        """Calls `callback` whenever the descriptor is readable."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._watches[descriptor] = _Watch(callback, on_error)

    def watch_writable(self, descriptor: int, wanted: bool) -> None:
        """Calls the callback of a watched descriptor also when it is writable; or does not do so any more."""
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        """Stops watching a descriptor; call it before the descriptor is closed."""
        self._epoll.unregister(descriptor)
        del self._watches[descriptor]

    def add_socket(
        self, socket: zmq.Socket[Any], callback: Callback, on_error: ErrorHandler | None = None
    ) -> Callable[[], None]:
        """Calls `callback` when messages may have arrived; it reads them all, or asks for a recheck.

        Returns:
            The socket's `recheck`: call it with each send on the socket, also one that fails, and where messages are
            left unread.
        """
        descriptor = _descriptor(socket)
        self.add(descriptor, callback, on_error)
        self._sockets[descriptor] = socket
        self._rechecks[descriptor] = None
        return functools.partial(self._rechecks.__setitem__, descriptor, None)

    def remove_socket(self, socket: zmq.Socket[Any]) -> None:
        """Stops watching a socket; call it before the socket is closed."""
        descriptor = _descriptor(socket)
        self.remove(descriptor)
        del self._sockets[descriptor]
        self._rechecks.pop(descriptor, None)

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
        """Waits for events or for the end of the timeout, and calls the callbacks of one burst of events.

        Args:
            timeout_s: seconds; None to wait for events only. It may return up to a millisecond early, but not
                repeatedly.
        """
        found = bool(self._rechecks) and self._check_again()
        if found or self._rechecks:
            timeout_s = 0
        elif timeout_s is not None:
            if 0 < timeout_s < self._fine_s:
                # An epoll counts in milliseconds, but is itself a descriptor that select can wait for.
                select.select((self._epoll,), (), (), timeout_s)
                timeout_s = 0
            else:
                to_ms = math.floor if self._fine_s else math.ceil
                timeout_s = max(0, to_ms(timeout_s * 1000)) / 1000
        for descriptor, _ in self._epoll.poll(timeout_s):
            watch = self._watches.get(descriptor)
            if watch is None:
                continue  # an earlier callback of this burst removed it
            try:
                watch.callback()
            except Exception as error:
                if watch.on_error is None:
                    raise
                watch.on_error(error)

    def _check_again(self) -> bool:
        """Calls the callbacks of sockets that ask for a recheck, if readable; returns whether any was."""
        found = False
        # A socket that asks again meanwhile is checked after all other events have been handled.
        descriptors = tuple(self._rechecks)
        self._rechecks.clear()
        try:
            for descriptor in descriptors:
                socket = self._sockets.get(descriptor)
                if socket is None:
                    continue
                watch = self._watches[descriptor]
                try:
                    if not frames.readable(socket):
                        continue
                    found = True
                    watch.callback()
                except Exception as error:
                    if watch.on_error is None:
                        raise
                    watch.on_error(error)
        except BaseException:
            # Those not checked yet must be; checking one twice does no harm.
            self._rechecks.update({each: None for each in descriptors if each in self._sockets})
            raise
        return found

    def close(self) -> None:
        """Closes the epoll; watched descriptors and sockets stay open."""
        self._epoll.close()


def _descriptor(socket: zmq.Socket[Any]) -> int:
    descriptor = socket.get(zmq.FD)
    assert isinstance(descriptor, int)  # other options are bytes
    return descriptor
