"""A connection of `stream_front`: its state, who has made it, and what tells that its replies have been written."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

from multitower.message_stream import MessageStream

from .unread import Backlog

_CREDENTIALS: Final = struct.Struct("3i")


class Origin(NamedTuple):
    """Where a connection comes from.

    Attributes:
        address: over ipc who has connected, the same as libzmq writes it into the property `Peer-Address`; over tcp the
            address and the port.
        fields: that tell people so in the log.
    """

    address: str
    fields: dict[str, object]


def read_credentials(connection: socket.socket) -> Origin:
    """Which process has called connect(2) for a connection of a Unix socket (SO_PEERCRED of unix(7)).

    Raises:
        OSError: it has ended.
    """
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)  # the pid is 0 where it is in another namespace
    return Origin(f"local:{uid}:{gid}:{pid}", {"pid": pid})


def read_address(connection: socket.socket) -> Origin:
    """The address that a connection over tcp comes from.

    Raises:
        OSError: it has ended.
    """
    host, port = connection.getpeername()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Origin(address, {"client": address})


class StreamPeer:
    """One connection.

    Args:
        name: the first address frame of its messages; no other connection gets it.
        stream: the connection.
        origin: where it comes from.

    Attributes:
        name, stream, origin: as given.
        address: of its origin.
        backlog: what it has not read.
        arrived: more may be read from it in this turn.
        queued: it is in the front's queue of those that may have messages.
        held: replies to it wait to be written.
        large: bytes of large frames among them.
        watches_output: the epoll tells when it is writable.
        open: it has sent a message.
        heard: something has been read since the last heartbeat was due.
        missed: heartbeats in a row that were sent without anything read since.
    """

    __slots__ = (
        "address",
        "arrived",
        "backlog",
        "descriptor",
        "heard",
        "held",
        "large",
        "missed",
        "name",
        "open",
        "origin",
        "queued",
        "stream",
        "watches_output",
    )

    def __init__(self, name: bytes, stream: MessageStream, origin: Origin) -> None:
        self.name = name
        self.stream = stream
        self.descriptor = stream.fileno()
        self.origin = origin
        self.address = origin.address
        self.backlog = Backlog()
        self.arrived = False
        self.queued = False
        self.held = False
        self.large = 0
        self.watches_output = False
        self.open = False
        self.heard = False
        self.missed = 0


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
