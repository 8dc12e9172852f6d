"""A connection of `stream_front`: its state, who has made it, and what tells that its replies have been written."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

from multitower.message_stream import MessageStream

from .unread import Backlog

_CREDENTIALS: Final = struct.Struct("3i")


class Credentials(NamedTuple):
    """Who has connected, as the kernel says (SO_PEERCRED of unix(7)): the process that called connect(2).

    Attributes:
        pid: its number; 0 where it is in another namespace.
        uid, gid: its effective user and group.
    """

    pid: int
    uid: int
    gid: int


def read_credentials(connection: socket.socket) -> Credentials:
    """Who has made a connection of a Unix socket.

    Raises:
        OSError: it has ended.
    """
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(packed))


class StreamPeer:
    """One connection.

    Args:
        name: the first address frame of its messages; no other connection gets it.
        stream: the connection.
        credentials: of the client's process.

    Attributes:
        name, stream, credentials: as given.
        address: the same as libzmq writes it into the property `Peer-Address` of a local connection.
        backlog: what it has not read.
        arrived: more may be read from it in this turn.
        queued: it is in the front's queue of those that may have messages.
        held: replies to it wait to be written.
        large: bytes of large frames among them.
        watches_output: the epoll tells when it is writable.
        open: it has sent a message.
    """

    __slots__ = (
        "address",
        "arrived",
        "backlog",
        "credentials",
        "descriptor",
        "held",
        "large",
        "name",
        "open",
        "queued",
        "stream",
        "watches_output",
    )

    def __init__(self, name: bytes, stream: MessageStream, credentials: Credentials) -> None:
        self.name = name
        self.stream = stream
        self.descriptor = stream.fileno()
        self.credentials = credentials
        self.address = f"local:{credentials.uid}:{credentials.gid}:{credentials.pid}"
        self.backlog = Backlog()
        self.arrived = False
        self.queued = False
        self.held = False
        self.large = 0
        self.watches_output = False
        self.open = False


class Written:
    """Tells whether all buffers have been written that a stream keeps now.

    Args:
        stream: that keeps them.
    """

    __slots__ = ("_position", "_stream")

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        self._position = stream.written + stream.kept

    @property
    def done(self) -> bool:
        """Whether the kernel has them, or the connection has ended."""
        return self._stream.written >= self._position
