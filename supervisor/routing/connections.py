"""The connections of clients: counts them, and accepts no more than are allowed.

A connection takes one descriptor of the daemon. Where none is left, workers cannot be replaced, and libzmq aborts the
process. So connections are accepted, by the daemon or by libzmq (see `listener`), only while there is room; other
clients wait in the kernel's backlog, and are accepted when connections have been closed.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from math import inf
from typing import Final

from ..loop.log import event
from .acceptor import Acceptor, socket_inode

log = logging.getLogger("multitower.router")

BACKLOG: Final = 1024
"""Clients that may wait at one endpoint. The kernel lets more of them wait longer and longer until they try again, and
of a client that sends nothing first, it may forget that it is connected."""

SMALL_BACKLOG: Final = 8
"""Clients that may wait at one endpoint, where few descriptors are left for those that are accepted at one time."""

CROWDED: Final = 0.9
"""Share of the places that are taken from which on a handshake must be fast; see `handshake_watch`."""

RESERVE: Final = 24
"""Descriptors that stay free for the daemon: to start a worker, and to answer `status`."""

CHECKED_AT_ONCE: Final = 4096
"""Connections that `tick` checks at most."""

ANNOUNCED_S: Final = 60.0
"""Seconds from one log line that no more connections are accepted to the next, at least. Short connections make room,
and take it again, several times a second."""


class Connections:
    """The connections of some endpoints together.

    Args:
        maximum: how many may be open.
        backlog: how many clients may wait at each endpoint.
        reserve: descriptors that stay free.
        clock: returns monotonic seconds.

    Attributes:
        maximum: as given, or as set last.
        backlog: likewise.
        paused: no connection is accepted now.
        descriptor: readable while clients wait and may be accepted; call `accept` then.
    """

    def __init__(
        self,
        maximum: int,
        backlog: int = BACKLOG,
        reserve: int = RESERVE,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.maximum = maximum
        self.backlog = backlog
        self.paused = False
        self._reserve = reserve
        self._clock = clock
        self._announced = False
        self._announce_at = -inf
        self._no_room = False  # the system could not make another connection, since the last `tick`
        self._listeners: dict[int, Acceptor] = {}
        self._sockets: dict[int, int] = {}  # the inode of each connection's socket, by descriptor
        self._unchecked: list[int] = []
        self._epoll = select.epoll()
        self.descriptor = self._epoll.fileno()

    @property
    def open(self) -> int:
        """Connections that are open, as far as it has been noticed; see `tick`."""
        return len(self._sockets)

    @property
    def crowded(self) -> bool:
        """Whether others wait for a place, or soon will."""
        return self.paused or len(self._sockets) >= CROWDED * self.maximum

    def set_limits(self, maximum: int, backlog: int) -> None:
        """Applies other limits; connections that are open stay open."""
        self.maximum = maximum
        self.backlog = backlog
        for listener in self._listeners.values():
            listener.set_backlog(backlog)
        self._update()

    def add(self, listener: Acceptor) -> None:
        """Accepts the clients of a listener from now on."""
        self._epoll.register(listener.descriptor, 0 if self.paused else select.EPOLLIN)
        self._listeners[listener.descriptor] = listener

    def remove(self, listener: Acceptor) -> None:
        """Forgets a listener; call it before the listener is closed."""
        del self._listeners[listener.descriptor]
        self._epoll.unregister(listener.descriptor)

    def accept(self) -> None:
        """Accepts some of the clients that wait, as far as there is room."""
        self._count()
        for descriptor, _ in self._epoll.poll(0):
            self._update()
            if self.paused:
                return
            self._listeners[descriptor].accept()
            self._count()
        self._update()

    def pause(self) -> None:
        """Accepts nothing until the next `tick`: the system has no room for another connection."""
        self._no_room = True

    def forget(self, descriptor: int) -> None:
        """Counts a connection no more; call it before the connection is closed, where its end is noticed at once."""
        self._sockets.pop(descriptor, None)

    def tick(self) -> None:
        """Notices connections that have been closed, and accepts again if there is room.

        Call it a few times a second. At most `CHECKED_AT_ONCE` connections, and otherwise a quarter of them, are
        checked in each call.
        """
        self._count()
        self._no_room = False
        if not self._unchecked:
            self._unchecked = list(self._sockets)
        full = len(self._sockets) >= self.maximum
        count = len(self._unchecked) if full else max(256, len(self._sockets) // 4)
        for _ in range(min(count, CHECKED_AT_ONCE, len(self._unchecked))):
            descriptor = self._unchecked.pop()
            if socket_inode(descriptor) != self._sockets.get(descriptor):
                self._sockets.pop(descriptor, None)
        self._update()

    def _count(self) -> None:
        for listener in self._listeners.values():
            for descriptor in listener.read_accepted():
                inode = socket_inode(descriptor)
                if inode is not None:  # otherwise it has been closed already
                    self._sockets[descriptor] = inode

    def _update(self) -> None:
        """Pauses or resumes."""
        full = len(self._sockets) >= self.maximum
        paused = full or self._no_room or not self._has_reserve()
        if paused != self.paused:
            self.paused = paused
            for descriptor in self._listeners:
                self._epoll.modify(descriptor, 0 if paused else select.EPOLLIN)
        if paused and not self._announced and self._clock() >= self._announce_at:
            self._announced = True
            self._announce_at = self._clock() + ANNOUNCED_S
            event(
                log,
                logging.WARNING,
                "no more connections are accepted until others are closed",
                open=len(self._sockets),
                max_connections=self.maximum,
                cause=self._cause(full),
                check="do clients keep connections that they do not use? multitower doctor shows the limits",
            )
        # Not with each client that comes and goes.
        elif not paused and self._announced and len(self._sockets) <= self.maximum * 0.9:
            self._announced = False
            event(log, logging.INFO, "connections are accepted again", open=len(self._sockets))

    def _cause(self, full: bool) -> str:
        if full:
            return "max_connections are open"
        if self._no_room:
            return "the system has no memory or no file descriptors for another connection"
        return f"fewer than {self._reserve} file descriptors are free"

    def _has_reserve(self) -> bool:
        """Whether the process can still open the reserve of descriptors."""
        opened: list[int] = []
        try:
            for _ in range(self._reserve):
                opened.append(os.dup(self.descriptor))
        except OSError:
            return False
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return True

    def close(self) -> None:
        """Ends the watching of listeners. They must have been removed."""
        self._epoll.close()
