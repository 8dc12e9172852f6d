"""The socket that a worker binds: a ZeroMQ ROUTER socket, which the supervisor connects a DEALER with.

It has one peer at a time; others wait until that one has gone. Any libzmq socket that may be connected with a ROUTER
can be the peer: a DEALER, a ROUTER, or a REQ, which puts an empty frame before each message and gets one before each
answer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from multitower.buffers import Buffers
from multitower.message_stream import MessageStream
from multitower.zmtp import ZmtpError

from .records import log_event

HANDSHAKE_S: Final = 5
"""Seconds that a new peer has for its greeting, before the next one gets its turn."""

BACKLOG: Final = 8
"""Peers that may wait."""

MAX_FREE_BYTES: Final = 64 << 20
"""Of memory for large frames that is used again."""

_TIMEVAL: Final = struct.Struct("ll")
_DELIMITER: Final = b""


class BoundSocket:
    """The worker's end of its connection to the supervisor.

    One thread receives; any thread may send.

    Args:
        path: where it is bound. The supervisor removes it.

    Raises:
        OSError: it cannot be bound.
    """

    def __init__(self, path: str) -> None:
        self._wait_ms: int | None = None
        self._spin_s = 0.0
        # Before each call that reads: one that waits itself wakes up also when the peer has read an answer.
        self._arrivals = select.poll()
        self._buffers = Buffers(MAX_FREE_BYTES)
        self._stream: MessageStream | None = None
        self._delimited = False
        self._writing = threading.Lock()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._epoll = select.epoll()
        try:
            self._listening.bind(path)
            self._listening.listen(BACKLOG)
            self._epoll.register(self._listening.fileno(), select.EPOLLIN)
        except OSError:
            self.close()
            raise

    def set_wait(self, seconds: float) -> None:
        """Limits how long `receive` waits; 0 for no limit."""
        self._wait_ms = int(seconds * 1000) or None
        _limit_waiting(self._listening, seconds)

    def set_spin(self, seconds: float) -> None:
        """Lets `receive` look for messages again and again for so long before it sleeps; 0 for not at all."""
        self._spin_s = seconds

    def fileno(self) -> int:
        """A descriptor that is readable when something has arrived that has not been read; `receive` then."""
        return self._epoll.fileno()

    def wait_for_peer(self) -> None:
        """Waits for the first peer."""
        while self._stream is None:
            self._accept()

    def receive(self, *, wait: bool = False) -> list[Any] | None:
        """The next message.

        Args:
            wait: whether to wait for one, as long as `set_wait` allows.

        Returns:
            The frames: those under `BULKY_BYTES` as `bytes`, others as writable memory. None when none has arrived.

        Raises:
            OSError: the socket fails, as when other code of the process has closed it.
        """
        while True:
            stream = self._stream
            if stream is None:
                if (not wait and not self._epoll.poll(0)) or not self._accept():
                    return None
                continue
            try:
                message = stream.next_message()
            except ZmtpError as error:
                self._drop(stream, error)
                continue
            if stream.pinged:
                # A peer that has gone is noticed by reading.
                with self._writing, contextlib.suppress(OSError):
                    stream.answer_pings()
            if message is not None:
                if not self._delimited:
                    return message
                if len(message) > 1 and not message[0]:
                    return message[1:]
                continue  # no REQ sends this
            try:
                if wait and not self._wait():
                    return None
                arrived = stream.read()
            except OSError as failure:  # another name than above: compiled code gives each name one type
                _raise_if_closed(failure)
                raise
            if not arrived:
                if not stream.ended:
                    return None
                self._drop(stream)

    def _wait(self) -> bool:
        """Waits until something arrives; returns whether it has."""
        if self._spin_s:
            until = time.monotonic() + self._spin_s
            while time.monotonic() < until:
                if self._arrivals.poll(0):
                    return True
        return bool(self._arrivals.poll(self._wait_ms))

    def send(self, message: Sequence[Any]) -> None:
        """Sends a message, and waits until the kernel has taken it. It is lost if the peer has gone.

        Raises:
            OSError: the socket fails, as when other code of the process has closed it.
        """
        with self._writing:
            stream = self._stream
            if stream is None:
                return
            try:
                stream.send([_DELIMITER, *message] if self._delimited else message)
                while stream.unsent:
                    stream.flush(0)
            except (BrokenPipeError, ConnectionResetError):
                return
            except OSError as error:
                _raise_if_closed(error)
                raise

    def _accept(self) -> bool:
        """Waits for a peer, and accepts it if it is one; returns whether it is."""
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return False
        try:
            stream = MessageStream(connection, "ROUTER", self._buffers.allocate)
        except OSError:  # it has gone
            connection.close()
            return False
        _limit_waiting(connection, HANDSHAKE_S)
        try:
            while not (peer_type := stream.shake_hands()):
                if not stream.read(0):
                    stream.close()
                    return False
        except ZmtpError as error:
            _log_refused(error)
            stream.close()
            return False
        self._epoll.unregister(self._listening.fileno())
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        self._arrivals.register(connection.fileno(), select.POLLIN)
        with self._writing:
            self._delimited = peer_type == "REQ"
            self._stream = stream
        return True

    def _drop(self, stream: MessageStream, error: ZmtpError | None = None) -> None:
        """Closes the connection of a peer that has gone, or that does not follow the protocol."""
        if error is not None:
            _log_refused(error)
        self._epoll.unregister(stream.fileno())
        self._arrivals.unregister(stream.fileno())
        self._epoll.register(self._listening.fileno(), select.EPOLLIN)
        with self._writing:
            self._stream = None
            stream.close()

    def close(self) -> None:
        """Closes it; what has been sent arrives."""
        if self._stream is not None:
            self._stream.close()
        self._listening.close()
        self._epoll.close()


def _raise_if_closed(error: OSError) -> None:
    """Raises an error that can be understood in the log if this process has closed the socket itself."""
    if error.errno in (errno.EBADF, errno.ENOTSOCK):
        cause = "the worker's socket is closed: code of a model must have closed a descriptor that is not its own"
        raise OSError(error.errno, cause) from error


def _log_refused(error: ZmtpError) -> None:
    log_event(logging.WARNING, "a connection to the worker's socket is closed", cause=error)


def _limit_waiting(connection: socket.socket, seconds: float) -> None:
    """Limits how long calls that read wait; 0 for no limit. The kernel does it, which saves a call for each one."""
    whole = int(seconds)
    limit = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
