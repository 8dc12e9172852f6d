"""The event loop's wait: for descriptors, messages and the clock at once, at a cost independent of their number.

One epoll watches everything. A *source* is what has a descriptor that does not tell all. That of a ZeroMQ socket, its
`FD` option, reports that something happened to the socket, not that a message is there, and any call on the socket,
such as a send, may clear the report. That of a stream does not report what has been read and not yet been handled, and
what is to be sent to it is collected until the reactor waits. So a source that was sent to is looked at once more
before the reactor waits. (`zmq.Poller` checks every socket at each wait.)
"""

from __future__ import annotations

import functools
import math
import select
import time
from collections.abc import Callable

FINE_S = 0.002
"""Waits shorter than this are exact to the microsecond: a worker's next batch is sent just before the last one ends."""

FD_SETSIZE = 1024
"""select(2) takes descriptors below this number."""

Callback = Callable[[], object]
ErrorHandler = Callable[[Exception], object]


def unwatched() -> None:
    """Stands in for what `Reactor.add_source` returns, for a source that no reactor watches."""


class _Watch:
    """What to call for a descriptor: its callback, and the handler of the exceptions that this raises."""

    __slots__ = ("callback", "on_error")

    def __init__(self, callback: Callback, on_error: ErrorHandler | None) -> None:
        self.callback = callback
        self.on_error = on_error


class Reactor:
    """Calls back when descriptors and sources are readable.

    Each callback may come with an `on_error`: an exception that the callback raises, or the look at its source, is
    passed to it, and the reactor goes on with the next event. Without one the exception leaves `run` or
    `wait`. No event is lost then: calling `run` again delivers the rest.

    Args:
        spin_s: seconds for which it looks for events again and again before it sleeps: a sleeping thread takes some
            microseconds to wake up. 0 for not at all.
    """

    def __init__(self, spin_s: float = 0.0) -> None:
        self._spin_s = spin_s
        self._epoll = select.epoll()
        self._fine_s = FINE_S if self._epoll.fileno() < FD_SETSIZE else 0.0
        self._watches: dict[int, _Watch] = {}
        self._looks: dict[int, Callable[[], bool]] = {}  # of each source
        self._rechecks: dict[int, None] = {}  # sources to look at before the next wait
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

    def add_source(
        self, descriptor: int, look: Callable[[], bool], callback: Callback, on_error: ErrorHandler | None = None
    ) -> Callable[[], None]:
        """Calls `callback` when messages may have arrived; it reads them all, or asks for a recheck.

        Args:
            descriptor: readable when something has happened.
            look: called before the reactor waits, where a recheck was asked for: whether messages are left.
            callback: reads messages.
            on_error: gets what `look` and `callback` raise.

        Returns:
            The source's `recheck`.
        """
        self.add(descriptor, callback, on_error)
        self._looks[descriptor] = look
        self._rechecks[descriptor] = None
        return functools.partial(self._rechecks.__setitem__, descriptor, None)

    def remove_source(self, descriptor: int) -> None:
        """Stops watching a source; call it before its descriptor is closed."""
        self.remove(descriptor)
        del self._looks[descriptor]
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
        elif self._spin_s and (timeout_s is None or timeout_s > 0):
            begun = time.monotonic()
            if self._spin(begun + (self._spin_s if timeout_s is None else min(self._spin_s, timeout_s))):
                timeout_s = 0
            elif timeout_s is not None:
                timeout_s = max(0.0, begun + timeout_s - time.monotonic())
        if timeout_s is not None:
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

    def _spin(self, until: float) -> bool:
        """Looks for events until one is there, or until that time; returns whether one is."""
        while not self._epoll.poll(0):
            if time.monotonic() >= until:
                return False
        return True

    def _check_again(self) -> bool:
        """Looks at the sources that ask for it, and calls back where messages are; returns whether any are."""
        found = False
        # A source that asks again meanwhile is checked after all other events have been handled.
        descriptors = tuple(self._rechecks)
        self._rechecks.clear()
        try:
            for descriptor in descriptors:
                look = self._looks.get(descriptor)
                if look is None:
                    continue
                watch = self._watches[descriptor]
                try:
                    if not look():
                        continue
                    found = True
                    watch.callback()
                except Exception as error:
                    if watch.on_error is None:
                        raise
                    watch.on_error(error)
        except BaseException:
            # Those not checked yet must be; checking one twice does no harm.
            self._rechecks.update({each: None for each in descriptors if each in self._looks})
            raise
        return found

    def close(self) -> None:
        """Closes the epoll; watched descriptors stay open."""
        self._epoll.close()
