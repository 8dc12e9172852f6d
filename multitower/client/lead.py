"""A caller that waits for the only answer there is to come reads it by itself, which saves waking two threads.

The connection's thread sleeps on a *gate* in place of the socket: an epoll instance, which a caller shuts and opens
again without waking anybody. While it is shut the caller sleeps on the socket. Whoever else settles its call (the
thread, which sees to deadlines, lost connections and all that is not this one answer) rings a bell that the caller
hears. Linux has all that; elsewhere callers wait for the thread.
"""

from __future__ import annotations

import contextlib
import os
import select


class Gate:
    """Between a socket and the thread that sleeps on it. All but `wait` is for whoever holds the connection's lock.

    Args:
        socket: its descriptor.

    Attributes:
        shut: a caller sleeps on the socket, and rings for the thread when it is needed.
    """

    def __init__(self, socket: int) -> None:
        self.shut = False
        self._socket = socket
        self._epoll = select.epoll()
        self._epoll.register(socket, select.EPOLLIN)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rung = False
        self._poll = select.poll()
        self._poll.register(socket, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def fileno(self) -> int:
        """What the thread sleeps on."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Gives its descriptors back; nobody sleeps on it."""
        self._epoll.close()
        os.close(self._bell)

    def shut_it(self) -> None:
        """The socket wakes the caller now, and not the thread."""
        self.shut = True
        self._epoll.modify(self._socket, 0)

    def open_it(self) -> None:
        """The socket wakes the thread again, at once where something has come."""
        self.shut = False
        if self._rung:
            with contextlib.suppress(BlockingIOError):  # read already, and Ctrl-C came between
                os.eventfd_read(self._bell)
            self._rung = False
        self._epoll.modify(self._socket, select.EPOLLIN)

    def ring(self) -> None:
        """The caller need not wait any longer."""
        if not self._rung:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def wait(self) -> None:
        """The caller sleeps until something has come, or the bell rings."""
        self._poll.poll()


def gate_to(socket: int) -> Gate | None:
    """A gate to a socket, where the system can have one."""
    return Gate(socket) if hasattr(select, "epoll") and hasattr(os, "eventfd") else None
