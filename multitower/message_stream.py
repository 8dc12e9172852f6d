"""A ZeroMQ connection that is served by its owner's thread: messages on a stream socket.

libzmq serves its connections with a thread of its own: a message wakes two threads on each side. Here the owner waits
for the socket directly, and a message wakes one thread. Both ends between the daemon and a worker are such streams, and
so are the gateway's and the daemon's own, and the Python client's over ipc.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from multitower import zmtp

READ_BYTES: Final = 64 << 10

BUFFER_BYTES: Final = 1 << 20
"""What the kernel shall hold on its way; it allows as much as net.core.wmem_max."""

MAX_BUFFERS: Final = 512
"""Buffers in one system call; the kernel takes up to 1024."""

# Other systems have no such flags; clients import this module there, and use libzmq.
_DONTWAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
"""For all that is written: an application may have set SIGPIPE to its default, which ends the process."""


class MessageStream:
    """One connection.

    Nothing is lost: what the peer has sent is read before its end is noticed.

    Args:
        connection: a connected socket; the stream owns it.
        socket_type: what this side is, "DEALER" or "ROUTER".
        allocate: makes writable memory for a large frame.
        buffer_bytes: what the kernel shall hold on its way; 0 for what it holds by default.
        limits: of what the peer may send; see `zmtp.Limits`.

    Attributes:
        socket: as given.
        written: how many of the kept buffers the kernel has taken so far, or were given up.
        ended: the peer has closed its end, and everything that it sent has been read.
        drained: the last `read` has taken all that had arrived.
        unsent: the kernel has not taken everything that was sent; call `flush` when the socket is writable.
    """

    def __init__(
        self,
        connection: socket.socket,
        socket_type: str,
        allocate: Callable[[int], memoryview],
        buffer_bytes: int = BUFFER_BYTES,
        limits: zmtp.Limits = zmtp.NO_LIMITS,
    ) -> None:
        self.written = 0
        self.ended = False
        self.drained = False
        self.unsent = False
        self.socket = connection
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self._decoder = zmtp.Decoder(socket_type, allocate, limits)
        self._queue: deque[Any] = deque()
        self._write([zmtp.GREETING + zmtp.ready(socket_type)])

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self.socket.fileno()

    def shake_hands(self) -> str:
        """The type of the peer's socket; "" until enough has been read.

        Raises:
            ZmtpError: the peer does not follow the protocol, or is no peer for this socket.
        """
        return self._decoder.peer_type if self._decoder.shake_hands() else ""

    def read(self, flags: int = _DONTWAIT) -> bool:
        """Reads from the socket once.

        Returns:
            Whether anything was read; then there may be messages.
        """
        decoder = self._decoder
        try:
            rest = decoder.rest_of_frame()
            if rest is None:
                data = self.socket.recv(READ_BYTES, flags)
                if data:
                    decoder.feed(data)
                    self.drained = len(data) < READ_BYTES
                    return True
            else:
                count = self.socket.recv_into(rest, 0, flags)
                if count:
                    decoder.filled(count)
                    self.drained = count < len(rest)
                    return True
        except BlockingIOError:
            self.drained = True
            return False
        except ConnectionResetError:
            pass  # it ended, and has not read all that was sent to it
        self.ended = True
        return False

    def next_message(self) -> list[Any] | None:
        """The next message of those that have been read, or None.

        Raises:
            ZmtpError: the peer does not follow the protocol.
            MemoryError: there is no memory for a frame.
        """
        return self._decoder.next_message()

    @property
    def undecoded(self) -> bool:
        """Whether there may be another message in what has been read."""
        return self._decoder.undecoded

    @property
    def fills_frame(self) -> bool:
        """Whether the beginning of a large frame has been read, and not yet its end."""
        return self._decoder.rest_of_frame() is not None

    @property
    def pinged(self) -> bool:
        """Whether the peer has asked for signs of life: `answer_pings` is due."""
        return bool(self._decoder.pongs)

    def answer_pings(self) -> None:
        """Sends what the peer has asked for; not to a peer that does not read, for which it would pile up."""
        pongs, self._decoder.pongs = self._decoder.pongs, []
        if not self.unsent:
            self._write([b"".join(pongs)])

    @property
    def peer_type(self) -> str:
        """The type of the peer's socket; "" until its part of the handshake has been read."""
        return self._decoder.peer_type

    @property
    def knows_pings(self) -> bool:
        """Whether the peer has said that it answers heartbeats."""
        return self._decoder.knows_pings

    def ping(self) -> None:
        """Sends a heartbeat, behind what is kept."""
        self._write([zmtp.ping()])

    def send(self, message: Sequence[Any]) -> None:
        """Sends a message; what the kernel does not take at once is kept, in order."""
        self._write(zmtp.encode(message))

    def hold(self, message: Sequence[Any]) -> None:
        """Keeps a message, to be written by the next `send` or `flush`. Large frames must not change until then."""
        self._queue.extend(zmtp.encode(message))

    @property
    def kept(self) -> int:
        """How many buffers wait to be written, because they were held or the kernel has not taken them."""
        return len(self._queue)

    def _write(self, buffers: list[Any]) -> None:
        if self.unsent:
            self._queue.extend(buffers)
        elif len(buffers) == 1 and not self._queue:
            data = buffers[0]
            try:
                sent = self.socket.send(data, _DONTWAIT | _NOSIGNAL)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._queue.append(memoryview(data)[sent:])
                self.unsent = True
        else:
            self._queue.extend(buffers)
            self.flush()

    def flush(self, flags: int = _DONTWAIT) -> None:
        """Writes what is kept, as far as the kernel takes it."""
        queue = self._queue
        while queue:
            try:
                if len(queue) == 1:
                    sent = self.socket.send(queue[0], flags | _NOSIGNAL)
                else:
                    buffers = [queue[index] for index in range(min(len(queue), MAX_BUFFERS))]
                    sent = self.socket.sendmsg(buffers, (), flags | _NOSIGNAL)
            except BlockingIOError:
                break
            while queue and sent >= len(queue[0]):
                sent -= len(queue.popleft())
                self.written += 1
            if sent:
                queue[0] = memoryview(queue[0])[sent:]
                if flags & _DONTWAIT:
                    break  # the kernel has no room for more; a peer that reads fast does not keep the caller here
        self.unsent = bool(queue)

    def drop_unsent(self) -> None:
        """Forgets what is kept: the peer has gone."""
        self.written += len(self._queue)
        self._queue.clear()
        self.unsent = False

    def close(self) -> None:
        """Closes the connection; what is unsent is lost."""
        self.drop_unsent()
        self.socket.close()
