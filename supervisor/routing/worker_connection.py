"""The router's end of the connection to one worker process.

`workers.child_process` creates one for each process that it spawns. The router sends batches through it and reads
results from it; every other message is passed on to `on_message`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from multitower.addresses import MAX_PATH_BYTES
from multitower.buffers import Buffers
from multitower.message_stream import MessageStream
from multitower.zmtp import ZmtpError

MAX_FREE_BYTES: Final = 32 << 20
"""Of memory for large frames of all workers that is used again."""

_buffers: Final = Buffers(MAX_FREE_BYTES)


class WorkerProtocolError(Exception):
    """A worker process sent a message that is malformed or that it must not send now; the process must be killed."""


def _ignore(_: object) -> None:
    """Handles nothing, until the owner of a connection has set its own handlers."""


def _nothing() -> None:
    """Likewise."""


class WorkerConnection:
    """A DEALER socket with one peer, the ROUTER socket that a worker process binds.

    What a process has sent can be read as soon as it has been sent: the kernel puts it into the buffer of this end. So
    once the process has ended, everything that it has sent has arrived.

    Args:
        path: of the socket that the process binds.

    Attributes:
        on_connected: called when the process has been reached: from then on the socket may be watched.
        on_ended: called when the process has closed its end, and everything that it sent has been read. The socket
            stays readable, so it must not be watched any more.
        on_message: called with each message that is not a result.
        on_error: called with the error when a result cannot be handled, or the socket fails: the process must be
            killed.
        on_unsent: called with True when something could not be written at once: `write` must be called when the socket
            is writable. Called with False when everything has been written.

    Raises:
        OSError: the path is too long for a socket, or the system is out of descriptors.
    """

    def __init__(self, path: str) -> None:
        length = len(os.fsencode(path))
        if length > MAX_PATH_BYTES:
            # Otherwise the process would fail to bind it, and its exit code would be all that is reported.
            raise OSError(
                errno.ENAMETOOLONG, f"the path has {length} bytes, and a socket's may have {MAX_PATH_BYTES}", path
            )
        self.on_connected: Callable[[], None] = _nothing
        self.on_ended: Callable[[], None] = _nothing
        self.on_message: Callable[[list[Any]], None] = _ignore
        self.on_error: Callable[[Exception], None] = _ignore
        self.on_unsent: Callable[[bool], None] = _ignore
        self._path = path
        # Now, so that a descriptor is there when the process has bound its socket.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._stream: MessageStream | None = None
        self._early: list[Sequence[Any]] = []  # what is to be sent once the process has been reached

    @property
    def connected(self) -> bool:
        """Whether the process has been reached."""
        return self._stream is not None

    @property
    def ended(self) -> bool:
        """Whether the process has closed its end, and everything that it sent has been read."""
        return self._stream is not None and self._stream.ended

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def connect(self) -> None:
        """Tries to reach the process, which has bound its socket; it must not be connected yet.

        Raises:
            OSError: the socket fails.
        """
        try:
            self._socket.connect(self._path)
            self._stream = MessageStream(self._socket, "DEALER", _buffers.allocate)
        except (BlockingIOError, ConnectionError, FileNotFoundError):
            return  # it has just ended, or its path has been removed
        self.on_connected()
        early, self._early = self._early, []
        for message in early:
            self.send(message)

    def send(self, message: Sequence[Any]) -> None:
        """Sends a message, without waiting. It is lost where the process has just ended.

        Before the process has been reached, it is kept: a spare may get its assignment while it starts.

        Raises:
            OSError: the socket fails.
            MemoryError: there is no memory for it.
        """
        stream = self._stream
        if stream is None:
            self._early.append(message)
            return
        unsent = stream.unsent
        try:
            stream.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # its end is noticed next, and what it had is given to others
        if stream.unsent and not unsent:
            self.on_unsent(True)

    def write(self) -> None:
        """Writes what could not be written when it was sent, as far as the process reads.

        Raises:
            OSError: the socket fails.
        """
        stream = self._stream
        if stream is not None and stream.unsent:
            try:
                stream.flush()
            except (BrokenPipeError, ConnectionResetError):
                stream.drop_unsent()
            if not stream.unsent:
                self.on_unsent(False)

    def read(self) -> bool:
        """Reads once; returns whether anything had arrived."""
        stream = self._stream
        if stream is None:
            return False
        arrived = stream.read()
        if stream.ended:
            stream.drop_unsent()  # `write` must not ask for a socket that is not watched any more
            self.on_ended()
        return arrived

    def receive(self) -> list[Any] | None:
        """The next message of those that have been read, or None.

        Raises:
            WorkerProtocolError: what has been read is no message.
        """
        if self._stream is None:
            return None
        try:
            message = self._stream.next_message()
        except ZmtpError as error:
            raise WorkerProtocolError(str(error)) from error
        if self._stream.pinged:
            self._stream.answer_pings()
        return message

    def close(self) -> None:
        """Closes the socket. No handler is called any more."""
        self._socket.close()
        # They refer to the process, which refers to this: its memory would wait for the collector of cycles.
        self.on_connected = self.on_ended = _nothing
        self.on_message = self.on_error = self.on_unsent = _ignore
