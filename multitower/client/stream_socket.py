"""A connection to a daemon on the same machine: a Unix socket that the client's threads read and write themselves.

libzmq passes each message through a thread of its own, which costs a call that waits for its reply two more wake-ups.
The daemon's end is served without libzmq, too. `dealer_socket.py` does the same over tcp.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Container, Sequence
from typing import Any, Final

import numpy as np
import zmq

from multitower.message_stream import MessageStream
from multitower.zmtp import ZmtpError

RECONNECT_S: Final = 0.1
RECONNECT_MAX_S: Final = 2.0
HANDSHAKE_S: Final = 5.0
"""How long the peer may take to accept the connection and to answer the greeting."""

MAX_KEPT: Final = 32
"""Buffers of messages that are passed to the kernel together."""

_NEVER: Final = float("inf")
_NOW: Final = 0.0
"""As `due` of a connection: it is to be given up."""


def _allocate(size: int) -> memoryview:
    """Memory for a large frame, which the arrays of a response keep."""
    return np.empty(size, np.uint8).data


class StreamSocket:
    """Connects to a path, and again after the connection was lost. Nothing in it blocks.

    Whatever is raised while bytes are sent or received, such as KeyboardInterrupt, ends the connection: it is not known
    then how far the message has come. One thread at a time may use it.

    Args:
        path: of the daemon's Unix socket; one that begins with `@` is an abstract name.

    Attributes:
        descriptors: further descriptors to wait for: none.
        due: when `advance` is to be called, in monotonic seconds.
        can_divert: `divert` can be called.
        refusal: None: there are no keys over ipc.
    """

    descriptors: tuple[int, ...] = ()
    can_divert = True
    refusal = None

    def __init__(self, path: str) -> None:
        self.due = _NOW
        self._address = os.fsencode("\0" + path[1:] if path.startswith("@") else path)
        self._epoll = select.epoll()  # the connection's thread waits for it: it outlives the connection
        self._diverted = False
        self._stream: MessageStream | None = None
        self._ended: MessageStream | None = None  # the lost one, until it is closed
        self._is_open = False  # the handshake is over: libzmq refuses messages before that
        self._messages: deque[list[Any]] = deque()
        self._watches_output = False
        self._drained = False
        self._wait_s = RECONNECT_S
        self._events: list[int] = []

    def fileno(self) -> int:
        """A descriptor that is readable while `receive` has something to do; it stays the same."""
        return self._epoll.fileno()

    @property
    def descriptor(self) -> int:
        """The descriptor of the present connection, -1 without one."""
        return -1 if self._stream is None else self._stream.fileno()

    def divert(self, diverted: bool) -> None:
        """Sets whether arrivals make only `descriptor` readable, and not `fileno`."""
        self._diverted = diverted
        if self._stream is not None:
            self._watch(self._stream)

    def _watch(self, watched: MessageStream) -> None:
        # The mask of the socket itself is changed: an epoll inside this one would wake the thread that waits for this
        # one at each arrival, whatever the mask.
        mask = 0 if self._diverted else select.EPOLLIN
        self._epoll.modify(watched, mask | select.EPOLLOUT if self._watches_output else mask)

    def close(self) -> None:
        """Closes the connection."""
        self._close_ended()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._epoll.close()

    # The connection.

    def advance(self, now: float) -> None:
        """Connects, or gives up a connection whose peer does not answer, once that is `due`.

        Args:
            now: monotonic seconds.
        """
        if now < self.due:
            return
        if self._stream is None:
            self._connect(now)
        else:
            self._lose()

    def _connect(self, now: float) -> None:
        self._close_ended()
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            opened.connect(self._address)  # at once: if the queue of connections is full, it is an error
            stream = MessageStream(opened, "DEALER", _allocate)
            self._epoll.register(stream, 0 if self._diverted else select.EPOLLIN)
        except OSError:
            opened.close()
            self._retry_later(now)
            return
        self._stream = stream
        self._messages = deque()
        self._drained = False
        self._events.append(zmq.EVENT_CONNECTED)
        self.due = now + HANDSHAKE_S

    def _retry_later(self, now: float) -> None:
        self._events.append(zmq.EVENT_CONNECT_RETRIED)
        self.due = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, RECONNECT_MAX_S)

    def _lose(self) -> None:
        """Ends the connection. Messages that have been received as a whole can still be taken."""
        lost = self._stream
        if lost is None:
            return
        # Ctrl-C may end this after any of these statements. From the first one on, `advance` completes it.
        self.due = _NOW
        self._is_open = False  # nothing can be sent
        lost.drop_unsent()
        self._watches_output = False
        self._diverted = False  # a leader that waits for a retry does not see the next connection; the thread reads it
        self._events.append(zmq.EVENT_DISCONNECTED)
        self._ended = lost
        self._stream = None
        self._close_ended()
        self._retry_later(time.monotonic())

    def _close_ended(self) -> None:
        ended = self._ended
        if ended is None:
            return
        with contextlib.suppress(OSError, ValueError):  # done already, and then Ctrl-C
            self._epoll.unregister(ended)  # not by closing it: a leader that polls it keeps it open
        ended.close()
        self._ended = None

    def _lose_output(self, lost: MessageStream) -> None:
        """Ends a connection whose output is incomplete. Replies that arrived before can still be received."""
        try:
            lost.drop_unsent()
            with contextlib.suppress(OSError, MemoryError, ZmtpError):
                while self._fill(lost):
                    pass
        finally:
            self._lose()

    def has_events(self, _: Container[int]) -> bool:
        """Whether `connection_events` has any."""
        return bool(self._events)

    def connection_events(self) -> list[int]:
        """What has happened to the connection since the last call, as libzmq's monitors name it."""
        events, self._events = self._events, []
        return events

    def record_success(self) -> None:
        """Records that the connection has opened: once it is lost, the next attempt comes soon."""
        self._wait_s = RECONNECT_S

    def try_other_family(self) -> None:
        """Does nothing: a path has no address family to choose."""

    # Messages.

    def send(self, message: Sequence[Any], *, at_once: bool = True) -> None:
        """Sends a message.

        Args:
            message: its frames; large ones must not change until they have been sent.
            at_once: whether to pass it to the kernel now; if not, the caller calls `flush` after further messages.

        Raises:
            zmq.Again: there is no connection, or the kernel has not taken an earlier message as a whole.
        """
        stream = self._stream
        if stream is None or not self._is_open or stream.unsent:
            raise zmq.Again
        stream.hold(message)
        if at_once or stream.kept >= MAX_KEPT:
            self.flush()

    def flush(self) -> None:
        """Passes what was sent to the kernel, as far as it takes it; `receive` does so with the rest."""
        stream = self._stream
        if stream is None:
            return
        try:
            self._flush(stream)
        except BaseException as error:
            self._lose_output(stream)
            if not isinstance(error, OSError):
                raise

    def receive(self) -> list[Any] | None:
        """The next message, or None when none has arrived. It also sends what could not be sent at once."""
        if not self._messages and not self._drained and self._stream is not None:
            if self._stream.kept:
                self.flush()
            self._read()
        if self._messages:
            return self._messages.popleft()
        self._drained = False  # what comes from now on makes the descriptor readable again
        return None

    def has_arrivals(self) -> bool:
        """Whether there is a message or an event that the descriptor does not report."""
        return bool(self._messages or self._events)

    def is_ready(self, *, to_send: bool) -> bool:
        """Whether there is a message or an event or, if `to_send`, whether a message can be sent."""
        can_send = self._stream is not None and self._is_open and not self._stream.unsent
        return self.has_arrivals() or (to_send and can_send)

    def _flush(self, stream: MessageStream) -> None:
        if stream.pinged:
            stream.answer_pings()
        stream.flush()
        if self._watches_output != stream.unsent:
            self._watches_output = stream.unsent
            self._watch(stream)

    def _read(self) -> None:
        """Reads until a message is complete or nothing more has arrived, and answers the peer's pings."""
        stream = self._stream
        if stream is None:
            return
        try:
            while self._fill(stream) and not self._messages and not self._drained:
                continue
        except (OSError, MemoryError, ZmtpError):
            self._lose()
        except BaseException:
            self._lose()
            raise
        if stream.pinged:
            self.flush()

    def _fill(self, stream: MessageStream) -> bool:
        """Reads once, and takes the messages that are complete.

        Returns:
            Whether anything had arrived.
        """
        if self.due == _NOW:  # Ctrl-C has ended `_lose`
            raise ConnectionResetError
        arrived = stream.read()
        if stream.ended:
            raise ConnectionResetError
        while (message := stream.next_message()) is not None:
            self._messages.append(message)
        self._drained = stream.drained
        if not self._is_open and stream.shake_hands():
            self._is_open = True
            self.due = _NEVER
            self._events.append(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        return arrived
