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

The daemon ends connections that do not shake hands in time, sooner than libzmq where others wait
(`handshake_watch.py`). libzmq's monitor does not tell which connection has shaken hands: its events name the daemon's
own address. The kernel tells how much a client has acknowledged, and the last part of a handshake is the daemon's.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import Final

import zmq

from multitower import frames

from .acceptor import Acceptor, socket_inode
from .handshake_watch import HandshakeWatch
from .tcp_listener import WATCH_S, monitor_address, monitor_value

MONITOR_QUEUE: Final = 1001
"""Events: libzmq's default of 1000 where the monitor sends, and 1 where the daemon receives."""

ACCEPT_MS: Final = 2
"""Milliseconds that the valve stays open at most. libzmq needs about 0.1 ms to accept."""

SPIN_S: Final = 0.0003
"""Seconds for which the daemon looks for the first connection again and again, before it sleeps."""

HANDSHAKE_S: Final = 5.0
"""Seconds that the handshake of an encrypted connection may take; it takes a place among the connections."""

BEFORE_READY_BYTES: Final = 64 + 170 + 12
"""What a client gets at most without having shaken hands (RFC 26): the greeting and the commands WELCOME and ERROR.
READY, which a client gets instead of ERROR, is longer."""

_TCP_INFO: Final = struct.Struct("=8B24I3Q")  # the beginning of `struct tcp_info` in linux/tcp.h
_UNACKED: Final = 8 + 4  # its fields tcpi_unacked and
_BYTES_ACKED: Final = 8 + 24 + 2  # tcpi_bytes_acked


Accepted = tuple[int, int]
"""A connection that libzmq has accepted: its descriptor, and the inode of the socket that this referred to then."""


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
        self._handshakes: HandshakeWatch[Accepted] = HandshakeWatch(HANDSHAKE_S, _has_shaken_hands)
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
            descriptor = monitor_value(event)
            found.append(descriptor)
            inode = socket_inode(descriptor)
            if inode is not None:  # otherwise it has been closed already
                self._handshakes.add((descriptor, inode), time.monotonic())

    def end_late(self, now: float, crowded: bool) -> int:
        """Ends connections that have not shaken hands in time; libzmq notices that, and closes them.

        Args:
            now: monotonic seconds.
            crowded: whether others wait for their places.

        Returns:
            How many.
        """
        count = 0
        for accepted, _ in self._handshakes.take_late(now, crowded):
            with contextlib.suppress(OSError), same_socket(accepted) as connection:
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
        return count

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


def same_socket(accepted: Accepted) -> socket.socket:
    """A connection of libzmq's, by a descriptor of our own, which libzmq's thread does not close meanwhile.

    Raises:
        OSError: the connection has been closed.
    """
    descriptor = os.dup(accepted[0])
    try:
        if socket_inode(descriptor) != accepted[1]:
            raise OSError("another file has its number")
        return socket.socket(fileno=descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _has_shaken_hands(accepted: Accepted) -> bool:
    """Whether a connection has shaken hands, or has been closed."""
    try:
        with same_socket(accepted) as connection:
            known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return True
    if len(known) < _TCP_INFO.size:
        return True  # a kernel that does not tell; then libzmq ends the connection itself, after `HANDSHAKE_S`
    fields = _TCP_INFO.unpack(known)
    # The first bytes of a connection are the daemon's, at once: they are acknowledged, or wait to be.
    tells = fields[_BYTES_ACKED] > 1 or fields[_UNACKED] > 0
    return not tells or fields[_BYTES_ACKED] > BEFORE_READY_BYTES + 1  # the kernel may count one byte for the SYN


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
