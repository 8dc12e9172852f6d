"""The listening socket of a front socket, whose connections libzmq accepts only when the daemon lets it.

libzmq accepts in a thread of its own, as fast as clients connect. When the process runs out of descriptors, it aborts
the process, or tries again at once and for ever. It has no way to pause: `zmq_unbind` also closes the
connections that it has accepted. So the daemon puts a valve before libzmq:

- libzmq is given a descriptor to listen on (ZMQ_USE_FD), which it polls with an epoll. At that time the descriptor
  refers to an eventfd, the valve.
- Then `dup2` lets the same descriptor refer to the listening socket. The epoll goes on to watch the eventfd: an epoll
  watches the file that a descriptor referred to when it was added, as long as that file is open (epoll(7), Q6).
- So libzmq calls accept() on the listening socket while the eventfd is readable, and only then. Meanwhile clients wait
  in the backlog of the listening socket, in the kernel, and the path of an ipc endpoint stays.
- Before libzmq stops to listen, its epoll is made to watch the listening socket, for no event: libzmq removes the
  descriptor from the epoll then, and aborts the process if the file that it refers to by then is not watched. The
  descriptor must not refer to the eventfd again. libzmq's thread may have seen the valve open, and be about to call
  accept(); it aborts the process if that fails because the file is no socket.

While the valve is open, libzmq reports each connection to its monitor. The queue to it holds `MONITOR_QUEUE` events;
when it is full, libzmq's thread waits until the daemon reads. So even if the daemon does not run for a while and cannot
close the valve, libzmq accepts only that many connections more.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Final

import zmq

from multitower import frames

from .acceptor import Acceptor
from .tcp_listener import WATCH_S, monitor_address, monitor_value

MONITOR_QUEUE: Final = 1001
"""Events: libzmq's default of 1000 where the monitor sends, and 1 where the daemon receives."""

ACCEPT_MS: Final = 2
"""Milliseconds that the valve stays open at most. libzmq needs about 0.1 ms to accept."""

SPIN_S: Final = 0.0003
"""Seconds for which the daemon looks for the first connection again and again, before it sleeps."""


class Listener(Acceptor):
    """A listening socket of libzmq, and the valve before it.

    Args:
        context: the router's ZeroMQ context.
        front: the ROUTER socket that gets the connections; its options have been set. Call `close` before it is closed.
        listening: the listening socket. The listener owns it.
        endpoint: that it listens at.

    Raises:
        OSError, zmq.ZMQError: the system is out of descriptors, or libzmq does not use an epoll.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], front: zmq.Socket[bytes], listening: socket.socket, endpoint: str
    ) -> None:
        self._front = front
        self._listening = listening
        # libzmq's thread would wait in accept() for the next client.
        listening.setblocking(False)
        with contextlib.ExitStack() as undo:
            self._valve = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._valve)
            monitor = monitor_address()
            front.monitor(monitor, zmq.EVENT_ACCEPTED)
            undo.callback(front.disable_monitor)
            self._monitor = context.socket(zmq.PAIR)
            undo.callback(self._monitor.close, 0)
            self._monitor.set(zmq.RCVHWM, 1)
            self._monitor.connect(monitor)
            self._polled = os.dup(self._valve)
            # An epoll that watches a file which had this number before, and is open elsewhere, is not libzmq's.
            others = _watching(self._polled)
            front.set(zmq.USE_FD, self._polled)
            try:
                front.bind(endpoint)
            except BaseException:
                os.close(self._polled)
                raise
            # From here on, libzmq closes `_polled`.
            self._epoll = _wait_until_watched(self._polled, others)
            os.dup2(listening.fileno(), self._polled, inheritable=False)
            undo.pop_all()

    @property
    def descriptor(self) -> int:
        """Readable while clients wait to be accepted."""
        return self._listening.fileno()

    def accept(self) -> None:
        """Lets libzmq accept connections, at least one if any waits, until it has reported the first one."""
        os.eventfd_write(self._valve, 1)
        try:
            # Without sleeping first: until a thread that sleeps runs again, libzmq may accept dozens.
            until = time.monotonic() + SPIN_S
            while not frames.readable(self._monitor):
                if time.monotonic() > until:
                    self._monitor.poll(ACCEPT_MS)
                    break
        finally:
            os.eventfd_read(self._valve)

    def read_accepted(self) -> list[int]:
        """The descriptors of the connections that libzmq has accepted since the last call."""
        found: list[int] = []
        while True:
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append(monitor_value(event))

    def set_backlog(self, connections: int) -> None:
        """Sets how many connections may wait to be accepted."""
        self._listening.listen(connections)

    def close(self) -> None:
        """Stops listening. Call it before the front socket is closed."""
        # See above. The eventfd, which is closed below, is not watched any more then.
        with select.epoll.fromfd(os.dup(self._epoll)) as epoll:
            epoll.register(self._polled, 0)
        # Nothing is accepted any more. A thread of libzmq that waits for room in the queue must not hold its lock.
        self.read_accepted()
        self._front.disable_monitor()
        self._monitor.close(0)
        self._listening.close()
        os.close(self._valve)


def _wait_until_watched(descriptor: int, others: set[int]) -> int:
    """Waits until an epoll of this process watches the descriptor, and returns that epoll's descriptor.

    Args:
        descriptor: the watched one.
        others: epolls that do not count.

    Raises:
        OSError: none does after `WATCH_S`.
    """
    until = time.monotonic() + WATCH_S
    while True:
        for found in _watching(descriptor) - others:
            return found
        if time.monotonic() > until:
            raise OSError("libzmq does not watch its listening socket with an epoll")
        time.sleep(0.0005)


def _watching(descriptor: int) -> set[int]:
    """Returns the epolls of this process that watch a descriptor of this number."""
    watching: set[int] = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # another thread has closed it
            if os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[eventpoll]":
                with open(f"/proc/self/fdinfo/{number}", "rb") as lines:
                    for line in lines:
                        words = line.split()
                        if words[:1] == [b"tfd:"] and int(words[1]) == descriptor:
                            watching.add(int(number))
    return watching
